"""api.*: how fast lists and details answer on a full database, while telemetry pours in.

`karvon cloud serve` over a database of 10,000 stations (two EVSEs each, with their states), 10,000
id tokens and a million transactions. One client asks a fixed mix of lists and details, one after
the other over one connection, first in silence and then while the load sends half of what this
cloud was just seen to commit at most. The figure is the 95th percentile of the whole mix; the
silent run also tells what CPU time its answers took, of the cloud and the database together. Beside
it stands the 95th percentile of `GET /me`, which hardly does anything: what the machine costs.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import psycopg
from api_fill import DETAILED, Sizes, fill
from figure import Figure
from ingest_house import HOUSES, Contestant, House, NotHereError, announce, cloud
from ingest_load import LoadPlan, RunningLoad, load
from ingest_messages import Fleet, Placed, prepare

P95_MS = 50.0
SIZES = Sizes()
FLEET = Fleet(100)
MESSAGES = 400_000
ROUNDS = 12
"""The whole mix is asked so often in each run."""
LIMIT_S = 4.0
SETTLE_S = 2.0


async def measure(runs: int) -> list[Figure]:
    """Both houses in turn; one that is not here is left out, and said so."""
    figures: list[Figure] = []
    for house_name, opened in HOUSES.items():
        prefix = "api" if house_name == "timescale" else f"api_{house_name}"
        try:
            async with opened() as house:
                figures += await asyncio.to_thread(_in_house, house, runs, prefix)
        except NotHereError as reason:
            sys.stderr.write(f"bench: NOT RUN: {prefix}.*: {reason}\n")
    return figures


def _in_house(house: House, runs: int, prefix: str) -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="karvon-api-") as name,
        house.database() as dsn,
        cloud(house, dsn, Path(name)) as served,
    ):
        began = time.monotonic()
        fill(dsn, SIZES)
        announce(dsn, FLEET)
        sys.stderr.write(f"bench: filled in {time.monotonic() - began:.0f} s\n")
        mix = Mix(dsn)
        before = served.cpu_ms() + house.database_cpu_ms()
        quiet = _asked(served, mix, runs)
        spent = served.cpu_ms() + house.database_cpu_ms() - before
        prepared = Path(name) / "messages"
        prepare(prepared, FLEET, MESSAGES, Placed(time.time_ns() // 1_000_000))
        with load(LoadPlan(house.broker, FLEET, str(prepared))) as running:
            limit = _limit(running)
            running.set_rate(max(1, round(limit / 2)))
            time.sleep(SETTLE_S)  # the new rate must hold before anything is timed
            busy, rate = _beside(running, lambda: _asked(served, mix, runs))
    return [
        _figure(f"{prefix}.p95_ms", busy, at_most=P95_MS, limit=limit, rate=rate),
        _figure(f"{prefix}.p95_ms_quiet", quiet, cpu_ms_of_all=spent),
    ]


def _limit(running: RunningLoad) -> float:
    """Messages a second that are committed when as many come as the window lets out."""
    running.await_committed(50)
    time.sleep(SETTLE_S)  # the first commits are slower
    began, first = time.monotonic(), running["committed"]
    time.sleep(LIMIT_S)  # the stretch over which the rate is counted
    return (running["committed"] - first) / (time.monotonic() - began)


def _beside(running: RunningLoad, work: Callable[[], Times]) -> tuple[Times, float]:
    """What the work gives, and how many messages a second were committed meanwhile."""
    began, first = time.monotonic(), running["committed"]
    done = work()
    return done, (running["committed"] - first) / (time.monotonic() - began)


# --------------------------------------------------------------------------- asking

BARE = "me"
Times = dict[str, list[float]]
"""Milliseconds of each answer, by what was asked."""


@dataclass(frozen=True)
class Asked:
    name: str
    path: str


class Mix:
    """What an operator's console and an integrator ask, over things that are there."""

    def __init__(self, dsn: str) -> None:
        self._dice = random.Random(7)
        with psycopg.connect(dsn) as connection:
            found = connection.execute(
                "SELECT DISTINCT transaction_id::text FROM transactions.event LIMIT %s",
                (DETAILED,),
            ).fetchall()
        self._detailed = [transaction for (transaction,) in found]

    def requests(self) -> list[Asked]:
        """One round."""
        dice = self._dice
        station = f"CP-{dice.randrange(SIZES.stations):05}"
        token = f"04{dice.randrange(SIZES.tokens):012X}"
        day = SIZES.start + timedelta(days=dice.randrange(SIZES.days - 1))
        now = datetime.now(UTC)
        live = quote(FLEET.identity(dice.randrange(FLEET.stations)))
        span = {"from": now - timedelta(hours=1), "to": now + timedelta(hours=1), "every": "1m"}
        return [
            Asked(BARE, "/me"),
            Asked("stations", "/stations?limit=50"),
            Asked("stations, by name", "/stations?limit=50&sort=-name"),
            Asked("stations, of a site", f"/stations?site={1 + dice.randrange(SIZES.sites)}"),
            Asked("stations, by text", f"/stations?text={station[-3:]}"),
            Asked("EVSEs, by status", "/evses?status=Occupied"),
            Asked("transactions", "/transactions?limit=50"),
            Asked("transactions, of a station", f"/transactions?station={station}"),
            Asked("transactions, of a token", f"/transactions?id_token={token}"),
            Asked("transactions, open", "/transactions?state=open"),
            Asked("transactions, by energy", "/transactions?sort=-energy_wh&limit=50"),
            Asked("transactions, of a day", f"/transactions?{_span(day, day + timedelta(days=1))}"),
            Asked("id tokens", "/id-tokens?limit=50"),
            Asked("id tokens, by text", f"/id-tokens?text={token[-4:]}"),
            Asked("events", "/events?limit=50"),
            Asked("station", f"/stations/{station}"),
            Asked("transaction", f"/transactions/{dice.choice(self._detailed)}"),
            Asked("id token", f"/id-tokens/{token}"),
            Asked("telemetry", f"/stations/{live}/telemetry?{urlencode(_stamped(span))}"),
        ]


