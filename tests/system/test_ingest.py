"""Telemetry under fire: killed and doubled, poisoned, dammed up, late; with real processes."""

from __future__ import annotations

import os
import select
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest
from ingest import audit
from ingest_house import HOUSES, Contestant, House, NotHereError, announce, cloud
from ingest_load import LoadPlan, RunningLoad, Splitter, Wire, load
from ingest_messages import SAMPLES, Fleet, Placed, publish

from protocols.agent_link import (
    Ack,
    BillingBatch,
    ClockQuality,
    Down,
    Mark,
    Series,
    SeriesGap,
    Stamp,
    Stream,
    TelemetryBatch,
    Up,
    Welcome,
    decode_down,
    down_topic,
    encode,
    up_topic,
)

FLEET = Fleet(20)
MIB = 2**20


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both houses at full counts; in the small sample each test has one of them."""
    if "house" in metafunc.fixturenames:
        killed = metafunc.function is test_killed_amid_duplicates_everything_is_there_once
        divided = metafunc.function is test_ingesters_share_the_shards_beside_a_process_for_rest
        names = ["timescale"] if killed or divided else ["embedded"]
        if metafunc.config.getoption("--torture") and not divided:
            names = list(HOUSES)
        metafunc.parametrize("house", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest, session_loop: Any) -> Iterator[House]:
    stack = AsyncExitStack()
    try:
        opened = session_loop.run(stack.enter_async_context(HOUSES[request.param]()))
    except NotHereError as reason:
        pytest.skip(f"NOT RUN: {reason}")
    yield opened
    session_loop.run(stack.aclose())


@contextmanager
def serving(house: House, dsn: str, folder: Path) -> Iterator[Contestant]:
    with cloud(house, dsn, folder) as running:
        announce(dsn, FLEET)
        yield running


def endless(house: House, **wishes: Any) -> LoadPlan:
    """A load of samples that are as old as their sending, without an end."""
    return LoadPlan(house.broker, FLEET, placed=Placed(now_ms() - 3_600_000, 1000), **wishes)


def assert_exactly_once(dsn: str, said: dict[str, Any]) -> None:
    assert said["committed"] == said["sent"]
    assert audit(dsn) == (said["sent"] * SAMPLES, said["sent"] * SAMPLES)


# --------------------------------------------------------------------------- killed and doubled


def test_killed_amid_duplicates_everything_is_there_once(
    house: House,
    tmp_path: Path,
    kills: Any,
    sample_size: Callable[[int, int], int],
    record_property: Callable[[str, int], None],
) -> None:
    with house.database() as dsn, ExitStack() as life:
        serves = life.enter_context(serving(house, dsn, tmp_path))
        with load(endless(house, duplicates=0.05, window=2000, patience_s=1.0)) as running:
            for number in range(1, sample_size(1, 40) + 1):
                running.await_committed(running["committed"] + 1000 * number % 700 + 300)
                serves.kill()
                kills.count("a random moment of ingest")
                life.close()
                serves = life.enter_context(serving(house, dsn, tmp_path))
            running.await_committed(running["sent"])
            said = running.finish()
        assert said["duplicated"] > 0
        assert said["resent"] > 0
        assert_exactly_once(dsn, said)
    record_property("samples", said["sent"] * SAMPLES)
    record_property("sent twice", said["duplicated"])


# --------------------------------------------------------------------------- several processes


def test_ingesters_share_the_shards_beside_a_process_for_rest(house: House, tmp_path: Path) -> None:
    halves = ("0-31", "32-63")
    with house.database() as dsn, ExitStack() as life:
        rest = life.enter_context(cloud(house, dsn, tmp_path / "rest", "--role", "api"))
        announce(dsn, FLEET)
        for half in halves:
            options = ("--role", "ingest", "--shards", half)
            taker = life.enter_context(cloud(house, dsn, tmp_path / half, *options))
            assert httpx.get(f"{taker.url}/api/v1/stations", timeout=60).status_code == 404
        with load(endless(house, window=1000)) as running:
            running.await_committed(1000)
            said = running.finish()
        assert_exactly_once(dsn, said)
        found = asked(rest, FLEET.identity(0), *hours_around(now_ms()))
        assert found["items"]


def hours_around(ms: int) -> tuple[datetime, datetime]:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at - timedelta(hours=2), at + timedelta(hours=2)


# --------------------------------------------------------------------------- a hand-made station


class Peer:
    """One station of another maker, which says what it likes."""

    def __init__(self, house: House, fleet: Fleet) -> None:
        self._up = Wire(house.broker, f"peer-up-{uuid4().hex[:8]}")
        self._down = Wire(house.broker, f"peer-down-{uuid4().hex[:8]}")
        self.identity, self.outbox, self.boot = fleet.identity(0), fleet.outbox(0), fleet.boot(0)
        self._down.subscribe(down_topic(self.identity, Down.ACK))
        self._down.subscribe(down_topic(self.identity, Down.WELCOME))
        self._splitter = Splitter()
        self.acked: set[tuple[Stream, int]] = set()
        self._welcomed = False
        hello = fleet.hello(0, now_ms(), 1000)
        hello.marks[Stream.BILLING] = Mark(1000, 1)
        self.say(Up.HELLO, encode(hello))
        self._until(lambda: self._welcomed)

    def close(self) -> None:
        for wire in (self._up, self._down):
            wire.close()

    def say(self, channel: Up, payload: bytes, topic: str = "") -> None:
        self._up.send(publish(topic or up_topic(self.identity, channel), payload, 7))

    def tell(self, seq: int, *series: Series) -> None:
        stamp = Stamp(now_ms(), 10**9, self.boot, ClockQuality.SYNCED)
        self.say(Up.TELEMETRY, encode(TelemetryBatch(self.outbox, seq, 1, stamp, series)))

    def confess(self, seq: int, gap: SeriesGap) -> None:
        stamp = Stamp(now_ms(), 10**9, self.boot, ClockQuality.SYNCED)
        self.say(Up.BILLING, encode(BillingBatch(self.outbox, seq, 1, stamp, (gap,))))

    def series(self, at: datetime, **columns: Any) -> Series:
        """Three samples from that time on, a second apart."""
        known = {"dt_ms": (0, 1000, 1000), "power_w": (7000, 1, 1), **columns}
        wall = int(at.timestamp() * 1000)
        return Series(1, self.boot, wall, 10**9, ClockQuality.SYNCED, 1000, **known)

    def await_acked(self, stream: Stream, *numbers: int) -> None:
        self._until(lambda: {(stream, number) for number in numbers} <= self.acked)

    def _until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end, f"acknowledged so far: {sorted(self.acked)}"
            select.select([self._down.socket], [], [], 0.5)
            for topic, payload in self._splitter.feed(self._down.receive()):
                heard = decode_down(Down(topic.decode().rsplit("/", 1)[1]), payload)
                self._welcomed |= isinstance(heard, Welcome)
                if isinstance(heard, Ack):
                    self.acked |= {
                        (heard.stream, number)
                        for first, last in heard.ranges
                        for number in range(first, last + 1)
                    }


@contextmanager
def joined(house: House, name: str) -> Iterator[Peer]:
    peer = Peer(house, Fleet(1, name))
    yield peer
    peer.close()


# --------------------------------------------------------------------------- poison and late


@pytest.fixture(scope="module")
def served(
    house: House, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Contestant]]:
    folder = tmp_path_factory.mktemp("cloud")
    with house.database() as dsn, serving(house, dsn, folder) as running:
        for name in ("POISON", "LATE"):
            announce(dsn, Fleet(1, name))
        yield dsn, running


def poisons(peer: Peer) -> Iterator[tuple[bytes, str]]:
    """What no agent should send, with the topic if it is not the peer's telemetry."""
    now = datetime.now(UTC)
    yield b"", ""
    yield os.urandom(1000), ""
    yield b"\x78\x9c" + os.urandom(1000), ""
    yield b"{}", ""
    yield b'{"outbox": 1, "seq": "two", "floor": [], "sent": {}, "series": 3}', ""
    yield b"[" * 100_000, ""
    yield os.urandom(MIB), ""
    yield zlib.compress(b" " * (16 * MIB)), ""
    yield zlib.compress(b'{"outbox":"' + b"x" * (7 * MIB)), ""
    yield b"{}", up_topic("NOBODY", Up.TELEMETRY)
    yield b"{}", "karvon/1/zz/NOBODY/up/telemetry"
    stamp = Stamp(now_ms(), 1, peer.boot, ClockQuality.SYNCED)
    good = peer.series(now)
    for outbox, seq in ((uuid4(), 1), (peer.outbox, 0), (peer.outbox, 2**60)):
        yield encode(TelemetryBatch(outbox, seq, 1, stamp, (good,))), ""


