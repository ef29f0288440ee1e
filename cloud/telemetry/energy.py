"""Where the buckets of an energy question begin and end: pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from cloud.telemetry.api import TooManyBuckets
from cloud.telemetry.tiers.plan import DAY

MOST_BUCKETS = 2000


@dataclass(frozen=True)
class Energy:
    """How much was charged between two times, cut into steps: all, or by station or site.

    Whole days are days of the calendar in `zone`, 23 to 25 hours long where clocks change.
    """

    start: datetime
    end: datetime
    every: timedelta
    zone: ZoneInfo
    site: int | None
    group: str | None

    def bounds(self) -> list[datetime]:
        """The buckets' edges, first to last. Raises TooManyBuckets."""
        found = [self.start]
        for edge in self._edges():
            if edge >= self.end:
                break
            found.append(edge)
            if len(found) > MOST_BUCKETS:
                raise TooManyBuckets(
                    f"that makes more than {MOST_BUCKETS} buckets; ask for longer ones with"
                    " `every`, or for less at once",
                    most=MOST_BUCKETS,
                )
        return [*found, self.end]

    def _edges(self) -> Iterator[datetime]:
        if self.every % DAY:
            edge = self.start
            while True:
                edge += self.every
                yield edge
        day = self.start.astimezone(self.zone).date()
        while True:
            day += self.every
            yield datetime.combine(day, time(), self.zone).astimezone(UTC)
