"""replay.*: back after thirty days without network, with 100,000 billing facts to tell.

The journal is filled by the agent's own parts (`offline_month.py`), then an agent process takes it
up at a site of eight connectors (`edge_site.py`). Behind a proxy that swallows all it goes on
charging; when the proxy lets it through, the backlog leaves while vehicles come and go. The free
rate is what the same cloud commits, beside the same site, of an agent that is not paced: its
journal and its uplink without a window and without a rate. What batches give that were sealed
beforehand, by a sender that costs nothing, stands beside it: all share this machine's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import paho.mqtt.client as mqtt
from cloud_process import CloudProcess, cloud_process
from edge_site import TOKEN, EdgeSite, Spot, await_
from figure import Figure
from offline_month import DAYS, live_through

from edge_agent.clock import Clock
from edge_agent.config import load
from edge_agent.journal import Journal, JournalBudget
from edge_agent.main import SURELY_PAST_MS
from edge_agent.rules.clock import ClockRules
from edge_agent.uplink.mqtt import MqttSettings, MqttUplink
from edge_agent.uplink.session import SessionSettings
from karvon.demo.faults import FaultProxy
from karvon.demo.lines import ask
from karvon.demo.process import DemoError
from protocols.agent_link import (
    Ack,
    BillingBatch,
    ClockQuality,
    Down,
    Hello,
    Mark,
    Stamp,
    Stream,
    Up,
    Welcome,
    decode_down,
    down_filter,
    encode,
    escape,
    up_topic,
)
from protocols.quantities import Milliseconds

FACTS = 100_000
FREE_FACTS = 40_000
STATION, FREE, SEALED = "BENCH-REPLAY", "BENCH-FREE", "BENCH-SEALED"
NO_LIMIT = 1_000_000
EVENT_S = 60
SEND_EVERY_S = 0.5
PROBE_S = 0.2
HANDSHAKE_S = 2.0
"""After the reconnect; until then nothing may leave."""
BUCKET_S = 1
"""REST tells the second in which a sample was taken, which began so much before it at most."""
OF_NOW_S = 60.0
VISITED = 4
"""Connectors at which vehicles come and go."""
DRAINED_S = 240.0
UNDER_WAY = 40
"""What waits for an acknowledgement at any moment beside no backlog."""
MORE = (
    f'credentials = "credentials.json"\ntelemetry_every_s = {SEND_EVERY_S}\n'
    f"[times]\nevent_s = {EVENT_S}\n[failsafe]\ntimeout_s = 120\n"
    '[authorization]\nunknown = "allow"\n'
)


async def measure(runs: int) -> list[Figure]:
    del runs
    with tempfile.TemporaryDirectory() as name, cloud_process() as cloud:
        site = EdgeSite(Path(name))
        with site.chargers():
            url = urlsplit(site.join(cloud, STATION))
            with FaultProxy(url.port or 8883) as proxy:
                site.configure(STATION, f"mqtts://localhost:{proxy.port}", MORE)
                waiting = await filled(site, STATION, FACTS, Path(name) / "journal")
                for station in (FREE, SEALED):
                    await filled(site, station, FREE_FACTS, Path(name) / station)
                return await asyncio.to_thread(_replay, cloud, site, proxy, waiting)


async def filled(site: EdgeSite, station: str, facts: int, folder: Path) -> int:
    """A journal of a month at `folder`; it is written in memory, where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as quick:
        config = Path(quick) / "agent.toml"
        config.write_text(site.config.read_text().replace(STATION, station))
        found = await live_through(load(config), facts, len(site.spots), TOKEN)
        shutil.copytree(Path(quick) / "journal", folder)
    return found


def sealed(folder: Path) -> list[tuple[int, bytes]]:
    """All batches of a journal as an agent would send them, and how many facts each holds."""
    boot, batches = uuid4(), []
    journal = Journal.open(folder, station=SEALED, boot=boot, budget=JournalBudget())
    with contextlib.closing(journal):
        while found := journal.billing(limit=10_000):
            for one in found:
                batch = BillingBatch(journal.outbox, one.seq, 1, stamp(boot), one.facts)
                batches.append((len(one.facts), encode(batch)))
                journal.settle(Stream.BILLING, ((one.seq, one.seq),))
        outbox = journal.outbox
    marks = {stream: Mark(next=1, floor=1) for stream in Stream}
    marks[Stream.BILLING] = Mark(next=len(batches) + 1, floor=1)
    hello = Hello(outbox, (boot,), stamp(boot), marks, "bench", (), (), 0)
    return [(0, encode(hello)), *batches]


