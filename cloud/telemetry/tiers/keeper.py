"""Keeps the tiers: rolls up, compacts, forgets. Any number of processes may run it.

Each transaction is the keeper's only under an advisory lock, leaves the tiers whole, and may be cut
off anywhere: the next one, of whichever process, goes on from what is committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import Final, Literal

from cloud.kernel.database import Cursor, Database
from cloud.kernel.errors import Contended
from cloud.telemetry import store as samples
from cloud.telemetry.tiers import store
from cloud.telemetry.tiers.plan import DAY, EPOCH, MINUTE, Marks, floor
from cloud.telemetry.tiers.store import HotDay

logger = logging.getLogger(__name__)
ROLL_EVERY_S: Final = 15.0
TIDY_EVERY: Final = timedelta(minutes=10)
ROLL_LAG: Final = timedelta(minutes=3)
"""Agents send what a minute held; later than this it counts as late, which costs more."""
SETTLE_S: Final = 10.0
SETTLE_TRIES: Final = 500
LONGEST_S: Final = 600.0
ROWS_A_MOVE: Final = 4_000_000
LATE_AT_ONCE: Final = 2000
KEYS_AT_ONCE: Final = 100
MOST_LATE_ROUNDS: Final = 50
_DAYS_AHEAD: Final = 3


@dataclass(frozen=True)
class Keep:
    """How long each tier is kept, and after how long a closed day leaves the hot one."""

    raw: timedelta = timedelta(days=400)
    minutes: timedelta = timedelta(days=90)
    hours: timedelta = timedelta(days=3650)
    hot: timedelta = timedelta(days=2)
    compaction: Literal["blocks", "timescale"] = "blocks"


class Keeper:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, clock: Callable[[], datetime], keep: Keep) -> None:
        """Roll up every few seconds, compact and forget between, for ever."""
        tidy_at = EPOCH
        while True:
            try:
                await self.roll(clock())
                if clock() >= tidy_at:
                    await self.tidy(clock(), keep)
                    tidy_at = clock() + TIDY_EVERY
            except Contended as error:
                logger.info("telemetry's tiers wait for their turn: %s", error.detail)
            await asyncio.sleep(ROLL_EVERY_S)

    # ------------------------------------------------------------------ roll-ups

    async def roll(self, now: datetime) -> None:
        """Roll up to `ROLL_LAG` ago, then again what came late."""
        async with self._turn() as cursor:
            if cursor is not None:
                await store.raise_fence(cursor, floor(now - ROLL_LAG, MINUTE))
        fence = await self._settled()
        if fence is None:
            return
        while await self._roll_step(fence):
            pass
        for _ in range(MOST_LATE_ROUNDS):
            if not await self.roll_late():
                break

    async def _settled(self) -> datetime | None:
        """The fence, once whoever may have read an earlier one has ended."""
        async with self._database.commit_unit() as cursor:
            fence = (await store.marks(cursor)).fence
            number = await store.next_transaction(cursor)
        for _ in range(SETTLE_TRIES):
            if await self._ended(number):
                return fence
            await asyncio.sleep(SETTLE_S / SETTLE_TRIES)
        logger.info("the roll-up waits: a transaction has been open for %s s", SETTLE_S)
        return None

    async def _ended(self, number: int) -> bool:
        async with self._database.commit_unit() as cursor:
            return await store.all_ended(cursor, number)

    async def _roll_step(self, fence: datetime) -> bool:
        """Roll up at most a day; returns whether there is more."""
        async with self._turn() as cursor:
            if cursor is None:
                return False
            marks = await store.marks(cursor)
            hot = {one.day for one in await store.hot_days(cursor)}
            start = _next_hot(marks.until, hot, fence)
            if start >= fence:
                await store.set_until(cursor, max(marks.until, fence))
                return False
            end = min(floor(start, DAY) + DAY, fence)
            await store.roll(cursor, start, end)
            await store.set_until(cursor, end)
            return end < fence

    async def roll_late(self) -> bool:
        """Roll up again some of the hours that got late samples; returns whether there may be more.

        Hours older than the samples' retention keep the roll-up that they have.
        """
        async with self._turn() as cursor:
            if cursor is None:
                return False
            taken = await store.take_late(cursor, LATE_AT_ONCE)
            marks = await store.marks(cursor)
            keys = sorted(key for key in taken if marks.raw_from <= key[1] < marks.until)
            for first in range(0, len(keys), KEYS_AT_ONCE):
                await store.roll_again(cursor, keys[first : first + KEYS_AT_ONCE], marks)
        return bool(taken)

    # ------------------------------------------------------------------ compaction and retention

    async def tidy(self, now: datetime, keep: Keep) -> int:
        """Prepare the coming days, compact closed ones, forget; returns how many partitions went.

        What retention hides is removed at the next time, when nobody reads it any more.
        """
        days = {(now + timedelta(days=n)).date() for n in range(-1, _DAYS_AHEAD)}
        async with self._database.commit_unit() as cursor:
            await samples.ensure_days(cursor, days)
        await self.compact(now, keep)
        return await self._forget(now, keep)

    async def compact(self, now: datetime, keep: Keep) -> int:
        """Compact every hot day that is closed for long enough; returns how many samples moved."""
        async with self._database.commit_unit() as cursor:
            until = (await store.marks(cursor)).until
            hot = await store.hot_days(cursor)
        closed = floor(min(until, now - keep.hot), DAY).date()
        moved = 0
        for one in hot:
            if one.day < closed and not (
                keep.compaction == "timescale" and await self._compress(one.day)
            ):
                moved += await self._compact_day(one)
        return moved

    async def _compact_day(self, hot: HotDay) -> int:
        start, moved = _midnight(hot.day), 0
        for first, last in pairwise(store.slices(hot, ROWS_A_MOVE)):
            async with self._turn() as cursor:
                if cursor is None:
                    return moved
                await store.ensure(cursor, {hot.day})
                moved += await store.compact(cursor, start + first, start + last)
        try:
            async with self._turn() as cursor:
                if cursor is not None:
                    await store.drop_hot(cursor, hot.day)
        except Contended:
            logger.info("the emptied day %s is in use; it is dropped later", hot.day)
        return moved

    async def _compress(self, day: date) -> bool:
        async with self._turn() as cursor:
            if cursor is not None and not await store.compress_hot(cursor, day):
                logger.warning("TimescaleDB's licence offers no compression; own blocks instead")
                return False
        return True

    async def _forget(self, now: datetime, keep: Keep) -> int:
        async with self._turn() as cursor:
            if cursor is None:
                return 0
            marks = await store.marks(cursor)
            gone = await store.drop_hidden(cursor, marks)
            oldest = [_oldest(now, span, marks) for span in (keep.raw, keep.minutes, keep.hours)]
            await store.retain(cursor, *oldest)
        if gone:
            logger.info("dropped %s partitions of telemetry", gone)
        return gone

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Cursor | None]:
        """A transaction of the keeper; None while another process has its turn."""
        async with self._database.commit_unit(LONGEST_S) as cursor:
            yield cursor if await store.begin(cursor, LONGEST_S) else None


def _oldest(now: datetime, span: timedelta, marks: Marks) -> datetime:
    """Whole days only, and never what is not rolled up yet."""
    return floor(min(now - span, marks.until), DAY)


def _next_hot(until: datetime, hot: set[date], fence: datetime) -> datetime:
    """Where the next roll-up begins: days without hot samples are passed over."""
    if until.date() in hot:
        return until
    later = [_midnight(day) for day in hot if day > until.date()]
    return min([*later, fence])


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), EPOCH.tzinfo)
