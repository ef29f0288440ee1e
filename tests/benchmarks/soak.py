"""soak.*: whether memory stays flat when telemetry comes in for long, at 70 % of the limit.

The limit is taken first, over some seconds on the same cloud. Then a load of 500 stations goes on
at 70 % of it, with samples as old as their sending. Memory (proportional set size) of the cloud's
and the database's processes is read every ten seconds; the first fifth is warm-up, the rest is cut
into thirds, and the last third's median may be at most 1.05 times the middle third's. At the end
every station's rows are counted. Not part of a plain run: `run.py soak`, or `--soak MINUTES`.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from figure import Figure
from ingest_house import (
    Contestant,
    House,
    NotHereError,
    announce,
    cloud,
    embedded_house,
    services_house,
)
from ingest_load import LoadPlan, RunningLoad, load
from ingest_messages import SAMPLES, Fleet, Placed
from signal_model import VALUES_PER_SAMPLE

MINUTES = 30.0
STATIONS = 500
SHARE = 0.7
LIMIT_S = 10.0
WARM_UP = 0.2
FLAT = 1.05
BYTES_A_SAMPLE = 150
"""On disk with index and some reserve, so that a soak does not fill it."""


@dataclass(frozen=True)
class Reading:
    """Seconds since the start, MiB, and messages."""

    at: float
    cloud: float
    database: float
    sent: int
    committed: int


async def measure(runs: int, minutes: float = MINUTES) -> list[Figure]:
    """One long run; on Mosquitto + TimescaleDB where they are, else embedded."""
    del runs
    try:
        async with services_house() as house:
            return await asyncio.to_thread(_soak, house, minutes)
    except NotHereError as reason:
        sys.stderr.write(f"bench: soak on the embedded servers: {reason}\n")
    async with embedded_house() as house:
        return await asyncio.to_thread(_soak, house, minutes)


def _soak(house: House, minutes: float) -> list[Figure]:
    with house.database() as dsn, _serving(house, dsn) as contestant:
        rate = round(_limit(house) * SHARE)
        _check_disk(rate, minutes)
        sys.stderr.write(f"bench: {minutes:g} minutes at {rate} messages/s\n")
        step_ms = max(SAMPLES, STATIONS * 1000 // rate)
        placed = Placed(time.time_ns() // 1_000_000, step_ms)
        plan = LoadPlan(house.broker, Fleet(STATIONS, lap=1), placed=placed, rate=rate)
        before, size = _rows(dsn), _size(dsn)
        with load(plan) as running:
            running.await_committed(1)
            readings = list(_readings(house, contestant, running, minutes * 60))
            said = running.finish()
        rows = {station: count - before.get(station, 0) for station, count in _rows(dsn).items()}
        grown = (_size(dsn) - size) / sum(rows.values()) / VALUES_PER_SAMPLE
        return _figures(house, readings, {**said, "bytes_a_value": grown}, rows, rate)


@contextmanager
def _serving(house: House, dsn: str) -> Iterator[Contestant]:
    with tempfile.TemporaryDirectory() as folder, cloud(house, dsn, Path(folder)) as contestant:
        announce(dsn, Fleet(STATIONS))
        yield contestant


def _limit(house: House) -> float:
    """Messages a second, as many as the window lets out."""
    placed = Placed(time.time_ns() // 1_000_000 - 3_600_000, 100)
    with load(LoadPlan(house.broker, Fleet(STATIONS), placed=placed)) as running:
        running.await_committed(1000)
        began, first = time.monotonic(), running["committed"]
        time.sleep(LIMIT_S)
        rate = (running["committed"] - first) / (time.monotonic() - began)
        running.finish()
    return rate


def _check_disk(rate: int, minutes: float) -> None:
    needed = rate * minutes * 60 * SAMPLES * BYTES_A_SAMPLE
    free = shutil.disk_usage(Path(__file__)).free
    if needed * 1.3 > free:
        raise RuntimeError(
            f"{minutes:g} minutes at {rate} messages/s need {needed * 1.3 / 1e9:.0f} GB of disk and"
            f" {free / 1e9:.0f} GB are free; give fewer minutes (--soak {minutes / 2:g})"
        )


def _readings(
    house: House, contestant: Contestant, running: RunningLoad, seconds: float
) -> Iterator[Reading]:
    began, every = time.monotonic(), min(10.0, seconds / 60)
    while (passed := time.monotonic() - began) < seconds:
        yield Reading(
            passed,
            contestant.rss_mib(),
            house.database_rss_mib(),
            running["sent"],
            running["committed"],
        )
        time.sleep(every)


def _rows(dsn: str) -> dict[int, int]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT station_id, count(*) FROM telemetry.sample GROUP BY station_id"
        ).fetchall()
    return dict(found)


def _size(dsn: str) -> int:
    """Bytes of the whole database: rows, index, marks."""
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert found is not None
    return int(found[0])


# --------------------------------------------------------------------------- figures


def _figures(
    house: House, readings: list[Reading], said: dict[str, Any], rows: dict[int, int], rate: int
) -> list[Figure]:
    steady = readings[int(len(readings) * WARM_UP) :]
    passed = readings[-1].at - readings[0].at
    held = (readings[-1].committed - readings[0].committed) / passed
    wrong = abs(sum(rows.values()) - said["sent"] * SAMPLES)
    detail = {
        "house": house.name,
        "minutes": round(passed / 60, 1),
        "messages": said["sent"],
        "resent": said["resent"],
        "readings": len(readings),
        "database_bytes_a_value": round(said["bytes_a_value"], 1),
    }
    return [
        Figure(
            name="soak.rate_held",
            value=held / rate,
            unit="of the wanted rate",
            at_least=0.95,
            detail={"wanted_per_s": rate, "committed_per_s": round(held), **_waits(said)},
        ),
        *_memory("cloud", [(one.at, one.cloud) for one in steady], detail),
        *_memory("database", [(one.at, one.database) for one in steady], detail),
        Figure(name="soak.lost_or_doubled", value=wrong, unit="samples", at_most=0, detail=detail),
    ]


def _waits(said: dict[str, Any]) -> dict[str, float]:
    return {name: said[name] for name in ("ack_p50_ms", "ack_p99_ms") if name in said}


def _memory(what: str, course: list[tuple[float, float]], detail: dict[str, Any]) -> list[Figure]:
    third = len(course) // 3
    middle, last = (
        statistics.median(mib for _, mib in part)
        for part in (course[third : 2 * third], course[2 * third :])
    )
    slope, _ = statistics.linear_regression(*zip(*course, strict=True))
    return [
        Figure(
            name=f"soak.{what}_memory_growth",
            value=last / middle,
            unit="last third / middle third",
            at_most=FLAT,
            detail={
                "middle_mib": round(middle, 1),
                "last_mib": round(last, 1),
                "most_mib": round(max(mib for _, mib in course), 1),
                **detail,
            },
        ),
        Figure(
            name="ingest.rss_slope_mib_per_hour"
            if what == "cloud"
            else "ingest.database_rss_slope_mib_per_hour",
            value=slope * 3600,
            unit="MiB/h",
        ),
    ]
