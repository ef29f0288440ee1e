"""storage.*: what a stored value costs, hot and compacted, and how long operators' questions take.

A hundred stations, one EVSE each, a sample every 10 s for two days: 1.73 million samples of nine
values, committed in messages of ten as agents send them. The signal carries a meter's noise, half
of the time nobody charges, and times jitter by milliseconds. Then the keeper rolls up and compacts.
Sizes are what PostgreSQL says of tables, indexes and TOAST together. Questions go through the
service, the tenant's view included; the same questions over the hot rows alone are the baseline,
and for sizes the usual narrow table with a row for each value.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
from figure import Figure
from ingest_house import HOUSES, House, NotHereError
from numpy.typing import NDArray
from signal_model import VALUES_PER_SAMPLE, samples

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.http import Caller, Role
from cloud.kernel.migrate import migrate
from cloud.stations.api import StationRef
from cloud.telemetry import store
from cloud.telemetry.columns import Dated, pack
from cloud.telemetry.energy import Energy
from cloud.telemetry.service import Read, Span, Telemetry
from cloud.telemetry.tiers.keeper import Keep, Keeper
from protocols.agent_link import COLUMNS, ClockQuality, Series
from protocols.quantities import Milliseconds

STATIONS = 100
DAYS = 2
EVERY_S = 10
SAMPLES_A_MESSAGE = 10
MESSAGES_A_COMMIT = 500
NARROW_SHARE = 20
"""The narrow table takes one in so many samples; what it costs per value does not change."""
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=DAYS)
VIEWER = Caller(TenantId(1), "bench", Role.VIEWER)
_BOOT = UUID(int=1)
Ints = NDArray[np.int64]


async def measure(runs: int) -> list[Figure]:
    """Both houses in turn; one that is not here is left out, and said so."""
    figures: list[Figure] = []
    for name, opened in HOUSES.items():
        prefix = "storage" if name == "timescale" else f"storage_{name}"
        try:
            async with opened() as house:
                with house.database() as dsn:
                    figures += await _figures(house, dsn, prefix, max(3, runs) * 10)
        except NotHereError as reason:
            sys.stderr.write(f"bench: NOT RUN: {prefix}.*: {reason}\n")
    return figures


async def _figures(house: House, dsn: str, prefix: str, asked: int) -> list[Figure]:
    migrate(dsn)
    _stations(dsn)
    async with Database.open(dsn) as database:
        telemetry = Telemetry(database, Stations())
        await _load(database)
        values = STATIONS * DAYS * 86400 // EVERY_S * VALUES_PER_SAMPLE
        hot = _size(dsn, "sample") / values
        narrow = _narrow(dsn)
        day_hot = await _asked(house, asked, lambda: _day(telemetry))
        fleet_hot = _fleet_of_samples(dsn)
        keeper = Keeper(database)
        rolled = await _cpu(house, keeper.roll(END + timedelta(hours=1)))
        compacted = await _cpu(house, keeper.compact(END + timedelta(days=3), Keep()))
        _settle(dsn)
        day = await _asked(house, asked, lambda: _day(telemetry))
        fine = await _asked(house, asked, lambda: _fine(telemetry))
        fleet = await _asked(house, asked, lambda: _fleet(telemetry))
    block = _size(dsn, "block") / values
    rows = values // VALUES_PER_SAMPLE
    return [
        Figure(
            name=f"{prefix}.bytes_per_value_hot",
            value=hot,
            unit="bytes",
            at_most=15,
            detail={"narrow_table": round(narrow, 1), "values": values},
        ),
        Figure(
            name=f"{prefix}.bytes_per_value_compacted",
            value=block,
            unit="bytes",
            at_most=3,
            detail={
                "times_smaller_than_hot": round(hot / block, 1),
                "minutes_per_raw_value": round(_size(dsn, "minute") / values, 2),
                "hours_per_raw_value": round(_size(dsn, "hour") / values, 3),
                "roll_up_cpu_us_per_sample": round(rolled / rows * 1000, 2),
                "compaction_cpu_us_per_sample": round(compacted / rows * 1000, 2),
            },
        ),
        Figure(
            name=f"{prefix}.day_of_station_ms",
            value=day.ms,
            unit="ms",
            at_most=20,
            detail={
                "cpu_ms": round(day.cpu_ms, 1),
                "over_hot_rows_ms": round(day_hot.ms, 1),
                "every_10_s_from_blocks_ms": round(fine.ms, 1),
            },
        ),
        Figure(
            name=f"{prefix}.fleet_energy_ms",
            value=fleet.ms,
            unit="ms",
            at_most=50,
            detail={
                "cpu_ms": round(fleet.cpu_ms, 1),
                "over_hot_rows_ms": round(fleet_hot * 1000, 1),
                "samples": rows,
            },
        ),
    ]


async def _timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _cpu(house: House, work: Awaitable[Any]) -> float:
    """Milliseconds of the database server's processes."""
    before = house.database_cpu_ms()
    await work
    return house.database_cpu_ms() - before


