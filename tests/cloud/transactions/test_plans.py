"""Lists of many transactions are read from indexes, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Part
from cloud.transactions import store
from cloud.transactions.store import TransactionFilters

START = datetime(2026, 1, 1, tzinfo=UTC)
STATIONS = 100
PAGE = 50
MOST_LOOKED_AT = 40 * PAGE
"""Rows that a page may cost: some are read that another condition then refuses."""

_FILL = """
    INSERT INTO transactions.transaction (id, tenant_id, station_id, evse, connector, state,
        charging_state, started_at, started_dating, ended_at, ended_dating, token, seq_no,
        energy_wh, meter_wh, duration_ms, billing_grade, start_seen, last_at, updated_at)
    SELECT gen_random_uuid(), 1 + n / 100 %% 2, n %% %(stations)s, 1 + n / 200 %% 2, 1,
        CASE WHEN n %% 1000 = 0 THEN 'open' ELSE 'ended' END, 'Idle',
        %(start)s + n * interval '1 minute', 'synced',
        CASE WHEN n %% 1000 > 0 THEN %(start)s + (n + 30) * interval '1 minute' END, 'synced',
        n %% 500, 9, (n * 7919) %% 60000, n, 1000, true, true, %(start)s, %(start)s
    FROM generate_series(1, %(count)s) n
"""


@dataclass
class Explained:
    """A cursor that keeps each SELECT's plan, as it was carried out."""

    cursor: Cursor
    plans: list[Any] = field(default_factory=list)

    async def execute(self, sql: str, params: Any = None) -> None:
        await self.cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)  # type: ignore[call-overload]  # put together
        row = await self.cursor.fetchone()
        assert row
        told = row[0] if isinstance(row[0], list) else json.loads(row[0])
        self.plans.append(told[0]["Plan"])
        await self.cursor.execute(sql, params)  # type: ignore[call-overload]  # as above

    @property
    def description(self) -> Any:
        return self.cursor.description

    async def fetchall(self) -> list[Any]:
        return await self.cursor.fetchall()


def nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def looked_at(plan: Any) -> int:
    """Rows that the plan's scans read, with those that a condition then refused."""
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in nodes(plan)
        if "Scan" in node["Node Type"]
    )


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "latest": ("-started_at", {}),
    "first": ("started_at", {}),
    "last ended": ("-ended_at", {}),
    "first ended": ("ended_at", {}),
    "most energy": ("-energy_wh", {}),
    "a station's": ("-started_at", {"stations": [7]}),
    "a site's": ("-started_at", {"stations": [7, 9, 11]}),
    "an EVSE's": ("-started_at", {"stations": [7], "evse": 2}),
    "open": ("-started_at", {"state": "open"}),
    "a token's": ("-started_at", {"tokens": [7]}),
    "a day's": (
        "started_at",
        {"started_from": START + timedelta(days=1), "started_to": START + timedelta(days=2)},
    ),
    "ended on a day": (
        "-ended_at",
        {"ended_from": START + timedelta(days=1), "ended_to": START + timedelta(days=2)},
    ),
    "large": ("-started_at", {"min_energy_wh": 59_950}),
    "not small": ("-started_at", {"min_energy_wh": 1000}),
}


async def test_every_list_is_read_from_an_index(
    world: Any, sample_size: Callable[[int, int], int]
) -> None:
    count = sample_size(20_000, 100_000)
    async with world.database.commit_unit() as cursor:
        await cursor.execute(_FILL, {"stations": STATIONS, "start": START, "count": count})
    async with world.database.listener() as owner:
        await owner.execute("ANALYZE transactions.transaction")
    costs = {}
    for name, (sort, filters) in CASES.items():
        async with world.database.unit(TenantId(1), read_only=True) as cursor:
            costs[name] = await _cost(cursor, sort, TransactionFilters(**filters))
    assert {name: cost for name, cost in costs.items() if cost > MOST_LOOKED_AT} == {}


async def _cost(cursor: Cursor, sort: str, filters: TransactionFilters) -> int:
    """The most rows that one of the first two pages looks at."""
    explained: Any = Explained(cursor)
    part = Part(store.TRANSACTIONS, sort, PAGE)
    first = await store.transactions(explained, part, filters)
    assert first.rows
    if first.next is not None:
        behind = Part.behind(first.next, store.TRANSACTIONS, sort, PAGE)
        second = await store.transactions(explained, behind, filters)
        assert not {row.id for row in first.rows} & {row.id for row in second.rows}
    return max(looked_at(plan) for plan in explained.plans)


@pytest.mark.parametrize("sort", ["ended_at", "-ended_at", "energy_wh", "-energy_wh"])
async def test_pages_show_each_one_once_also_those_without_a_value(world: Any, sort: str) -> None:
    async with world.database.commit_unit() as cursor:
        await cursor.execute(_FILL, {"stations": STATIONS, "start": START, "count": 3000})
    seen: list[Any] = []
    at: str | None = ""
    while at is not None:
        async with world.database.unit(TenantId(1), read_only=True) as cursor:
            part = Part.behind(at, store.TRANSACTIONS, sort, 400)
            cut = await store.transactions(cursor, part, TransactionFilters())
        seen += cut.rows
        at = cut.next
    assert len({row.id for row in seen}) == len(seen) == 1500
    ends = [row.ended_at for row in seen if row.ended_at]
    if "ended" in sort:
        assert ends == sorted(ends, reverse=sort.startswith("-"))