def _span(start: datetime, end: datetime) -> str:
    return urlencode(_stamped({"from": start, "to": end}))


def _stamped(parameters: dict[str, datetime | str]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else value.isoformat()
        for name, value in parameters.items()
    }


def _asked(served: Contestant, mix: Mix, runs: int) -> Times:
    times: Times = defaultdict(list)
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)
    for _ in range(runs * ROUNDS):
        for asked in mix.requests():
            times[asked.name].append(_answered(connection, served.key, asked))
    connection.close()
    return times


def _answered(connection: http.client.HTTPConnection, key: str, asked: Asked) -> float:
    began = time.perf_counter()
    connection.request("GET", f"/api/v1{asked.path}", headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    body = answer.read()
    took = (time.perf_counter() - began) * 1000
    if answer.status != 200:
        raise RuntimeError(f"{asked.path}: {answer.status} {body[:500]!r}")
    return took


def _figure(name: str, times: Times, at_most: float | None = None, **detail: float) -> Figure:
    kinds = [kind for kind in times if kind != BARE]
    every = [took for kind in kinds for took in times[kind]]
    slowest = max(kinds, key=lambda kind: _p95(times[kind]))
    return Figure(
        name=name,
        value=_p95(every),
        unit="ms",
        at_most=at_most,
        detail={
            "requests": len(every),
            "median_ms": round(statistics.median(every), 2),
            "bare_p95_ms": round(_p95(times[BARE]), 2),
            "slowest_kind": slowest,
            "slowest_kind_p95_ms": round(_p95(times[slowest]), 1),
            **{kind: round(value) for kind, value in detail.items()},
        },
    )


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]
