"""What a profile must satisfy beyond its shape; each problem is told with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from protocols.modbus.document import Path
from protocols.modbus.profile import (
    BITS,
    Condition,
    FailsafeRegister,
    Field,
    Forbidden,
    Number,
    Pause,
    Profile,
    Setpoint,
    Write,
    overridden,
    width,
)
from protocols.modbus.values import EncodingError, encode, encode_raw, exact

Problem = tuple[Path, str]
CURRENT: Final = ("A", "mA")
POWER: Final = ("W", "kW", "mW")
ENERGY: Final = ("Wh", "kWh", "mWh")
VOLTAGE: Final = ("V", "mV")
UNITS_OF: Final = {
    **{f"current_l{n}": CURRENT for n in (1, 2, 3)},
    **{f"voltage_l{n}": VOLTAGE for n in (1, 2, 3)},
    "power": POWER,
    "energy": ENERGY,
    "imported": ENERGY,
    "exported": ENERGY,
    "applied_limit": (*CURRENT, *POWER),
}
READ_FUNCTIONS: Final = (1, 2, 3, 4)


def problems(profile: Profile) -> Iterator[Problem]:
    """Every semantic problem of the profile as (path, reason)."""
    for name, field in profile.registers.items():
        for reason in _field(profile, name, field):
            yield ("registers", name), reason
        for i, override in enumerate(field.overrides):
            at = ("registers", name, "overrides", i)
            yield from _condition(profile, (*at, "when"), override.when)
            for reason in _field(profile, name, overridden(field, override)):
                yield at, reason
    for path, write in writes(profile):
        for reason in _write(profile, path, write):
            yield path, reason
        for i, override in enumerate(write.overrides):
            under = (*path, "overrides", i)
            yield from _condition(profile, (*under, "when"), override.when)
            for reason in _write(profile, path, overridden(write, override)):
                yield under, reason
    yield from _simulator(profile)
    yield from _kind(profile)
    yield from _names(profile)
    yield from _states(profile)
    if profile.setpoint:
        yield from _setpoint(profile.setpoint)
    yield from _failsafe(profile)
    yield from _word_order(profile)
    yield from _energy(profile)
    yield from _signed(profile)
    yield from _chain(profile)
    yield from _unsure(profile)
    yield from _overlaps(profile)


def writes(profile: Profile) -> Iterator[tuple[Path, Write]]:
    """Every register that the agent could ever write, with its path."""
    for name, group in (("release", profile.release), ("withhold", profile.withhold)):
        yield from (((name, i), each) for i, each in enumerate(group))
    if (setpoint := profile.setpoint) is not None:
        yield ("setpoint", "write"), setpoint.write
        pause = (("write", setpoint.pause.write), ("resume", setpoint.pause.resume))
        for name, group in pause:
            yield from ((("setpoint", "pause", name, i), w) for i, w in enumerate(group))
    if (failsafe := profile.failsafe) is not None:
        for part, register in (("timeout", failsafe.timeout), ("fallback", failsafe.fallback)):
            if register.write is not None:
                yield ("failsafe", part, "write"), register.write
        for name, group in (("enable", failsafe.enable), ("restore", failsafe.restore)):
            yield from ((("failsafe", name, i), w) for i, w in enumerate(group))
        if failsafe.fed_by.life is not None:
            yield ("failsafe", "fed_by", "life"), failsafe.fed_by.life


def forbids(rule: Forbidden, access: str, function: int, first: int, last: int) -> bool:
    """Whether this rule keeps a request of `function` off the addresses first..last."""
    return (
        rule.access in {access, "both"}
        and (not rule.functions or function in rule.functions)
        and first <= rule.addresses[1]
        and last >= rule.addresses[0]
    )


def _field(profile: Profile, name: str, field: Field) -> Iterator[str]:
    size = width(field.type)
    function = field.function or profile.read_function
    if field.address + size > 0x10000:
        yield f"ends at {field.address + size - 1:#x}, beyond the last address 0xffff"
    if (field.type == "bit") != (function in {1, 2}):
        yield f"type {field.type} cannot be read by function {function}"
    if size > profile.limits.max_registers:
        yield f"takes {size} registers, but limits.max_registers is {profile.limits.max_registers}"
    yield from _bits_and_sentinels(field)
    if name in UNITS_OF and field.unit not in UNITS_OF[name]:
        yield f"unit '{field.unit}' does not fit; {name} needs one of {', '.join(UNITS_OF[name])}"
    if field.scale == 0:
        yield "scale 0 makes every value 0"
    for rule in () if field.model else profile.forbidden:
        if forbids(rule, "read", function, field.address, field.address + size - 1):
            yield f"touches a forbidden register ({rule.why})"


def _bits_and_sentinels(field: Field) -> Iterator[str]:
    size = BITS.get(field.type)
    if field.bits is not None:
        low, high = field.bits
        if size is None or not low <= high < size:
            yield f"bits {low}..{high} do not lie in a {field.type}"
    patterns = size or width(field.type) * 16
    for sentinel in field.sentinels:
        if sentinel >> patterns:
            yield f"sentinel {sentinel:#x} does not fit into {field.type}"
    if field.zeros and size is None:
        yield f"zeros are for whole numbers, not for {field.type}"
    if field.bytes is not None and not field.bytes[0] <= field.bytes[1] < 2 * width(field.type):
        yield f"bytes {field.bytes[0]}..{field.bytes[1]} do not lie in {field.type}"


def _write(profile: Profile, path: Path, write: Write) -> Iterator[str]:
    size = width(write.type)
    if (write.type == "bit") != (write.function == 5):
        yield f"function {write.function} cannot write type {write.type}"
    if write.function == 6 and size != 1:
        yield f"function 6 writes one register, {write.type} takes {size}; use 16"
    if write.type.startswith(("str", "bytes", "f64")):
        yield f"type {write.type} cannot be written"
    variable = path[-1] == "write" and path[0] in {"setpoint", "failsafe"}
    if variable and write.value is not None:
        yield "value is given, but this register takes the agent's value"
    if not variable and write.value is None:
        yield "value is missing: this write always sends the same"
    if write.scale == 0:
        yield "scale 0 has no inverse"
    if write.value is not None and write.type != "bit" and not _fits(write, write.value):
        yield f"value {write.value} does not fit into {write.type}"
    for rule in profile.forbidden:
        if forbids(rule, "write", write.function, write.address, write.address + size - 1):
            yield f"writes a forbidden register ({rule.why})"


def _fits(write: Write, raw: Number | Fraction) -> bool:
    try:
        encode_raw(write.type, Fraction(raw), "msw_first")
    except (EncodingError, OverflowError, KeyError):
        return False
    return True


def _holds(write: Write, shown: Number) -> bool:
    """Whether the register can take this number of its unit."""
    return write.scale != 0 and _fits(write, exact(shown) / exact(write.scale))


def _simulator(profile: Profile) -> Iterator[Problem]:
    """What the simulator shows must fit its registers."""
    simulator = profile.simulator
    if simulator is None:
        return
    shown: list[tuple[Path, str, int | str]] = [
        (("simulator", "defaults", name), name, value) for name, value in simulator.defaults.items()
    ]
    for state, values in simulator.states.items():
        shown += [(("simulator", "states", state, n), n, value) for n, value in values.items()]
    for path, name, value in shown:
        field = profile.registers.get(name)
        if field is None or field.type == "bit" or field.scale == 0:
            continue
        try:
            encode(field, value, "msw_first")
        except (ValueError, OverflowError) as error:
            yield path, str(error)


def _kind(profile: Profile) -> Iterator[Problem]:
    if not profile.transports.tcp and not profile.transports.rtu:
        yield ("transports",), "names neither tcp nor rtu"
    if profile.kind == "charger":
        for name in ("states", "setpoint"):
            if getattr(profile, name) is None:
                yield ("kind",), f"a charger needs the block '{name}'"
        if bool(profile.release) != bool(profile.withhold):
            yield (
                ("release",) if profile.release else ("withhold",),
                ("release and withhold come together, or neither (then a pause withholds)"),
            )
        return
    for name in ("states", "setpoint", "release", "withhold", "failsafe"):
        if getattr(profile, name):
            yield (name,), "a meter has no such block"
    if "power" not in profile.registers or not {"imported", "exported"} & set(profile.registers):
        yield ("registers",), "a meter needs at least power, and imported or exported"


def _names(profile: Profile) -> Iterator[Problem]:
    """Every name that points at a register must be one."""
    used: list[tuple[Path, str | None]] = [
        (("identity", "serial"), profile.identity.serial),
        (("identity", "firmware"), profile.identity.firmware),
        (("identity", "model"), profile.identity.model),
    ]
    for i, expect in enumerate(profile.identity.expect):
        used.append((("identity", "expect", i), expect.field))
        yield from _pattern(("identity", "expect", i, "matches"), expect.matches)
    if profile.setpoint:
        used.append((("setpoint", "read_back"), profile.setpoint.read_back))
    if profile.failsafe:
        used.append((("failsafe", "timeout", "read_back"), profile.failsafe.timeout.read_back))
        used.append((("failsafe", "fallback", "read_back"), profile.failsafe.fallback.read_back))
    if profile.simulator:
        for state, values in profile.simulator.states.items():
            used += [(("simulator", "states", state, name), name) for name in values]
        used += [(("simulator", "defaults", n), n) for n in profile.simulator.defaults]
    yield from _unknown(profile, used)


def _unknown(profile: Profile, used: list[tuple[Path, str | None]]) -> Iterator[Problem]:
    for path, name in used:
        if name is not None and name not in profile.registers:
            yield path, f"there is no register '{name}'"


def _pattern(path: Path, pattern: str) -> Iterator[Problem]:
    try:
        re.compile(pattern)
    except re.error as error:
        yield path, f"not a regular expression: {error}"


def _states(profile: Profile) -> Iterator[Problem]:
    if profile.states is None:
        return
    for i, rule in enumerate(profile.states.rules):
        path: Path = ("states", "rules", i)
        if not rule.when:
            yield path, "'when' names no register: the rule would always hold"
        yield from _unknown(profile, [((*path, "when", name), name) for name in rule.when])
        if rule.only:
            yield from _condition(profile, (*path, "only"), rule.only)


def _condition(profile: Profile, path: Path, condition: Condition) -> Iterator[Problem]:
    by_firmware = condition.firmware_below or condition.firmware_from
    if by_firmware and profile.identity.firmware is None:
        yield path, "identity.firmware must name the register that tells the firmware"
    if condition.register is not None:
        yield from _unknown(profile, [((*path, "register"), condition.register)])
        if condition.equals is None:
            yield path, "register needs 'equals'"
    if not (by_firmware or condition.register or condition.option):
        yield path, "the condition names nothing"


def _setpoint(setpoint: Setpoint) -> Iterator[Problem]:
    low, high = setpoint.range
    if low > high:
        yield ("setpoint", "range"), f"{low} is above {high}"
    elif not _holds(setpoint.write, low) or not _holds(setpoint.write, high):
        yield ("setpoint", "range"), f"does not fit into {setpoint.write.type}"
    if setpoint.write.unit not in (*CURRENT, *POWER):
        yield ("setpoint", "write"), "the unit must be one of current or power"
    if (setpoint.read_back is None) != setpoint.confirm_by_effect:
        yield ("setpoint",), "needs read_back or confirm_by_effect: true, not both, not neither"
    for value in setpoint.never:
        if low <= value <= high:
            yield ("setpoint", "never"), f"{value} lies within the range"
    yield from _pause(setpoint, setpoint.pause)


def _pause(setpoint: Setpoint, pause: Pause) -> Iterator[Problem]:
    ways = [pause.value is not None, pause.raw is not None, bool(pause.write)]
    if sum(ways) != 1:
        yield ("setpoint", "pause"), "needs exactly one of value, raw, write"
    if bool(pause.write) != bool(pause.resume):
        yield ("setpoint", "pause"), "write and resume come together"
    if pause.value is not None and not _holds(setpoint.write, pause.value):
        yield ("setpoint", "pause"), f"{pause.value} does not fit into {setpoint.write.type}"
    if pause.raw is not None and not _fits(setpoint.write, pause.raw):
        yield ("setpoint", "pause"), f"{pause.raw} does not fit into {setpoint.write.type}"
    if pause.value is not None and pause.value in setpoint.never:
        yield ("setpoint", "pause"), f"{pause.value} stands under 'never'"


def _failsafe(profile: Profile) -> Iterator[Problem]:
    if profile.failsafe is None:
        return
    block = profile.failsafe
    registers: tuple[tuple[str, FailsafeRegister], ...] = (
        ("timeout", block.timeout),
        ("fallback", block.fallback),
    )
    for name, register in registers:
        yield from _failsafe_register(("failsafe", name), register)
    if block.timeout.write and block.timeout.write.unit not in {"s", "ms"}:
        yield ("failsafe", "timeout", "write"), "the unit must be s or ms"
    if block.fallback.write and block.fallback.write.unit not in (*CURRENT, *POWER):
        yield ("failsafe", "fallback", "write"), "the unit must be one of current or power"
    if len(set(block.order)) != 2:
        yield ("failsafe", "order"), "names one register twice"
    if (block.fed_by.by == "life") != (block.fed_by.life is not None):
        yield ("failsafe", "fed_by"), "'by: life' and the block 'life' come together"


def _failsafe_register(path: Path, register: FailsafeRegister) -> Iterator[Problem]:
    if (register.write is None) != (register.range is None):
        yield path, "write and range come together"
    if register.write is not None and register.fixed is not None:
        yield (*path, "fixed"), "what is written is not fixed"
    if register.write is None and register.fixed is None and register.read_back is None:
        yield path, "needs write, fixed or read_back"
    if register.write is None or register.range is None:
        return
    if register.range[0] > register.range[1]:
        yield (*path, "range"), "the lower end is above the higher"
    elif not all(_holds(register.write, bound) for bound in register.range):
        yield (*path, "range"), f"does not fit into {register.write.type}"
    for name in ("none_raw", "stop_raw"):
        raw = getattr(register, name)
        if raw is not None and not _fits(register.write, raw):
            yield (*path, name), f"{raw} does not fit into {register.write.type}"


def _word_order(profile: Profile) -> Iterator[Problem]:
    if (profile.word_order == "probe") != (profile.order_probe is not None):
        yield ("word_order",), "'probe' and the block order_probe come together"
    if profile.order_probe is None:
        return
    name = profile.order_probe.field
    yield from _unknown(profile, [(("order_probe", "field"), name)])
    if name in profile.registers and width(profile.registers[name].type) < 2:
        yield ("order_probe", "field"), "one register has no word order"


def _signed(profile: Profile) -> Iterator[Problem]:
    blocks = profile.signed.blocks() if profile.signed else {}
    for name, block in blocks.items():
        function = block.function or profile.read_function
        last = block.address + block.registers - 1
        if function in {1, 2}:
            yield ("signed", name), f"octets cannot be read by function {function}"
        if last > 0xFFFF:
            yield ("signed", name), f"ends at {last:#x}, beyond the last address 0xffff"
        for rule in profile.forbidden:
            if forbids(rule, "read", function, block.address, last):
                yield ("signed", name), f"touches a forbidden register ({rule.why})"
    told = profile.simulator.signed if profile.simulator else {}
    for moment, text in told.items():
        if moment not in blocks:
            yield ("simulator", "signed"), f"there is no block '{moment}' in `signed`"
        elif len(text.encode()) > 2 * blocks[moment].registers:
            yield ("simulator", "signed"), f"'{moment}' does not fit into its registers"


def _energy(profile: Profile) -> Iterator[Problem]:
    if profile.energy is None:
        return
    name = profile.energy.field
    yield from _unknown(
        profile,
        [(("energy", "field"), name), (("energy", "checked_by"), profile.energy.checked_by)],
    )
    if name not in profile.registers:
        return
    field = profile.registers[name]
    if field.unit not in (*ENERGY, "VAh", "kVAh"):
        yield ("energy", "field"), f"'{name}' has unit '{field.unit}', which is no energy"
    if field.unit in {"VAh", "kVAh"} and profile.energy.billing_grade:
        yield ("energy", "billing_grade"), "apparent energy (VAh) cannot be billed"
    if profile.energy.wraps and field.type not in {"u16", "u32"}:
        yield ("energy", "wraps"), "only a u16 or u32 wraps within its life"


def _chain(profile: Profile) -> Iterator[Problem]:
    """Models need a chain to stand in, and a power of ten needs a field that tells it."""
    for name, field in profile.registers.items():
        path: Path = ("registers", name)
        if field.model and profile.chain is None:
            yield (*path, "model"), "the profile has no chain"
        if field.scale_from is None:
            continue
        yield from _unknown(profile, [((*path, "scale_from"), field.scale_from)])
        source = profile.registers.get(field.scale_from)
        if source is not None and (source.unit or source.type not in {"s16", "u16"}):
            yield (*path, "scale_from"), f"'{field.scale_from}' must be an s16 or u16 without unit"
        if profile.energy and profile.energy.field == name and profile.kind == "charger":
            yield (*path, "scale_from"), "the step of a charger's energy must be known beforehand"
    listed = {model for model, _ in profile.simulator.models} if profile.simulator else set()
    if listed and profile.chain is None:
        yield ("simulator", "models"), "the profile has no chain"
    if profile.chain is not None and not profile.chain.bases:
        yield ("chain", "bases"), "name at least one address"


def _unsure(profile: Profile) -> Iterator[Problem]:
    """What is doubted must stand in the profile."""
    for i, doubt in enumerate(profile.unsure):
        at: object = profile
        for part in doubt.about.split("."):
            at = at.get(part) if isinstance(at, dict) else getattr(at, part, None)
            if at is None:
                yield ("unsure", i, "about"), f"there is no '{doubt.about}' in this profile"
                break


def _overlaps(profile: Profile) -> Iterator[Problem]:
    """Overlapping values must be read together, which one-value devices do not allow."""
    if not profile.limits.one_value_per_request:
        return
    spans: dict[int, tuple[str, int]] = {}
    for name, field in sorted(profile.registers.items(), key=lambda item: item[1].address):
        other = spans.get(field.address)
        if other and other[1] != width(field.type):
            yield ("registers", name), f"starts where '{other[0]}' does, with another width"
        spans[field.address] = (name, width(field.type))
