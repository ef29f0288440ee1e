"""A small pool of database connections with a hard deadline on each use.

Ours instead of psycopg_pool, whose rollback waits on a frozen server for ever and which pauses
twice as long after each failed reconnect. Here a passed deadline shuts the connection's socket
down, which ends whatever waits on it, and a lost server is tried again at the next use.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from cloud.kernel.cursor import Cursor
from cloud.kernel.errors import Contended, Unavailable
from cloud.kernel.turns import Connection

CONNECT_TIMEOUT_S: Final = 5.0
_TRY_AGAIN: Final = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available."""


class Pool:
    """At most `size` connections, made when needed, kept while they are sound."""

    def __init__(self, conninfo: str, size: int) -> None:
        self._conninfo = conninfo
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._closed = False

    @asynccontextmanager
    async def connection(self, deadline_s: float) -> AsyncIterator[Connection]:
        """A connection in autocommit mode, for that long.

        Raises Unavailable when the deadline passes or the server fails (it may have committed all
        the same), Contended after a deadlock.
        """
        until = asyncio.get_running_loop().time() + deadline_s
        await self._acquire(until, deadline_s)
        try:
            with translated(deadline_s):
                connection = await self._take(until)
                async with _watched(connection, until):
                    yield connection
                await self._give_back(connection)
        finally:
            self._free.release()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _acquire(self, until: float, deadline_s: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._free.acquire()
        except TimeoutError:
            raise Unavailable(
                f"all database connections were busy for {deadline_s:g} s; try again shortly"
            ) from None

    async def _take(self, until: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if _sound(connection):
                return connection
            await connection.close()
        soon = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        try:
            async with asyncio.timeout_at(min(until, soon)):
                return await Connection.connect(
                    self._conninfo, autocommit=True, cursor_factory=Cursor
                )
        except TimeoutError:
            raise Unavailable("the database does not accept a connection in time") from None

    async def _give_back(self, connection: Connection) -> None:
        if self._closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            await connection.close()
        else:
            self._idle.append(connection)


@asynccontextmanager
async def _watched(connection: Connection, until: float) -> AsyncIterator[None]:
    """Cut the connection off when its time is over; on any failure do not use it again."""
    timer = asyncio.get_running_loop().call_at(until, _cut, connection)
    try:
        yield
    except BaseException:
        await connection.close()
        raise
    finally:
        timer.cancel()


def _cut(connection: Connection) -> None:
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def _sound(connection: Connection) -> bool:
    """An idle connection has nothing to say; a readable one was closed by the server."""
    if connection.closed:
        return False
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return not poller.poll(0)


@contextmanager
def translated(deadline_s: float) -> Iterator[None]:
    """The server's failures as ours; errors in what it was asked stay as they are."""
    try:
        yield
    except psycopg.OperationalError as error:
        if error.sqlstate in _TRY_AGAIN:
            raise Contended(
                f"others changed the same rows at the same moment ({error.sqlstate}); try again"
            ) from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(
            f"the database is out of reach or did not answer within {deadline_s:g} s: {why}"
        ) from error
