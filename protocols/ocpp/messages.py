"""What a station tells and is told, whichever OCPP version it speaks.

`v16.py`, `v201.py` and `v21.py` read their payloads into these messages and write the answers; no
module above them asks for the version. Words and enumerations are OCPP 2.0.1's: 1.6's connector n
is EVSE n with connector 1, its connector 0 is EVSE 0, the station itself. Times are Unix
milliseconds, UTC. Energy, power, current and voltage are the integers of `protocols.quantities`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec

from protocols.agent_link import (
    ChargingState,
    ConnectorStatus,
    IdToken,
    TransactionEventType,
)
from protocols.quantities import MilliAmperes, Milliseconds, MilliVolts, WattHours, Watts

# --------------------------------------------------------------------------- measured values


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One moment's measured values of an EVSE (OCPP 2.0.1 MeterValueType, our units).

    `energy_wh` is the import register, a total of the phases when only phases were sent (quirk
    S18). None means not measured.
    """

    at_ms: Milliseconds
    context: str = "Sample.Periodic"
    energy_wh: WattHours | None = None
    power_w: Watts | None = None
    current_l1_ma: MilliAmperes | None = None
    current_l2_ma: MilliAmperes | None = None
    current_l3_ma: MilliAmperes | None = None
    voltage_l1_mv: MilliVolts | None = None
    voltage_l2_mv: MilliVolts | None = None
    voltage_l3_mv: MilliVolts | None = None
    offered_ma: MilliAmperes | None = None
    more: dict[str, int] = {}
    """Rare measurands as `name_unit`, in thousandths of the unit where that keeps digits."""
    raw: tuple[str, ...] = ()
    """Values that no unit of ours holds, as `measurand=value unit`: kept, never billed (S15)."""
    signed: tuple[str, ...] = ()
    """Signed meter data (OCMF and the like), carried through untouched."""


# --------------------------------------------------------------------------- from the station


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="told"
):
    """What all messages of a station share."""


class Boot(Message, frozen=True, kw_only=True, tag="boot"):
    """B01; 1.6 BootNotification."""

    vendor: str
    model: str
    reason: str = "Unknown"
    serial: str = ""
    firmware: str = ""
    iccid: str = ""
    imsi: str = ""
    meter_type: str = ""
    meter_serial: str = ""


class Heartbeat(Message, frozen=True, kw_only=True, tag="heartbeat"):
    """G02: answered from memory."""


class Authorize(Message, frozen=True, kw_only=True, tag="authorize"):
    """C01 and C07; answered from memory where it can be."""

    id_token: IdToken
    evses: tuple[int, ...] = ()
    certificate: str = ""
    certificate_hashes: tuple[dict[str, Any], ...] = ()


class Status(Message, frozen=True, kw_only=True, tag="status"):
    """G01; 1.6 StatusNotification. EVSE 0 is the station (S21, S31)."""

    evse: int
    connector: int
    status: ConnectorStatus
    at_ms: Milliseconds | None = None
    charging_state: ChargingState | None = None
    """1.6 tells it here, 2.x in transaction events (None)."""
    error: str = ""
    """1.6's errorCode but for NoError, with vendor's code and info behind it."""


class Transaction(Message, frozen=True, kw_only=True, tag="transaction"):
    """E01 to E15: a transaction begins, goes on or ends.

    2.x gives `key` and `seq_no`. 1.6's start has neither: it is known by what it says (S4). Its
    later messages carry the number that `Answer.number` gave, as `key`; -1 and 0 come from starts
    that were never answered (S1).
    """

    event: TransactionEventType
    at_ms: Milliseconds
    trigger: str
    """OCPP 2.0.1 TriggerReasonEnumType."""
    key: str | None = None
    number: int | None = None
    """1.6's transactionId; None for a start and for every 2.x message."""
    seq_no: int | None = None
    evse: int = 0
    """0: not told (1.6 StopTransaction)."""
    connector: int = 1
    id_token: IdToken | None = None
    stop_token: bool = False
    """The id token is the one that stopped it, not necessarily the one that started it."""
    charging_state: ChargingState | None = None
    reason: str | None = None
    """OCPP 2.0.1 ReasonEnumType; with 1.6's HardReset as ImmediateReset, SoftReset as Reboot."""
    offline: bool = False
    register_wh: WattHours | None = None
    """1.6's meterStart or meterStop."""
    readings: tuple[Reading, ...] = ()
    reservation: int | None = None
    remote_start_id: int | None = None
    time_spent_s: int | None = None
    clock_trusted: bool = True


class Meter(Message, frozen=True, kw_only=True, tag="meter"):
    """J01; 1.6 MeterValues. EVSE 0 is the station's main meter."""

    evse: int
    readings: tuple[Reading, ...]
    number: int | None = None
    """1.6's transactionId, where given (S3)."""
    connector: int = 1
    clock_trusted: bool = True


class Security(Message, frozen=True, kw_only=True, tag="security"):
    """A04 SecurityEventNotification."""

    type: str
    at_ms: Milliseconds
    text: str = ""


class Firmware(Message, frozen=True, kw_only=True, tag="firmware"):
    """L01: where an update stands, in 2.0.1's FirmwareStatusEnumType."""

    status: str
    request_id: int | None = None
    location: tuple[str, ...] = ()
    """Where a local controller published it (L03)."""
    published: bool = False


