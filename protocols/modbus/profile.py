"""The profile language's shape: one struct per block of the YAML file.

Addresses are 0-based PDU addresses. With `scope: evse` (the default for chargers) an address is an
offset to which EVSE number x `evses.stride` is added; with `scope: station` it is absolute.
Numbers in `range`, `plausible`, `value` and `never` are in the entry's own `unit`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

Number = int | float
Address = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*$")]
RegisterType = Annotated[
    str,
    msgspec.Meta(pattern=r"^([us](16|32|64)|f32|f64|bit|(str|bytes)[1-9][0-9]?)$"),
]
ReadFunction = Literal[1, 2, 3, 4]
WriteFunction = Literal[5, 6, 16]
Scope = Literal["evse", "station"]
WordOrder = Literal["msw_first", "lsw_first"]
Unit = Literal[
    "",
    "A",
    "mA",
    "V",
    "mV",
    "W",
    "kW",
    "mW",
    "Wh",
    "kWh",
    "mWh",
    "VA",
    "VAh",
    "kVAh",
    "var",
    "kvarh",
    "Hz",
    "degC",
    "deg",
    "%",
    "s",
    "ms",
]


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every block: immutable, and an unknown key is an error, not a comment."""


class Condition(Shape, frozen=True, kw_only=True):
    """Holds when all that it names hold; firmware versions compare as dotted numbers."""

    firmware_below: str | None = None
    firmware_from: str | None = None
    register: Name | None = None
    """A field read at opening; with `mask`, `equals` says what must stand there."""
    mask: Natural | None = None
    equals: int | str | None = None
    option: str | None = None
    """Set by the installer in the agent's configuration where the device does not tell."""


class Override(Shape, frozen=True, kw_only=True):
    """What differs when the condition holds; the first that holds counts."""

    when: Condition
    address: Address | None = None
    function: Literal[1, 2, 3, 4, 5, 6, 16] | None = None
    type: RegisterType | None = None
    scale: Number | None = None
    unit: Unit | None = None
    word_order: WordOrder | None = None
    sentinels: tuple[Natural, ...] | None = None
    plausible: tuple[Number, Number] | None = None
    absent: bool = False


class Field(Shape, frozen=True, kw_only=True):
    """A value that can be read."""

    address: Address
    type: RegisterType
    function: ReadFunction | None = None
    """Default: the profile's `read_function`."""
    scale: Number = 1
    scale_from: Name | None = None
    """A field read with this one: the value is raw x scale x 10 to its power (SunSpec)."""
    model: tuple[Positive, ...] = ()
    """The address counts from the first of these models that the device's `chain` has."""
    unit: Unit = ""
    word_order: WordOrder | None = None
    bits: tuple[Natural, Natural] | None = None
    """Lowest and highest bit, inclusive, of the whole value."""
    sentinels: tuple[Natural, ...] = ()
    """Raw patterns that mean "not available", compared before bits, sign and scale."""
    zeros: tuple[Natural, ...] = ()
    """Raw numbers that mean 0, after bits: some devices tell "no current" with one of their own."""
    plausible: tuple[Number, Number] | None = None
    text: Literal["ascii", "utf16", "low_byte"] = "ascii"
    form: Literal["hex", "dotted", "pairs"] = "hex"
    """How bytes or a number read as text: 010800 -> 1.8.0; `pairs`: decimal 10203 -> 1.2.3."""
    bytes: tuple[Natural, Natural] | None = None
    """First and last byte of a bytesN that count."""
    read: Literal["poll", "open", "demand"] = "poll"
    scope: Scope | None = None
    probe: bool = False
    """May be missing on some models: asked once alone; exception 2 means absent."""
    overrides: tuple[Override, ...] = ()
    note: str = ""


class Write(Shape, frozen=True, kw_only=True):
    """A register the agent may write; `value` is the raw fixed value where there is only one."""

    address: Address
    function: WriteFunction
    type: RegisterType = "u16"
    scale: Number = 1
    unit: Unit = ""
    word_order: WordOrder | None = None
    scope: Scope | None = None
    value: int | None = None
    overrides: tuple[Override, ...] = ()
    note: str = ""


class Match(Shape, frozen=True, kw_only=True):
    """What a raw field must be; all that is given must hold."""

    at_least: int | None = None
    at_most: int | None = None
    mask: Natural | None = None
    equals: int | None = None
    other_than: int | None = None
    starts_with: str | None = None


class StateRule(Shape, frozen=True, kw_only=True):
    """`when` every named field matches (a value, one of several, or a Match), it `is` that state.

    A rule that names a field this device does not have is passed over.
    """

    when: dict[Name, int | str | tuple[int | str, ...] | Match]
    is_: Literal["A", "B", "C", "D", "E", "F", "unavailable"] = msgspec.field(name="is")
    awaits_release: bool = False
    """The device says in this state that the vehicle was not authorized since it was plugged in."""
    only: Condition | None = None


