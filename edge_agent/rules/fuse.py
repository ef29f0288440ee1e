"""How long a main fuse bears more than it is rated for.

IEC 60269-1, utilisation category gG: a fuse-link does not melt at 1.25 times its rating within
the conventional time (one hour up to 63 A, more above), nor within ten seconds at the current of
its gate Imin(10 s), which is at least twice the rating from 16 A on. Nothing is ever above that.
A miniature circuit breaker (IEC 60898-1) promises less: 1.13 times for an hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from edge_agent.rules.phases import Lines

CURVE: Final = ((1000, None), (1250, 3_600_000), (2000, 10_000))
"""(up to this share of the rating in thousandths, bearable for so many ms; None: for ever)."""


def bearable_ms(current: int, rating: int) -> int | None:
    """How long this current may flow without a break; None: for ever, 0: not at all."""
    for thousandths, bearable in CURVE:
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
        for (thousandths, _), (_, bearable) in _steps():
            key, above = (line, thousandths), current * 1000 > self.rating[line] * thousandths
            if not above:
                self._since.pop(key, None)
                continue
            since = self._since.setdefault(key, now_ms)
            verdict = verdict or not bearable or now_ms - since > bearable
        return verdict

    def over_ms(self, now_ms: int) -> int:
        """How long any line has been above its rating."""
        return max((now_ms - since for since in self._since.values()), default=0)


Step = tuple[int, int | None]


def _steps() -> Iterable[tuple[Step, Step]]:
    """Each share of the rating, with how long the step above it may last."""
    return zip(CURVE, (*CURVE[1:], (0, 0)), strict=True)
