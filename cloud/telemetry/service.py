"""Reading telemetry, and keeping it no longer than it should be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloud.kernel.database import Cursor, Database
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.stations.api import StationFinder
from cloud.telemetry import store
from cloud.telemetry.api import SpanTooLong
from cloud.telemetry.store import Bucket, Gap

logger = logging.getLogger(__name__)
LONGEST = timedelta(days=366)
MOST_GAPS = 1000
_DAYS_AHEAD = 3
_TIDY_EVERY_S = 6 * 3600.0


@dataclass(frozen=True)
class Span:
    """What is asked for: a stretch of time of one EVSE or all, cut into equal buckets."""

    start: datetime
    end: datetime
    every: timedelta
    evse: int | None


class TelemetryHandover:
    """Stations' Follower: a station's measurements go with it."""

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        await store.hand_over(cursor, move.station_id, move.new)


class Telemetry:
    def __init__(self, database: Database, stations: StationFinder) -> None:
        self._database = database
        self._stations = stations

    async def read(
        self,
        caller: Caller,
        identity: str,
        span: Span,
        after: tuple[int, datetime] | None,
        limit: int,
    ) -> tuple[list[Bucket], list[Gap]]:
        """Buckets by EVSE and time, and the gaps in the span. Raises SpanTooLong."""
        if span.end <= span.start or span.end - span.start > LONGEST:
            raise SpanTooLong(
                f"`from` must lie before `to`, by at most {LONGEST.days} days",
                most_days=LONGEST.days,
            )
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            found = await store.buckets(
                cursor,
                station.id,
                start=span.start,
                end=span.end,
                every=span.every,
                evse=span.evse,
                after=after,
                limit=limit,
            )
            gaps = await store.gaps(cursor, station.id, span.start, span.end, span.evse, MOST_GAPS)
        return found, list(gaps)

    async def tidy(self, now: datetime, keep: timedelta) -> int:
        """Make the coming days' partitions and drop days that are kept long enough."""
        days = {(now + timedelta(days=n)).date() for n in range(-1, _DAYS_AHEAD)}
        async with self._database.commit_unit() as cursor:
            await store.ensure_days(cursor, days)
            return await store.drop_before(cursor, (now - keep).date())

    async def run(self, clock: Callable[[], datetime], keep: timedelta) -> None:
        """Tidy for ever."""
        while True:
            gone = await self.tidy(clock(), keep)
            if gone:
                logger.info("dropped %s days of telemetry older than %s", gone, keep)
            await asyncio.sleep(_TIDY_EVERY_S)
