"""A vehicle at the end of the cable; pure, stepped by time.

It follows what it is offered only after its reaction time (IEC 61851-1 allows 5 s), ramps up,
tapers near full, and never takes more than the highest offer of its last reaction time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

NANOJOULES_PER_WH: Final = 3_600_000_000_000
"""mA x mV x ms is a nanojoule: energy is an exact integer in this unit."""
MIN_CURRENT: Final = 6000
TAPER_FROM: Final = 0.9


@dataclass(slots=True, kw_only=True)
class Vehicle:
    """Currents in mA per phase, times in ms, energy in nJ."""

    wants_wh: int | None = None
    max_current: int = 32_000
    phases: int = 3
    ramp_ma_per_s: int = 4_000
    reaction_ms: int = 2_000
    stubborn: bool = False
    """Takes its maximum whatever is offered: a broken vehicle, for testing the referee."""
    current: int = 0
    taken_nj: int = 0
    _offers: deque[tuple[int, int]] = field(default_factory=deque)
    _seen: int = 0
    _now: int = 0

    @property
    def full(self) -> bool:
        return self.wants_wh is not None and self.taken_nj >= self.wants_wh * NANOJOULES_PER_WH

    @property
    def wants(self) -> bool:
        return not self.full

    def step(self, offered: int, millivolts: int, step_ms: int) -> int:
        """Advance by `step_ms` under this offer (mA; 0 is none); returns the energy taken (nJ)."""
        self._now += step_ms
        self._notice(offered)
        target = self._target()
        rise = self.ramp_ma_per_s * step_ms // 1000
        self.current = min(target, self.current + rise) if target > self.current else target
        energy = self._limited(self.current * millivolts * self.phases * step_ms)
        self.taken_nj += energy
        return energy

    def cut(self) -> None:
        """The contactor opened: nothing flows, and the vehicle starts anew when it closes."""
        self.current = self._seen = 0
        self._offers.clear()

    def _notice(self, offered: int) -> None:
        last = self._offers[-1][1] if self._offers else self._seen
        if offered != last:
            self._offers.append((self._now + self.reaction_ms, offered))
        while self._offers and self._offers[0][0] <= self._now:
            self._seen = self._offers.popleft()[1]

    def _target(self) -> int:
        if self.stubborn:
            return self.max_current
        if self._seen < MIN_CURRENT or self.full:
            return 0
        return max(MIN_CURRENT, min(self._seen, self._tapered()))

    def _tapered(self) -> int:
        if self.wants_wh is None:
            return self.max_current
        share = self.taken_nj / (self.wants_wh * NANOJOULES_PER_WH)
        if share <= TAPER_FROM:
            return self.max_current
        left = (1 - share) / (1 - TAPER_FROM)
        return int(MIN_CURRENT + (self.max_current - MIN_CURRENT) * left)

    def _limited(self, energy: int) -> int:
        if self.wants_wh is None:
            return energy
        return min(energy, self.wants_wh * NANOJOULES_PER_WH - self.taken_nj)
