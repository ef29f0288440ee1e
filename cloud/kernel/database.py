"""Connections, units of work and roles.

Two roles share one PostgreSQL: `karvon_app` serves requests under forced row-level security, and
`karvon_commit` (BYPASSRLS) is the commit path, which writes `tenant_id` itself. Neither owns a
table; `migrate` makes both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Final, LiteralString, NewType, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from cloud.kernel.cursor import Cursor as Cursor  # noqa: PLC0414  # what `unit` gives
from cloud.kernel.errors import Unavailable
from cloud.kernel.pool import Pool
from cloud.kernel.turns import Ask

TenantId = NewType("TenantId", int)

APP_ROLE: Final = "karvon_app"
COMMIT_ROLE: Final = "karvon_commit"
UNIT_DEADLINE_S: Final = 15.0
STATEMENT_TIMEOUT_MS: Final = 10_000


class Database:
    """Pools for both roles. A unit of work is one transaction with a client-side deadline.

    The deadline stands on the client because a frozen primary otherwise holds its clients for
    ever, beside a successor that would answer.
    """

    def __init__(self, app: Pool, commit: Pool, dsn: str) -> None:
        self._app = app
        self._commit = commit
        self.dsn = dsn

    @classmethod
    @asynccontextmanager
    async def open(
        cls, dsn: str, *, app_pool: int = 8, commit_pool: int = 4
    ) -> AsyncIterator[Database]:
        """Both pools connect at first use, and again after the database was away."""
        app = _pool(dsn, APP_ROLE, app_pool)
        commit = _pool(dsn, COMMIT_ROLE, commit_pool)
        try:
            yield cls(app, commit, dsn)
        finally:
            await app.close()
            await commit.close()

    @asynccontextmanager
    async def unit(
        self, tenant: TenantId | None, *, read_only: bool = False
    ) -> AsyncIterator[Cursor]:
        """One transaction of the application's role, seeing only the tenant's rows.

        With tenant None no tenant's row is visible. Raises Unavailable when no connection is to
        be had or the deadline passes. Within `joint` of the same tenant it is a savepoint.
        """
        held = _joint.get()
        if held is not None and held[1:] == (self, tenant, asyncio.current_task()):
            async with held[0].transaction(), held[0].cursor() as cursor:
                yield cast("Cursor", cursor)
            return
        seen = b"" if tenant is None else b"%d" % tenant
        begin = b"BEGIN READ ONLY" if read_only else b"BEGIN"
        async with _transaction(
            self._app, UNIT_DEADLINE_S, begin + b"; SET LOCAL karvon.tenant = '" + seen + b"'"
        ) as cursor:
            yield cursor

    @asynccontextmanager
    async def joint(self, tenant: TenantId) -> AsyncIterator[Cursor]:
        """A transaction that every `unit` of this tenant in the same task becomes a part of.

        What the block does commits as a whole at its end, or not at all. Tasks that are begun in
        the block go on after it: they have transactions of their own.
        """
        async with self.unit(tenant) as cursor:
            token = _joint.set((cursor.connection, self, tenant, asyncio.current_task()))
            try:
                yield cursor
            finally:
                _joint.reset(token)

    @asynccontextmanager
    async def commit_unit(
        self, deadline_s: float = UNIT_DEADLINE_S, asks: Sequence[Ask] = ()
    ) -> AsyncIterator[Cursor]:
        """One transaction of the commit path's role, which sees every tenant.

        What it will `ask` can come with its begin.
        """
        async with _transaction(self._commit, deadline_s, asks) as cursor:
            yield cursor

    @asynccontextmanager
    async def glance(self) -> AsyncIterator[Cursor]:
        """For one SELECT of the commit path's role, without the turns that a transaction takes."""
        async with (
            self._commit.connection(UNIT_DEADLINE_S) as connection,
            connection.cursor() as cursor,
        ):
            yield cast("Cursor", cursor)

    @asynccontextmanager
    async def listener(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """An autocommit connection of its own, for LISTEN."""
        connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        async with connection:
            yield connection

    async def wake_on(self, channel: LiteralString, wake: asyncio.Event) -> None:
        """Set the event at each NOTIFY of the channel, and when listening begins; for ever."""
        while True:
            try:
                async with self.listener() as connection:
                    await connection.execute(f"LISTEN {channel}")
                    wake.set()
                    async for _ in connection.notifies():
                        wake.set()
            except psycopg.Error:
                await asyncio.sleep(1)

    async def healthy(self) -> bool:
        """Whether the database answers within two seconds."""
        try:
            async with self.commit_unit(2) as cursor:
                await cursor.execute("SELECT 1")
        except Unavailable:
            return False
        return True


_Joint = tuple[psycopg.AsyncConnection[TupleRow], Database, TenantId, asyncio.Task[object] | None]
_joint: ContextVar[_Joint | None] = ContextVar("joint", default=None)


def _pool(dsn: str, role: str, size: int) -> Pool:
    given = conninfo_to_dict(dsn)
    settings = (
        f"-c role={role} -c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC -c jit=off"
    )
    options = f"{given.get('options') or ''} {settings}".strip()
    return Pool(make_conninfo(dsn, options=options, application_name=f"karvon {role}"), size)


@asynccontextmanager
async def _transaction(
    pool: Pool, deadline_s: float, begin: bytes | Sequence[Ask]
) -> AsyncIterator[Cursor]:
    async with pool.connection(deadline_s) as connection, connection.cursor() as plain:
        cursor = cast("Cursor", plain)
        if isinstance(begin, bytes):
            await cursor.execute(begin)
        else:
            await cursor.begin(begin)
        try:
            yield cursor
        except Exception:
            with suppress(psycopg.Error):  # lost, and with it what was done
                await connection.rollback()
            raise
        await connection.commit()