def ragged(peer: Peer) -> list[Series]:
    """Well-formed messages that no table can take."""
    now = datetime.now(UTC)
    return [
        peer.series(now, power_w=(1, 2)),
        peer.series(now, power_w=(2**40, 0, 0)),
        peer.series(now, power_w=(2**40, None, 0)),
        peer.series(now, energy_wh=(2**62, 2**62, 2**62)),
        peer.series(now, dt_ms=(0, 2**61, 2**61)),
        peer.series(now, more={"soc\0_pct": (1, 2, 3)}),
    ]


def test_poison_in_the_midst_never_stops_the_stream(
    house: House, served: tuple[str, Contestant], record_property: Callable[[str, int], None]
) -> None:
    dsn, _ = served
    with load(endless(house, rate=500, window=2000)) as running, joined(house, "POISON") as peer:
        running.await_committed(200)
        for payload, topic in poisons(peer):
            peer.say(Up.TELEMETRY, payload, topic)
        bad = ragged(peer)
        for seq, series in enumerate(bad, 1):
            peer.tell(seq, series)
        good = len(bad) + 1
        peer.tell(good, peer.series(datetime.now(UTC)))
        peer.await_acked(Stream.TELEMETRY, *range(1, good + 1))
        running.await_committed(running["sent"] + 100)
        said = running.finish()
    assert said["committed"] == said["sent"]
    kept = stored(dsn, peer.identity)
    assert [row[1] for row in kept] == [7000, 7001, 7002]
    total, different = audit(dsn)
    assert total == different == said["sent"] * SAMPLES + len(kept)
    letters = count(dsn, "SELECT count(*) FROM kernel.dead_letter")
    assert letters >= len(bad)
    record_property("dead letters", letters)


