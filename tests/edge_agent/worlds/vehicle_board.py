"""A power board whose vehicles take their time, for tests of what really flows."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.hardware.board import (
    BoardUnreachableError,
    EnergyKind,
    EvseInfo,
    EvseReading,
    Failsafe,
    IecState,
)
from karvon.simulator.vehicle import Vehicle
from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts

MAINS = MilliVolts(230_000)
STEP_MS = 100


class VehicleBoard:
    """A board whose vehicles take their time; a starved one applies its fallback, up or down."""

    identity = "VehicleBoard"

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.silent = False
        self.limit, self.released = 32_000, False
        self.vehicle: Vehicle | None = None
        self.failsafe: Failsafe | None = None
        self.fed = clock()
        self.taken_nj = 0
        self.evses = (
            EvseInfo(
                evse=1,
                phases=3,
                min_current=MilliAmperes(6_000),
                max_current=MilliAmperes(32_000),
                energy_kind=EnergyKind.LIFETIME,
                energy_step=WattHours(1),
                energy_modulus=None,
                billing_grade=True,
            ),
        )

    def step(self) -> None:
        if self.vehicle is None:
            return
        if not self.released:
            self.vehicle.cut()
            return
        self.taken_nj += self.vehicle.step(self.applied, 230_000, STEP_MS)

    @property
    def applied(self) -> int:
        starved = self.failsafe and self.clock() - self.fed >= self.failsafe.timeout_s
        return self.failsafe.fallback if self.failsafe and starved else self.limit

    @property
    def pins(self) -> tuple[int, int, int]:
        current = self.vehicle.current if self.vehicle else 0
        phases = self.vehicle.phases if self.vehicle else 3
        return (current, current if phases > 1 else 0, current if phases > 2 else 0)

    def _asked(self) -> None:
        if self.silent:
            raise BoardUnreachableError("silent")
        self.fed = self.clock()

    async def open(self) -> None:
        self._asked()

    async def close(self) -> None: ...

    async def read(self) -> tuple[EvseReading, ...]:
        self._asked()
        state = IecState.NO_VEHICLE
        if self.vehicle is not None:
            state = IecState.CHARGING if self.vehicle.current else IecState.CONNECTED
        pins = tuple(MilliAmperes(one) for one in self.pins)
        power = Watts(sum(self.pins) * 230 // 1000)
        reading = EvseReading(
            evse=1,
            taken_at=self.clock(),
            state=state,
            current=pins,  # type: ignore[arg-type]  # three of them
            voltage=(MAINS, MAINS, MAINS),
            power=power,
            energy=WattHours(self.taken_nj // 3_600_000_000_000),
            applied_limit=MilliAmperes(self.applied),
        )
        return (reading,)

    async def set_limit(self, _: int, limit: MilliAmperes) -> MilliAmperes:
        self._asked()
        self.limit = limit if limit >= 6_000 else 0
        return MilliAmperes(self.limit)

    async def release(self, _: int) -> None:
        self._asked()
        self.released = True

    async def withhold(self, _: int) -> None:
        self._asked()
        self.released = False

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe:
        self._asked()
        self.failsafe = failsafe
        return failsafe
