"""Units of work that become one."""

from __future__ import annotations

import asyncio

import pytest

from cloud.kernel.database import Database, TenantId

ONE, TWO = TenantId(1), TenantId(2)


async def note(database: Database, tenant: TenantId, topic: str) -> None:
    async with database.unit(tenant) as cursor:
        await cursor.execute(
            "INSERT INTO kernel.dead_letter (tenant_id, topic, reason, payload)"
            " VALUES (%s, %s, '', '')",
            (tenant, topic),
        )


async def noted(database: Database) -> set[str]:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT topic FROM kernel.dead_letter")
        return {topic for (topic,) in await cursor.fetchall()}


async def test_units_of_a_joint_commit_together(database: Database) -> None:
    async with database.joint(ONE):
        await note(database, ONE, "a")
        await note(database, ONE, "b")
        assert await noted(database) == set()
    assert await noted(database) == {"a", "b"}
    await note(database, ONE, "c")
    assert await noted(database) == {"a", "b", "c"}


async def test_units_of_a_joint_fail_together(database: Database) -> None:
    async def fail() -> None:
        async with database.joint(ONE):
            await note(database, ONE, "a")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await noted(database) == set()


async def test_a_unit_that_fails_may_leave_the_joint_going(database: Database) -> None:
    async def fail() -> None:
        async with database.unit(ONE):
            await note(database, ONE, "bad")
            raise KeyError

    async with database.joint(ONE):
        await note(database, ONE, "a")
        with pytest.raises(KeyError):
            await fail()
    assert await noted(database) == {"a"}


async def test_others_are_not_part_of_it(database: Database) -> None:
    begun = asyncio.Event()

    async def later() -> None:
        await begun.wait()
        await note(database, ONE, "later")

    async with database.joint(ONE):
        task = asyncio.create_task(later())
        await note(database, ONE, "inside")
        await note(database, TWO, "other tenant")
        assert await noted(database) == {"other tenant"}
    begun.set()
    await task
    assert await noted(database) == {"other tenant", "inside", "later"}
