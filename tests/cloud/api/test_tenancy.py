"""Every table that belongs to tenants is shut to the others."""

from __future__ import annotations

from typing import Any


async def test_every_table_with_a_tenant_forces_row_level_security(world: Any) -> None:
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "SELECT c.oid::regclass::text, c.relrowsecurity AND c.relforcerowsecurity"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p') ORDER BY 1"
        )
        tables = dict(await cursor.fetchall())
    assert len(tables) > 20
    assert [name for name, shut in tables.items() if not shut] == []


async def test_the_application_cannot_touch_samples_but_through_views(world: Any) -> None:
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE n.nspname = 'telemetry'"
            " AND c.relkind IN ('r', 'p', 'v')"
            " AND has_table_privilege('karvon_app', c.oid, 'SELECT')"
        )
        readable = {name for (name,) in await cursor.fetchall()}
    assert readable == {
        "telemetry.api_sample", "telemetry.api_extra", "telemetry.gap", "telemetry.undated",
        "telemetry.api_minute", "telemetry.api_hour", "telemetry.api_late", "telemetry.tier",
    }  # fmt: skip
