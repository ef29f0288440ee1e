"""Waiting for a command's end, whichever process brings it about: one listener per process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import psycopg

from cloud.communication.ocpp_store import ANSWER_CHANNEL
from cloud.kernel.database import Database
from cloud.kernel.errors import Unavailable

logger = logging.getLogger(__name__)
MOST_WAITING: Final = 1000


class TooManyWaiting(Unavailable):
    """More requests wait for stations than this process holds open."""

    code = "command.too_many_waiting"


class Answers:
    """`with answers.expecting(id) as ended: …store the command…; await ended.wait()`.

    `run` listens; without it, and while the database is away, waiters wait for their time only.
    """

    def __init__(self, database: Database, most: int = MOST_WAITING) -> None:
        self._database = database
        self._most = most
        self._waiting: dict[UUID, set[asyncio.Event]] = {}

    @contextmanager
    def expecting(self, command: UUID) -> Iterator[asyncio.Event]:
        """An event that is set when the command has ended, or may have. Raises TooManyWaiting."""
        if len(self._waiting) >= self._most:
            raise TooManyWaiting("too many requests wait for stations; ask again, or do not wait")
        ended = asyncio.Event()
        self._waiting.setdefault(command, set()).add(ended)
        try:
            yield ended
        finally:
            others = self._waiting[command]
            others.discard(ended)
            if not others:
                del self._waiting[command]

    async def run(self) -> None:
        """Listen for ever."""
        while True:
            try:
                async with self._database.listener() as connection:
                    await connection.execute(f"LISTEN {ANSWER_CHANNEL}")
                    self._wake_all()
                    async for told in connection.notifies():
                        self._wake(told.payload)
            except psycopg.Error as error:
                logger.warning("nobody hears of answers just now: %s", error)
                await asyncio.sleep(1)

    def _wake(self, payload: str) -> None:
        for ended in self._waiting.get(_command(payload) or UUID(int=0), ()):
            ended.set()

    def _wake_all(self) -> None:
        """What was told while nobody listened is looked up by each waiter."""
        for waiters in self._waiting.values():
            for ended in waiters:
                ended.set()


def _command(payload: str) -> UUID | None:
    try:
        return UUID(payload)
    except ValueError:
        return None
