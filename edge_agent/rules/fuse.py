"""How long a main fuse bears more than it is rated for.

IEC 60269-1, utilisation category gG (Table 2, conventional times and currents; Table 3, gates): a
fuse-link does not melt at 1.25 times its rating within the conventional time (1 h up to 63 A, 2 h
up to 160 A, 3 h up to 400 A, then 4 h; we count on the shortest), nor within ten seconds at the
current of its gate Imin(10 s). That is 33 A at 16 A, 52 A at 25 A, 160 A at 63 A, 290 A at 100 A:
nowhere below twice the rating from 16 A on. Smaller ones have it lower, 3.7 A at 2 A (IEC 60269-3,
Table III): nowhere below 1.8 times. Above that a fuse bears something for tenths of a second, which
is nothing to plan with. A miniature circuit breaker (IEC 60898-1) promises less: 1.13 times for an
hour, and at 2.55 times it may trip after one second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from edge_agent.rules.phases import Lines

Step = tuple[int, int | None]
"""Up to this share of the rating in thousandths, bearable for so many ms; None: for ever."""
HOUR: Final[tuple[Step, ...]] = ((1000, None), (1250, 3_600_000))
LARGE: Final[tuple[Step, ...]] = (*HOUR, (2000, 10_000))
SMALL: Final[tuple[Step, ...]] = (*HOUR, (1800, 10_000))
LARGE_FROM: Final = 16_000
"""Rating (mA)."""


def curve(rating: int) -> tuple[Step, ...]:
    """What a fuse-link of this rating (mA) is promised to bear, rising."""
    return LARGE if rating >= LARGE_FROM else SMALL


def bearable_ms(current: int, rating: int) -> int | None:
    """How long this current (mA) may flow without a break; None: for ever, 0: not at all."""
    for thousandths, bearable in curve(rating):
        if current * 1000 <= rating * thousandths:
            return bearable
    return 0


@dataclass(slots=True)
class Strain:
    """Watches one site: how long each step of the curve has been exceeded, per line."""

    rating: Lines
    _since: dict[tuple[int, int], int] = field(default_factory=dict)
    """(line, thousandths) -> since when the current is above that share of the rating."""

    def take(self, current: Lines, now_ms: int) -> list[int]:
        """The lines whose fuse has been asked for more than its curve allows."""
        return [line for line in range(3) if self._too_much(line, current[line], now_ms)]

    def _too_much(self, line: int, current: int, now_ms: int) -> bool:
        verdict = False
        rating = self.rating[line]
        for (thousandths, _), (_, bearable) in _steps(rating):
            key, above = (line, thousandths), current * 1000 > rating * thousandths
            if not above:
                self._since.pop(key, None)
                continue
            since = self._since.setdefault(key, now_ms)
            verdict = verdict or not bearable or now_ms - since > bearable
        return verdict

    def over_ms(self, now_ms: int) -> int:
        """How long any line has been above its rating."""
        return max((now_ms - since for since in self._since.values()), default=0)


def _steps(rating: int) -> Iterable[tuple[Step, Step]]:
    """Each share of the rating, with how long the step above it may last."""
    steps = curve(rating)
    return zip(steps, (*steps[1:], (0, 0)), strict=True)
