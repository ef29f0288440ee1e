"""ingest.*: how much telemetry the cloud takes, beside the database's own limit and two baselines.

One message is a batch of one EVSE: ten samples of nine values. In each round, on the same servers
and into fresh databases: raw COPY, the ordinary ingesters, and `karvon cloud serve`; the ratios are
taken within a round, the figures are medians over the rounds. On Mosquitto + TimescaleDB
(`ingest.*`) and on the embedded broker and PostgreSQL (`ingest_embedded.*`).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from figure import Figure
from ingest_house import (
    HOUSES,
    Contestant,
    House,
    NotHereError,
    announce,
    cloud,
    ordinary,
    single_commit_ms,
)
from ingest_limit import limit, pieces
from ingest_load import LoadPlan, RunningLoad, load
from ingest_messages import SAMPLES, Fleet, Placed, Prepared, prepare, prepare_plain

from cloud.kernel.migrate import migrate

STATIONS = 100
MESSAGES = 200_000
PLAIN_MESSAGES = 24_000
SECONDS = 5.0
WARM_UP_S = 1.0
BROKEN_MESSAGES = 30_000
DUPLICATES = 0.05
ORDINARY_WINDOW = 500
FLEET = Fleet(STATIONS)
QUICK_COPY_MS = 15.0
"""CPU of raw COPY a thousand messages on a machine for which 60 ms in all are meant."""


async def measure(runs: int) -> list[Figure]:
    """Both houses in turn; one that is not here is left out, and said so."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="karvon-ingest-") as name:
        prepared = Folders(Path(name))
        for house_name, opened in HOUSES.items():
            prefix = "ingest" if house_name == "timescale" else f"ingest_{house_name}"
            try:
                async with opened() as house:
                    found = await asyncio.to_thread(_house_figures, house, prepared, runs, prefix)
            except NotHereError as reason:
                sys.stderr.write(f"bench: NOT RUN: {prefix}.*: {reason}\n")
            else:
                figures += found
    return figures


class Folders:
    """The messages, sealed once for all rounds.

    Their times run on from now, a few hours ahead, so that they count as live in every round: what
    is older than some minutes is late, and goes another way to the roll-ups.
    """

    def __init__(self, home: Path) -> None:
        start_ms = time.time_ns() // 1_000_000
        self.home = home
        self.ours, self.plain = home / "ours", home / "plain"
        prepare(self.ours, FLEET, MESSAGES, Placed(start_ms))
        prepare_plain(self.plain, FLEET, PLAIN_MESSAGES, Placed(start_ms))


@dataclass(frozen=True)
class Measured:
    """One contestant in one round; CPU in ms per 1000 messages."""

    rate: float
    cpu: float
    database_cpu: float
    broker_cpu: float

    @property
    def whole_cpu(self) -> float:
        """Ingester and database; the broker is not counted."""
        return self.cpu + self.database_cpu


@dataclass
class Round:
    limit: Measured
    narrow: Measured
    wide: Measured
    ours: Measured
    slow_narrow: Measured
    slow_ours: Measured
    single_commit_ms: float
    slow_commit_ms: float
    load: dict[str, Any]


def _house_figures(house: House, folders: Folders, runs: int, prefix: str) -> list[Figure]:
    rounds = list(_rounds(house, folders, runs))
    return [*_speed(prefix, rounds, folders), *_broken(house, folders, prefix)]


def _rounds(house: House, folders: Folders, runs: int) -> Iterator[Round]:
    _, copied, _ = _ours(house, folders)
    for number in range(runs):
        most = _limit(house, copied)
        narrow, commit_ms = _ordinary(house, folders, "narrow")
        wide, _ = _ordinary(house, folders, "wide")
        ours, _, said = _ours(house, folders)
        slow_narrow, slow_ms = _ordinary(house, folders, "narrow", slow_commit=True)
        slow_ours, _, _ = _ours(house, folders, slow_commit=True)
        sys.stderr.write(
            f"bench: {house.name} round {number + 1}: limit {most.rate:.0f},"
            f" narrow {narrow.rate:.0f}, wide {wide.rate:.0f}, ours {ours.rate:.0f} messages/s"
            f" (slow commits: {slow_narrow.rate:.0f}, {slow_ours.rate:.0f})\n"
        )
        yield Round(most, narrow, wide, ours, slow_narrow, slow_ours, commit_ms, slow_ms, said)