class Log(Message, frozen=True, kw_only=True, tag="log"):
    """N01: where an upload of a log or of diagnostics stands (UploadLogStatusEnumType)."""

    status: str
    request_id: int | None = None


class Variable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One variable of the device model (B07), or one of 1.6's configuration keys.

    1.6's keys have the component `ChargingStation` and themselves as the variable's name.
    """

    component: str
    variable: str
    component_instance: str = ""
    variable_instance: str = ""
    evse: int | None = None
    connector: int | None = None
    attribute: str = "Actual"
    value: str | None = None
    """None: known to be there, its value not told (write-only, or missing)."""
    mutability: str = "ReadWrite"
    characteristics: dict[str, Any] = {}
    """Unit, data type, limits, values list, as told."""


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """B07/B08 NotifyReport: a part of what the device model holds."""

    request_id: int
    seq_no: int
    more: bool
    at_ms: Milliseconds
    variables: tuple[Variable, ...]


class SignCertificate(Message, frozen=True, kw_only=True, tag="sign_certificate"):
    """A02, A03: asks for a certificate of its own."""

    csr: str
    type: str = "ChargingStationCertificate"


class DataTransfer(Message, frozen=True, kw_only=True, tag="data_transfer"):
    """P01."""

    vendor: str
    message: str = ""
    data: Any = None


class Notice(Message, frozen=True, kw_only=True, tag="notice"):
    """Whatever else a station tells, by its 2.x action and payload: kept, shown, passed on.

    NotifyEvent, NotifyMonitoringReport, NotifyCustomerInformation, NotifyDisplayMessages,
    NotifyChargingLimit, ClearedChargingLimit, ReportChargingProfiles, ReservationStatusUpdate,
    NotifyEVChargingNeeds, NotifyEVChargingSchedule, Get15118EVCertificate, GetCertificateStatus,
    and 2.1's additions.
    """

    action: str
    payload: dict[str, Any]


class Connected(Message, frozen=True, kw_only=True, tag="connected"):
    """The gateway itself: the station's WebSocket was admitted. `Answer.epoch` fences the rest."""

    gateway: UUID
    version: str
    security_profile: int
    address: str


class Disconnected(Message, frozen=True, kw_only=True, tag="disconnected"):
    """The gateway itself: the socket is gone; says nothing about a newer one."""

    gateway: UUID
    reason: str


class Answered(Message, frozen=True, kw_only=True, tag="answered"):
    """The station's answer to a command of ours."""

    command: UUID
    action: str
    """As it went over the wire."""
    request: dict[str, Any]
    response: dict[str, Any] | None
    """None when it refused with CALLERROR or never answered."""
    accepted: bool = False
    text: str = ""
    """The status it gave, or why there is no response."""
    variables: tuple[Variable, ...] = ()
    """What a GetConfiguration, GetVariables, ChangeConfiguration or SetVariables has shown."""


Told = (
    Boot
    | Heartbeat
    | Authorize
    | Status
    | Transaction
    | Meter
    | Security
    | Firmware
    | Log
    | Report
    | SignCertificate
    | DataTransfer
    | Notice
    | Connected
    | Disconnected
    | Answered
)

# --------------------------------------------------------------------------- answers


class TokenStatus(StrEnum):
    """The part of OCPP 2.0.1 AuthorizationStatusEnumType that a cloud gives."""

    ACCEPTED = "Accepted"
    BLOCKED = "Blocked"
    EXPIRED = "Expired"
    INVALID = "Invalid"
    UNKNOWN = "Unknown"
    CONCURRENT_TX = "ConcurrentTx"
    NO_CREDIT = "NoCredit"
    NOT_ALLOWED = "NotAtThisLocation"


class TokenInfo(msgspec.Struct, frozen=True, gc=False):
    """OCPP 2.0.1 IdTokenInfoType."""

    status: TokenStatus
    expires_ms: Milliseconds | None = None
    group: str | None = None
    language: str | None = None
    personal_message: str | None = None


class Registration(StrEnum):
    """RegistrationStatusEnumType."""

    ACCEPTED = "Accepted"
    PENDING = "Pending"
    REJECTED = "Rejected"


class Answer(msgspec.Struct, kw_only=True):
    """What a message is answered with; whoever knows a part fills it in before the commit ends.

    Only the parts that a message's own answer has are read.
    """

    now_ms: Milliseconds
    registration: Registration = Registration.ACCEPTED
    interval_s: int = 300
    token: TokenInfo | None = None
    number: int | None = None
    """1.6's transactionId for a start."""
    total_cost: str | None = None
    """Decimal in major units of the tariff's currency, running or final (2.x)."""
    status: str = "Accepted"
    """Of SignCertificate, DataTransfer, certificate messages."""
    data: Any = None
    """Of DataTransfer; the whole payload for a Notice whose answer has fields of its own."""
    epoch: int = 0
    """Of Connected: higher than that of every earlier connection of the station."""
    unstored: str = ""
    """Why nobody could store the message: it is a dead letter then, and no repeat would help."""


HEARTBEAT: Final = Heartbeat()
