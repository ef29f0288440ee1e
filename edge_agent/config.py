"""The agent's configuration: one TOML file, checked as a whole before anything is done with it.

Paths in it are relative to the folder it lies in. `edge_agent/example.toml` shows every setting.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from edge_agent.hardware.modbus_port import ModbusLink
from protocols.agent_link import LinkError, escape
from protocols.quantities import IEC_MIN_CURRENT


class ConfigError(Exception):
    """The configuration cannot be used; the text says where, why, and what is allowed."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; a name that does not belong there is refused."""


class Device(Part, frozen=True, kw_only=True):
    """A meter: what it is and how it is connected."""

    profile: str
    link: ModbusLink
    kind: Literal["modbus"] = "modbus"
    options: tuple[str, ...] = ()


class FirmwarePart(Part, frozen=True, kw_only=True):
    """How new firmware comes into a board: by releases of kind board, with that name."""

    name: str
    """Of the releases; boards with the same name always run the same version."""
    loader: Literal["stm32", "smp", "modbus"]
    hw_ids: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """What the board is; an image for any of them fits."""
    device: str = ""
    """The line or tcp://HOST:PORT of its loader; empty: the board's own."""
    baudrate: int | None = None
    parity: Literal["none", "even", "odd"] | None = None
    unit: Annotated[int, msgspec.Meta(ge=1, le=247)] = 1
    """Of a Modbus loader."""
    pins: str | None = None
    """STM32: what drives BOOT0 and reset, such as rts,dtr."""


class BoardPart(Part, frozen=True, kw_only=True):
    """A power board and the station's EVSE numbers behind it, in the board's own order."""

    name: str
    link: ModbusLink
    kind: Literal["modbus", "serial_board"] = "modbus"
    """serial_board: one of our own on a plain serial line, which needs no profile."""
    profile: str = ""
    options: tuple[str, ...] = ()
    meter: Device | None = None
    """A meter in this board's feed, where the board has none that counts; for one EVSE."""
    meter_stale_after_s: Annotated[float, msgspec.Meta(ge=5, le=600)] = 30.0
    """A meter that is silent for so long stops the charging: nobody charges without it."""
    firmware: FirmwarePart | None = None
    """None: its firmware is not installed from here."""
    evses: tuple[int, ...] = (1,)
    cable_ma: int | None = None
    """The weakest cable behind this board; None: as strong as the board."""
    phase_rotation: Literal["RST", "RTS", "SRT", "STR", "TRS", "TSR"] = "RST"
    """The site's lines (R, S, T) on the board's L1, L2, L3."""
    priority: int = 0
    """Higher ones get more where there is not enough for all."""
    surplus: bool = False
    """It charges only on what the sun leaves over."""


class SurplusPart(Part, frozen=True, kw_only=True):
    """When boards with `surplus` start and stop (W, s)."""

    start_margin_w: int = 200
    import_w: int = 500
    start_after_s: int = 60
    stop_after_s: int = 180
    min_on_s: int = 300
    min_off_s: int = 300


class MemberPart(Part, frozen=True, kw_only=True):
    """A controller that follows this one, and the share that is always its own."""

    station: str
    share_ma: int


class SitePart(Part, frozen=True, kw_only=True):
    """What this controller's EVSEs may take together (mA per phase)."""

    limit_ma: int | tuple[int, int, int]
    """One for all phases, or one for each. Without a meter the EVSEs' share, with one the fuse of
    the whole site."""
    meter: Device | None = None
    safe_share_ma: int = IEC_MIN_CURRENT
    stale_after_s: float = 5.0
    unbalance_ma: int | None = None
    turn_min: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 15
    surplus: SurplusPart = SurplusPart()
    role: Literal["alone", "leader", "follower"] = "alone"
    """Who decides where several controllers are behind one fuse."""
    key: str = "site.key"
    """A file with the same secret for all controllers of the site."""
    listen: str = "0.0.0.0:7461"  # the leader serves the site's network
    leader: str | None = None
    """Where a follower finds it: host:port."""
    share_ma: int | None = None
    """What this controller takes by itself when the controllers do not hear each other."""
    members: tuple[MemberPart, ...] = ()
    lease_s: Annotated[float, msgspec.Meta(ge=2, le=60)] = 10.0

    @property
    def lines(self) -> tuple[int, int, int]:
        """The limit of each phase."""
        return (self.limit_ma,) * 3 if isinstance(self.limit_ma, int) else self.limit_ma


class FailsafePart(Part, frozen=True, kw_only=True):
    """What a board does by itself when the agent falls silent."""

    timeout_s: int = 60
    current_ma: int = IEC_MIN_CURRENT


