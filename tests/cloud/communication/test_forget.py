"""What is left of a station that was deleted: its commands, and no way in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from cloud.communication import store
from cloud.communication.store import StoredCredential
from cloud.kernel.database import Database, TenantId
from protocols.agent_link import SetAvailability

ONE = TenantId(1)


async def test_a_forgotten_station_has_no_way_in_and_keeps_its_commands(database: Database) -> None:
    now = datetime.now(UTC)
    command, action = UUID(int=1), SetAvailability(0, True)
    async with database.unit(ONE) as cursor:
        for station in (1, 2):
            stored = StoredCredential(f"S{station}", "b", "m")
            await store.put_credential(cursor, ONE, station, stored, now)
        until = now + timedelta(hours=1)
        await store.add_command(cursor, command, ONE, 1, action, "key:1", now, until)
        await store.forget_station(cursor, 1)
    async with database.commit_unit() as cursor:
        assert [one.username for one in await store.credentials(cursor)] == ["S2"]
        assert await store.presence(cursor, [1]) == {}
        kept = await store.command(cursor, command)
    assert kept is not None
    assert kept.expires_at < until
