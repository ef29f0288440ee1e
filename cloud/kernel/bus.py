"""What modules of a running cloud tell each other, by two verbs: publish and subscribe.

A port: `LocalBus` serves one process, a broker between processes comes behind the same contract
(tests/cloud/kernel/test_bus.py). What must not be lost goes through the event log; the bus carries
what is worth telling only now, at most once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

MOST_WAITING: Final = 1000


@dataclass(frozen=True)
class Notice:
    """A message: its topic (`<noun>.<what happened>`), and data that JSON can hold."""

    topic: str
    data: dict[str, Any]


class Subscription(Protocol):
    """A subscriber's own queue. A slow one loses its oldest notices and is told how many."""

    @property
    def lost(self) -> int: ...

    async def next(self) -> Notice:
        """The next notice; in the order in which one publisher published."""
        ...


class Bus(Protocol):
    async def publish(self, notice: Notice) -> None:
        """Tell all who subscribe now; never waits for them."""
        ...

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[Subscription]:
        """`async with bus.subscribe("station.connected") as notices: await notices.next()`."""
        ...


class LocalBus:
    """Within one process and one event loop."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._queues: dict[str, list[_Queue]] = defaultdict(list)

    async def publish(self, notice: Notice) -> None:
        for queue in self._queues.get(notice.topic, ()):
            queue.put(notice)

    @asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[Subscription]:
        queue = _Queue(self._most_waiting)
        for topic in topics:
            self._queues[topic].append(queue)
        try:
            yield queue
        finally:
            for topic in topics:
                self._queues[topic].remove(queue)
                if not self._queues[topic]:
                    del self._queues[topic]


class _Queue:
    def __init__(self, most_waiting: int) -> None:
        self._waiting: asyncio.Queue[Notice] = asyncio.Queue(most_waiting)
        self.lost = 0

    def put(self, notice: Notice) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
            self.lost += 1
        self._waiting.put_nowait(notice)

    async def next(self) -> Notice:
        return await self._waiting.get()