@dataclass(frozen=True)
class Asked:
    """Median time of a question, and the CPU time that one costs, service and database."""

    ms: float
    cpu_ms: float


async def _asked(house: House, times: int, ask: Callable[[], Awaitable[Any]]) -> Asked:
    before = house.database_cpu_ms() + time.process_time() * 1000
    taken = [await _timed(ask()) for _ in range(times)]
    cpu_ms = house.database_cpu_ms() + time.process_time() * 1000 - before
    return Asked(statistics.median(taken) * 1000, cpu_ms / times)


# --------------------------------------------------------------------------- what is asked


class Stations:
    """Who exists is no part of the measurement; the tenant's view of samples is."""

    async def find(self, cursor: Cursor, identity: str) -> StationRef:
        del cursor
        return StationRef(int(identity), VIEWER.tenant_id, identity)

    async def identities(self, cursor: Cursor, stations: Any) -> dict[int, str]:
        del cursor
        return {station: str(station) for station in stations}

    async def evse(self, cursor: Cursor, station: StationRef, evse: int) -> None:
        del cursor, station, evse


async def _day(telemetry: Telemetry) -> None:
    span = Span(START, START + timedelta(days=1), timedelta(minutes=1), None)
    _check(await telemetry.read(VIEWER, "7", span, None, 1441), 1440)


