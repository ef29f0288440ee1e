"""The kernel's tests: migrated databases of their own, and facts to commit."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cloud.kernel.database import Database, TenantId
from cloud.kernel.facts import Delivery
from cloud.kernel.migrate import migrate
from protocols.agent_link import (
    Batch,
    BillingBatch,
    ClockQuality,
    SecurityEvent,
    Stamp,
    StateBatch,
    Stream,
    TelemetryBatch,
)
from protocols.quantities import Milliseconds

AT = Stamp(Milliseconds(0), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
BATCHES = {
    Stream.BILLING: BillingBatch,
    Stream.STATE: StateBatch,
    Stream.TELEMETRY: TelemetryBatch,
}


def outbox_of(station: int) -> UUID:
    return UUID(int=0xB0C5_0000 + station)


@pytest.fixture(scope="session")
def kernel_template(embedded_postgres_dsn: str) -> str:
    """A migrated database on the embedded server, to be copied."""
    name = "kernel_template"
    with psycopg.connect(embedded_postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE kernel_template TEMPLATE template0")
    migrate(make_conninfo(embedded_postgres_dsn, dbname=name))
    return name


@pytest.fixture
def kernel_dsn(embedded_postgres_dsn: str, kernel_template: str) -> Iterator[str]:
    """A migrated database of its own."""
    name = f"kernel_{secrets.token_hex(6)}"
    both = sql.Identifier(name), sql.Identifier(kernel_template)
    with psycopg.connect(embedded_postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*both))
    yield make_conninfo(embedded_postgres_dsn, dbname=name)
    with psycopg.connect(embedded_postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(both[0]))


@pytest.fixture
async def database(kernel_dsn: str) -> AsyncIterator[Database]:
    async with Database.open(kernel_dsn, app_pool=4, commit_pool=4) as opened:
        yield opened


@pytest.fixture
def make_delivery() -> Callable[..., Delivery]:
    """`make_delivery(station, seq, stream=…, floor=…, text=…)`: a batch of that station's outbox.

    A billing batch holds one fact whose text a test's writer may choke on.
    """

    def make(
        station: int,
        seq: int,
        stream: Stream = Stream.BILLING,
        floor: int = 1,
        text: str = "",
    ) -> Delivery:
        outbox = outbox_of(station)
        fact = SecurityEvent(UUID(int=seq % 2**64), AT, "test", text)
        content = (fact,) if stream is Stream.BILLING else ()
        batch: Batch = BATCHES[stream](outbox, seq, floor, AT, content)  # type: ignore[arg-type]
        now = datetime(2026, 5, 1, tzinfo=UTC)
        return Delivery(station, TenantId(1), outbox, now, stream, batch)  # type: ignore[arg-type]

    return make


@pytest.fixture
def greet() -> Callable[..., object]:
    """Makes the stations' outboxes known, as their hellos would."""

    async def known(database: Database, *stations: int) -> None:
        async with database.commit_unit() as cursor:
            for station in stations:
                await cursor.execute(
                    "INSERT INTO kernel.outbox (station_id, outbox, tenant_id, last_boot)"
                    " VALUES (%s, %s, 1, %s)",
                    (station, outbox_of(station), UUID(int=1)),
                )
                await cursor.execute(
                    "INSERT INTO kernel.outbox_mark (station_id, outbox, stream)"
                    " SELECT %s, %s, unnest(%s::text[])",
                    (station, outbox_of(station), [str(stream) for stream in Stream]),
                )

    return known