Carried = Literal["transactions", "status", "telemetry"]
"""What an uplink carries: transactions with authorization and the local list, what EVSEs are now,
measured values."""
EVERYTHING: Final[tuple[Carried, ...]] = ("transactions", "status", "telemetry")


class OcppPart(Part, frozen=True, kw_only=True):
    """An OCPP backend, to which the agent is a charging station."""

    url: str
    """ws:// or wss://; the identity is put behind it."""
    version: Literal["1.6", "2.0.1"] = "1.6"
    identity: str | None = None
    """None: the station's."""
    security_profile: Annotated[int, msgspec.Meta(ge=0, le=3)] | None = None
    """None: what `url`, `password` and `certificate` make."""
    password: str | None = None
    """A file of its owner only, with the password and nothing else."""
    ca: str | None = None
    """The certificate authority's PEM file; None: the system's authorities."""
    certificate: str | None = None
    key: str | None = None
    """The station's own, PEM files."""
    carries: tuple[Carried, ...] = EVERYTHING
    vendor: str = "Karvon"
    model: str = "Agent"
    replay_per_second: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    """Messages that waited for the connection; what comes up meanwhile is not held back."""
    ping_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    longest_retry_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 60.0

    @property
    def profile(self) -> int:
        """The security profile."""
        if self.security_profile is not None:
            return self.security_profile
        if self.certificate is not None:
            return 3
        if self.password is None:
            return 0
        return 2 if self.url.startswith("wss:") else 1


class LinkPart(Part, frozen=True, kw_only=True):
    """A network interface; which one carries the default route is the system's choice."""

    interface: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    metered: bool = False
    """It costs money by what it carries."""


class UplinkPart(Part, frozen=True, kw_only=True):
    """The cloud; `karvon agent claim` fills the credentials file."""

    credentials: str = "credentials.json"
    url: str | None = None
    """mqtts://host:port; None: as the credentials file says."""
    ca: str | None = None
    """The certificate authority's PEM file; None: `ca.pem` beside the credentials if there."""
    telemetry_every_s: Annotated[float, msgspec.Meta(ge=0.5, le=3600)] = 60.0
    """How often telemetry goes out while all is well; each message costs about 300 bytes."""
    links: tuple[LinkPart, ...] = ()
    """The controller's ways to the network, the preferred one first."""
    metered: tuple[str, ...] = ()
    """Network interfaces that cost money by what they carry, as `links` with `metered`."""
    monthly_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """What these together may carry in a calendar month; telemetry is thinned to keep it."""
    longest_retry_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    """Attempts to connect come twice as far apart each time, up to this."""
    carries: tuple[Carried, ...] | None = None
    """None: what `ocpp` does not carry, and with it everything where there is no `ocpp`."""
    ocpp: OcppPart | None = None


class FaultsPart(Part, frozen=True, kw_only=True):
    """When a fault that has cleared keeps the EVSE out of service until somebody confirms."""

    lock_after: Annotated[int, msgspec.Meta(ge=0)] = 5
    lock_within_s: Annotated[int, msgspec.Meta(ge=60)] = 3600
    confirm_codes: tuple[int, ...] = ()


class AuthorizationPart(Part, frozen=True, kw_only=True):
    """What happens to an id token that is not in the local list."""

    unknown: Literal["deny", "allow"] = "deny"
    unknown_cap_ma: int | None = None
    unknown_energy_wh: Annotated[int, msgspec.Meta(ge=0)] | None = None


class JournalPart(Part, frozen=True, kw_only=True):
    folder: str
    telemetry_mib: int = 64
    on_error: Literal["continue", "stop"] = "continue"
    """Running transactions while the disk refuses; new ones never start then."""


class TimesPart(Part, frozen=True, kw_only=True):
    """Intervals in seconds."""

    poll_s: float = 1.0
    deadline_s: float = 4.0
    lost_after_s: float = 5.0
    checkpoint_s: int = 60
    checkpoint_wh: int = 500
    event_s: int = 300
    connection_timeout_s: int = 60
    fault_grace_s: int = 60
    raise_after_s: int = 10


class MeteringPart(Part, frozen=True, kw_only=True):
    margin: int = 2
    """Times the rated energy that a reading may gain before it is doubted; above 2 only against a
    simulator whose time is accelerated."""


