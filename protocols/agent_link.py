"""The link between agents and the cloud: MQTT 3.1.1 topics and payloads, both directions.

Topics are `karvon/1/{shard}/{station}/{up|down}/{channel}`. Payloads are JSON, deflated (RFC 1950)
where that is smaller; the first byte tells (`{` or 0x78). `docs/agent-link.md` is the
specification for other implementations; `tests/vectors/agent_link.json` holds golden messages.

What matters travels in numbered batches of three streams. A sequence number belongs to one batch
for ever: the cloud commits a number once and answers with the ranges it has committed, and only
then does the agent forget. Nothing rests on the broker.
"""

from __future__ import annotations

import re
import zlib
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar, get_args
from uuid import UUID

import msgspec

from protocols.quantities import MilliAmperes, Milliseconds, MilliVolts, WattHours, Watts

VERSION: Final = 1
SHARDS: Final = 64
MAX_STATION_LENGTH: Final = 48
MAX_INFLATED: Final = 8 * 1024 * 1024

Ranges = tuple[tuple[int, int], ...]
"""Sequence numbers as inclusive, ascending, disjoint, non-adjacent pairs."""


class LinkError(ValueError):
    """A topic or payload that breaks the agent link's rules; the text says which."""


# --------------------------------------------------------------------------- topics


class Up(StrEnum):
    """Channels from agent to cloud."""

    HELLO = "hello"
    BILLING = "billing"
    STATE = "state"
    TELEMETRY = "telemetry"
    PRESENCE = "presence"


class Down(StrEnum):
    """Channels from cloud to agent."""

    WELCOME = "welcome"
    ACK = "ack"
    COMMAND = "command"


_PLAIN = re.compile(r"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+\Z")


def escape(station: str) -> str:
    """Write a station identity so that no broker reads anything into it: `=XX` per UTF-8 byte.

    Raises LinkError for an empty or over-long (48 characters, OCPP's limit) identity.
    """
    if not 0 < len(station) <= MAX_STATION_LENGTH:
        raise LinkError(f"a station identity has 1 to {MAX_STATION_LENGTH} characters: {station!r}")
    try:
        return _PLAIN.sub(lambda m: "".join(f"={b:02X}" for b in m[0].encode()), station)
    except UnicodeEncodeError:
        raise LinkError(f"a station identity is Unicode text: {station!r}") from None


