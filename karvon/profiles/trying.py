"""`test` without a device: a vehicle charges on the profile's own simulator, in a few moments.

The real driver speaks to it over TCP; only the clock is turned by hand and the pauses that a real
device needs are left out. The simulator's meter judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EvseReading,
    Failsafe,
    IecState,
)
from edge_agent.hardware.modbus_board import ModbusBoard, ModbusMeter
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from karvon.profiles.speaking import WRONG, ToolError, complain, profile_named, told, told_json
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import NANOJOULES_PER_WH, Vehicle
from protocols.modbus.profile import Profile
from protocols.quantities import MilliAmperes

SPEED: Final = 10
STEP_S: Final = 2
PATIENCE: Final = 20
FAILSAFE: Final = Failsafe(timeout_s=60, fallback=MilliAmperes(6_000))


class Step(msgspec.Struct, frozen=True):
    """One thing tried, whether it went well, and what was seen."""

    step: str
    well: bool
    text: str


class TrialError(Exception):
    """What was seen is not what should be; the text says both."""


class HandClock:
    """Seconds that pass only when it is told so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(name: str, options: tuple[str, ...], *, as_json: bool) -> int:
    try:
        profile = profile_named(name, options)
        steps = asyncio.run(tried(profile, options))
    except ToolError as error:
        return complain(error)
    if as_json:
        told_json({"profile": profile.profile, "steps": steps})
    else:
        for step in steps:
            told(f"{'ok' if step.well else 'WRONG':<6} {step.step}: {step.text}")
    return 0 if all(step.well for step in steps) else WRONG


async def tried(profile: Profile, options: tuple[str, ...] = ()) -> list[Step]:
    """What was tried, up to the first thing that went wrong. Raises ToolError."""
    if profile.simulator is None or (profile.kind == "charger" and not profile.simulator.states):
        raise ToolError(
            f"profile {profile.profile} has no simulator block with states; "
            "add one as the blueprint shows, or try it on a device with --device"
        )
    clock = HandClock()
    steps: list[Step] = []
    async with _simulated(_hurried(profile), frozenset(options), clock) as (found, device):
        if isinstance(device, SimulatedCharger):
            plan = ChargerTrial(found, device, clock).plan()
        else:
            plan = MeterTrial(found, device, clock).plan()
        for what, trial in plan:
            try:
                steps.append(Step(what, well=True, text=await trial()))
            except (TrialError, BoardRefusedError, BoardUnreachableError) as error:
                steps.append(Step(what, well=False, text=str(error)))
                break
    return steps


def _hurried(profile: Profile) -> Profile:
    limits = msgspec.structs.replace(
        profile.limits,
        gap_ms=0,
        write_gap_ms=0,
        write_interval_ms=0,
        timeout_ms=5000,
        repeat_first_request=False,
    )
    setpoint = profile.setpoint and msgspec.structs.replace(profile.setpoint, settle_ms=0)
    return msgspec.structs.replace(profile, limits=limits, setpoint=setpoint)


@asynccontextmanager
async def _simulated(
    profile: Profile, options: frozenset[str], clock: HandClock
) -> AsyncIterator[tuple[ModbusDevice, SimulatedCharger | SimulatedMeter]]:
    known = profile.transports.tcp or profile.transports.rtu
    unit = known.unit if known else 1
    device: SimulatedCharger | SimulatedMeter
    if profile.kind == "charger":
        device = SimulatedCharger(
            profile, evses=1, unit=unit, speed=SPEED, now=clock(), options=options
        )
    else:
        device = SimulatedMeter(profile, unit=unit, speed=SPEED, now=clock())
    running = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=clock)
    await running.start()
    host, _, port = running.addresses["tcp"].rpartition(":")
    link = ModbusLink(host=host, port=int(port), unit=unit).completed(profile)
    found = ModbusDevice(
        profile,
        link,
        PortPool(clock).port(link),
        evses=range(1, 2) if profile.kind == "charger" else range(1),
        options=options,
        clock=clock,
    )
    try:
        yield found, device
    finally:
        await found.close()
        await running.close()


Plan = list[tuple[str, Callable[[], Awaitable[str]]]]


