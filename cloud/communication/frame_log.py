"""Every frame that passes between stations and gateways, kept for some days, beside the hot path.

Frames wait in memory, bounded in bytes, and are copied into the day's partition by a task of its
own. When the database is slow or away the newest are dropped and counted: a full log never stops
charging, and it is no record that anything rests on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from cloud.communication import gateway_store as store
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 32 * 1024 * 1024
EVERY_S: Final = 0.5
WAKE_BYTES: Final = 256 * 1024
_OVERHEAD: Final = 100
_EPOCH_US: Final = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_ROW: Final = struct.Struct("!hiqiiiiihi")
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_TRAILER: Final = struct.pack("!h", -1)
_NULL: Final = struct.pack("!i", -1)


class Direction(IntEnum):
    """Seen from the cloud."""

    IN = 0
    OUT = 1


class FrameLog:
    """Takes frames at any rate; `run` writes them down."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        keep: timedelta,
        registry: CollectorRegistry,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep
        self._most = most_bytes
        self._rows: list[bytes] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._days: set[date] = set()
        self._dropped = Counter(
            "karvon_ocpp_frames_dropped", "Frames that the frame log had no room for",
            registry=registry,
        )  # fmt: skip

    def note(
        self,
        at_us: int,
        tenant: TenantId,
        station_id: int,
        direction: Direction,
        action: bytes | None,
        frame: bytes,
    ) -> None:
        """Keep a frame; `at_us` is Unix time in microseconds."""
        if self._bytes > self._most:
            self._dropped.inc()
            return
        name = _NULL if action is None else struct.pack("!i", len(action)) + action
        row = _ROW.pack(6, 8, at_us - _EPOCH_US, 4, tenant, 4, station_id, 2, direction, len(frame))
        self._rows.append(row + frame + name)
        self._bytes += len(frame) + _OVERHEAD
        if self._bytes > WAKE_BYTES:
            self._wake.set()

    async def run(self) -> None:
        """Write, and forget what is older than the retention; for ever."""
        swept = self._clock() - timedelta(days=1)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            if self._rows:
                await self._write()
            if self._clock() - swept > timedelta(hours=1):
                swept = self._clock()
                await self._sweep()

    async def flush(self) -> None:
        """Write what waits, once."""
        if self._rows:
            await self._write()

    async def _write(self) -> None:
        rows, size = self._rows, self._bytes
        self._rows, self._bytes = [], 0
        try:
            async with self._database.commit_unit() as cursor:
                await self._ensure_day(cursor)
                await store.copy_frames(cursor, b"".join((_HEADER, *rows, _TRAILER)))
        except Unavailable as error:
            logger.warning("%d frames are not logged: %s", len(rows), error)
            if self._bytes + size <= self._most:
                self._rows, self._bytes = rows + self._rows, self._bytes + size
            else:
                self._dropped.inc(len(rows))
            await asyncio.sleep(1)

    async def _ensure_day(self, cursor: Cursor) -> None:
        today = self._clock().date()
        wanted = {today - timedelta(days=1), today, today + timedelta(days=1)}
        if not wanted <= self._days:
            await store.ensure_frame_days(cursor, sorted(wanted))
            self._days = wanted

    async def _sweep(self) -> None:
        try:
            async with self._database.commit_unit() as cursor:
                gone = await store.forget_frames(cursor, (self._clock() - self._keep).date())
        except Unavailable as error:
            logger.warning("old frames stay for now: %s", error)
            return
        if gone:
            logger.info("forgot the frames of %d days", gone)