def unescape(level: str) -> str:
    """Read back what `escape` wrote; raises LinkError for anything it could not have written."""
    if not _ESCAPED.match(level):
        raise LinkError(f"not an escaped station identity: {level!r}")
    raw = re.sub(r"=([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), level)
    try:
        station = raw.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise LinkError(f"not UTF-8 behind the escapes: {level!r}") from None
    if escape(station) != level:
        raise LinkError(f"not the one way to write this identity: {level!r}")
    return station


def shard(station: str) -> str:
    """The station's shard, two hex digits: CRC-32 of the UTF-8 identity modulo 64."""
    return f"{zlib.crc32(station.encode()) % SHARDS:02x}"


def up_topic(station: str, channel: Up) -> str:
    return f"karvon/{VERSION}/{shard(station)}/{escape(station)}/up/{channel}"


def down_topic(station: str, channel: Down) -> str:
    return f"karvon/{VERSION}/{shard(station)}/{escape(station)}/down/{channel}"


def down_filter(station: str) -> str:
    return f"karvon/{VERSION}/{shard(station)}/{escape(station)}/down/+"


def up_filter(shard_id: str = "+") -> str:
    return f"karvon/{VERSION}/{shard_id}/+/up/+"


def parse_up_topic(topic: str) -> tuple[str, Up]:
    """Station and channel of an upward topic; raises LinkError for any other topic."""
    levels = topic.split("/")
    if len(levels) != 6 or levels[0] != "karvon" or levels[4] != "up":
        raise LinkError(f"not an agent's topic: {topic!r}")
    if levels[1] != str(VERSION):
        raise LinkError(f"agent link version {levels[1]!r} is not spoken here: {topic!r}")
    station = unescape(levels[3])
    if levels[2] != shard(station):
        raise LinkError(f"station {station!r} belongs to shard {shard(station)}: {topic!r}")
    try:
        return station, Up(levels[5])
    except ValueError:
        raise LinkError(f"no such channel: {topic!r}") from None


# --------------------------------------------------------------------------- time


class ClockQuality(StrEnum):
    """How far a wall time can be trusted."""

    SYNCED = "synced"
    """Disciplined by NTP or a trusted RTC."""
    CLOUD = "cloud"
    """Derived from the cloud's time in its welcome."""
    UNSET = "unset"
    """Not trusted: never set, before this software's release, or stepped back."""


class Stamp(msgspec.Struct, frozen=True):
    """When something happened: wall time, and where it stands on its boot's monotonic clock."""

    wall_ms: Milliseconds
    """Milliseconds since 1970-01-01 UTC."""
    mono_ms: Milliseconds
    """Milliseconds on the monotonic clock of `boot`."""
    boot: UUID
    quality: ClockQuality


# --------------------------------------------------------------------------- facts


class Stream(StrEnum):
    """An outbox's streams; each numbers its batches from 1."""

    BILLING = "billing"
    """Ordered per transaction, never evicted."""
    STATE = "state"
    """Latest wins."""
    TELEMETRY = "telemetry"
    """Any order; thins and may be evicted, a SeriesGap says so."""


class TransactionEventType(StrEnum):
    """OCPP 2.0.1 TransactionEventEnumType."""

    STARTED = "Started"
    UPDATED = "Updated"
    ENDED = "Ended"


class Trigger(StrEnum):
    """Why an event was made: the part of OCPP 2.0.1 TriggerReasonEnumType that we use."""

    AUTHORIZED = "Authorized"
    REMOTE_START = "RemoteStart"
    REMOTE_STOP = "RemoteStop"
    STOP_AUTHORIZED = "StopAuthorized"
    DEAUTHORIZED = "Deauthorized"
    CHARGING_STATE_CHANGED = "ChargingStateChanged"
    CHARGING_RATE_CHANGED = "ChargingRateChanged"
    CABLE_PLUGGED_IN = "CablePluggedIn"
    EV_DEPARTED = "EVDeparted"
    METER_VALUE_PERIODIC = "MeterValuePeriodic"
    ABNORMAL_CONDITION = "AbnormalCondition"
    RESET = "ResetCommand"


class ChargingState(StrEnum):
    """OCPP 2.0.1 ChargingStateEnumType."""

    IDLE = "Idle"
    EV_CONNECTED = "EVConnected"
    CHARGING = "Charging"
    SUSPENDED_EV = "SuspendedEV"
    SUSPENDED_EVSE = "SuspendedEVSE"


class StoppedReason(StrEnum):
    """The part of OCPP 2.0.1 ReasonEnumType that we use."""

    LOCAL = "Local"
    REMOTE = "Remote"
    EV_DISCONNECTED = "EVDisconnected"
    DEAUTHORIZED = "DeAuthorized"
    POWER_LOSS = "PowerLoss"
    GROUND_FAULT = "GroundFault"
    OTHER = "Other"


class IdToken(msgspec.Struct, frozen=True):
    """OCPP 2.0.1 IdTokenType; tokens compare without regard to case."""

    value: str
    type: str = "ISO14443"


MAX_SIGNED_BYTES: Final = 4096
MOST_SIGNED: Final = 4


class SignedMoment(StrEnum):
    """Which reading of its transaction a meter has signed (contexts of OCPP)."""

    BEGIN = "Transaction.Begin"
    END = "Transaction.End"


class SignedValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a meter has signed, byte by byte as it gave it; nobody on the way reads it."""

    moment: SignedMoment
    encoding: str
    """As the profile calls it, for example OCMF."""
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_SIGNED_BYTES)]
    public_key: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_BYTES)] = b""
    """As the meter tells it; empty: it does not."""


class TransactionEvent(msgspec.Struct, frozen=True, tag="transaction", tag_field="kind"):
    """One step of a transaction (OCPP 2.0.1 TransactionEvent), billing stream.

    Every event carries the whole measure of the transaction so far, so that events may arrive in
    any order, more than once, or not at all: the highest `seq_no` tells.
    """

    id: UUID
    transaction: UUID
    type: TransactionEventType
    seq_no: int
    at: Stamp
    trigger: Trigger
    evse: int
    started: Stamp
    charging_state: ChargingState
    energy_wh: WattHours
    """Energy of this transaction so far; what is billed."""
    meter_wh: WattHours
    """The agent's lifetime register of this EVSE (never runs back)."""
    raw_wh: WattHours | None = None
    """The board's own register as read, None when there was no reading."""
    duration_ms: Milliseconds = Milliseconds(0)
    """Since the start, from monotonic clocks; time without power is not in it."""
    id_token: IdToken | None = None
    connector: int = 1
    reason: StoppedReason | None = None
    command: UUID | None = None
    """The command that caused it, if one did."""
    billing_grade: bool = True
    """False: the profile says that this energy is not fit for billing."""
    signed: (
        Annotated[tuple[SignedValue, ...], msgspec.Meta(max_length=MOST_SIGNED)] | msgspec.UnsetType
    ) = msgspec.UNSET
    """At the end, where the meter signs; unset, and not on the wire, where it does not."""

    @property
    def signatures(self) -> tuple[SignedValue, ...]:
        """Of them, those there are."""
        return () if self.signed is msgspec.UNSET else self.signed


class SeriesGap(msgspec.Struct, frozen=True, tag="gap", tag_field="kind"):
    """Telemetry that was thinned away or evicted on the agent, billing stream (never lost)."""

    id: UUID
    evse: int
    first_ms: Milliseconds
    last_ms: Milliseconds
    samples: int
    cause: str


class ClockCorrected(msgspec.Struct, frozen=True, tag="clock", tag_field="kind"):
    """Wall time minus monotonic time of a boot became known: untrusted stamps can be re-dated."""

    id: UUID
    boot: UUID
    offset_ms: Milliseconds
    quality: ClockQuality


class SecurityEvent(msgspec.Struct, frozen=True, tag="security", tag_field="kind"):
    """Something the operator must be told and the agent must not forget (OCPP 2.0.1 A04)."""

    id: UUID
    at: Stamp
    type: str
    text: str


class CommandStatus(StrEnum):
    """Where a command stands, as the agent says."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EXECUTED = "executed"
    FAILED = "failed"
    EXPIRED = "expired"


class CommandResult(msgspec.Struct, frozen=True, tag="command", tag_field="kind"):
    """The answer to a command, billing stream: survives a restart between deed and answer."""

    id: UUID
    command: UUID
    at: Stamp
    status: CommandStatus
    text: str = ""
    transaction: UUID | None = None


BillingFact = TransactionEvent | SeriesGap | ClockCorrected | SecurityEvent | CommandResult


class ConnectorStatus(StrEnum):
    """OCPP 2.0.1 ConnectorStatusEnumType."""

    AVAILABLE = "Available"
    OCCUPIED = "Occupied"
    RESERVED = "Reserved"
    UNAVAILABLE = "Unavailable"
    FAULTED = "Faulted"


class EvseStatus(msgspec.Struct, frozen=True, tag="evse", tag_field="kind"):
    """An EVSE as it is now, state stream; key: evse."""

    evse: int
    at: Stamp
    status: ConnectorStatus
    charging_state: ChargingState
    transaction: UUID | None = None
    offered_ma: MilliAmperes | None = None
    limited_by: str = ""
    """Which limit holds: cable, board, site, command or failsafe."""
    error: str = ""
    measured_at: Stamp | None = None
    """When the board last answered; older than `at` by seconds means that it is silent."""


class LinkUse(msgspec.Struct, frozen=True):
    """What a network interface of the controller has carried, both ways, whoever caused it."""

    today_bytes: int
    month_bytes: int
    """Of the day and month in UTC."""
    metered: bool = False
    """It costs money by what it carries."""


class NetworkUse(msgspec.Struct, frozen=True):
    """The controller's ways to the network."""

    in_use: str | None
    """The interface that carries the default route; None: there is none."""
    links: dict[str, LinkUse]
    monthly_budget_bytes: int | None = None
    """Of all metered links together."""
    level: int = 0
    """How far telemetry is thinned to keep the budget: 0 not at all, 3 it waits on disk."""


class SettingsState(StrEnum):
    """How the settings from afar stand that an agent was told last."""

    PENDING = "pending"
    """They wait until nobody charges."""
    TRIAL = "trial"
    APPLIED = "applied"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


class SettingsUse(msgspec.Struct, frozen=True):
    """Which settings from afar an agent runs on, and what became of the last it was told."""

    version: int
    """Of those in force; 0: none, the configuration file alone."""
    told: int
    state: SettingsState
    """Of those that were told last."""
    reason: str = ""


class StationStatus(msgspec.Struct, frozen=True, tag="station", tag_field="kind"):
    """The controller as it is now, state stream."""

    at: Stamp
    agent_version: str
    boards: dict[str, str]
    """Board name -> identity, or what is wrong with it."""
    local_list_version: int
    pending_billing: int
    pending_telemetry: int
    journal_bytes: int
    alarms: tuple[str, ...] = ()
    """What keeps the agent from its duty now, e.g. a journal that cannot be written."""
    network: NetworkUse | msgspec.UnsetType = msgspec.UNSET
    """Unset, and not on the wire, where nobody counts."""
    settings: SettingsUse | msgspec.UnsetType = msgspec.UNSET
    """Unset by an agent that takes none."""
    hardware: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Hardware ids of releases that fit here: the controller's, and those of its boards."""


class UpdateState(StrEnum):
    """How an update is doing: the part of OCPP 2.0.1 FirmwareStatusEnumType that we use."""

    DOWNLOADING = "Downloading"
    DOWNLOAD_SCHEDULED = "DownloadScheduled"
    DOWNLOAD_PAUSED = "DownloadPaused"
    DOWNLOADED = "Downloaded"
    DOWNLOAD_FAILED = "DownloadFailed"
    SIGNATURE_VERIFIED = "SignatureVerified"
    INVALID_SIGNATURE = "InvalidSignature"
    INSTALL_SCHEDULED = "InstallScheduled"
    INSTALLING = "Installing"
    INSTALL_REBOOTING = "InstallRebooting"
    INSTALL_VERIFICATION_FAILED = "InstallVerificationFailed"
    INSTALLED = "Installed"
    INSTALLATION_FAILED = "InstallationFailed"


class UpdateStatus(msgspec.Struct, frozen=True, tag="update_status", tag_field="kind"):
    """How the latest update is doing, state stream; told again after each restart."""

    request: UUID | None
    """The director's; None for an update from a folder."""
    target: str
    """Its path among the images; empty as long as it is not known."""
    version: str
    state: UpdateState
    at: Stamp
    reason: str = ""


StateFact = EvseStatus | StationStatus | UpdateStatus


class Series(msgspec.Struct, frozen=True, omit_defaults=True):
    """Samples of one EVSE (0: the site meter) of one boot, column by column.

    Every column is as long as `dt_ms`. Its first number is absolute, each later one the
    difference to the last number before it; null means not measured. A column that was never
    measured is left out.
    """

    evse: int
    boot: UUID
    wall_ms: Milliseconds
    mono_ms: Milliseconds
    quality: ClockQuality
    every_ms: Milliseconds
    """1000 at full resolution; larger after thinning (a sample then stands for that long)."""
    dt_ms: tuple[int, ...]
    """Milliseconds since the sample before; the first is 0."""
    energy_wh: tuple[int | None, ...] = ()
    power_w: tuple[int | None, ...] = ()
    current_l1_ma: tuple[int | None, ...] = ()
    current_l2_ma: tuple[int | None, ...] = ()
    current_l3_ma: tuple[int | None, ...] = ()
    voltage_l1_mv: tuple[int | None, ...] = ()
    voltage_l2_mv: tuple[int | None, ...] = ()
    voltage_l3_mv: tuple[int | None, ...] = ()
    offered_ma: tuple[int | None, ...] = ()
    more: dict[str, tuple[int | None, ...]] = {}
    """Rare measurands: `name_unit` -> column."""


COLUMNS: Final = (
    "energy_wh",
    "power_w",
    "current_l1_ma",
    "current_l2_ma",
    "current_l3_ma",
    "voltage_l1_mv",
    "voltage_l2_mv",
    "voltage_l3_mv",
    "offered_ma",
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row of telemetry, before it becomes columns and after (lifetime energy, Wh)."""

    evse: int
    at: Stamp
    every_ms: Milliseconds = Milliseconds(1000)
    energy_wh: WattHours | None = None
    power_w: Watts | None = None
    current_l1_ma: MilliAmperes | None = None
    current_l2_ma: MilliAmperes | None = None
    current_l3_ma: MilliAmperes | None = None
    voltage_l1_mv: MilliVolts | None = None
    voltage_l2_mv: MilliVolts | None = None
    voltage_l3_mv: MilliVolts | None = None
    offered_ma: MilliAmperes | None = None


# --------------------------------------------------------------------------- messages up


class Batch(msgspec.Struct, frozen=True):
    """What all three streams share: which outbox, which number, what lies behind it."""

    outbox: UUID
    seq: int
    floor: int
    """Every number below is settled on the agent: committed, superseded or given up."""
    sent: Stamp


class BillingBatch(Batch, frozen=True):
    facts: tuple[BillingFact, ...]


class StateBatch(Batch, frozen=True):
    facts: tuple[StateFact, ...]


class TelemetryBatch(Batch, frozen=True):
    series: tuple[Series, ...]


class Mark(msgspec.Struct, frozen=True):
    """A stream as the agent holds it: the next free number, and the lowest it can still send."""

    next: int
    floor: int


class EvseDescription(msgspec.Struct, frozen=True):
    evse: int
    phases: int
    max_ma: MilliAmperes
    energy_step_wh: WattHours
    billing_grade: bool
    connectors: int = 1


class Hello(msgspec.Struct, frozen=True):
    """First on every connection; the agent sends no batch before it is welcomed."""

    outbox: UUID
    boots: tuple[UUID, ...]
    """This boot first, then earlier ones of this journal (up to 16): shows a cloned journal."""
    sent: Stamp
    marks: dict[Stream, Mark]
    agent_version: str
    evses: tuple[EvseDescription, ...]
    open_transactions: tuple[UUID, ...]
    local_list_version: int


class Presence(msgspec.Struct, frozen=True):
    """Retained; the agent's last will says offline."""

    online: bool
    boot: UUID


# --------------------------------------------------------------------------- messages down


class Verdict(StrEnum):
    GO_ON = "go_on"
    NEW_OUTBOX = "new_outbox"
    """A cloned or restored journal: take a new outbox id, move what is pending, greet again."""


class OpenTransaction(msgspec.Struct, frozen=True):
    """A transaction that the cloud holds open for this station: its last known measure."""

    transaction: UUID
    evse: int
    seq_no: int
    started: Stamp
    energy_wh: WattHours
    meter_wh: WattHours
    raw_wh: WattHours | None
    id_token: IdToken | None


class Welcome(msgspec.Struct, frozen=True):
    """The answer to a hello: what is committed, and what the agent may not know."""

    cloud: UUID
    """Changes with every start of the cloud; another one in an ack asks for a new hello."""
    outbox: UUID
    verdict: Verdict
    now_ms: Milliseconds
    committed: dict[Stream, Ranges]
    open_transactions: tuple[OpenTransaction, ...] = ()
    ended_transactions: tuple[UUID, ...] = ()
    """Those of the hello's open transactions that the cloud knows to be over."""
    local_list_version: int = 0


class Ack(msgspec.Struct, frozen=True):
    """Numbers of a stream that are committed in the cloud's database (or dead-lettered there)."""

    cloud: UUID
    outbox: UUID
    stream: Stream
    ranges: Ranges


class RemoteStart(msgspec.Struct, frozen=True, tag="remote_start", tag_field="action"):
    evse: int
    id_token: IdToken


class RemoteStop(msgspec.Struct, frozen=True, tag="remote_stop", tag_field="action"):
    transaction: UUID


class SetLimit(msgspec.Struct, frozen=True, tag="set_limit", tag_field="action"):
    """Limit one EVSE (or, at 0, the whole site's share) until it expires; None lifts the limit."""

    evse: int
    limit_ma: MilliAmperes | None
    valid_ms: Milliseconds
    """From receipt; when it has passed without a new limit, the failsafe current holds."""


class SetAvailability(msgspec.Struct, frozen=True, tag="set_availability", tag_field="action"):
    """Take an EVSE (0: all) out of service after its transaction, or back into service."""

    evse: int
    operative: bool


class LocalListEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    id_token: IdToken
    expires_ms: Milliseconds | None = None
    group: str | None = None
    blocked: bool = False


class SetLocalList(msgspec.Struct, frozen=True, tag="set_local_list", tag_field="action"):
    """Replace the local authorization list."""

    version: int
    entries: tuple[LocalListEntry, ...]


class Watch(msgspec.Struct, frozen=True, tag="watch", tag_field="action"):
    """Somebody looks at an EVSE (0: all): send telemetry more often until it expires.

    Asking again prolongs it. It changes when samples are sent, not what is measured or kept.
    """

    evse: int
    every_ms: Milliseconds
    """How often a batch shall leave; the agent may do with less, and never with less than 1 s."""
    valid_ms: Milliseconds
    """From receipt; at most 15 minutes count."""


MOST_WATCH_MS: Final = Milliseconds(15 * 60_000)
LEAST_WATCH_EVERY_MS: Final = Milliseconds(1000)


class Update(msgspec.Struct, frozen=True, tag="update", tag_field="action"):
    """The director has something new for this station: look there now.

    It carries no software and no address: what may be installed is said by signed metadata alone.
    """

    request: UUID


class Configure(msgspec.Struct, frozen=True, tag="configure", tag_field="action"):
    """Replace the settings from afar; what became of it is told with the station's status.

    An older version than the last that was told changes nothing.
    """

    version: int
    document: dict[str, Any]
    """As `protocols.agent_settings.AgentSettings`; read by the agent, which says what is wrong."""


Action = (
    RemoteStart
    | RemoteStop
    | SetLimit
    | SetAvailability
    | SetLocalList
    | Watch
    | Update
    | Configure
)


class Command(msgspec.Struct, frozen=True):
    """Do this once, before it expires; the same id again is answered with the same result."""

    id: UUID
    issued_ms: Milliseconds
    valid_ms: Milliseconds
    """Cloud time: the command dies at issued_ms + valid_ms (the welcome gives the cloud's time)."""
    do: Action


class UnknownCommand(msgspec.Struct, frozen=True):
    """A command of a later version: its action has a name that is not known here."""

    id: UUID
    action: str


# --------------------------------------------------------------------------- wire form

UP_TYPES: Final[dict[Up, type[msgspec.Struct]]] = {
    Up.HELLO: Hello,
    Up.BILLING: BillingBatch,
    Up.STATE: StateBatch,
    Up.TELEMETRY: TelemetryBatch,
    Up.PRESENCE: Presence,
}
DOWN_TYPES: Final[dict[Down, type[msgspec.Struct]]] = {
    Down.WELCOME: Welcome,
    Down.ACK: Ack,
    Down.COMMAND: Command,
}

_ENCODER = msgspec.json.Encoder()
_UP_DECODERS = {channel: msgspec.json.Decoder(kind) for channel, kind in UP_TYPES.items()}
_DOWN_DECODERS = {channel: msgspec.json.Decoder(kind) for channel, kind in DOWN_TYPES.items()}
_DEFLATE_FROM = 200
"""Below this many bytes deflate saves nothing worth its header."""

T = TypeVar("T", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    """A message as it goes over the wire: JSON, deflated where that is smaller."""
    plain = _ENCODER.encode(message)
    if len(plain) < _DEFLATE_FROM:
        return plain
    packed = zlib.compress(plain, 6)
    return packed if len(packed) < len(plain) else plain


def _inflate(payload: bytes) -> bytes:
    if payload[:1] != b"\x78":
        return payload
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(payload, MAX_INFLATED)
    except zlib.error as error:
        raise LinkError(f"damaged deflate data: {error}") from None
    if not unpacker.eof or unpacker.unused_data:
        raise LinkError(f"deflate data is cut, trailed, or larger than {MAX_INFLATED} bytes")
    return plain


def _decode(decoder: msgspec.json.Decoder[T], payload: bytes) -> T:
    try:
        return decoder.decode(_inflate(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(str(error)) from None


def decode_up(channel: Up, payload: bytes) -> msgspec.Struct:
    """A message from an agent, of the channel's type in UP_TYPES; raises LinkError."""
    return _decode(_UP_DECODERS[channel], payload)


def decode_down(channel: Down, payload: bytes) -> msgspec.Struct:
    """A message from the cloud, of the channel's type in DOWN_TYPES; raises LinkError.

    A command whose only fault is an action of a later version becomes an UnknownCommand, so that
    it can be answered.
    """
    try:
        return _decode(_DOWN_DECODERS[channel], payload)
    except LinkError:
        if channel is Down.COMMAND and (unknown := _unknown_command(payload)) is not None:
            return unknown
        raise


class _AnyDo(msgspec.Struct):
    action: str


class _AnyCommand(msgspec.Struct):
    id: UUID
    do: _AnyDo


_ANY_COMMAND = msgspec.json.Decoder(_AnyCommand)
_ACTIONS: Final = frozenset(str(one.__struct_config__.tag) for one in get_args(Action))


def _unknown_command(payload: bytes) -> UnknownCommand | None:
    try:
        found = _decode(_ANY_COMMAND, payload)
    except LinkError:
        return None
    return None if found.do.action in _ACTIONS else UnknownCommand(found.id, found.do.action)