class States(Shape, frozen=True, kw_only=True):
    """IEC 61851 state from raw values: the first rule that holds; else `otherwise`, suspect."""

    rules: tuple[StateRule, ...]
    otherwise: Literal["F", "unavailable"]


class Pause(Shape, frozen=True, kw_only=True):
    """How this device is told to stop without ending the session: exactly one way."""

    value: Number | None = None
    """Written to the setpoint, in its unit; ABB 0, Mennekes 3 A (0 lifts the limit), HYC 1500 W."""
    raw: Natural | None = None
    """Written to the setpoint as it is; ABL 03E8h."""
    write: tuple[Write, ...] = ()
    resume: tuple[Write, ...] = ()


class Setpoint(Shape, frozen=True, kw_only=True):
    """The current or power limit."""

    write: Write
    range: tuple[Number, Number]
    pause: Pause
    read_back: Name | None = None
    """The field that shows the *applied* limit ..."""
    confirm_by_effect: bool = False
    """... or: nothing shows it, the measured current must."""
    never: tuple[Number, ...] = ()
    settle_ms: Natural = 500
    """How long the read-back may lag behind the write."""
    repeat_s: Positive | None = None
    """A setpoint that expires is written again this often."""


class FailsafeRegister(Shape, frozen=True, kw_only=True):
    """One half of the fallback. Without `write` it is the device's own: read, or `fixed`."""

    write: Write | None = None
    range: tuple[Number, Number] | None = None
    """What may be written, in the unit of `write`."""
    fixed: Positive | None = None
    """What it always is (seconds, or mA), where it can be neither written nor read."""
    read_back: Name | None = None
    never: tuple[Number, ...] = ()
    none_raw: Natural | None = None
    """The raw value that means "no fallback": loss of communication is then an error."""
    stop_raw: Natural | None = None
    """The raw value that means "stop", where 0 means something else."""


class Feed(Shape, frozen=True, kw_only=True):
    """What keeps the watchdog quiet."""

    by: Literal["reads", "writes", "setpoint", "life"]
    life: Write | None = None
    every_s: Number | None = None
    """At most this long between two feeds; default half the timeout."""


class FailsafeBlock(Shape, frozen=True, kw_only=True):
    """The device's own fallback; its registers are written in `order`, then `enable`."""

    timeout: FailsafeRegister
    fallback: FailsafeRegister
    fed_by: Feed
    order: tuple[Literal["timeout", "fallback"], Literal["timeout", "fallback"]] = (
        "fallback",
        "timeout",
    )
    enable: tuple[Write, ...] = ()
    restore: tuple[Write, ...] = ()
    """Written when the agent is taken away for good; a fallback left behind outlives it."""


class Energy(Shape, frozen=True, kw_only=True):
    """The register that bills, or does not."""

    field: Name
    kind: Literal["session", "lifetime"]
    billing_grade: bool
    wraps: bool = False
    """A narrow counter: it starts again after its type's highest value."""
    checked_by: Name | None = None
    """A lifetime counter that tells how often the narrow one has wrapped."""


class SignedBlock(Shape, frozen=True, kw_only=True):
    """Octets that stand in registers one after the other, high octet first, up to the first zero.

    Read in as many requests as the device's limits ask for.
    """

    address: Address
    registers: Annotated[int, msgspec.Meta(ge=1, le=2048)]
    function: ReadFunction | None = None
    scope: Scope = "evse"


class Signed(Shape, frozen=True, kw_only=True):
    """Meter values that the device signs, carried through as they are."""

    encoding: Annotated[str, msgspec.Meta(min_length=1, max_length=50)] = "OCMF"
    begin: SignedBlock | None = None
    """Of the transaction that runs or has just ended."""
    end: SignedBlock
    public_key: SignedBlock | None = None
    wait_ms: Natural = 2000
    """How long after the end of charging it may take to sign; an empty block is read again."""

    def blocks(self) -> dict[str, SignedBlock]:
        """By their names in the profile."""
        named = {"begin": self.begin, "end": self.end, "public_key": self.public_key}
        return {name: block for name, block in named.items() if block is not None}


class Tcp(Shape, frozen=True, kw_only=True):
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 502
    unit: Byte = 1


class Rtu(Shape, frozen=True, kw_only=True):
    baudrate: Positive = 9600
    parity: Literal["none", "even", "odd"] = "none"
    stopbits: Literal[1, 2] = 1
    unit: Byte = 1
    framing: Literal["rtu", "ascii"] = "rtu"


class Transports(Shape, frozen=True, kw_only=True):
    tcp: Tcp | None = None
    rtu: Rtu | None = None