def stamp(boot: object) -> Stamp:
    wall = Milliseconds(time.time_ns() // 1_000_000)
    return Stamp(wall, Milliseconds(time.monotonic_ns() // 1_000_000), boot, ClockQuality.SYNCED)


# ------------------------------------------------------------------ unpaced senders


class Deaf:
    """Nobody acts on what the cloud says: this is no station that charges."""

    async def welcomed(self, welcome: object) -> None: ...

    async def command(self, command: object) -> None: ...

    def link_changed(self, up: bool, reason: str) -> None: ...


async def unpaced_agent(cloud: CloudProcess, folder: Path) -> float:
    """Facts a second that the cloud takes of an agent without window and rate."""
    joined, clock = cloud.join(FREE), Clock(ClockRules(uuid4(), SURELY_PAST_MS))
    clock.observe()
    ca_file = folder / "ca.pem"
    ca_file.write_text(joined.ca_pem)
    settings = MqttSettings.at(joined.mqtt_url, password=joined.password, ca_file=ca_file)
    session = SessionSettings(
        station=FREE, agent_version="bench", in_flight=NO_LIMIT, per_second=NO_LIMIT
    )
    journal = Journal.open(folder, station=FREE, boot=clock.rules.boot, budget=JournalBudget())
    with contextlib.closing(journal):
        uplink = MqttUplink(settings, session, journal, Deaf(), clock)
        running = asyncio.create_task(uplink.run())
        waiting = journal.pending_billing
        while journal.pending_billing == waiting:
            await asyncio.sleep(0.01)  # the journal tells nobody that something was taken
        began, waiting = time.monotonic(), journal.pending_billing
        while journal.pending_billing:
            await asyncio.sleep(0.01)
        took = time.monotonic() - began
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return waiting / took


class Unpaced:
    """Says hello, then gives the broker every batch at once; counts what is acknowledged."""

    def __init__(self, cloud: CloudProcess, batches: list[tuple[int, bytes]]) -> None:
        self._hello, self._batches = batches[0][1], batches[1:]
        joined = cloud.join(SEALED)
        address = urlsplit(joined.mqtt_url)
        self._where = (address.hostname or "", address.port or 8883)
        self._heard: queue.Queue[Welcome | Ack | str] = queue.Queue()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"karvon-{escape(SEALED)}"
        )
        self._client.username_pw_set(joined.username, joined.password)
        self._client.tls_set_context(ssl.create_default_context(cadata=joined.ca_pem))
        self._client.max_inflight_messages_set(1000)
        self._client.on_subscribe = lambda *_: self._heard.put("subscribed")
        self._client.on_message = self._arrived

    def _arrived(self, _client: object, _: object, message: mqtt.MQTTMessage) -> None:
        heard = decode_down(Down(message.topic.rpartition("/")[2]), message.payload)
        if isinstance(heard, Welcome | Ack):
            self._heard.put(heard)

    def rate(self) -> float:
        """Facts a second, from the first packet to the last acknowledgement."""
        self._client.connect(*self._where)
        self._client.loop_start()
        self._client.subscribe(down_filter(SEALED), 1)
        assert self._heard.get(timeout=20) == "subscribed"
        self._client.publish(up_topic(SEALED, Up.HELLO), self._hello, 1)
        assert isinstance(self._heard.get(timeout=20), Welcome)
        began, acked = time.monotonic(), set[int]()
        for _, payload in self._batches:
            self._client.publish(up_topic(SEALED, Up.BILLING), payload, 1)
        while len(acked) < len(self._batches):
            heard = self._heard.get(timeout=60)
            if isinstance(heard, Ack) and heard.stream is Stream.BILLING:
                for first, last in heard.ranges:
                    acked |= set(range(first, last + 1))
        took = time.monotonic() - began
        self._client.disconnect()
        self._client.loop_stop()
        return sum(count for count, _ in self._batches) / took


# ------------------------------------------------------------------ the replay


def _replay(
    cloud: CloudProcess,
    site: EdgeSite,
    proxy: FaultProxy,
    waiting: int,
) -> list[Figure]:
    batches = sealed(site.folder / SEALED)
    proxy.blackhole = True
    with site.agent():
        await_(lambda: _pending(site) >= waiting, 30, "the agent with its backlog")
        site.all_charge()
        free = asyncio.run(unpaced_agent(cloud, site.folder / FREE))
        bare = Unpaced(cloud, batches).rate()
        before = proxy.connections
        proxy.blackhole = False
        proxy.cut()
        await_(lambda: proxy.connections > before, 90, "the reconnect")
        run = Run(cloud, site)
        run.until_drained()
    rate = waiting / (run.drained_s - run.began_s)
    return [
        Figure(
            name="replay.starts_s",
            value=run.began_s,
            unit="s",
            at_most=5,
            detail={"days": DAYS, "facts": waiting},
        ),
        Figure(
            name="replay.live_late_s",
            value=max(run.facts_late_s),
            unit="s",
            at_most=2,
            detail={
                "facts": len(run.facts_late_s),
                "p50_s": round(statistics.median(run.facts_late_s), 2),
            },
        ),
        Figure(
            name="replay.live_sample_late_s",
            value=max(run.samples_late_s),
            unit="s",
            at_most=2 + BUCKET_S,
            detail={
                "samples": len(run.samples_late_s),
                "p50_s": round(statistics.median(run.samples_late_s), 2),
            },
        ),
        Figure(
            name="replay.vs_free_rate",
            value=rate / free,
            unit="ratio",
            at_least=0.8,
            detail={
                "facts_per_s": round(rate),
                "free_facts_per_s": round(free),
                "drained_s": round(run.drained_s, 1),
            },
        ),
        Figure(
            name="replay.vs_sealed_rate",
            value=rate / bare,
            unit="ratio",
            detail={"sealed_facts_per_s": round(bare)},
        ),
    ]


def _status(site: EdgeSite) -> dict[str, int]:
    try:
        return dict(ask(site.folder / "journal" / "control.sock", {"do": "status"})["status"])
    except DemoError:
        return {}


def _pending(site: EdgeSite) -> int:
    return int(_status(site).get("pending_billing", 0))


class Run:
    """What is seen from the reconnect until nothing waits any more; seconds since the reconnect."""

    def __init__(self, cloud: CloudProcess, site: EdgeSite) -> None:
        self._cloud, self._site = cloud, site
        self._control = site.folder / "journal" / "control.sock"
        self._at = time.monotonic()
        self._newest = datetime.now(UTC)
        self._first = _pending(site)
        self.began_s = self.drained_s = 0.0
        self.facts_late_s: list[float] = []
        self.samples_late_s: list[float] = []

    def _passed(self) -> float:
        return time.monotonic() - self._at

    def until_drained(self) -> None:
        """Probe live data, and let vehicles come and go at the last connectors."""
        visits = [self._visits(spot) for spot in self._site.spots[-VISITED:]]
        while not self._drained(_status(self._site)):
            self._probe()
            for visit in visits if self._passed() > HANDSHAKE_S else ():
                next(visit)
            time.sleep(PROBE_S)  # nothing tells when REST shows something new

    def _drained(self, status: dict[str, int]) -> bool:
        billing = int(status["pending_billing"])
        if not self.began_s and billing < self._first:
            self.began_s = self._passed()
        if not self.drained_s and billing <= UNDER_WAY:
            self.drained_s = self._passed()
        assert self._passed() < DRAINED_S, f"still waiting: {status}"
        return bool(self.drained_s and status["pending_telemetry"] <= UNDER_WAY)

    def _probe(self) -> None:
        """When a sample is first seen over REST, and how old it is then."""
        since = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
        until = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
        query = f"from={since}&to={until}&evse=1&every=1s".replace("+", "%2B")
        rows = self._cloud.call("GET", f"/api/v1/stations/{STATION}/telemetry?{query}")["items"]
        at = max((datetime.fromisoformat(row["at"]) for row in rows), default=self._newest)
        if at > self._newest:
            self._newest = at
            if self._passed() > HANDSHAKE_S:
                self.samples_late_s.append((datetime.now(UTC) - at).total_seconds())

    def _visits(self, spot: Spot) -> Iterator[None]:
        """A vehicle comes, a card, current; then it leaves: when REST shows start and end."""
        spot.ask("unplug")
        yield from self._until(lambda: self._shown(spot) == "Idle")
        while True:
            spot.ask("plug", wants_wh=None, max_current_ma=16_000)
            yield from self._until(lambda: self._shown(spot) == "EVConnected")
            known = self._latest(spot).get("transaction")
            ask(self._control, {"do": "token", "token": TOKEN, "evse": spot.number})
            yield from self._until(lambda known=known: self._told(spot, "started_at", known))
            spot.ask("unplug")
            yield from self._until(lambda: self._told(spot, "ended_at"))
            yield from self._until(lambda: self._shown(spot) == "Idle")

    def _until(self, holds: Callable[[], bool]) -> Iterator[None]:
        while not holds():
            yield

    def _shown(self, spot: Spot) -> str:
        told = ask(self._control, {"do": "status"})
        evse = next(one for one in told["evses"] if one["evse"] == spot.number)
        return str(evse["charging_state"])

    def _latest(self, spot: Spot) -> dict[str, str | None]:
        """The transaction that REST shows as the newest of a connector."""
        query = f"station={STATION}&evse={spot.number}&limit=1"
        found = self._cloud.call("GET", f"/api/v1/transactions?{query}")["items"]
        return dict(found[0]) if found else {}

    def _told(self, spot: Spot, what: str, known: str | None = None) -> bool:
        """Whether the newest transaction, another than the `known`, says it; how late it came."""
        latest = self._latest(spot)
        at = latest.get(what)
        if at is None or latest["transaction"] == known:
            return False
        late = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
        if late > OF_NOW_S:
            return False  # one of the month that has just passed
        self.facts_late_s.append(late)
        return True
