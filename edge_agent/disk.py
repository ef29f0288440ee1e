"""Watches the file system under the journal, without ever waiting for it elsewhere."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.links import DiskSeen
from edge_agent.pulse import beat

EVERY_S: Final = 10.0
DEADLINE_S: Final = 5.0
"""A storage card that is dying may keep a thread for minutes; nobody waits for it then."""


def look(folder: Path) -> DiskSeen:
    """Ask the system once; may block as long as the storage does."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return DiskSeen(trouble=f"{folder}: {error.strerror or error}")
    return DiskSeen(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_files=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


class Disk:
    """What was last seen; at most one thread asks, and it never keeps the agent from ending."""

    def __init__(
        self,
        folder: Path,
        *,
        look: Callable[[Path], DiskSeen] = look,
        deadline_s: float = DEADLINE_S,
        every_s: float = EVERY_S,
    ) -> None:
        self.folder = folder
        self._look = look
        self._deadline_s = deadline_s
        self._every_s = every_s
        self._seen: DiskSeen | None = None
        self._seen_at = 0.0
        self._asking: asyncio.Future[DiskSeen] | None = None

    @property
    def seen(self) -> DiskSeen | None:
        """With its age; None before the first look."""
        if self._seen is None:
            return None
        age = round((time.monotonic() - self._seen_at) * 1000)
        return msgspec.structs.replace(self._seen, age_ms=age)

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            beat()
            await self.look_once()
            await asyncio.sleep(self._every_s)

    async def look_once(self) -> None:
        """One look, given up after the deadline; the thread that hangs is asked again later."""
        if self._asking is None:
            self._asking = self._in_thread()
        done, _ = await asyncio.wait([self._asking], timeout=self._deadline_s)
        if done:
            self._seen = self._asking.result()
            self._asking = None
        else:
            text = f"{self.folder}: the storage has not answered for {self._deadline_s:g} s"
            self._seen = DiskSeen(trouble=text)
        self._seen_at = time.monotonic()

    def _in_thread(self) -> asyncio.Future[DiskSeen]:
        """A daemon of its own: the executor's threads are waited for when the process ends."""
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[DiskSeen] = loop.create_future()

        def settle(seen: DiskSeen) -> None:
            if not asked.done():
                asked.set_result(seen)

        def ask() -> None:
            seen = self._look(self.folder)
            with suppress(RuntimeError):  # the agent has ended meanwhile
                loop.call_soon_threadsafe(settle, seen)

        threading.Thread(target=ask, name="disk", daemon=True).start()
        return asked
