"""Real processes, broken on purpose; what was proven is counted, printed, and written down."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import shutil
import signal
import ssl
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import paho.mqtt.client as mqtt
import pytest

from karvon.demo import witnesses
from karvon.demo.drivers import Driver, Habits
from karvon.demo.faults import FaultProxy
from karvon.demo.network import Network
from karvon.demo.places import TASHKENT, Plan
from karvon.demo.process import Child, DemoError, wait_for
from karvon.demo.session import TOKEN
from karvon.demo.station import Station
from protocols.agent_link import (
    Ack,
    BillingBatch,
    ChargingState,
    ClockQuality,
    Down,
    EvseDescription,
    Hello,
    Mark,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
    Up,
    Verdict,
    Welcome,
    decode_down,
    down_filter,
    encode,
    escape,
    up_topic,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

SPEED = 20.0
POLL_S = 0.5
SETTLE_S = 60.0
DIE_S = 120.0
RECENT = timedelta(seconds=60)
HERE = Path(__file__).parent
BUSY = Habits(
    away_s=(1.2, 2.0),
    card_s=(0.2, 0.8),
    linger_s=(0.5, 1.0),
    patience_s=25.0,
    want_wh=(100, 400),
    max_ma=(16_000, 32_000),
)


class Stubborn:
    """Somebody who holds the card to a dead reader until it lives."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def present(self, token: str) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                self._station.present(token)
            except DemoError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return


class Attentive:
    """Someone who looks at the charger before doing anything, at a station that may be dead.

    Who came to a dead charger, or held the card up again because its death had swallowed the
    answer, would prove nothing about the charger. Who leaves, leaves whenever they want.
    """

    def __init__(self, station: Station) -> None:
        self._station = station

    def plug(self, want_wh: int, max_ma: int) -> None:
        if not shows_idle(self._station):
            raise DemoError("it does not show that it is free")
        self._station.plug(want_wh, max_ma)

    def present(self, token: str) -> None:
        if not shown(self._station).get("transaction"):
            self._station.present(token)

    def unplug(self) -> None:
        self._station.unplug()

    def full(self) -> bool:
        return self._station.full()


def shown(station: Station) -> dict[str, Any]:
    """What the living agent shows of the station's EVSE; raises DemoError when it shows nothing."""
    evses: list[dict[str, Any]] = station.agent_status()["evses"]
    if not evses:
        raise DemoError(f"{station.identity} has just been started")
    return evses[0]


def shows_idle(station: Station) -> bool:
    """No vehicle and no transaction, and the last one's end is on disk."""
    try:
        return bool(shown(station)["charging_state"] == "Idle")
    except DemoError:
        return False


