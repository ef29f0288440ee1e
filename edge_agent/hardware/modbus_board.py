"""PowerBoard and Meter over Modbus, for whatever device a profile describes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from edge_agent.hardware.board import (
    BoardRefusedError,
    EnergyKind,
    EvseInfo,
    EvseReading,
    Failsafe,
    FailsafeShown,
    IecState,
    MeterReading,
    Phases,
    PhaseVoltages,
)
from edge_agent.hardware.line import LineHealth
from edge_agent.hardware.modbus_device import ModbusDevice, Wanted
from edge_agent.hardware.signatures import Signatures
from protocols.agent_link import SignedValue
from protocols.modbus.binding import ForbiddenError
from protocols.modbus.checks import POWER
from protocols.modbus.commands import (
    LimitCommand,
    UnrepresentableError,
    failsafe_commands,
    life_command,
    limit_command,
    release_commands,
    withhold_commands,
)
from protocols.modbus.profile import FailsafeBlock, FailsafeRegister
from protocols.modbus.states import awaits_release, state_of
from protocols.modbus.values import EncodingError, Value, factor
from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts

Sleep = Callable[[float], Awaitable[None]]
Values = dict[str, Value]
ATTEMPTS: Final = 2
READ_BACK_EVERY_S: Final = 0.1
IMPOSSIBLE: Final = (UnrepresentableError, EncodingError, ForbiddenError)


class ModbusBoard:
    """A PowerBoard made of a profile and a device."""

    def __init__(
        self,
        device: ModbusDevice,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.device = device
        self._clock, self._sleep = clock, sleep
        self._limits: dict[int, MilliAmperes] = {}
        self._limited_at: dict[int, float] = {}
        self._withheld: set[int] = set()
        self._fed_at = float("-inf")
        self._timeout_s: int | None = None
        self._rated: dict[int, MilliAmperes] = {}
        self._signatures = Signatures(device, clock=clock, sleep=sleep)

    @property
    def identity(self) -> str:
        return self.device.identity

    @property
    def evses(self) -> tuple[EvseInfo, ...]:
        return tuple(self._info(evse) for evse in self.device.evses)

    async def open(self) -> None:
        await self.device.open()
        name = "user_max_current"
        if name not in self.device.binding.fields():
            return
        values = await self.device.read([(evse, name) for evse in self.device.evses])
        for (evse, _), value in values.items():
            if isinstance(value.value, int) and value.value > 0:
                self._rated[evse] = MilliAmperes(value.value)

    async def close(self) -> None:
        await self.device.close()

    def line_health(self) -> LineHealth:
        return self.device.line_health()

    async def read(self) -> tuple[EvseReading, ...]:
        taken_at = self._clock()
        names = [n for n, each in self.device.binding.fields().items() if each.read == "poll"]
        wanted: list[Wanted] = [(evse, name) for evse in self.device.evses for name in names]
        values = await self.device.read(wanted)
        await self._feed()
        return tuple(
            self._reading(evse, {n: v for (e, n), v in values.items() if e == evse}, taken_at)
            for evse in self.device.evses
        )

    async def set_limit(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        limit = min(limit, self._info(evse).max_current)
        self._limits[evse] = limit
        if evse in self._withheld and self._limit_releases:
            return None
        return await self._apply(evse, limit)

    @property
    def _limit_releases(self) -> bool:
        """Whether setting a limit lets the vehicle charge: no release, or a pause to resume."""
        setpoint = self.device.profile.setpoint
        return not self.device.profile.release or bool(setpoint and setpoint.pause.resume)

    async def release(self, evse: int) -> None:
        self._withheld.discard(evse)
        if self._limit_releases and evse in self._limits:
            await self._apply(evse, self._limits[evse])
        if self.device.profile.release:
            await self.device.write(*release_commands(self.device.binding, evse))

    async def withhold(self, evse: int) -> None:
        self._withheld.add(evse)
        await self.device.write(*withhold_commands(self.device.binding, evse))

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe | None:
        block = self.device.profile.failsafe
        if block is None:
            return None
        shown: dict[str, int] = {}
        for evse in self.device.evses:
            await self._write_failsafe(evse, failsafe)
            for name, register in (("timeout", block.timeout), ("fallback", block.fallback)):
                value = await self._failsafe_shown(evse, register)
                if value is not None:
                    shown[name] = max(value, shown.get(name, 0))
        armed = Failsafe(
            timeout_s=shown.get("timeout", failsafe.timeout_s),
            fallback=MilliAmperes(shown.get("fallback", failsafe.fallback)),
        )
        self._check_failsafe(block, armed, failsafe)
        self._timeout_s = armed.timeout_s
        return armed

    async def failsafe_now(self) -> FailsafeShown | None:
        """What the device has set, before anything of ours; None where it has no fallback."""
        block = self.device.profile.failsafe
        if block is None:
            return None
        raw = []
        for evse in self.device.evses:
            for half, register in (("timeout", block.timeout), ("fallback", block.fallback)):
                value = await self._failsafe_told(evse, register)
                if value is not None:
                    raw.append((evse, half, value))
        told = {half: [value for _, one, value in raw if one == half] for _, half, _ in raw}
        return FailsafeShown(
            timeout_s=max(told["timeout"]) if "timeout" in told else None,
            fallback=MilliAmperes(max(told["fallback"])) if "fallback" in told else None,
            raw=tuple(raw),
        )

    async def _failsafe_told(self, evse: int, register: FailsafeRegister) -> int | None:
        """As it stands there, also where that means something else than a number."""
        if register.read_back is None:
            return register.fixed
        value = await self._number(evse, register.read_back)
        in_ma = self._in_ma(register.read_back, Value(value))
        return value if in_ma is None else in_ma

    async def put_back_failsafe(self, before: FailsafeShown | None) -> bool:
        """Leave the device as it was before the agent; False where only its neutral values can be.

        What it had may be no value that the agent may write (0: no supervision); then the profile's
        own way to take the supervision off is used.
        """
        exact = before is not None and await self._put_back(before.raw)
        if not exact:
            if before is not None:
                await self._put_back_fallback(before.raw)
            await self.restore_failsafe()
        self._timeout_s = None
        return exact

    async def _put_back(self, raw: tuple[tuple[int, str, int], ...]) -> bool:
        block = self.device.profile.failsafe
        for evse in self.device.evses if block else ():
            was = {half: value for one, half, value in raw if one == evse}
            if was.keys() != {"timeout", "fallback"}:
                return False
            try:
                writes = failsafe_commands(
                    self.device.binding, evse, was["timeout"], MilliAmperes(was["fallback"])
                )
                await self.device.write(*writes)
            except (*IMPOSSIBLE, BoardRefusedError):
                return False
            shown = await self.failsafe_now()
            if shown is None or not set(shown.raw) >= {(evse, *half) for half in was.items()}:
                return False
        return bool(raw)

    async def _put_back_fallback(self, raw: tuple[tuple[int, str, int], ...]) -> None:
        """The current at least, with the timeout as it stands, where it may be written."""
        now = await self.failsafe_now()
        if now is None or now.timeout_s is None:
            return
        for evse, half, value in raw:
            if half != "fallback":
                continue
            try:
                writes = failsafe_commands(
                    self.device.binding, evse, now.timeout_s, MilliAmperes(value)
                )
                await self.device.write(*writes)
            except (*IMPOSSIBLE, BoardRefusedError):
                continue  # what the profile restores has to do

    async def _failsafe_shown(self, evse: int, register: FailsafeRegister) -> int | None:
        """Seconds, or mA per phase, as the device has it; None where it does not tell."""
        name = register.read_back
        if name is None:
            return register.fixed
        value = await self._number(evse, name)
        if register.write is not None:
            written = factor(register.write.scale, register.write.unit)
            if register.none_raw is not None and value == register.none_raw * written:
                raise BoardRefusedError(
                    f"{self.identity} EVSE {evse}: {name} says that it has no fallback"
                )
            if register.stop_raw is not None and value == register.stop_raw * written:
                return 0
        in_ma = self._in_ma(name, Value(value))
        return value if in_ma is None else in_ma

    def _check_failsafe(self, block: FailsafeBlock, armed: Failsafe, wanted: Failsafe) -> None:
        longer = armed.timeout_s > wanted.timeout_s
        if longer and block.timeout.write is None:
            raise BoardRefusedError(
                f"{self.identity}: falls back by itself only after {armed.timeout_s} s, which "
                f"cannot be changed; set failsafe.timeout_s to {armed.timeout_s} or more"
            )
        if armed.fallback > wanted.fallback and block.fallback.write is None:
            raise BoardRefusedError(
                f"{self.identity}: falls back to {armed.fallback} mA, which cannot be written; set "
                f"it in the device to at most {wanted.fallback} mA, or raise failsafe.current_ma"
            )
        differs = block.timeout.write is not None and armed.timeout_s != wanted.timeout_s
        if differs or armed.fallback > wanted.fallback:
            raise BoardRefusedError(
                f"{self.identity}: failsafe reads back {armed.timeout_s} s, {armed.fallback} mA "
                f"instead of {wanted.timeout_s} s, {wanted.fallback} mA"
            )

    async def note_signed(self, evse: int) -> None:
        await self._signatures.note(evse)

    async def signed(self, evse: int) -> tuple[SignedValue, ...]:
        return await self._signatures.after(evse)

    async def restore_failsafe(self) -> None:
        """For taking the agent away: the device's own values, so that none of ours outlives it."""
        block = self.device.profile.failsafe
        for write in block.restore if block else ():
            for evse in self.device.evses:
                await self.device.write(self.device.binding.fixed(write, evse))
        self._timeout_s = None

    async def _write_failsafe(self, evse: int, wanted: Failsafe) -> None:
        try:
            writes = failsafe_commands(self.device.binding, evse, wanted.timeout_s, wanted.fallback)
        except IMPOSSIBLE as error:
            raise BoardRefusedError(str(error)) from error
        await self.device.write(*writes)

    async def _apply(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        try:
            command = limit_command(self.device.binding, evse, limit)
        except IMPOSSIBLE as error:
            raise BoardRefusedError(str(error)) from error
        for _ in range(ATTEMPTS):
            await self._pace(evse)
            await self.device.write(*command.writes)
            self._limited_at[evse] = self._clock()
            if self._limit_feeds:
                self._fed_at = self._limited_at[evse]
            applied = await self._read_back(evse, command)
            if applied is None or self._is_applied(command, applied):
                return applied
        asked = "a pause" if command.pauses else f"{command.expected} mA"
        raise BoardRefusedError(
            f"{self.identity} EVSE {evse}: asked for {asked}, but it applies {applied} mA; "
            "is another controller or a local setting in charge?"
        )

    @property
    def _limit_feeds(self) -> bool:
        """A life register wants its own write, however often the limit is set."""
        block = self.device.profile.failsafe
        return block is None or block.fed_by.by != "life"

    async def _pace(self, evse: int) -> None:
        interval = self.device.profile.limits.write_interval_ms / 1000
        wait = self._limited_at.get(evse, float("-inf")) + interval - self._clock()
        if wait > 0:
            await self._sleep(wait)

    async def _read_back(self, evse: int, command: LimitCommand) -> MilliAmperes | None:
        """What is applied, as soon as it is as asked, at the latest after the settling time."""
        setpoint = self.device.profile.setpoint
        by_register = command.pauses and setpoint and setpoint.pause.write
        if setpoint is None or setpoint.read_back is None or by_register:
            return None
        deadline = self._clock() + setpoint.settle_ms / 1000
        while True:
            name = setpoint.read_back
            shown = (await self.device.read([(evse, name)]))[evse, name]
            applied = self._in_ma(name, shown)
            if applied is not None and self._is_applied(command, applied):
                return applied
            if self._clock() >= deadline:
                return MilliAmperes(-1) if applied is None else applied
            await self._sleep(READ_BACK_EVERY_S)

    def _is_applied(self, command: LimitCommand, applied: MilliAmperes) -> bool:
        if command.expected is None:
            return 0 <= applied < self.device.profile.evses.min_current_ma
        return abs(applied - command.expected) <= command.step

    async def _feed(self) -> None:
        """Some watchdogs do not count reads: repeat what does count, in time."""
        now = self._clock()
        setpoint = self.device.profile.setpoint
        due = self._feed_every()
        if due is not None and now >= self._fed_at + due:
            life = life_command(self.device.binding)
            await (self.device.write(life) if life else self._repeat(self.device.evses))
            self._fed_at = now
        if setpoint is not None and setpoint.repeat_s is not None:
            old = [e for e, at in self._limited_at.items() if now >= at + setpoint.repeat_s]
            await self._repeat(tuple(old))

    def _feed_every(self) -> float | None:
        block = self.device.profile.failsafe
        if block is None or block.fed_by.by == "reads":
            return None
        if block.fed_by.every_s is not None:
            return float(block.fed_by.every_s)
        return None if self._timeout_s is None else self._timeout_s / 2

    async def _repeat(self, evses: tuple[int, ...]) -> None:
        for evse in evses:
            if evse in self._limits:
                limit = MilliAmperes(0) if self._is_paused_by_us(evse) else self._limits[evse]
                command = limit_command(self.device.binding, evse, limit)
                await self.device.write(*command.writes)
                self._limited_at[evse] = self._clock()

    def _is_paused_by_us(self, evse: int) -> bool:
        return evse in self._withheld and self._limit_releases

    def _reading(self, evse: int, values: Values, taken_at: float) -> EvseReading:
        profile = self.device.profile
        otherwise = profile.states.otherwise if profile.states else "F"
        letter, strange = state_of(self.device.binding.rules(), otherwise, values)
        energy = profile.energy.field if profile.energy else "energy"
        error = values.get("error", Value(0)).value
        doubted = {name for name, value in values.items() if value.suspect}
        return EvseReading(
            evse=evse,
            taken_at=taken_at,
            state=IecState(letter),
            current=currents(values),
            voltage=voltages(values),
            power=_watts(values.get("power")),
            energy=_watt_hours(values.get(energy)),
            applied_limit=self._in_ma("applied_limit", values.get("applied_limit")),
            error_code=error if isinstance(error, int) else 0,
            awaits_release=awaits_release(self.device.binding.rules(), values),
            suspect=suspects(doubted, energy) | ({"state"} if strange else set()),
        )

    def _in_ma(self, name: str, value: Value | None) -> MilliAmperes | None:
        """A limit that the device tells in W, as mA per phase."""
        if value is None or not isinstance(value.value, int):
            return None
        if self.device.profile.registers[name].unit not in POWER:
            return MilliAmperes(value.value)
        evses = self.device.profile.evses
        return MilliAmperes(value.value * 1_000_000 // (evses.nominal_mv * evses.phases))

    async def _number(self, evse: int, name: str) -> int:
        value = (await self.device.read([(evse, name)]))[evse, name].value
        if not isinstance(value, int):
            raise BoardRefusedError(f"{self.identity} EVSE {evse}: {name} reads as nothing")
        return value

    def _info(self, evse: int) -> EvseInfo:
        profile, binding = self.device.profile, self.device.binding
        energy = profile.energy
        if energy is not None and energy.field not in binding.fields():
            energy = None  # a model that lacks the register: it has no energy to tell
        highest = profile.evses.max_current_ma
        return EvseInfo(
            evse=evse,
            phases=profile.evses.phases,
            min_current=MilliAmperes(profile.evses.min_current_ma),
            max_current=MilliAmperes(min(highest, self._rated.get(evse, highest))),
            energy_kind=EnergyKind(energy.kind if energy else "session"),
            energy_step=WattHours(binding.step(energy.field) if energy else 1),
            energy_modulus=binding.modulus(energy.field) if energy and energy.wraps else None,
            billing_grade=bool(energy and energy.billing_grade),
        )


class ModbusMeter:
    """A Meter made of a profile and a device."""

    def __init__(
        self, device: ModbusDevice, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.device = device
        self._clock = clock
        self.signatures = Signatures(device, clock=clock)

    @property
    def identity(self) -> str:
        return self.device.identity

    async def open(self) -> None:
        await self.device.open()

    async def close(self) -> None:
        await self.device.close()

    def line_health(self) -> LineHealth:
        return self.device.line_health()

    async def read(self) -> MeterReading:
        taken_at = self._clock()
        names = [n for n, each in self.device.binding.fields().items() if each.read == "poll"]
        read = await self.device.read([(0, name) for name in names])
        values = {name: value for (_, name), value in read.items()}
        return MeterReading(
            taken_at=taken_at,
            current=currents(values),
            voltage=voltages(values),
            power=_watts(values.get("power")),
            imported=_watt_hours(values.get("imported")),
            exported=_watt_hours(values.get("exported")),
            suspect=suspects({name for name, v in values.items() if v.suspect}, "imported"),
        )


def suspects(doubted: set[str], energy: str) -> frozenset[str]:
    """Field names of the reading, from the profile's: current_l2 is "current"."""
    renamed = {energy: "energy"} if energy != "imported" else {}
    return frozenset(
        renamed.get(name, name[:-3] if name[:-1].endswith("_l") else name) for name in doubted
    )


def currents(values: Values) -> Phases:
    one, two, three = (_int(values.get(f"current_l{n}")) for n in (1, 2, 3))
    return (
        None if one is None else MilliAmperes(one),
        None if two is None else MilliAmperes(two),
        None if three is None else MilliAmperes(three),
    )


def voltages(values: Values) -> PhaseVoltages:
    one, two, three = (_int(values.get(f"voltage_l{n}")) for n in (1, 2, 3))
    return (
        None if one is None else MilliVolts(one),
        None if two is None else MilliVolts(two),
        None if three is None else MilliVolts(three),
    )


def _int(value: Value | None) -> int | None:
    return value.value if value is not None and isinstance(value.value, int) else None


def _watts(value: Value | None) -> Watts | None:
    number = _int(value)
    return None if number is None else Watts(number)


def _watt_hours(value: Value | None) -> WattHours | None:
    number = _int(value)
    return None if number is None else WattHours(number)
