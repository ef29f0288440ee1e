"""Migrations and forced row-level security, proven against the catalogue."""

from __future__ import annotations

import psycopg
import pytest

from cloud.kernel.database import Database, TenantId
from cloud.kernel.migrate import migrate

NO_POLICY = frozenset({"telemetry"})
"""Schemas whose tables carry no policy: read only through views."""

OWNED = """
    SELECT n.nspname, c.relname, c.relrowsecurity AND c.relforcerowsecurity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND n.nspname NOT LIKE '\\_timescaledb%' ORDER BY 1, 2
"""


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    """The catalogue differs where hypertables are: on each kind of server."""
    return pg_server


@pytest.fixture
def kernel_dsn(cloud_dsn: str) -> str:
    return cloud_dsn


def test_migrating_again_changes_nothing(kernel_dsn: str) -> None:
    with psycopg.connect(kernel_dsn) as connection:
        before = connection.execute("SELECT * FROM karvon_migration ORDER BY 1").fetchall()
    migrate(kernel_dsn)
    with psycopg.connect(kernel_dsn) as connection:
        assert connection.execute("SELECT * FROM karvon_migration ORDER BY 1").fetchall() == before
    assert any(revision.startswith("communication_") for (revision,) in before)


def unprotected(connection: psycopg.Connection) -> list[str]:
    return [
        f"{schema}.{table}"
        for schema, table, forced in connection.execute(OWNED)
        if not forced and schema not in NO_POLICY
    ]


def test_every_table_with_a_tenant_forces_row_level_security(kernel_dsn: str) -> None:
    with psycopg.connect(kernel_dsn) as connection:
        assert len(connection.execute(OWNED).fetchall()) >= 5
        assert unprotected(connection) == []


def test_a_table_that_forgot_its_policy_is_found(kernel_dsn: str) -> None:
    with psycopg.connect(kernel_dsn) as connection:
        connection.execute("CREATE TABLE kernel.forgotten (tenant_id int NOT NULL)")
        assert unprotected(connection) == ["kernel.forgotten"]


def test_the_application_cannot_read_tables_without_policy(kernel_dsn: str) -> None:
    with psycopg.connect(kernel_dsn) as connection:
        open_tables = [
            (schema, table)
            for schema, table, forced in connection.execute(OWNED).fetchall()
            if not forced
        ]
        readable = [
            f"{schema}.{table}"
            for schema, table in open_tables
            if connection.execute(
                "SELECT has_table_privilege('karvon_app', format('%%I.%%I', %s::text, %s::text),"
                " 'SELECT')",
                (schema, table),
            ).fetchone()
            != (False,)
        ]
    assert readable == []


async def test_another_tenants_rows_are_invisible_in_every_table(
    kernel_dsn: str, database: Database
) -> None:
    """One row of tenant 2 in each table, written past constraints; tenant 1 must see none."""
    with psycopg.connect(kernel_dsn, autocommit=True) as connection:
        tables = [(s, t) for s, t, forced in connection.execute(OWNED).fetchall() if forced]
        for schema, table in tables:
            _plant(connection, schema, table)
    for tenant, expected in ((1, 0), (2, 1), (None, 0)):
        async with database.unit(None if tenant is None else TenantId(tenant)) as cursor:
            for schema, table in tables:
                await cursor.execute(
                    psycopg.sql.SQL("SELECT count(*) FROM {} WHERE tenant_id = 2").format(
                        psycopg.sql.Identifier(schema, table)
                    )
                )
                assert await cursor.fetchone() == (expected,), f"{schema}.{table} for {tenant}"


def _plant(connection: psycopg.Connection, schema: str, table: str) -> None:
    name = psycopg.sql.Identifier(schema, table)
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # no foreign keys
        columns = connection.execute(
            "SELECT a.attname, a.attidentity, a.attgenerated FROM pg_attribute a"
            " WHERE a.attrelid = format('%%I.%%I', %s::text, %s::text)::regclass"
            " AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull"
            " AND a.attname <> 'tenant_id' AND a.attidentity = '' AND a.attgenerated = ''",
            (schema, table),
        ).fetchall()
        checks = connection.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'c'"
            " AND conrelid = format('%%I.%%I', %s::text, %s::text)::regclass",
            (schema, table),
        ).fetchall()
        for (check,) in checks:
            connection.execute(
                psycopg.sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    name, psycopg.sql.Identifier(check)
                )
            )
        for column, *_ in columns:
            connection.execute(
                psycopg.sql.SQL("ALTER TABLE {} ALTER {} SET DEFAULT {}").format(
                    name,
                    psycopg.sql.Identifier(column),
                    psycopg.sql.SQL(_any_value(connection, schema, table, column)),
                )
            )
        connection.execute(psycopg.sql.SQL("INSERT INTO {} (tenant_id) VALUES (2)").format(name))


def _any_value(connection: psycopg.Connection, schema: str, table: str, column: str) -> str:
    found = connection.execute(
        "SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND a.attname = %s",
        (schema, table, column),
    ).fetchone()
    assert found
    values = {
        "uuid": "gen_random_uuid()",
        "timestamptz": "now()",
        "jsonb": "'{}'",
        "bool": "false",
        "bytea": "'x'",
        "text": "'x'",
        "date": "current_date",
        "int8multirange": "'{}'",
    }
    return values.get(found[0], "'{}'" if found[0].startswith("_") else "0")


async def test_a_tenant_cannot_write_for_another(database: Database) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        async with database.unit(TenantId(1)) as cursor:
            await cursor.execute(
                "INSERT INTO kernel.event (partition, position, tenant_id, kind, subject, data)"
                " VALUES (0, 0, 2, 'x.y', 's', '{}')"
            )


async def test_the_applications_role_owns_nothing_and_cannot_pass_policies(kernel_dsn: str) -> None:
    with psycopg.connect(kernel_dsn) as connection:
        roles = connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles"
            " WHERE rolname IN ('karvon_app', 'karvon_commit') ORDER BY 1"
        ).fetchall()
        owned = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relowner = 'karvon_app'::regrole"
        ).fetchone()
    assert roles == [("karvon_app", False, False), ("karvon_commit", False, True)]
    assert owned == (0,)


async def test_reading_units_cannot_write(database: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with database.unit(TenantId(1), read_only=True) as cursor:
            await cursor.execute("DELETE FROM kernel.outbox")
