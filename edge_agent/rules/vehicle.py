"""What a vehicle shows by what it takes: on which pins it charges, and how much it can use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edge_agent.hardware.board import EvseReading, IecState
from protocols.quantities import IEC_MIN_CURRENT

FLOWING_MA: Final = 500
SURE_AFTER_MS: Final = 10_000
"""A vehicle that charges on the same pins for so long is taken to stay on them."""
EASY_AFTER_MS: Final = 60_000
"""A vehicle that takes clearly less than it may for so long cannot use more."""
PARKED_AFTER_MS: Final = 600_000
"""A vehicle that may charge and takes nothing for so long is full, or does not want to."""
NEAR_MA: Final = 1500
SPARE_MA: Final = 2000
AMPERE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the vehicle at one EVSE has shown since it was plugged in."""

    pins: frozenset[int] | None = None
    """The charger's pins (0, 1, 2) that it uses; None: not sure yet, so it may be all."""
    need: int | None = None
    """What it can use at most; None: all that it gets."""
    parked: bool = False
    """It could charge, and has taken nothing for long."""
    seen: frozenset[int] = frozenset()
    seen_ms: int = 0
    easy_ms: int | None = None
    empty_ms: int | None = None

    def read(self, reading: EvseReading, limit: int, now_ms: int) -> Shown:
        """A reading while `limit` had been told."""
        if reading.state is IecState.NO_VEHICLE:
            return Shown()
        if all(current is None for current in reading.current):
            return self
        flowing = frozenset(
            pin for pin, current in enumerate(reading.current) if (current or 0) >= FLOWING_MA
        )
        need, easy = self._using(reading, limit, now_ms)
        since = now_ms if self.empty_ms is None else self.empty_ms
        empty = None if flowing or easy is None else since
        return replace(
            self._on_pins(flowing, now_ms),
            need=need,
            easy_ms=easy,
            empty_ms=empty,
            parked=empty is not None and now_ms - empty >= PARKED_AFTER_MS,
        )

    def _on_pins(self, flowing: frozenset[int], now_ms: int) -> Shown:
        if not flowing:
            return self
        pins = self.pins if self.pins is not None and flowing <= self.pins else None
        if flowing != self.seen:
            return replace(self, pins=pins, seen=flowing, seen_ms=now_ms)
        sure = now_ms - self.seen_ms >= SURE_AFTER_MS
        return replace(self, pins=flowing if sure else pins)

    def _using(
        self, reading: EvseReading, limit: int, now_ms: int
    ) -> tuple[int | None, int | None]:
        """Need, and since when less is taken: a pause shows neither; who is near his limit may
        want more.
        """
        takes = max(current or 0 for current in reading.current)
        if limit < IEC_MIN_CURRENT or (takes >= limit - NEAR_MA and takes > FLOWING_MA):
            return None, None
        since = now_ms if self.easy_ms is None else self.easy_ms
        if now_ms - since < EASY_AFTER_MS:
            return self.need, since
        wanted = -(-(takes + SPARE_MA) // AMPERE) * AMPERE
        return max(IEC_MIN_CURRENT, wanted), since
