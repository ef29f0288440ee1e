"""Wishes in mA and seconds to the writes that this device understands."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from protocols.modbus.binding import Binding, WriteRequest
from protocols.modbus.checks import POWER
from protocols.modbus.profile import FailsafeRegister, Number, Setpoint, Write
from protocols.modbus.values import FLOATS, exact, factor
from protocols.quantities import MilliAmperes


class UnrepresentableError(ValueError):
    """The device has no value for what is asked; the text says which it has."""


@dataclass(frozen=True, slots=True)
class LimitCommand:
    """The writes, in order, and what a read-back must then show, give or take `step` (mA).

    `expected` None: nothing can be read back.
    """

    writes: tuple[WriteRequest, ...]
    expected: MilliAmperes | None
    step: MilliAmperes
    pauses: bool


def limit_command(binding: Binding, evse: int, limit: MilliAmperes) -> LimitCommand:
    """How to limit this EVSE to at most `limit`; below its minimum means pause."""
    setpoint = _setpoint(binding)
    write = binding.varied_write(setpoint.write)
    one = _one_step(binding, write)
    step = MilliAmperes(-(-one.numerator // one.denominator))
    if limit < _minimum(binding, setpoint, write):
        return _pause(binding, setpoint, evse, step)
    high = exact(setpoint.range[1]) / exact(write.scale)
    raw = min(Fraction(limit) / one, high)
    whole = raw if write.type in FLOATS else Fraction(raw.numerator // raw.denominator)
    writes = (
        binding.raw(write, whole if write.type in FLOATS else int(whole), evse),
        *(binding.fixed(each, evse) for each in setpoint.pause.resume),
    )
    expected = MilliAmperes(int(whole * one)) if setpoint.read_back else None
    return LimitCommand(writes, expected, step, pauses=False)


def _setpoint(binding: Binding) -> Setpoint:
    if binding.profile.setpoint is None:
        raise UnrepresentableError(f"{binding.profile.profile} takes no limit")
    return binding.profile.setpoint


def _minimum(binding: Binding, setpoint: Setpoint, write: Write) -> int:
    low = exact(setpoint.range[0]) / exact(write.scale) * _one_step(binding, write)
    return max(binding.profile.evses.min_current_ma, -(-low.numerator // low.denominator))


def _pause(binding: Binding, setpoint: Setpoint, evse: int, step: MilliAmperes) -> LimitCommand:
    pause = setpoint.pause
    if pause.write:
        writes = tuple(binding.fixed(each, evse) for each in pause.write)
        block = binding.profile.failsafe
        if block is not None and block.fed_by.by == "setpoint":
            # The pause does not feed its watchdog: its lowest limit, written behind it, does.
            write = binding.varied_write(setpoint.write)
            lowest = exact(setpoint.range[0]) / exact(write.scale)
            writes = (*writes, binding.raw(write, lowest, evse))
        return LimitCommand(writes, None, step, pauses=True)
    raw: int | Fraction = pause.raw or 0
    if pause.value is not None:
        write = binding.varied_write(setpoint.write)
        ratio = exact(pause.value) / exact(write.scale)
        raw = ratio if write.type in FLOATS else ratio.numerator // ratio.denominator
    writes = (binding.raw(setpoint.write, raw, evse),)
    # How a pause reads back is not told by any manual: 0, the written value, or the old limit.
    return LimitCommand(writes, None, step, pauses=True)


def _one_step(binding: Binding, write: Write) -> Fraction:
    """What one raw step means in mA per phase."""
    one = factor(write.scale, write.unit)
    if write.unit in POWER:
        evses = binding.profile.evses
        one = one * 1_000_000 / (evses.nominal_mv * evses.phases)
    return one


def release_commands(binding: Binding, evse: int) -> tuple[WriteRequest, ...]:
    """Empty where the device has no release: then the limit alone lets the vehicle charge."""
    return tuple(binding.fixed(each, evse) for each in binding.profile.release)


def withhold_commands(binding: Binding, evse: int) -> tuple[WriteRequest, ...]:
    """What opens the contactor; a device without a register for it is paused."""
    if binding.profile.withhold:
        return tuple(binding.fixed(each, evse) for each in binding.profile.withhold)
    return limit_command(binding, evse, MilliAmperes(0)).writes


def failsafe_commands(
    binding: Binding, evse: int, timeout_s: int, fallback: MilliAmperes
) -> tuple[WriteRequest, ...]:
    """The device's own watchdog, in the order it wants; empty where it has none.

    Raises UnrepresentableError where the device would take the value for something else.
    """
    block = binding.profile.failsafe
    if block is None:
        return ()
    wanted = {"timeout": (block.timeout, timeout_s), "fallback": (block.fallback, fallback)}
    requests = [_failsafe(binding, *wanted[name], evse, name) for name in block.order]
    enable = (binding.fixed(each, evse) for each in block.enable)
    return (*(request for request in requests if request is not None), *enable)


def _failsafe(
    binding: Binding, register: FailsafeRegister, wanted: int, evse: int, what: str
) -> WriteRequest | None:
    """None where the device has its own, which cannot be written."""
    if register.write is None or register.range is None:
        return None
    write = binding.varied_write(register.write)
    if wanted == 0 and register.stop_raw is not None:
        return binding.raw(write, register.stop_raw, evse)
    one = _one_step(binding, write)
    raw = Fraction(wanted) / one
    whole = raw.numerator // raw.denominator
    shown: Number | Fraction = whole * exact(write.scale)
    low, high = (exact(bound) for bound in register.range)
    if not low <= shown <= high or shown in {exact(never) for never in register.never}:
        allowed = f"{register.range[0]} to {register.range[1]} {write.unit}"
        raise UnrepresentableError(
            f"{binding.profile.profile}: {what} {float(shown):g} {write.unit} "
            f"is not possible, only {allowed}"
        )
    return binding.raw(write, whole, evse)


def life_command(binding: Binding) -> WriteRequest | None:
    """The life register's write, where that is what feeds the watchdog."""
    block = binding.profile.failsafe
    if block is None or block.fed_by.life is None:
        return None
    return binding.fixed(block.fed_by.life, 0)
