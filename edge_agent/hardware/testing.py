"""A power board in memory, for tests of everything that stands on the PowerBoard port.

It obeys the port's contract as a real driver does (the same contract suite runs on both). Its world
is a caller's clock: current is constant between two calls, so energy is an exact integral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edge_agent.hardware.board import (
    NO_VOLTAGES,
    BoardRefusedError,
    BoardUnreachableError,
    EnergyKind,
    EvseInfo,
    EvseReading,
    Failsafe,
    IecState,
    Phases,
    PhaseVoltages,
)
from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes, MilliVolts, WattHours, Watts

ZERO: Final = MilliAmperes(0)
RATED_CURRENT: Final = MilliAmperes(32_000)
MAINS: Final = MilliVolts(230_000)
ONE_WH: Final = WattHours(1)
MICROWATT_SECONDS_PER_WH: Final = 3_600_000_000
"""mA x mV x s is microwatt-seconds."""


class ManualClock:
    """Monotonic seconds that only the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(slots=True, kw_only=True)
class FakeEvse:
    """One EVSE and the vehicle at it."""

    info: EvseInfo
    limit: MilliAmperes
    plugged: bool = False
    released: bool = False
    awaits_release: bool = False
    wants: MilliAmperes = ZERO
    error_code: int = 0
    settled_at: float
    lifetime_uws: int = 0
    session_start_uws: int = 0
    suspect: frozenset[str] = field(default_factory=frozenset)

    def state(self, limit: MilliAmperes) -> IecState:
        if self.error_code:
            return IecState.FAULT
        if not self.plugged:
            return IecState.NO_VEHICLE
        return IecState.CHARGING if self.current(limit) else IecState.CONNECTED

    def current(self, limit: MilliAmperes) -> MilliAmperes:
        may = self.plugged and self.released and not self.error_code
        offered = min(limit, self.wants)
        return offered if may and offered >= IEC_MIN_CURRENT else ZERO