# --------------------------------------------------------------------------- one contestant


def _limit(house: House, copied: list[bytes]) -> Measured:
    """What the database takes, and at what cost; who copies is not counted."""
    with house.database() as dsn:
        migrate(dsn)
        before = house.database_cpu_ms()
        rate, count = limit(dsn, copied, SECONDS)
        return Measured(rate, 0.0, (house.database_cpu_ms() - before) / count * 1000, 0.0)


def _ordinary(
    house: House, folders: Folders, layout: str, *, slow_commit: bool = False
) -> tuple[Measured, float]:
    """A baseline's rate, and what a single commit took in its database."""
    with house.database(slow_commit=slow_commit) as dsn:
        commit_ms = single_commit_ms(dsn)
        if slow_commit and not commit_ms > 2.9:
            raise RuntimeError(f"a slow commit took only {commit_ms:.2f} ms: nothing is proven")
        numbers = folders.home / f"{house.name} {layout}"
        numbers.unlink(missing_ok=True)
        plan = LoadPlan(
            house.broker,
            FLEET,
            str(folders.plain),
            window=ORDINARY_WINDOW,
            acks=False,
            drain_s=0,
            numbers=str(numbers),
        )
        with ordinary(house, dsn, layout, numbers) as contestant, load(plan) as running:
            return _timed(house, contestant, running, PLAIN_MESSAGES), commit_ms


def _ours(
    house: House, folders: Folders, *, slow_commit: bool = False
) -> tuple[Measured, list[bytes], dict[str, Any]]:
    """Ours, the rows it stored, and what the load says."""
    with (
        house.database(slow_commit=slow_commit) as dsn,
        _serving(house, dsn) as contestant,
        load(LoadPlan(house.broker, FLEET, str(folders.ours))) as running,
    ):
        measured = _timed(house, contestant, running, MESSAGES)
        said = running.finish()
        return measured, pieces(dsn), said


@contextmanager
def _serving(house: House, dsn: str) -> Iterator[Contestant]:
    with tempfile.TemporaryDirectory() as folder, cloud(house, dsn, Path(folder)) as contestant:
        announce(dsn, FLEET)
        yield contestant


def _timed(house: House, contestant: Contestant, running: RunningLoad, total: int) -> Measured:
    """Rates over some seconds in the midst of the load, CPU over the same."""
    running.await_committed(50)
    time.sleep(WARM_UP_S)  # the steady state is measured, not the start
    costs: list[Callable[[], float]] = [
        contestant.cpu_ms,
        house.database_cpu_ms,
        house.broker_cpu_ms,
    ]
    began, first = time.monotonic(), running["committed"]
    before = [cost() for cost in costs]
    while time.monotonic() < began + SECONDS and running["sent"] < total:
        time.sleep(0.02)
    passed, count = time.monotonic() - began, running["committed"] - first
    spent = [(cost() - earlier) / count * 1000 for cost, earlier in zip(costs, before, strict=True)]
    return Measured(count / passed, *spent)


# --------------------------------------------------------------------------- figures


def _median(rounds: list[Round], value: Callable[[Round], float]) -> float:
    return statistics.median(map(value, rounds))