class World:
    """A network, stations in it, people at them, and the invariant."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._chance = random.Random(2)
        self._proxies = contextlib.ExitStack()
        self._home: set[str] = set()

    def close(self) -> None:
        self._proxies.close()

    def send_home(self, stay: Collection[str]) -> None:
        """End the stations of a scenario that is over; they would keep the machine busy."""
        for identity, station in self.network.stations.items():
            if identity not in {*stay, *self._home}:
                self._home.add(identity)
                station.stop()

    def open(self, *, token: bool = True) -> None:
        self.network.start_cloud()
        if token:
            self.network.rest.post("/id-tokens", {"value": TOKEN})

    def station(
        self, name: str, *, start: bool = True, serial: bool = False, poll_s: float = POLL_S
    ) -> Station:
        """A claimed station that runs and has the offline list."""
        plan = Plan(f"{name}-{len(self.network.stations)}", name, TASHKENT)
        station = self.network.add_station(plan, serial=serial)
        if poll_s != station.poll_s:
            station.poll_s = poll_s
            station.write_config()
        if start:
            self.start(station)
        return station

    def start(self, station: Station) -> None:
        self.network.start_station(station)
        self.network.wait_for(lambda: self._has_list(station), 30, "the offline list to arrive")

    def _has_list(self, station: Station) -> bool:
        return bool(station.agent_status()["status"]["local_list_version"] > 0)

    def uplink_proxy(self, station: Station) -> FaultProxy:
        """Put a proxy between a station that does not run yet and the broker."""
        proxy = self._proxies.enter_context(FaultProxy(self.network.mqtt_port))
        station.through(proxy.port)
        return proxy

    def board_proxy(self, station: Station) -> FaultProxy:
        """Put a proxy between a station's agent that does not run yet and its board."""
        proxy = self._proxies.enter_context(FaultProxy(station.modbus_port))
        station.board_port = proxy.port
        station.write_config()
        return proxy

    def charge(self, station: Station, want_wh: int = 150) -> None:
        """One whole session by card."""
        station.plug(want_wh, 32_000)
        Stubborn(station).present(TOKEN)
        try:
            self.network.wait_for(station.full, 60, f"the vehicle at {station.identity} to be full")
        except DemoError as error:
            raise DemoError(f"{error}; its agent: {station.agent.tail()}") from None
        self.leave(station)

    def leave(self, station: Station) -> None:
        """Unplug, and let the next vehicle come only when this one was seen to go."""
        station.unplug()
        self.network.wait_for(lambda: shows_idle(station), 30, "the agent to see it go")

    def begin(self, station: Station, want_wh: int = 100_000) -> None:
        """Plug, present, and wait until current flows."""
        station.plug(want_wh, 32_000)
        Stubborn(station).present(TOKEN)
        self.network.wait_for(lambda: station.current_ma() > 0, 30, "current to flow")

    def drivers(self, *stations: Station) -> list[Driver]:
        return [
            Driver(Attentive(one), TOKEN, random.Random(self._chance.random()), BUSY)
            for one in stations
        ]

    def traffic(self, drivers: list[Driver], seconds: float) -> None:
        """Let vehicles come and go for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for driver in drivers:
                driver.step(time.monotonic())
            time.sleep(0.05)

    def until_dead(self, drivers: list[Driver], child: Child) -> None:
        """Let traffic go on until the child dies at the instant that it is armed with."""

        def gone() -> bool:
            self.traffic(drivers, 0.2)
            return not child.alive

        wait_for(gone, DIE_S, f"{child.name} to reach the armed instant")
        assert child.exit_code == -signal.SIGKILL, child.tail()

    def until_charged(self, drivers: list[Driver], station: Station) -> None:
        """Let traffic go on until energy has flowed, so that there is something to judge."""

        def flowed() -> bool:
            self.traffic(drivers, 0.2)
            return any(session.energy_mwh for session in station.truth())

        wait_for(flowed, DIE_S, f"a session at {station.identity}")

    def newest_sample(self, station: Station, since: datetime) -> datetime | None:
        """When the newest telemetry after `since` was measured, as REST shows it."""
        path = f"/stations/{station.identity}/telemetry"
        span = {"from": since.isoformat(), "to": (since + RECENT).isoformat()}
        rows = self.network.rest.items(path, **span, evse=1, every="1s")
        return max((datetime.fromisoformat(row["at"]) for row in rows), default=None)

    def awaits_card(self, station: Station) -> bool:
        """A vehicle is there, and no transaction."""
        try:
            evse = shown(station)
        except DemoError:
            return False
        return evse["charging_state"] == "EVConnected" and not evse.get("transaction")

    def everybody_leaves(self, *stations: Station) -> None:
        for station in stations:
            self.leave(station)

    def agree(self, *stations: Station, sessions: int = 1, journal_lost: bool = False) -> None:
        """The invariant, once everything had time to arrive; at least so many sessions each."""
        end = time.monotonic() + SETTLE_S
        for station in stations:
            assert len(station.truth()) >= sessions, "too few sessions to prove anything"
            while found := self._complaints(station, journal_lost=journal_lost):
                if time.monotonic() > end:
                    pytest.fail(self._evidence(station, found), pytrace=False)
                time.sleep(0.5)

    def _evidence(self, station: Station, found: list[str]) -> str:
        lines = [f"{station.identity}:", *found, "the simulator's sessions:"]
        lines += map(str, station.board("status")["sessions"])
        lines += ["the journal's:", *_told(lambda: witnesses.kept(station))]
        lines += ["the cloud's:", *_told(lambda: witnesses.booked(self.network, station))]
        return "\n".join([*lines, "the agent's log:", station.agent.tail(40)])

    def _complaints(self, station: Station, *, journal_lost: bool) -> list[str]:
        try:
            return witnesses.disagreements(self.network, station, journal_lost=journal_lost)
        except DemoError as error:
            return [str(error)]


def _told(look: Callable[[], Iterable[object]]) -> list[str]:
    """What it sees, or why it sees nothing: the rest of the evidence must not go with it."""
    try:
        return [str(line) for line in look()]
    except DemoError as error:
        return [str(error)]


@contextlib.contextmanager
def _world(speed: float) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="karvon-system-"))
    folder.chmod(0o755)
    try:
        with Network(folder, speed=speed, poll_s=POLL_S) as network:
            world = World(network)
            world.open()
            try:
                yield world
            finally:
                world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """One network for all scenarios that leave the cloud's data alone; a new station for each."""
    with _world(SPEED) as world:
        yield world