def test_late_batches_in_any_order_and_gaps_can_be_asked_for(
    house: House, served: tuple[str, Contestant]
) -> None:
    _, running = served
    now = datetime.now(UTC).replace(microsecond=0)
    ages = {4: timedelta(days=30), 2: timedelta(), 3: timedelta(days=7), 1: timedelta(hours=1)}
    first, last = now - timedelta(days=30, hours=2), now - timedelta(days=30, hours=1)
    with joined(house, "LATE") as peer:
        for seq, age in ages.items():
            peer.tell(seq, peer.series(now - age))
        peer.tell(2, peer.series(now))
        peer.confess(1, gap(first, last))
        peer.await_acked(Stream.TELEMETRY, *ages)
        peer.await_acked(Stream.BILLING, 1)
    for age in ages.values():
        start = now - age
        found = asked(running, peer.identity, start, start + timedelta(seconds=10))
        assert [row["power_w"] for row in found["items"]] == [7000, 7001, 7002]
    found = asked(running, peer.identity, first - timedelta(hours=1), last)
    assert [one["samples"] for one in found["gaps"]] == [3600]


def gap(first: datetime, last: datetime) -> SeriesGap:
    at = (int(one.timestamp() * 1000) for one in (first, last))
    return SeriesGap(uuid4(), 1, *at, samples=3600, cause="thinned to 1 min")


def asked(running: Contestant, station: str, start: datetime, end: datetime) -> dict[str, Any]:
    span = {"from": start.isoformat(), "to": end.isoformat(), "every": "1s"}
    answer = httpx.get(
        f"{running.url}/api/v1/stations/{station}/telemetry",
        params=span,
        headers={"Authorization": f"Bearer {running.key}"},
        timeout=60,
    )
    return dict(answer.raise_for_status().json())


def stored(dsn: str, station: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT time, power_w FROM telemetry.sample WHERE station_id ="
            " (SELECT id FROM stations.station WHERE identity = %s) ORDER BY time",
            (station,),
        ).fetchall()


def count(dsn: str, query: str) -> int:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])


# --------------------------------------------------------------------------- dammed up


@contextmanager
def frozen_database(house: House) -> Iterator[None]:
    """Every process of the server stands still, the listening one too."""
    first = psutil.Process(house.postmaster)
    stopped = [first, *first.children(recursive=True)]
    for one in stopped:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in stopped:
            one.send_signal(signal.SIGCONT)


def test_a_frozen_database_costs_neither_memory_nor_data(
    house: House,
    served: tuple[str, Contestant],
    sample_size: Callable[[int, int], int],
    record_property: Callable[[str, int], None],
) -> None:
    """The broker's window and our own bounds hold the flood back until the database answers."""
    if house.name != "embedded":
        pytest.skip("this server may have other users")
    dsn, running_cloud = served
    before_rows, _ = audit(dsn)
    fleet = Fleet(FLEET.stations, lap=1)
    plan = LoadPlan(house.broker, fleet, placed=Placed(now_ms(), 1000), rate=1500, window=20_000)
    with load(plan) as running:
        running.await_committed(1000)
        before = running_cloud.rss_mib()
        with frozen_database(house):
            most = highest(running_cloud, running, sample_size(3, 40))
        running.await_committed(running["sent"])
        said = running.finish()
    assert said["committed"] == said["sent"]
    total, different = audit(dsn)
    assert total - before_rows == said["sent"] * SAMPLES
    assert total == different
    assert most - before < 64
    record_property("MiB grown while frozen", round(most - before))


def highest(running_cloud: Contestant, running: RunningLoad, seconds: float) -> float:
    """The cloud's memory at its most over that time; the load must be really dammed up by then."""
    end, most = time.monotonic() + seconds, 0.0
    committed = running["committed"]
    while time.monotonic() < end:
        most = max(most, running_cloud.rss_mib())
        time.sleep(0.1)
    assert running["committed"] - committed < 1500
    assert running["sent"] - running["committed"] > 2500
    return most