class ChargerTrial:
    """Plug, charge, limit, pause, resume, end, unplug; then the agent falls silent."""

    def __init__(self, found: ModbusDevice, device: SimulatedCharger, clock: HandClock) -> None:
        self.board = ModbusBoard(found, clock=clock, sleep=clock.sleep)
        self.device, self.clock = device, clock

    def plan(self) -> Plan:
        return [
            ("identity", self._identity),
            ("failsafe", self._failsafe),
            ("nobody there", lambda: self._until("A")),
            ("plugged in, not released", self._plugged),
            ("released at 16 A", self._released),
            ("limited to 6 A", self._limited),
            ("paused", self._paused),
            ("resumed at 10 A", self._resumed),
            ("ended", self._ended),
            ("energy", self._energy),
            ("unplugged", self._unplugged),
            ("the agent falls silent", self._silence),
            ("the referee", self._referee),
        ]

    async def _identity(self) -> str:
        await self.board.open()
        await self.board.set_limit(1, MilliAmperes(0))
        await self.board.withhold(1)
        return self.board.identity

    async def _failsafe(self) -> str:
        armed = await self.board.arm_failsafe(FAILSAFE)
        if armed is None:
            return "it has none that the profile knows of"
        return f"{armed.fallback / 1000:g} A after {armed.timeout_s} s"

    async def _plugged(self) -> str:
        phases = self.device.profile.evses.phases
        self.device.plug(Vehicle(max_current=32_000, phases=phases))
        return await self._until("B")

    async def _released(self) -> str:
        await self.board.set_limit(1, MilliAmperes(16_000))
        if self._flows:
            raise TrialError("a limit alone lets it charge, without a release")
        await self.board.release(1)
        return await self._until("C", "D")

    async def _limited(self) -> str:
        await self.board.set_limit(1, MilliAmperes(6_000))
        self.clock.now += STEP_S
        text = await self._until("C", "D")
        if not 5_000 <= self._flows <= 6_000:
            raise TrialError(f"{self._flows} mA flow at a limit of 6000 mA")
        return text

    async def _paused(self) -> str:
        await self.board.set_limit(1, MilliAmperes(0))
        text = await self._until("B")
        if self.device.evses[1].session is None:
            raise TrialError("the pause ended the session")
        return text

    async def _resumed(self) -> str:
        await self.board.set_limit(1, MilliAmperes(10_000))
        return await self._until("C", "D")

    async def _ended(self) -> str:
        await self.board.withhold(1)
        return await self._until("B")

    async def _energy(self) -> str:
        block = self.device.profile.energy
        (reading,) = await self.board.read()
        if block is None:
            return "it has no register for it"
        evse = self.device.evses[1]
        counted = evse.lifetime_nj if block.kind == "lifetime" else evse.shown_nj
        truly = counted / NANOJOULES_PER_WH
        step = self.board.device.binding.step(block.field)
        if reading.energy is None or not truly - step - 1 <= reading.energy <= truly + 1:
            raise TrialError(f"it tells {reading.energy} Wh, {truly:.1f} Wh flowed")
        return f"{reading.energy} Wh, as flowed"

    async def _unplugged(self) -> str:
        self.device.unplug()
        return await self._until("A")

    async def _silence(self) -> str:
        if self.device.profile.failsafe is None:
            return "nothing stops it: it has no fallback"
        self.device.plug(Vehicle(max_current=32_000, phases=self.device.profile.evses.phases))
        await self.board.set_limit(1, MilliAmperes(16_000))
        await self.board.release(1)
        await self._until("C", "D")
        for seconds in (FAILSAFE.timeout_s + 1, 10):
            self.clock.now += seconds
            self.device.advance(self.clock.now)
        if self._flows > FAILSAFE.fallback:
            raise TrialError(f"{self._flows} mA still flow {FAILSAFE.timeout_s + 10} s later")
        return f"{self._flows / 1000:g} A flow"

    async def _referee(self) -> str:
        if self.device.violations:
            raise TrialError("; ".join(self.device.violations))
        return "no current without a release, none above the limit"

    @property
    def _flows(self) -> int:
        vehicle = self.device.evses[1].vehicle
        return vehicle.current if vehicle else 0

    async def _until(self, *states: str) -> str:
        """Poll until the board says so, and what flows fits."""
        for _ in range(PATIENCE):
            self.clock.now += STEP_S
            (reading,) = await self.board.read()
            if reading.state.value in states and self._fits(reading):
                return f"state {reading.state.value}, {self._flows / 1000:g} A flow"
        raise TrialError(
            f"the board says {reading.state.value}, not {' or '.join(states)}; "
            f"{self._flows} mA flow, suspect: {', '.join(sorted(reading.suspect)) or 'nothing'}"
        )

    def _fits(self, reading: EvseReading) -> bool:
        charging = reading.state in {IecState.CHARGING, IecState.VENTILATION}
        return charging == (self._flows > 0)


class MeterTrial:
    """Consumption, then production where the meter can tell it."""

    def __init__(self, found: ModbusDevice, device: SimulatedMeter, clock: HandClock) -> None:
        self.meter = ModbusMeter(found, clock=clock)
        self.device, self.clock = device, clock

    def plan(self) -> Plan:
        known = self.device.profile.registers
        plan: Plan = [("identity", self._identity)]
        if "imported" in known:
            plan.append(("6.9 kW consumed", lambda: self._counted(6_900, "imported")))
        if "exported" in known:
            plan.append(("6.9 kW produced", lambda: self._counted(-6_900, "exported")))
        return plan

    async def _identity(self) -> str:
        await self.meter.open()
        return self.meter.identity

    async def _counted(self, load: int, what: str) -> str:
        self.device.load_w = load
        self.device.refresh()
        for _ in range(10):
            self.clock.now += 60
            reading = await self.meter.read()
        truly = getattr(self.device, f"{what}_nj") / NANOJOULES_PER_WH
        counted = getattr(reading, what)
        step = self.meter.device.binding.step(what)
        if reading.power is None or abs(reading.power - load) > max(1, abs(load) // 100):
            raise TrialError(f"it tells {reading.power} W, {load} W flow")
        if counted is None or not truly - step - 1 <= counted <= truly + step + 1:
            raise TrialError(f"it tells {counted} Wh {what}, truly {truly:.1f} Wh")
        return f"{reading.power} W, {counted} Wh {what}"