@pytest.fixture(autouse=True)
def _stations_end_with_their_scenario(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those that several scenarios share, as fixtures of a module, are there before this."""
    if "world" not in request.fixturenames:
        yield
        return
    world: World = request.getfixturevalue("world")
    shared = set(world.network.stations)
    yield
    world.send_home(shared)


@pytest.fixture
def own_world() -> Iterator[World]:
    """A network that the scenario may ruin."""
    with _world(SPEED) as world:
        yield world


# --------------------------------------------------------------------------- what was proven


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


# --------------------------------------------------------------------------- a stranger's agent


class Stranger:
    """Another maker's agent, written from docs/agent-link.md on paho: it may misbehave."""

    def __init__(self, station: Station, password: str | None = None) -> None:
        secrets = json.loads((station.folder / "credentials.json").read_text())
        parts = urllib.parse.urlsplit(station.mqtt_url)
        self.received: list[tuple[str, bytes]] = []
        self._where = (parts.hostname or "", parts.port or 8883)
        self._connected: queue.Queue[mqtt.ReasonCode] = queue.Queue()
        self._granted: queue.Queue[list[int]] = queue.Queue()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"karvon-{escape(station.identity)}"
        )
        self._client.username_pw_set(secrets["username"], password or secrets["password"])
        self._client.tls_set_context(ssl.create_default_context(cafile=station.folder / "ca.pem"))
        self._client.on_connect = lambda *args: self._connected.put(args[3])
        self._client.on_subscribe = lambda *args: self._granted.put([c.value for c in args[3]])
        self._client.on_message = lambda *args: self.received.append(
            (args[2].topic, args[2].payload)
        )

    def __enter__(self) -> Self:
        self._client.connect(*self._where)
        self._client.loop_start()
        code = self._connected.get(timeout=10)
        if code.is_failure:
            self.__exit__()
            raise ConnectionError(str(code))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, *filters: str) -> list[int]:
        """The codes that the broker answered; 128 is refused."""
        granted = []
        for one in filters:
            self._client.subscribe(one, 1)
            with contextlib.suppress(queue.Empty):  # some brokers hang up instead
                granted += self._granted.get(timeout=2)
        return granted

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, 1)

    def greet(self, station: Station, batches: list[NumberedBatch]) -> UUID:
        """Subscribe, say hello, wait for the welcome; returns the outbox."""
        self.subscribe(down_filter(station.identity))
        outbox, boot = uuid4(), uuid4()
        first = Mark(next=len(batches) + 1, floor=1)
        empty = Mark(next=1, floor=1)
        hello = Hello(
            outbox=outbox,
            boots=(boot,),
            sent=stamp(boot),
            marks={Stream.BILLING: first, Stream.STATE: empty, Stream.TELEMETRY: empty},
            agent_version="stranger 1",
            evses=(
                EvseDescription(
                    evse=1,
                    phases=3,
                    max_ma=MilliAmperes(32_000),
                    energy_step_wh=WattHours(1),
                    billing_grade=True,
                ),
            ),
            open_transactions=(),
            local_list_version=0,
        )
        self.publish(up_topic(station.identity, Up.HELLO), encode(hello))
        wait_for(lambda: self._of(Welcome), 20, "the cloud's welcome")
        assert self._of(Welcome)[0].verdict is Verdict.GO_ON
        return outbox

    def send(self, station: Station, outbox: UUID, batches: list[NumberedBatch]) -> None:
        for seq, facts in batches:
            batch = BillingBatch(outbox, seq, 1, stamp(facts[0].at.boot), facts)
            self.publish(up_topic(station.identity, Up.BILLING), encode(batch))

    def wait_acknowledged(self, stream: Stream, count: int) -> None:
        """Until all numbers from 1 to `count` have been acknowledged."""

        def complete() -> bool:
            ranges = [pair for ack in self._of(Ack) if ack.stream is stream for pair in ack.ranges]
            seen = {seq for first, last in ranges for seq in range(first, last + 1)}
            return seen >= set(range(1, count + 1))

        wait_for(complete, 60, "all acknowledgements")

    def _of(self, kind: type) -> list:
        decoded = [
            decode_down(Down(topic.rpartition("/")[2]), payload)
            for topic, payload in list(self.received)
        ]
        return [message for message in decoded if isinstance(message, kind)]


