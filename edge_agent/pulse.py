"""Whether every loop still runs: each beats in its own time; systemd is told as long as all do.

A loop calls `beat()` whenever it comes round, and tells with `beat(rest_s)` or `waiting()` when it
is right that it will not for a while. Which beat is meant stands in the context of its task, so the
tasks that it starts beat for it too; where there is none, as in a test, nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final

log = logging.getLogger(__name__)
KICK_S: Final = 10.0
LOOK_S: Final = 1.0
FROZEN_S: Final = 5.0


class Beat:
    """One loop's."""

    def __init__(self, clock: Callable[[], float], within_s: float) -> None:
        self._clock, self.within_s = clock, within_s
        self._due: float | None = clock() + within_s

    def __call__(self, rest_s: float = 0.0) -> None:
        self._due = self._clock() + rest_s + self.within_s

    def stop(self) -> None:
        """It waits for what may never come."""
        self._due = None

    @property
    def overdue(self) -> bool:
        return self._due is not None and self._clock() > self._due


_MINE: ContextVar[Beat | None] = ContextVar("beat", default=None)


def adopt(mine: Beat | None) -> None:
    """From here on the calling task is the loop of that beat."""
    _MINE.set(mine)
    beat()


def beat(rest_s: float = 0.0) -> None:
    """The calling task's loop has come round; the next time may come so many seconds later."""
    mine = _MINE.get()
    if mine is not None:
        mine(rest_s)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Inside, the calling task's loop waits for an event that may never come."""
    mine = _MINE.get()
    if mine is not None:
        mine.stop()
    yield
    beat()


class Pulse:
    """All loops of one agent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, Beat] = {}
        self._late: list[str] = []
        self._ready = False
        self._kicked = float("-inf")
        self._looked = clock()

    def of(self, name: str, within_s: float) -> Beat:
        """A loop that must come round within so many seconds, from now on."""
        return self._beats.setdefault(name, Beat(self._clock, within_s))

    def overdue(self) -> list[str]:
        return [name for name, each in self._beats.items() if each.overdue]

    async def run(self, ready: Callable[[], bool]) -> None:
        """Tell systemd what it has to know, for ever."""
        every_s = kick_every()
        while True:
            beat()
            for message in self.look(ready=ready(), every_s=every_s):
                notify(message)
            await asyncio.sleep(min(LOOK_S, every_s))

    def look(self, *, ready: bool, every_s: float) -> list[str]:
        """What systemd is to be told now: that we are ready, live, or hang."""
        now = self._clock()
        frozen, self._looked = now - self._looked > FROZEN_S, now
        if frozen:
            return []  # not one loop hung, this process slept: let each beat first
        told = []
        if ready and not self._ready:
            self._ready = True
            told.append("READY=1")
        late = self.overdue()
        if late != self._late:
            told.append(self._changed(late))
        if not late and now - self._kicked >= every_s:
            self._kicked = now
            told.append("WATCHDOG=1")
        return told

    def _changed(self, late: list[str]) -> str:
        self._late = late
        named = ", ".join(late)
        if late:
            log.critical("hangs: %s; systemd will start the agent anew", named)
            return f"STATUS=hangs: {named}"
        log.warning("every task runs again")
        return "STATUS="


def kick_every() -> float:
    """Half of what systemd waits (sd_watchdog_enabled(3)), at most ten seconds."""
    try:
        asked = int(os.environ.get("WATCHDOG_USEC", "")) / 1_000_000
    except ValueError:
        return KICK_S
    return min(KICK_S, asked / 2) if asked > 0 else KICK_S


def notify(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
    ):
        out.sendto(message.encode(), name)
