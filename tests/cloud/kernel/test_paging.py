"""Any order, with NULLs and ties, gives every row once and in order, page by page."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from cloud.kernel.database import Cursor, Database
from cloud.kernel.errors import BadCursor
from cloud.kernel.paging import Column, Part, Sorts, Where, encode_cursor, select_page


@dataclass(frozen=True)
class Thing:
    id: int
    name: str
    seen: datetime | None
    weight: int | None


SORTS = Sorts(
    "id",
    Column("id", int),
    id=Column("id", int),
    name=Column("lower(name)"),
    seen=Column("seen", datetime, nullable=True),
    weight=Column("weight", int, nullable=True),
)
START = datetime(2026, 1, 1, tzinfo=UTC)
DRAW = random.Random(7)
THINGS = [
    Thing(
        number,
        DRAW.choice(["a", "B", "b", "ё", "Ж", ""]),
        DRAW.choice([None, START, START + timedelta(microseconds=DRAW.randrange(5))]),
        DRAW.choice([None, -1, 0, 2**40]),
    )
    for number in range(60)
]


def rank(thing: Thing, name: str) -> tuple[object, ...]:
    value = getattr(thing, name)
    value = value.lower() if isinstance(value, str) else value
    return (value is not None, *(() if value is None else (value,)), thing.id)


async def fill(cursor: Cursor) -> None:
    await cursor.execute(
        "CREATE TEMP TABLE thing (id int, name text, seen timestamptz, weight bigint)"
        " ON COMMIT DROP"
    )
    await cursor.executemany(
        "INSERT INTO thing VALUES (%s, %s, %s, %s)",
        [(thing.id, thing.name, thing.seen, thing.weight) for thing in THINGS],
    )


@pytest.mark.parametrize("limit", [1, 7, 60])
async def test_pages_of_any_order_are_the_list_cut(database: Database, limit: int) -> None:
    async with database.commit_unit() as cursor:
        await fill(cursor)
        for sort in SORTS.names():
            found: list[Thing] = []
            behind: str | None = None
            for _ in range(61):
                part = Part.behind(behind, SORTS, sort, limit)
                cut = await select_page(cursor, Thing, part, "id, name, seen, weight", "thing")
                assert len(cut.rows) <= limit
                found += cut.rows
                behind = cut.next
                if behind is None:
                    break
            name = sort.removeprefix("-")
            ordered = sorted(THINGS, key=lambda one: rank(one, name), reverse=sort != name)
            assert found == ordered, sort


async def test_conditions_without_a_value_are_left_out(database: Database) -> None:
    part = Part(SORTS, "id", 100)
    where = Where("id >= %(least)s", least=10).add("name = {}", "a").add("weight = {}", None)
    async with database.commit_unit() as cursor:
        await fill(cursor)
        cut = await select_page(cursor, Thing, part, "id, name, seen, weight", "thing", where)
    assert cut.rows == [one for one in THINGS if one.id >= 10 and one.name == "a"]
    assert cut.rows


@pytest.mark.parametrize(
    "key",
    [
        ("name", "a", 1),
        ("id", None, 1),
        ("id", 2**63, 1),
        ("id", "1", 1),
        ("id", 1),
        ("id", 1, 1, 1),
        (1,),
    ],
)
def test_a_cursor_of_another_order_is_refused(key: tuple[object, ...]) -> None:
    with pytest.raises(BadCursor):
        Part.behind(encode_cursor(key), SORTS, "id", 10)


@pytest.mark.parametrize("key", [("seen", "2026-01-01T00:00:00", 1), ("name", "a\0", 1)])
def test_a_cursor_that_no_database_takes_is_refused(key: tuple[str, str, int]) -> None:
    with pytest.raises(BadCursor):
        Part.behind(encode_cursor(key), SORTS, key[0], 10)