NumberedBatch = tuple[int, tuple[TransactionEvent, ...]]


def stamp(boot: UUID, ago_ms: int = 0) -> Stamp:
    wall = Milliseconds(time.time_ns() // 1_000_000 - ago_ms)
    return Stamp(wall, Milliseconds(10_000_000 - ago_ms), boot, ClockQuality.SYNCED)


class Strangers:
    """Opens strangers, and makes what they have to say."""

    def __call__(self, station: Station, password: str | None = None) -> Stranger:
        return Stranger(station, password)

    @staticmethod
    def transaction(*, energy_wh: int, events: int = 2) -> list[TransactionEvent]:
        """A whole transaction in `events` steps that ends at this energy."""
        transaction, boot = uuid4(), uuid4()
        started = stamp(boot, 600_000)
        kinds = ["Started", *["Updated"] * (events - 2), "Ended"]
        return [
            TransactionEvent(
                id=uuid4(),
                transaction=transaction,
                type=TransactionEventType(kind),
                seq_no=number,
                at=stamp(boot, 600_000 - number * 1000),
                trigger=Trigger.METER_VALUE_PERIODIC,
                evse=1,
                started=started,
                charging_state=ChargingState.CHARGING,
                energy_wh=WattHours(energy_wh * number // (events - 1)),
                meter_wh=WattHours(energy_wh * number // (events - 1)),
            )
            for number, kind in enumerate(kinds)
        ]

    @staticmethod
    def batches(events: list[TransactionEvent], size: int = 3) -> list[NumberedBatch]:
        parts = [tuple(events[at : at + size]) for at in range(0, len(events), size)]
        return list(enumerate(parts, 1))

    @staticmethod
    def batch(events: list[TransactionEvent], seq: int) -> bytes:
        return encode(BillingBatch(uuid4(), seq, 1, stamp(uuid4()), tuple(events)))


@pytest.fixture(scope="session")
def stranger() -> Strangers:
    return Strangers()