class Limits(Shape, frozen=True, kw_only=True):
    """What the device's own Modbus side can take."""

    gap_ms: Natural = 0
    write_gap_ms: Natural = 0
    """After a write, before the next request."""
    write_interval_ms: Natural = 0
    """Between two writes of the setpoint."""
    poll_ms: Positive = 1000
    timeout_ms: Positive = 1000
    max_registers: Annotated[int, msgspec.Meta(ge=1, le=125)] = 125
    one_value_per_request: bool = False
    readable_gaps: bool = True
    idle_close_s: Positive | None = None
    max_clients: Positive | None = None
    repeat_first_request: bool = False
    """It sleeps and ignores the frame that wakes it."""


class Forbidden(Shape, frozen=True, kw_only=True):
    """Addresses that no request may touch: not even the gap of a read, nor a technician's write."""

    addresses: tuple[Address, Address]
    access: Literal["read", "write", "both"] = "both"
    why: str
    functions: tuple[Literal[1, 2, 3, 4, 5, 6, 16], ...] = ()
    """Only in the address space of these functions; default all."""
    scope: Scope = "station"


class Evses(Shape, frozen=True, kw_only=True):
    count: Positive = 1
    stride: Natural = 0
    unit_per_evse: bool = False
    """EVSE n answers as unit n; station registers stay with the transport's unit."""
    phases: Literal[1, 2, 3] = 3
    min_current_ma: Positive = 6000
    max_current_ma: Positive = 32000
    nominal_mv: Positive = 230_000
    """For setpoints in W: what one ampere is worth."""


class Expect(Shape, frozen=True, kw_only=True):
    field: Name
    matches: str
    """A regular expression for the whole text."""
    remedy: str = ""
    """What the installer has to do where it does not match; default: choose another profile."""


class Identity(Shape, frozen=True, kw_only=True):
    """How to tell that the device is the one described."""

    serial: Name | None = None
    firmware: Name | None = None
    model: Name | None = None
    expect: tuple[Expect, ...] = ()
    firmware_from: str | None = None


class OrderProbe(Shape, frozen=True, kw_only=True):
    """Sources disagree on the word order: the one that makes this field plausible counts."""

    field: Name
    plausible: tuple[Number, Number]


class Chain(Shape, frozen=True, kw_only=True):
    """Models that follow each other, each with its number and length before it (SunSpec).

    The chain begins with `marker` at the first of `bases` that has it; the number FFFFh ends it.
    """

    bases: tuple[Address, ...]
    marker: Natural = 0x53756E53


class Unsure(Shape, frozen=True, kw_only=True):
    """What sources leave open or dispute; `karvon agent check` warns with it."""

    about: str
    """A path in this profile, such as `failsafe.fed_by` or `registers.energy`."""
    why: str


class Simulator(Shape, frozen=True, kw_only=True):
    """What `karvon sim` shows for each situation: raw field values, and the device's defaults."""

    defaults: dict[Name, int | str] = {}
    states: dict[
        Literal["empty", "waiting", "ready", "charging", "stopped", "fault"],
        dict[Name, int | str],
    ] = {}
    models: tuple[tuple[Positive, Positive], ...] = ()
    """Number and length of each model of the chain, in the order in which they stand."""
    signed: dict[Literal["begin", "end", "public_key"], str] = {}
    """What stands in the blocks of signed values."""


class Profile(Shape, frozen=True, kw_only=True):
    """One model of charger or meter."""

    profile: Name
    kind: Literal["charger", "meter"]
    maker: str
    models: tuple[str, ...]
    source: str
    status: Literal["manual", "integration", "field"]
    """Where the map comes from: the vendor's manual, an open integration, or a field report."""
    transports: Transports
    registers: dict[Name, Field]
    read_function: ReadFunction = 3
    word_order: Literal["msw_first", "lsw_first", "probe"] = "msw_first"
    order_probe: OrderProbe | None = None
    limits: Limits = Limits()
    evses: Evses = Evses()
    identity: Identity = Identity()
    states: States | None = None
    setpoint: Setpoint | None = None
    release: tuple[Write, ...] = ()
    withhold: tuple[Write, ...] = ()
    failsafe: FailsafeBlock | None = None
    energy: Energy | None = None
    signed: Signed | None = None
    forbidden: tuple[Forbidden, ...] = ()
    chain: Chain | None = None
    unsure: tuple[Unsure, ...] = ()
    simulator: Simulator | None = None
    note: str = ""


Entry = TypeVar("Entry", Field, Write)

BITS: Final = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "bit": 1}


def overridden(each: Entry, override: Override) -> Entry:
    """The entry with what the override changes."""
    changes = {
        name: value
        for name in override.__struct_fields__
        if name in each.__struct_fields__ and (value := getattr(override, name)) is not None
    }
    return msgspec.structs.replace(each, **changes)


def width(register_type: str) -> int:
    """How many registers (or coils) a value of this type takes."""
    if register_type.startswith(("str", "bytes")):
        return int(register_type.lstrip("strbye"))
    return {"bit": 1, "f32": 2, "f64": 4}.get(register_type) or BITS[register_type] // 16
