"""Questions that come within the same moments, answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Gathering(Generic[K, V]):
    """`answer` gets the keys of a few milliseconds at once, `most` at a time.

    Five thousand stations that return in one second cost some dozens of queries, and hold one
    connection of the pool between them.
    """

    def __init__(
        self,
        answer: Callable[[list[K]], Awaitable[Mapping[K, V]]],
        *,
        linger_s: float = 0.002,
        most: int = 500,
    ) -> None:
        self._answer = answer
        self._linger_s = linger_s
        self._most = most
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: K) -> V | None:
        """None for a key that the answer leaves out. Raises what answering raised."""
        future = self._waiting.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[key] = future
            if len(self._waiting) == 1:
                task = asyncio.create_task(self._serve())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(future)

    async def _serve(self) -> None:
        await asyncio.sleep(self._linger_s)
        waiting, self._waiting = self._waiting, {}
        keys = list(waiting)
        for first in range(0, len(keys), self._most):
            await self._settle({key: waiting[key] for key in keys[first : first + self._most]})

    async def _settle(self, waiting: Mapping[K, asyncio.Future[V | None]]) -> None:
        try:
            found = await self._answer(list(waiting))
        except Exception as error:  # noqa: BLE001  # whoever asked gets it
            for future in waiting.values():
                future.set_exception(error)
                future.exception()  # who asked may be gone
            return
        for key, future in waiting.items():
            future.set_result(found.get(key))