async def _fine(telemetry: Telemetry) -> None:
    span = Span(START, START + timedelta(days=1), timedelta(seconds=EVERY_S), None)
    _check(await telemetry.read(VIEWER, "7", span, None, 10_000), 86400 // EVERY_S)


def _check(found: Read, buckets: int) -> None:
    assert len(found.buckets) in {buckets, buckets + 1}, len(found.buckets)
    assert not found.coarse


async def _fleet(telemetry: Telemetry) -> None:
    asked = Energy(START, END, timedelta(days=1), ZoneInfo("UTC"), None, None)
    found = await telemetry.energy(VIEWER, asked, (0, 0), 1000)
    assert [one.stations for one in found.charged] == [STATIONS] * DAYS
    assert found.counted_until == END


def _fleet_of_samples(dsn: str) -> float:
    query = (
        "SELECT day, sum(last - first) FROM (SELECT station_id, date_trunc('day', time) AS day,"
        " max(energy_wh) AS last, min(energy_wh) AS first FROM telemetry.sample GROUP BY 1, 2) s"
        " GROUP BY 1"
    )
    with psycopg.connect(dsn) as connection:
        began = time.perf_counter()
        assert len(connection.execute(query).fetchall()) == DAYS
        return time.perf_counter() - began


# --------------------------------------------------------------------------- what is stored


def _stations(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO stations.station (id, tenant_id, identity, registration, created_at)"
            " SELECT n, 1, 'BENCH-' || n, 'registered', now() FROM generate_series(1, %s) n",
            (STATIONS,),
        )


async def _load(database: Database) -> None:
    signal = _signal()
    waiting: list[Dated] = []
    async with database.commit_unit() as cursor:
        days = {(START + timedelta(days=n)).date() for n in range(-1, DAYS + 1)}
        await store.ensure_days(cursor, days)
    for message in _messages(signal):
        waiting.append(message)
        if len(waiting) == MESSAGES_A_COMMIT:
            await _commit(database, waiting)
            waiting = []
    await _commit(database, waiting)


async def _commit(database: Database, told: list[Dated]) -> None:
    async with database.commit_unit() as cursor:
        await store.copy_samples(cursor, pack(told).copy_data)


def _signal() -> dict[bool, dict[str, Ints]]:
    """A day of a charging and of an idle EVSE, by column."""
    ticks = list(samples(86400 // EVERY_S, 2))
    return {
        charging: {name: np.array([getattr(row[n], name) for row in ticks]) for name in COLUMNS[1:]}
        for n, charging in enumerate((True, False))
    }


def _messages(signal: dict[bool, dict[str, Ints]]) -> Iterator[Dated]:
    """All stations' messages, the stations in turn."""
    stations = {n: _station(signal, n) for n in range(1, STATIONS + 1)}
    for first in range(0, DAYS * 86400 // EVERY_S, SAMPLES_A_MESSAGE):
        for number, columns in stations.items():
            yield _message(number, columns, slice(first, first + SAMPLES_A_MESSAGE))


def _station(signal: dict[bool, dict[str, Ints]], number: int) -> dict[str, Ints]:
    """Two days of it: sessions and pauses of four hours each, the signal shifted for each."""
    dice = random.Random(number)  # repeatable, no secret
    count = DAYS * 86400 // EVERY_S
    seconds = np.arange(count) * EVERY_S
    charging = ((seconds // 14400 + number) % 2).astype(bool)
    columns = {}
    for name in COLUMNS[1:]:
        alike = [np.resize(np.roll(signal[state][name], -173 * number), count)
                 for state in (True, False)]  # fmt: skip
        columns[name] = np.where(charging, *alike)
    joules = np.cumsum(columns["power_w"] * EVERY_S)
    columns["energy_wh"] = dice.randrange(10**8) + joules // 3600
    jitter = np.array([round(dice.gauss(0, 2)) for _ in range(count)])
    columns["ms"] = seconds * 1000 + 97 * number % 10_000 + np.abs(jitter)
    return columns


def _message(number: int, columns: dict[str, Ints], part: slice) -> Dated:
    ms = columns["ms"][part]
    told = {name: _differences(columns[name][part]) for name in COLUMNS}
    series = Series(
        1,
        _BOOT,
        Milliseconds(0),
        Milliseconds(0),
        ClockQuality.SYNCED,
        Milliseconds(EVERY_S * 1000),
        (0, *np.diff(ms).tolist()),
        **told,
    )
    return Dated(number, START + timedelta(milliseconds=int(ms[0])), series)


def _differences(values: Ints) -> tuple[int, ...]:
    return (int(values[0]), *np.diff(values).tolist())


def _size(dsn: str, table: str) -> int:
    """Of the table and its partitions or chunks, with indexes and TOAST."""
    query = (
        "SELECT sum(pg_total_relation_size(relid)) FROM (SELECT %(table)s::regclass AS relid"
        " UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = %(table)s::regclass) t"
    )
    with psycopg.connect(dsn) as connection:
        found = connection.execute(query, {"table": f"telemetry.{table}"}).fetchone()
    assert found is not None
    return int(found[0])


def _narrow(dsn: str) -> float:
    """Bytes per value of the usual layout: time, station, metric, value."""
    numbered = ", ".join(f"({n}, {name})" for n, name in enumerate(COLUMNS))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.narrow (time timestamptz NOT NULL, station_id int NOT NULL,"
            " evse smallint NOT NULL, metric smallint NOT NULL, value float8 NOT NULL)"
        )
        connection.execute("CREATE INDEX ON public.narrow (station_id, evse, metric, time)")
        connection.execute(
            "INSERT INTO public.narrow SELECT time, station_id, evse, metric, value"
            f" FROM telemetry.sample, LATERAL (VALUES {numbered}) v (metric, value)"
            f" WHERE station_id %% {NARROW_SHARE} = 0".replace("%%", "%")
        )
        found = connection.execute(
            "SELECT pg_total_relation_size('public.narrow')::float8 / count(*) FROM public.narrow"
        ).fetchone()
        connection.execute("DROP TABLE public.narrow")
    assert found is not None
    return float(found[0])


def _settle(dsn: str) -> None:
    """What autovacuum does within minutes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("minute", "hour", "block"):
            connection.execute(f"VACUUM ANALYZE telemetry.{table}")
