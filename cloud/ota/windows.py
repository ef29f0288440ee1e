"""When an installation may begin: a span of every day, in a place's own time. Pure rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Daily:
    """From a time of day to another one, which may be the next day's."""

    start: time
    end: time
    time_zone: str

    def next(self, now: datetime) -> tuple[datetime, datetime]:
        """The span that now is in, or else the one that comes next; in UTC."""
        zone = ZoneInfo(self.time_zone)
        today = now.astimezone(zone).date()
        for days in (-1, 0, 1, 2):
            day = today + timedelta(days=days)
            over = day + timedelta(days=1) if self.end <= self.start else day
            begins = datetime.combine(day, self.start, zone).astimezone(UTC)
            ends = datetime.combine(over, self.end, zone).astimezone(UTC)
            if begins < ends and now < ends:
                return begins, ends
        raise AssertionError  # a day of every three has both of its times