class FakePowerBoard:
    """An in-memory PowerBoard whose vehicles take at once what limit and release allow.

    The test is the vehicle and the hardware: `plug`, `unplug`, `fault`, `clear`, `go_silent`,
    `come_back`, `refuse`, `power_cycle`. `calls` records what the port was asked, in order, e.g.
    "withhold 1"; `true_energy` is the referee.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        evses: int = 1,
        phases: int = 3,
        max_current: MilliAmperes = RATED_CURRENT,
        voltage: MilliVolts = MAINS,
        energy_kind: EnergyKind = EnergyKind.SESSION,
        energy_step: WattHours = ONE_WH,
        energy_modulus: int | None = None,
        billing_grade: bool = True,
    ) -> None:
        self.clock = clock
        self.voltage = voltage
        self.silent = False
        self.calls: list[str] = []
        self.failsafe: Failsafe | None = None
        self._fed_at = clock()
        self._identity = ""
        self._refusals: list[str] = []
        self._evses = {
            number: FakeEvse(
                info=EvseInfo(
                    evse=number,
                    phases=phases,
                    min_current=IEC_MIN_CURRENT,
                    max_current=max_current,
                    energy_kind=energy_kind,
                    energy_step=energy_step,
                    energy_modulus=energy_modulus,
                    billing_grade=billing_grade,
                ),
                limit=max_current,
                settled_at=clock(),
            )
            for number in range(1, evses + 1)
        }

    @property
    def evses(self) -> tuple[EvseInfo, ...]:
        return tuple(each.info for each in self._evses.values())

    @property
    def identity(self) -> str:
        return self._identity

    async def open(self) -> None:
        self._asked("open")
        self._identity = "Karvon FakePowerBoard 1"

    async def close(self) -> None:
        self.calls.append("close")

    async def read(self) -> tuple[EvseReading, ...]:
        self._asked("read")
        self._feed()
        return tuple(self._reading(each) for each in self._evses.values())

    async def set_limit(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        self._asked(f"set_limit {evse} {limit}")
        self._settle()
        target = self._evses[evse]
        paused = limit < target.info.min_current
        target.limit = ZERO if paused else min(limit, target.info.max_current)
        return target.limit

    async def release(self, evse: int) -> None:
        self._asked(f"release {evse}")
        self._settle()
        target = self._evses[evse]
        if not target.released:
            target.session_start_uws = target.lifetime_uws
        target.released, target.awaits_release = True, False

    async def withhold(self, evse: int) -> None:
        self._asked(f"withhold {evse}")
        self._settle()
        self._evses[evse].released = self._evses[evse].awaits_release = False

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe | None:
        self._asked(f"arm_failsafe {failsafe.timeout_s} {failsafe.fallback}")
        self._feed()
        self.failsafe = failsafe
        return failsafe

    def plug(self, evse: int = 1, wants: MilliAmperes = RATED_CURRENT) -> None:
        """A vehicle that would take `wants` per phase; 0 is one that is full."""
        self._settle()
        target = self._evses[evse]
        target.awaits_release = not target.plugged and not target.released
        target.plugged, target.wants = True, wants

    def unplug(self, evse: int = 1) -> None:
        self._settle()
        self._evses[evse].plugged, self._evses[evse].wants = False, ZERO

    def fault(self, evse: int = 1, code: int = 1) -> None:
        self._settle()
        self._evses[evse].error_code = code

    def clear(self, evse: int = 1) -> None:
        self._settle()
        self._evses[evse].error_code = 0

    def go_silent(self) -> None:
        """From now on every request times out, as with a cut line."""
        self.silent = True

    def come_back(self) -> None:
        self.silent = False

    def refuse(self, reason: str) -> None:
        """The next write is refused with this reason."""
        self._refusals.append(reason)

    def power_cycle(self) -> None:
        """The board restarts: limits and releases are back at its defaults, counters are kept."""
        self._settle()
        for each in self._evses.values():
            each.limit, each.released = each.info.max_current, False

    def doubt(self, *fields: str, evse: int = 1) -> None:
        """Read these fields as None and suspect until called again with none."""
        self._evses[evse].suspect = frozenset(fields)

    def true_energy(self, evse: int = 1) -> WattHours:
        """Everything this EVSE ever gave, whatever its register shows."""
        self._settle()
        return WattHours(self._evses[evse].lifetime_uws // MICROWATT_SECONDS_PER_WH)

    def drawn_current(self, evse: int = 1) -> MilliAmperes:
        """What flows per phase this moment, also while the board is silent."""
        return self._evses[evse].current(self._limit_at(self._evses[evse], self.clock()))

    def _asked(self, call: str) -> None:
        self.calls.append(call)
        if self.silent:
            raise BoardUnreachableError(f"fake board did not answer: {call}")
        if self._refusals and call not in {"open", "read"}:
            raise BoardRefusedError(self._refusals.pop(0))

    def _feed(self) -> None:
        self._settle()
        self._fed_at = self.clock()

    def _starves_at(self) -> float:
        return self._fed_at + self.failsafe.timeout_s if self.failsafe else float("inf")

    def _limit_at(self, evse: FakeEvse, when: float) -> MilliAmperes:
        if self.failsafe and when >= self._starves_at():
            return min(evse.limit, self.failsafe.fallback)
        return evse.limit

    def _settle(self) -> None:
        """Integrate up to now, in two pieces when the watchdog ran out in between."""
        now = self.clock()
        for each in self._evses.values():
            edge = max(each.settled_at, min(now, self._starves_at()))
            for start, end in ((each.settled_at, edge), (edge, now)):
                current = each.current(self._limit_at(each, start))
                microseconds = round((end - start) * 1_000_000)
                power = current * self.voltage * each.info.phases
                each.lifetime_uws += power * microseconds // 1_000_000
            each.settled_at = now

    def _reading(self, evse: FakeEvse) -> EvseReading:
        limit = self._limit_at(evse, self.clock())
        current = evse.current(limit)
        known = {
            "current": self._current(evse, current),
            "voltage": self._voltage(evse),
            "power": Watts(current * self.voltage * evse.info.phases // 1_000_000),
            "energy": self._register(evse),
            "applied_limit": limit,
        }
        for name in evse.suspect:
            known[name] = NO_VOLTAGES if name in {"current", "voltage"} else None
        return EvseReading(
            evse=evse.info.evse,
            taken_at=self.clock(),
            state=evse.state(limit),
            error_code=evse.error_code,
            awaits_release=evse.plugged and evse.awaits_release,
            suspect=evse.suspect,
            **known,  # type: ignore[arg-type]  # one dict of differently typed fields
        )

    @staticmethod
    def _current(evse: FakeEvse, current: MilliAmperes) -> Phases:
        return (current, current, current) if evse.info.phases == 3 else (current, ZERO, ZERO)

    def _voltage(self, evse: FakeEvse) -> PhaseVoltages:
        one = self.voltage
        return (one, one, one) if evse.info.phases == 3 else (one, None, None)

    def _register(self, evse: FakeEvse) -> WattHours:
        session = evse.info.energy_kind is EnergyKind.SESSION
        start = evse.session_start_uws if session else 0
        wh = (evse.lifetime_uws - start) // MICROWATT_SECONDS_PER_WH
        shown = wh - wh % evse.info.energy_step
        return WattHours(shown % evse.info.energy_modulus if evse.info.energy_modulus else shown)