class LocalPagePart(Part, frozen=True, kw_only=True):
    """A read-only page for a technician beside the controller; without the table there is none."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    address: str = "127.0.0.1"
    """Whoever reaches it sees the page, without login."""


class UpdatesPart(Part, frozen=True, kw_only=True):
    """New versions of the agent; without the table none are taken."""

    images_root: str = "images.root.json"
    """The release makers' first root metadata, as it was handed over: trust begins with it."""
    director_root: str | None = None
    """The cloud's; None: nobody directs, and only `karvon agent update --from` installs."""
    url: str | None = None
    """Where the cloud shows releases, https://…; None: nowhere."""
    ca: str | None = None
    """The certificate authority's PEM file; None: the system's authorities."""
    folder: str = "updates"
    """Floors, metadata and downloads; put it on the disk that the slots are on."""
    hardware: str | None = None
    """The hardware id of releases that fit; None: as system, machine and Python say."""
    rate_kib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """KiB a second that downloads may take; None: as fast as it goes."""
    check_every_h: Annotated[float, msgspec.Meta(ge=0.1, le=168)] = 6.0
    """Beside the cloud's word: how often to look for something new."""
    hold_free_evses: bool = True
    """While an update waits for those who charge, nobody else may begin."""


class Config(Part, frozen=True, kw_only=True):
    """The whole file."""

    station: str
    journal: JournalPart
    boards: tuple[BoardPart, ...]
    uplink: UplinkPart | None = None
    updates: UpdatesPart | None = None
    site: SitePart | None = None
    failsafe: FailsafePart = FailsafePart()
    faults: FaultsPart = FaultsPart()
    authorization: AuthorizationPart = AuthorizationPart()
    times: TimesPart = TimesPart()
    metering: MeteringPart = MeteringPart()
    local_page: LocalPagePart | None = None
    base: str = ""
    """Not for the file: the folder it lies in."""

    @property
    def metered(self) -> frozenset[str]:
        """Interfaces that cost money."""
        part = self.uplink
        if part is None:
            return frozenset()
        return frozenset(part.metered) | {one.interface for one in part.links if one.metered}

    @property
    def ocpp(self) -> OcppPart | None:
        return None if self.uplink is None else self.uplink.ocpp

    @property
    def mqtt_carries(self) -> tuple[Carried, ...]:
        """What goes over the agent link; nothing: it is not used."""
        if self.uplink is None:
            return ()
        if self.uplink.carries is not None:
            return self.uplink.carries
        taken = () if self.uplink.ocpp is None else self.uplink.ocpp.carries
        return tuple(one for one in EVERYTHING if one not in taken)

    def path(self, name: str) -> Path:
        """A path of this configuration, made absolute."""
        return Path(self.base, name).expanduser().absolute()


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give the agent's TOML file with --config"
        ) from error
    return msgspec.structs.replace(parse(text, str(path)), base=str(path.absolute().parent))


