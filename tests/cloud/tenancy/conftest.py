"""The storage suites run on the embedded PostgreSQL and on TimescaleDB."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

AT = datetime(2026, 5, 1, 12, tzinfo=UTC)
SAMPLES: dict[str, Any] = {
    "integer": 1, "smallint": 1, "bigint": 1, "double precision": 1.0, "real": 1.0, "numeric": 1,
    "text": "x", "uuid": UUID(int=77), "boolean": True, "timestamp with time zone": AT,
    "jsonb": "{}", "bytea": b"x", "date": AT.date(), "ARRAY": "{}", "int8multirange": "{}",
}  # fmt: skip
ALLOWED = {
    "role": "viewer", "registration": "expected", "state": "open", "language": "en", "keep": "none",
}  # fmt: skip
"""Columns that take one of a few words."""


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    return pg_server


@pytest.fixture
def fill(world: Any) -> Callable[..., Awaitable[None]]:
    """`fill(table, tenant, station)`: a row of the tenant's, whatever the other columns are."""

    async def row(table: str, tenant: int, station: int) -> None:
        async with world.database.listener() as owner:
            await owner.execute("SET session_replication_role = replica")  # no foreign keys
            described = await owner.execute(
                "SELECT column_name, data_type FROM information_schema.columns"
                " WHERE format('%%I.%%I', table_schema, table_name)::regclass = %s::regclass"
                " AND (is_nullable = 'NO' OR column_name IN ('tenant_id', 'station_id'))"
                " AND is_identity = 'NO' AND is_generated = 'NEVER'",
                (table,),
            )
            columns = dict(await described.fetchall())
            given = {"tenant_id": tenant, "station_id": station, "status": _status(table)}
            values = [
                given.get(name) or ALLOWED.get(name) or SAMPLES[kind]
                for name, kind in columns.items()
            ]
            marks = ", ".join(["%s"] * len(values))
            await owner.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # type: ignore[arg-type]  # put together
                " ON CONFLICT DO NOTHING",
                values,
            )

    return row


def _status(table: str) -> Any:
    return "requested" if table.endswith("command") else None
