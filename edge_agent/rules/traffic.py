"""How much a link that costs money has carried, and how telemetry thins before it costs more.

What is counted is what the network interface says, so it is what the provider counts: everything,
both ways, whoever caused it. Transactions, their state and commands are never thinned.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

SLACK: Final = 0.1
"""The month may be this far ahead of the calendar."""
NEARLY: Final = 0.9
KEPT_DAYS: Final = 62


@dataclass(frozen=True, slots=True)
class Level:
    """How telemetry is thinned: the interval of sending, and at most one sample in `spacing_ms`."""

    number: int
    times: int | None
    """The interval is so many times as long; None: telemetry waits on disk."""
    spacing_ms: int
    text: str


LEVELS: Final = (
    Level(0, 1, 0, "all telemetry is sent"),
    Level(1, 5, 30_000, "telemetry is thinned: the month's traffic is ahead of the calendar"),
    Level(2, 15, 300_000, "telemetry is thinned to the least: the month's budget is nearly used"),
    Level(3, None, 900_000, "telemetry waits on disk: the month's budget is used up"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRules:
    """Which interfaces cost money, and what a month of them together may carry (bytes)."""

    order: tuple[str, ...] = ()
    """The interfaces that are there to be used, the preferred one first."""
    metered: frozenset[str] = frozenset()
    monthly: int | None = None


Days = dict[str, dict[str, int]]
"""UTC day (YYYY-MM-DD) -> interface -> bytes, both ways."""


@dataclass(slots=True)
class Traffic:
    """Adds up the interfaces' counters by day."""

    days: Days = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """As last seen, since the controller was switched on."""
    undated: dict[str, int] = field(default_factory=dict)
    """Carried while the date was not known."""

    def observe(self, counters: Mapping[str, int], wall_ms: int | None) -> None:
        """New counters; one that is lower began anew. `wall_ms` None: the date is not known."""
        for link, now in counters.items():
            before = self.counters.get(link)
            if before is not None:
                gained = now - before if now >= before else now
                self.undated[link] = self.undated.get(link, 0) + gained
        self.counters = {**self.counters, **counters}
        if wall_ms is not None:
            self._date(day_of(wall_ms))

    def _date(self, day: str) -> None:
        today = self.days.setdefault(day, {})
        for link, gained in self.undated.items():
            today[link] = today.get(link, 0) + gained
        self.undated = {}
        for old in sorted(self.days)[:-KEPT_DAYS]:
            del self.days[old]

    def restarted(self) -> None:
        """The controller was switched off: its counters began from 0."""
        self.counters = dict.fromkeys(self.counters, 0)

    def month(self, links: frozenset[str], wall_ms: int) -> int:
        """What these links have carried in the month of `wall_ms`."""
        month = day_of(wall_ms)[:7]
        return sum(
            carried
            for day, by_link in self.days.items()
            for link, carried in by_link.items()
            if day.startswith(month) and link in links
        )


def day_of(wall_ms: int) -> str:
    return f"{datetime.fromtimestamp(wall_ms / 1000, UTC):%Y-%m-%d}"


def level_of(used: int, budget: int | None, wall_ms: int) -> Level:
    """How to thin on a metered link now; within a day it only ever gets stricter."""
    if budget is None:
        return LEVELS[0]
    if used >= budget:
        return LEVELS[3]
    if used >= NEARLY * budget:
        return LEVELS[2]
    now = datetime.fromtimestamp(wall_ms / 1000, UTC)
    elapsed = now.day / calendar.monthrange(now.year, now.month)[1]
    return LEVELS[1] if used > (elapsed + SLACK) * budget else LEVELS[0]