def parse(text: str, name: str) -> Config:
    """A configuration from its text. Raises ConfigError with `name`, the path and the remedy."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
    return checked(plain, name)


def checked(plain: dict[str, Any], name: str) -> Config:
    """A configuration from its plain tables. Raises ConfigError as `parse` does."""
    try:
        config = msgspec.convert(plain, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explained(str(error))}") from None
    problem = next(_problems(config), None)
    if problem is not None:
        raise ConfigError(f"{name}: {problem}")
    return config


def _problems(config: Config) -> Any:
    """What a type cannot say, as path and reason."""
    try:
        escape(config.station)
    except LinkError as error:
        yield f"station: {error}"
    if config.base:
        yield "base: not a setting; paths are relative to the file's folder"
    if not config.boards:
        yield "boards: at least one [[boards]] is needed"
    if config.local_page is not None:
        yield from _address_problems(config.local_page.address)
    if config.updates is not None:
        yield from _updates_problems(config.updates)
    yield from _board_problems(config)
    yield from _uplink_problems(config)
    yield from _number_problems(config)


def _address_problems(address: str) -> Any:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        yield f"local_page.address: an address such as 127.0.0.1 or 0.0.0.0, not '{address}'"


def _updates_problems(part: UpdatesPart) -> Any:
    if (part.url is None) is not (part.director_root is None):
        yield "updates: url and director_root belong together; give both, or neither"
    address = urlsplit(part.url or "https://none")
    loopback = address.hostname in {"127.0.0.1", "localhost", "::1"}
    if address.scheme != "https" and not (address.scheme == "http" and loopback):
        yield f"updates.url: '{part.url}' is not https://host[:port][/path]"


def _board_problems(config: Config) -> Any:
    names, numbers = set(), set()
    for index, board in enumerate(config.boards):
        if board.name in names:
            yield f"boards[{index}].name: '{board.name}' is used twice"
        names.add(board.name)
        if not board.evses:
            yield f"boards[{index}].evses: name at least one EVSE number"
        yield from _kind_problems(index, board)
        for number in board.evses:
            if number < 1:
                yield f"boards[{index}].evses: EVSE numbers start at 1, not {number}"
            if number in numbers:
                yield f"boards[{index}].evses: EVSE {number} is there already"
            numbers.add(number)


def _kind_problems(index: int, board: BoardPart) -> Any:
    """A Modbus device needs a profile that says what it is; a board of our own says it itself."""
    serial = board.kind == "serial_board"
    if not serial and not board.profile:
        yield f"boards[{index}].profile: name the profile of this device"
    if serial and board.profile:
        yield f'boards[{index}].profile: kind = "serial_board" needs none; take it out'
    if serial != (board.link.kind == "serial"):
        wanted = '"serial" for kind = "serial_board"' if serial else '"tcp" or "rtu"'
        yield f'boards[{index}].link.kind: {wanted}, not "{board.link.kind}"'
    if board.meter is not None and len(board.evses) != 1:
        yield f"boards[{index}].meter: one meter cannot tell {len(board.evses)} EVSEs apart"
    if serial and not board.link.device:
        yield f"boards[{index}].link.device: name the line, best by /dev/serial/by-id/…"
    if board.firmware is not None:
        yield from _firmware_problems(index, board, board.firmware)
    if not serial and board.link.rts != "none":
        yield f'boards[{index}].link.rts: only for kind = "serial_board"'


def _firmware_problems(index: int, board: BoardPart, part: FirmwarePart) -> Any:
    where = f"boards[{index}].firmware"
    if not NAME.fullmatch(board.name):
        yield f"{where}: its journal is named like the board: letters, digits, - and _ only"
    if not part.device and not board.link.device and part.loader != "modbus":
        yield f"{where}.device: name the line that its loader is on"
    if part.device.startswith("tcp://") and part.loader != "modbus":
        yield f"{where}.device: {part.loader} needs a serial line"
    if part.pins is not None and part.loader != "stm32":
        yield f"{where}.pins: only an STM32's loader is entered by pins"


def _uplink_problems(config: Config) -> Any:
    """Transactions have exactly one authority."""
    if config.uplink is None:
        return
    part = config.ocpp
    carriers = [one for one in (config.mqtt_carries, part.carries if part else ()) if one]
    owners = sum("transactions" in one for one in carriers)
    if owners == 2:
        yield (
            "uplink.carries: transactions go over one uplink only; take them out here, or out of"
            " uplink.ocpp.carries"
        )
    if owners == 0:
        yield "uplink.carries: no uplink carries transactions; name them here or in uplink.ocpp"
    if part is not None:
        yield from _ocpp_problems(part)


def _ocpp_problems(part: OcppPart) -> Any:
    if not part.carries:
        yield "uplink.ocpp.carries: name at least one of transactions, status, telemetry"
    address = urlsplit(part.url)
    plain = not (address.username or address.query or address.fragment)
    if address.scheme not in {"ws", "wss"} or not address.hostname or not plain:
        yield f"uplink.ocpp.url: '{part.url}' is not ws://host[:port]/path or wss://…"
    if part.identity is not None and not 0 < len(part.identity) <= 48:
        yield "uplink.ocpp.identity: 1 to 48 characters"
    if part.certificate is not None and part.key is None:
        yield "uplink.ocpp.key: a certificate needs its private key"
    tls, profile = address.scheme == "wss", part.profile
    needs = {
        1: (not tls and part.password, "ws:// and a password"),
        2: (tls and part.password, "wss:// and a password"),
        3: (tls and part.certificate, "wss:// and a certificate"),
    }
    if profile in needs and not needs[profile][0]:
        yield f"uplink.ocpp.security_profile: {profile} needs {needs[profile][1]}"


def _number_problems(config: Config) -> Any:
    times, failsafe = config.times, config.failsafe
    if not 0.1 <= times.poll_s <= 10:
        yield f"times.poll_s: 0.1 to 10 seconds, not {times.poll_s}"
    if times.lost_after_s <= 2 * times.poll_s:
        yield "times.lost_after_s: must be more than twice times.poll_s"
    if failsafe.timeout_s <= 2 * times.poll_s + times.deadline_s:
        yield "failsafe.timeout_s: too short; one late poll would already stop a vehicle"
    if 0 < failsafe.current_ma < IEC_MIN_CURRENT or failsafe.current_ma < 0:
        yield f"failsafe.current_ma: 0 (stop) or at least 6000, not {failsafe.current_ma}"
    yield from _site_problems(config)
    if config.uplink is not None and config.uplink.monthly_mib and not config.metered:
        yield "uplink.monthly_mib: name the interfaces it holds for: metered = true in uplink.links"
    names = [one.interface for one in config.uplink.links] if config.uplink is not None else []
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield f"uplink.links: {twice} is there twice"
    if config.metering.margin < 1:
        yield "metering.margin: at least 1"


def _site_problems(config: Config) -> Any:
    site = config.site
    solar = [board.name for board in config.boards if board.surplus]
    if solar and (site is None or site.meter is None):
        yield f"board '{solar[0]}': surplus needs a site meter; describe it in [site.meter]"
    if site is None:
        return
    if min(site.lines) < 0:
        yield "site.limit_ma: not below 0"
    if site.unbalance_ma is not None and site.unbalance_ma < IEC_MIN_CURRENT:
        yield "site.unbalance_ma: at least 6000, or no vehicle on one phase could ever charge"
    if site.role == "alone":
        if site.members or site.leader or site.share_ma is not None:
            yield 'site.role: members, leader and share_ma need role = "leader" or "follower"'
        return
    yield from _role_problems(config, site)


def _role_problems(config: Config, site: SitePart) -> Any:
    """Several controllers behind one fuse: addresses, names, and the sum of the shares."""
    if site.share_ma is None:
        yield "site.share_ma: say what this controller may take when it hears no other"
        return
    where = site.listen if site.role == "leader" else site.leader
    if where is None:
        yield "site.leader: a follower needs the leader's host:port"
    elif not re.fullmatch(r"\S+:\d{1,5}", where):
        yield f"site.{'listen' if site.role == 'leader' else 'leader'}: host:port, not '{where}'"
    if site.role == "follower" and site.members:
        yield "site.members: only the leader has members"
    if site.role == "leader" and site.leader is not None:
        yield "site.leader: only a follower has a leader"
    if site.role == "follower" and any(board.surplus for board in config.boards):
        yield "boards.surplus: only on the controller that has the site meter, which leads"
    names = [config.station, *(member.station for member in site.members)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield f"site.members: {twice} is there twice"
    shares = [site.share_ma, *(member.share_ma for member in site.members)]
    if min(shares) < 0:
        yield "site: no share below 0"
    yield from _sum_problems(site, names, shares)
    yield from _own_failsafe_problems(config, site.share_ma)


def _sum_problems(site: SitePart, names: list[str], shares: list[int]) -> Any:
    """When nobody hears anybody, each takes its share: together they must fit."""
    if sum(shares) <= min(site.lines):
        return
    terms = " + ".join(f"{share} ({name})" for name, share in zip(names, shares, strict=True))
    yield (
        f"site: the safe shares are more than the fuse: {terms} = {sum(shares)} mA, "
        f"and site.limit_ma is {min(site.lines)}; make shares smaller, down to 0"
    )


def _own_failsafe_problems(config: Config, share_ma: int) -> Any:
    """A dead agent's boards give their failsafe current: within its share."""
    count = sum(len(board.evses) for board in config.boards)
    together = count * config.failsafe.current_ma
    if together > share_ma:
        yield (
            f"site.share_ma: {count} EVSEs x failsafe.current_ma {config.failsafe.current_ma} = "
            f"{together} mA are taken when this agent is dead, more than the share of {share_ma}; "
            "make the share larger, or failsafe.current_ma 0"
        )


NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UNKNOWN: Final = re.compile(r"unknown field `(?P<field>[^`]*)`(?: - at `\$(?P<path>[^`]*)`)?")


def _explained(message: str) -> str:
    """What msgspec complains of, in the file's own words, with what is allowed."""
    match = _UNKNOWN.search(message)
    if match is None:
        return message.replace("`$.", "`").replace("Object missing", "missing")
    path = (match["path"] or "").lstrip(".")
    allowed = ", ".join(name for name in _fields(path) if name != "base")
    where = f"[{path}]" if path else "the top of the file"
    return f"unknown setting '{match['field']}' at {where}; allowed there: {allowed}"


def _fields(path: str) -> tuple[str, ...]:
    """The settings of the table at a path like `boards[...].link`."""
    kind: Any = Config
    for step in filter(None, re.sub(r"\[[^\]]*\]", "", path).split(".")):
        kind = _struct_in(get_type_hints(kind)[step])
    return tuple(kind.__struct_fields__)


def _struct_in(hint: Any) -> Any:
    """The table type inside an optional or a list of it."""
    if get_origin(hint) in {Union, UnionType, tuple}:
        return next(_struct_in(arg) for arg in get_args(hint) if arg not in {type(None), ...})
    return hint
