"""Reading telemetry, and keeping it no longer than it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cloud.kernel.database import Cursor, Database
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.stations.api import StationFinder
from cloud.telemetry import store
from cloud.telemetry.api import SpanTooLong
from cloud.telemetry.energy import Energy
from cloud.telemetry.store import Bucket, Charged, Gap
from cloud.telemetry.tiers import store as tiers
from cloud.telemetry.tiers.keeper import Keep, Keeper
from cloud.telemetry.tiers.plan import Piece, common_step, plan

LONGEST = timedelta(days=366)
MOST_GAPS = 1000
_NEVER = datetime(2200, 1, 1, tzinfo=UTC)


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


@dataclass(frozen=True)
class Read:
    """An answer; in the `coarse` stretches no tier as fine as the question is left."""

    buckets: list[Bucket]
    gaps: list[Gap]
    coarse: list[Piece]


@dataclass(frozen=True)
class Fleet:
    """An answer about energy: buckets lie between `bounds`; later than that is not counted yet."""

    charged: list[Charged]
    bounds: list[datetime]
    counted_until: datetime
    late_hours: int
    coarse: list[Piece]


def _check(start: datetime, end: datetime) -> None:
    if not start < end <= start + LONGEST:
        raise SpanTooLong(
            f"`from` must lie before `to`, by at most {LONGEST.days} days", most_days=LONGEST.days
        )


class Telemetry:
    def __init__(self, database: Database, stations: StationFinder) -> None:
        self._database = database
        self._stations = stations
        self._keeper = Keeper(database)

    async def read(
        self,
        caller: Caller,
        identity: str,
        span: Span,
        after: tuple[int, datetime] | None,
        limit: int,
    ) -> Read:
        """Buckets by EVSE and time, and the gaps in the span. Raises SpanTooLong."""
        _check(span.start, span.end)
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            marks, late = await store.tiers(cursor, station.id, span.start, span.end)
            cuts = common_step([span.start], span.every)
            pieces = plan(span.start, span.end, cuts, marks, late)
            found = await store.buckets(
                cursor,
                station.id,
                pieces,
                start=span.start,
                every=span.every,
                evse=span.evse,
                after=after,
                limit=limit,
            )
            gaps = await store.gaps(cursor, station.id, span.start, span.end, span.evse, MOST_GAPS)
        return Read(found, list(gaps), [piece for piece in pieces if piece.coarse])

    async def energy(
        self, caller: Caller, asked: Energy, after: tuple[int, int], limit: int
    ) -> Fleet:
        """What all stations that the caller sees have charged. Raises SpanTooLong, TooManyBuckets.

        It is counted from the roll-ups alone, so that it costs the same however often stations
        report; therefore only up to `counted_until`, some minutes ago.
        """
        _check(asked.start, asked.end)
        bounds = asked.bounds()
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            marks = await tiers.marks(cursor)
            until = min(asked.end, marks.until)
            rolled = replace(marks, raw_from=_NEVER)
            pieces = plan(asked.start, until, common_step(bounds[:-1]), rolled)
            charged = await store.energy(
                cursor,
                pieces,
                bounds,
                site=asked.site,
                group=asked.group,
                after=after,
                limit=limit,
            )
            late = await store.late_hours(cursor, asked.start, until)
        return Fleet(charged, bounds, until, late, [piece for piece in pieces if piece.coarse])

    async def roll(self, now: datetime) -> None:
        """Roll up what is old enough, and again what came late."""
        await self._keeper.roll(now)

    async def tidy(self, now: datetime, keep: Keep) -> int:
        """Compact closed days and forget old ones; returns how many partitions went."""
        return await self._keeper.tidy(now, keep)

    async def run(self, clock: Callable[[], datetime], keep: Keep) -> None:
        """Keep the tiers for ever."""
        await self._keeper.run(clock, keep)