def _speed(prefix: str, rounds: list[Round], folders: Folders) -> list[Figure]:
    def rate(value: Callable[[Round], float]) -> int:
        return round(_median(rounds, value))

    rates = {
        "ours_per_s": rate(lambda r: r.ours.rate),
        "copy_per_s": rate(lambda r: r.limit.rate),
        "copy_database_cpu_ms": round(_median(rounds, lambda r: r.limit.database_cpu), 1),
        "narrow_per_s": rate(lambda r: r.narrow.rate),
        "wide_per_s": rate(lambda r: r.wide.rate),
        "single_commit_ms": round(_median(rounds, lambda r: r.single_commit_ms), 3),
        "runs": len(rounds),
    }
    slow = {
        "ours_per_s": rate(lambda r: r.slow_ours.rate),
        "narrow_per_s": rate(lambda r: r.slow_narrow.rate),
        "single_commit_ms": round(_median(rounds, lambda r: r.slow_commit_ms), 3),
    }
    return [
        Figure(
            name=f"{prefix}.share_of_copy",
            value=_median(rounds, lambda r: r.ours.rate / r.limit.rate),
            unit="ratio",
            at_least=0.25,
            detail={**rates, "bytes_a_message": round(Prepared(folders.ours).mean_bytes)},
        ),
        Figure(
            name=f"{prefix}.vs_ordinary_narrow",
            value=_median(rounds, lambda r: r.ours.rate / r.narrow.rate),
            unit="times",
            at_least=25,
            detail=_cpu_detail(rounds, lambda r: r.narrow),
        ),
        Figure(
            name=f"{prefix}.vs_ordinary_wide",
            value=_median(rounds, lambda r: r.ours.rate / r.wide.rate),
            unit="times",
            at_least=8,
            detail=_cpu_detail(rounds, lambda r: r.wide),
        ),
        Figure(
            name=f"{prefix}.cpu_ms_per_1000",
            value=_median(rounds, lambda r: r.ours.whole_cpu),
            unit="ms",
            at_most=60,
            detail={**_cpu_detail(rounds, lambda r: r.ours), **rounds[-1].load},
        ),
        Figure(
            name=f"{prefix}.cpu_vs_copy",
            value=_median(rounds, lambda r: r.ours.whole_cpu / r.limit.database_cpu),
            unit="times",
            at_most=60 / QUICK_COPY_MS,
            detail={"copy_database_cpu_ms": rates["copy_database_cpu_ms"]},
        ),
        Figure(
            name=f"{prefix}.vs_ordinary_slow_commit",
            value=_median(rounds, lambda r: r.slow_ours.rate / r.slow_narrow.rate),
            unit="times",
            at_least=40,
            detail=slow,
        ),
    ]


def _cpu_detail(
    rounds: list[Round], of: Callable[[Round], Measured]
) -> dict[str, float | int | str]:
    return {
        "ingester_cpu_ms": round(_median(rounds, lambda r: of(r).cpu), 1),
        "database_cpu_ms": round(_median(rounds, lambda r: of(r).database_cpu), 1),
        "broker_cpu_ms": round(_median(rounds, lambda r: of(r).broker_cpu), 1),
    }


# --------------------------------------------------------------------------- killed in the midst


def _broken(house: House, folders: Folders, prefix: str) -> list[Figure]:
    """5 % of all messages twice, and the ingester killed with SIGKILL at a third and two thirds."""
    with house.database() as dsn:
        plan = LoadPlan(house.broker, FLEET, str(folders.ours), duplicates=DUPLICATES, drain_s=90)
        said = _killed_twice(house, dsn, plan)
        rows, different = audit(dsn)
    detail = {
        "messages": said["sent"],
        "duplicated": said["duplicated"],
        "resent": said["resent"],
        "kills": 2,
    }
    lost = said["sent"] * SAMPLES - different
    doubled = rows - different
    return [
        Figure(name=f"{prefix}.lost", value=lost, unit="samples", at_most=0, detail=detail),
        Figure(name=f"{prefix}.doubled", value=doubled, unit="samples", at_most=0, detail=detail),
    ]


def _killed_twice(house: House, dsn: str, plan: LoadPlan) -> dict[str, Any]:
    with _serving(house, dsn) as contestant, load(plan) as running:
        running.await_committed(BROKEN_MESSAGES // 3)
        contestant.kill()
        with _serving(house, dsn) as again:
            running.await_committed(BROKEN_MESSAGES * 2 // 3)
            again.kill()
        with _serving(house, dsn):
            running.await_committed(BROKEN_MESSAGES)
            return running.finish()


def audit(dsn: str) -> tuple[int, int]:
    """How many samples the tenant sees, in whichever tier, and how many of them are different."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET karvon.tenant = '1'")
        found = connection.execute(
            "SELECT count(*), count(DISTINCT (station_id, evse, time)) FROM telemetry.api_sample"
        ).fetchone()
    assert found is not None
    return found[0], found[1]
