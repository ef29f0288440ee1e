"""The dialogue with a cloud that forgets, restarts and is restored, over a line that loses,
repeats and reorders: nothing is missing in the end, and no number ever changes its content."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.journal import Journal, JournalBudget
from edge_agent.uplink.pace import Pace
from edge_agent.uplink.session import (
    NO_CLOUD,
    Action,
    Arrived,
    Commanded,
    Connected,
    Disconnected,
    Event,
    LinkChanged,
    Send,
    Session,
    SessionSettings,
    Tick,
    Watched,
    Welcomed,
)
from edge_agent.uplink.testing import ModelCloud
from protocols.agent_link import (
    MOST_WATCH_MS,
    BillingBatch,
    ChargingState,
    ClockQuality,
    Command,
    ConnectorStatus,
    Down,
    EvseStatus,
    RemoteStop,
    Sample,
    Stamp,
    TelemetryBatch,
    TransactionEvent,
    TransactionEventType,
    Trigger,
    UnknownCommand,
    Up,
    Watch,
    decode_up,
    encode,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

NOON = 1_790_000_000_000
BOOT = UUID(int=1)
BUDGET = JournalBudget(reserve_bytes=0, flush_ms=5000)
SETTINGS = SessionSettings(station="S1", agent_version="1", telemetry_ms=2000, in_flight=8)


def stamp(now: int) -> Stamp:
    return Stamp(Milliseconds(NOON + now), Milliseconds(now), BOOT, ClockQuality.SYNCED)


def event(transaction: UUID, seq_no: int) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=TransactionEventType.UPDATED,
        seq_no=seq_no,
        at=stamp(0),
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=stamp(0),
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(seq_no),
        meter_wh=WattHours(seq_no),
    )


def evse_status(evse: int, offered: int) -> EvseStatus:
    return EvseStatus(
        evse,
        stamp(0),
        ConnectorStatus.OCCUPIED,
        ChargingState.CHARGING,
        None,
        MilliAmperes(offered),
    )


class LinkMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="karvon-link-"))
        self.now = 1000
        self.cloud = ModelCloud()
        self.backup = self.cloud.restarted()
        self.upward: list[tuple[Up, bytes]] = []
        self.downward: list[tuple[Down, bytes]] = []
        self.facts: list[TransactionEvent] = []
        self.samples: set[tuple[int, int]] = set()
        self.state: dict[int, int] = {}
        self.content: dict[tuple[UUID, Up, int], Any] = {}
        self.transactions = [uuid4() for _ in range(3)]
        self.connected = False
        self._start()

    def _start(self) -> None:
        """The loop reports its state anew after a start."""
        self.journal = Journal.open(self.folder / "j", station="S1", boot=uuid4(), budget=BUDGET)
        self.session = Session(SETTINGS, self.journal, lambda: stamp(self.now))
        self.state.clear()

    def _handle(self, event: Event) -> None:
        for action in self.session.handle(event, self.now):
            if isinstance(action, Send):
                self._check_content(action)
                self.upward.append((action.channel, action.payload))

    def _check_content(self, action: Send) -> None:
        message = decode_up(action.channel, action.payload)
        if isinstance(message, BillingBatch | TelemetryBatch):
            content = message.facts if isinstance(message, BillingBatch) else message.series
            known = self.content.setdefault((message.outbox, action.channel, message.seq), content)
            assert known == content
            assert message.floor <= message.seq

    # ------------------------------------------------------------------ the agent

    @rule(which=st.integers(0, 2), count=st.integers(1, 3))
    def charge(self, which: int, count: int) -> None:
        mine = self.transactions[which]
        first = sum(1 for fact in self.facts if fact.transaction == mine)
        new = [event(mine, first + n) for n in range(count)]
        self.journal.commit(facts=new)
        self.facts += new

    @rule(evse=st.integers(1, 2), offered=st.integers(6, 32))
    def report(self, evse: int, offered: int) -> None:
        self.journal.put_state(evse_status(evse, offered))
        self.state[evse] = offered

    @rule(count=st.integers(1, 8))
    def measure(self, count: int) -> None:
        for _ in range(count):
            self.now += 1000
            self.journal.add([Sample(evse=1, at=stamp(self.now), energy_wh=WattHours(self.now))])
            self.samples.add((1, self.now))

    @rule(passed=st.sampled_from([100, 1000, 11_000, 90_000]))
    def wait(self, passed: int) -> None:
        self.now += passed
        self._handle(Tick())

    @rule()
    def restart(self) -> None:
        self.hang_up()
        self.journal.close()
        self._start()

    @rule()
    def restore_yesterdays_journal(self) -> None:
        """What this copy does not know is on the cloud already, or lost with the disk."""
        self.hang_up()
        self.journal.close()
        saved = self.folder / "saved"
        if saved.exists():
            shutil.rmtree(self.folder / "j")
            shutil.copytree(saved, self.folder / "j")
        self._start()
        known = {fact.id for fact in self._pending()} | set(self.cloud.facts)
        self.facts = [fact for fact in self.facts if fact.id in known]
        self.samples.clear()
        # Facts that only this copy's past had sent are not kept by it once the cloud is restored.
        self.backup = self.cloud.restarted()

    @rule()
    def save_the_journal(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        shutil.copytree(self.folder / "j", self.folder / "saved")
        self.hang_up()
        self._start()

    def _pending(self) -> list[Any]:
        rows = self.journal._billing.db.execute("SELECT body FROM fact WHERE settled_ms IS NULL")
        return [msgspec.json.decode(body, type=TransactionEvent) for (body,) in rows]

    # ------------------------------------------------------------------ the line

    @rule()
    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self._handle(Connected())

    @rule()
    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.downward.clear()
            self._handle(Disconnected("test"))

    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "lose", "repeat"]))
    def upwards(self, data: st.DataObject, fate: str) -> None:
        if not self.upward:
            return
        index = data.draw(st.integers(0, len(self.upward) - 1))
        message = self.upward[index] if fate == "repeat" else self.upward.pop(index)
        if fate != "lose":
            self._commit(message)

    def _commit(self, message: tuple[Up, bytes]) -> None:
        answer = self.cloud.receive(*message)
        if answer and self.connected:
            self.downward.append(answer)

    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "lose", "repeat"]))
    def downwards(self, data: st.DataObject, fate: str) -> None:
        if not self.downward or not self.connected:
            return
        index = data.draw(st.integers(0, len(self.downward) - 1))
        message = self.downward[index] if fate == "repeat" else self.downward.pop(index)
        if fate != "lose":
            self._handle(Arrived(*message))

    # ------------------------------------------------------------------ the cloud

    @rule()
    def restart_cloud(self) -> None:
        self.upward.clear()
        self.downward.clear()
        self.cloud = self.cloud.restarted()

    @rule()
    def back_up_cloud(self) -> None:
        self.backup = self.cloud.restarted()

    @rule()
    def restore_cloud(self) -> None:
        """What the agent told before is told again; telemetry is kept until acknowledged only."""
        self.upward.clear()
        self.downward.clear()
        self.hang_up()
        self.cloud = self.backup.restarted()
        self.samples.clear()

    # ------------------------------------------------------------------ promises

    @invariant()
    def transactions_arrive_in_order(self) -> None:
        for transaction in self.transactions:
            seen = [fact.seq_no for fact in self.cloud.order if fact.transaction == transaction]
            assert seen == sorted(seen)

    def teardown(self) -> None:
        try:
            self._settle_all()
            assert set(self.cloud.facts) >= {fact.id for fact in self.facts}
            assert self.cloud.samples >= self.samples
            assert {evse: self.cloud.state[evse] for evse in self.state} == self.state
            assert self.journal.pending_billing == 0
            assert self.journal.pending_telemetry == 0
        finally:
            self.journal.close()
            shutil.rmtree(self.folder)

    def _settle_all(self) -> None:
        """The line and the cloud are well again, for long enough."""
        self.connect()
        for _ in range(400):
            self.now += 2100
            self._handle(Tick())
            while self.upward or self.downward:
                while self.upward:
                    self._commit(self.upward.pop(0))
                while self.downward:
                    self._handle(Arrived(*self.downward.pop(0)))
            journal = self.journal
            waiting = journal.pending_billing + journal.pending_telemetry + len(journal._dirty)
            if self.session.cloud and not waiting and not journal._unsettled_state:
                return


TestLink = pytest.mark.timeout(300)(LinkMachine.TestCase)
TestLink.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


# --------------------------------------------------------------------------- one by one


class Desk:
    """A session, its journal and a cloud on a perfect line."""

    def __init__(self, folder: Path) -> None:
        self.now = 0
        self.journal = Journal.open(folder, station="S1", boot=uuid4(), budget=BUDGET)
        self.session = Session(SETTINGS, self.journal, lambda: stamp(self.now))
        self.cloud = ModelCloud()

    def handle(self, event: Event) -> list[Action]:
        return self.session.handle(event, self.now)

    def welcome(self) -> list[Action]:
        """Connect and take the cloud's welcome."""
        (hello,) = self.handle(Connected())
        return self.answer(hello)

    def answer(self, action: Action) -> list[Action]:
        assert isinstance(action, Send)
        answer = self.cloud.receive(action.channel, action.payload)
        assert answer
        return self.handle(Arrived(*answer))


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    desk = Desk(tmp_path)
    yield desk
    desk.journal.close()


def sent(actions: list[Action]) -> list[Up]:
    return [action.channel for action in actions if isinstance(action, Send)]


def test_nothing_leaves_before_the_welcome(desk: Desk) -> None:
    desk.journal.commit(facts=[event(uuid4(), 0)])
    assert sent(desk.handle(Connected())) == [Up.HELLO]
    assert desk.handle(Tick()) == []


def test_a_silent_cloud_is_greeted_again_and_reported_once_up(desk: Desk) -> None:
    desk.handle(Connected())
    desk.now = SETTINGS.welcome_ms
    assert sent(desk.handle(Tick())) == [Up.HELLO]
    desk.now += SETTINGS.welcome_ms
    assert desk.handle(Tick()) == []
    desk.now += SETTINGS.welcome_ms
    assert sent(desk.handle(Tick())) == [Up.HELLO]


def test_a_cloud_that_stops_acknowledging_is_told_of(desk: Desk) -> None:
    desk.welcome()
    desk.journal.commit(facts=[event(uuid4(), 0)])
    payloads = [a.payload for a in desk.handle(Tick()) if isinstance(a, Send)]
    for _ in range(3):
        desk.now += 80_000
        actions = desk.handle(Tick())
        if LinkChanged(up=False, reason=NO_CLOUD) in actions:
            assert sent(actions) == [Up.HELLO]
            break
        assert [a.payload for a in actions if isinstance(a, Send)] == payloads
    else:
        pytest.fail("never noticed")


def test_live_facts_pass_a_backlog(desk: Desk) -> None:
    for _ in range(50):
        desk.journal.commit(facts=[event(uuid4(), 0)])
    first = [a for a in desk.welcome() if isinstance(a, Send)]
    assert len(first) < 10
    live = event(uuid4(), 0)
    desk.journal.commit(facts=[live])
    desk.now += 10
    batches = [decode_up(a.channel, a.payload) for a in desk.handle(Tick()) if isinstance(a, Send)]
    assert isinstance(batches[0], BillingBatch)
    assert batches[0].facts == (live,)


def test_while_all_is_well_telemetry_is_one_message_a_minute(tmp_path: Path) -> None:
    journal = Journal.open(
        tmp_path, station="S1", boot=uuid4(), budget=JournalBudget(reserve_bytes=0)
    )
    now = 0
    plain = SessionSettings(station="S1", agent_version="1")
    session = Session(plain, journal, lambda: stamp(now))
    cloud = ModelCloud()
    channels: list[Up] = []
    waiting = session.handle(Connected(), now)
    try:
        for now in range(250, 600_000, 250):
            if now % 1000 == 0:
                journal.add([Sample(evse=1, at=stamp(now), energy_wh=WattHours(now))])
            waiting += session.handle(Tick(), now)
            while waiting:
                action = waiting.pop(0)
                if isinstance(action, Send):
                    channels.append(action.channel)
                    answer = cloud.receive(action.channel, action.payload)
                    waiting += session.handle(Arrived(*answer), now) if answer else []
        assert channels.count(Up.TELEMETRY) in {10, 11}
        assert journal.backlog == 0
    finally:
        journal.close()


def test_while_somebody_watches_telemetry_is_a_message_a_second(tmp_path: Path) -> None:
    """Over a reconnect too; it ends by itself, and asking for more than is granted gives less."""
    journal = Journal.open(
        tmp_path, station="S1", boot=uuid4(), budget=JournalBudget(reserve_bytes=0)
    )
    now = 0
    session = Session(SessionSettings(station="S1", agent_version="1"), journal, lambda: stamp(now))
    cloud = ModelCloud()
    at: list[int] = []
    waiting = session.handle(Connected(), now)
    day = Milliseconds(24 * 3_600_000)
    try:
        for now in range(250, 1_100_000, 250):
            if now == 100_000:
                watch = Watch(evse=1, every_ms=Milliseconds(1), valid_ms=day)
                assert session.handle(Watched(watch), now) == []
            if now == 400_000:
                session.handle(Disconnected("a test"), now)
                waiting = session.handle(Connected(), now)
            if now % 1000 == 500:
                journal.add([Sample(evse=1, at=stamp(now), energy_wh=WattHours(now))])
            waiting += session.handle(Tick(), now)
            while waiting:
                action = waiting.pop(0)
                if isinstance(action, Send):
                    at += [now] * (action.channel is Up.TELEMETRY)
                    answer = cloud.receive(action.channel, action.payload)
                    waiting += session.handle(Arrived(*answer), now) if answer else []
    finally:
        journal.close()
    watched = [moment for moment in at if 100_000 <= moment < 100_000 + MOST_WATCH_MS]
    assert MOST_WATCH_MS // 1000 - 3 <= len(watched) <= MOST_WATCH_MS // 1000 + 1
    assert len([moment for moment in at if moment >= 100_000 + MOST_WATCH_MS]) in {1, 2}


def test_another_clouds_ack_asks_for_a_hello(desk: Desk) -> None:
    desk.welcome()
    desk.journal.commit(facts=[event(uuid4(), 0)])
    (batch,) = desk.handle(Tick())
    desk.cloud = desk.cloud.restarted()
    assert sent(desk.answer(batch)) == [Up.HELLO]
    assert desk.journal.pending_billing == 1


def test_a_clone_takes_a_new_outbox_once(desk: Desk) -> None:
    desk.journal.commit(facts=[event(uuid4(), 0)])
    desk.cloud.last_boot[desk.journal.outbox] = uuid4()
    before = desk.journal.outbox
    (hello,) = desk.welcome()
    assert desk.journal.outbox != before
    actions = desk.answer(hello)
    assert any(isinstance(action, Welcomed) for action in actions)
    (batch,) = [decode_up(a.channel, a.payload) for a in actions if isinstance(a, Send)]
    assert isinstance(batch, BillingBatch)
    assert (batch.outbox, batch.seq) == (desk.journal.outbox, 1)


def test_commands_are_handed_on_and_poison_is_ignored(desk: Desk) -> None:
    desk.welcome()
    command = Command(uuid4(), Milliseconds(NOON), Milliseconds(60_000), RemoteStop(uuid4()))
    assert desk.handle(Arrived(Down.COMMAND, encode(command))) == [Commanded(command)]
    later = b'{"id":"00000000-0000-4000-8000-000000000020","do":{"action":"sing"}}'
    unknown = UnknownCommand(UUID("00000000-0000-4000-8000-000000000020"), "sing")
    assert desk.handle(Arrived(Down.COMMAND, later)) == [Commanded(unknown)]
    for poison in (b"", b"{", b"\x78\x9c1", b'{"id":1}', b"[" * 100_000):
        assert desk.handle(Arrived(Down.COMMAND, poison)) == []


def test_the_backlog_slows_down_with_the_line() -> None:
    pace = Pace(64, 200)
    assert pace.room(0, 1000) == 4
    assert pace.room(3, 1000) == 1
    pace.spent(49)
    assert pace.room(0, 1000) == 1
    for n in range(100):
        pace.acknowledged(100, 1000 + n)
    assert pace.window == 64
    assert pace.room(0, 3000) == 50
    pace.acknowledged(5000, 5000)
    pace.acknowledged(5000, 5100)
    assert pace.window == 32
    for n in range(9):
        pace.slower(10_000 * (n + 1))
    assert pace.room(0, 200_000) == 1


def test_a_backlog_never_makes_live_data_wait_for_long() -> None:
    """Whatever the line takes by itself, the queue that we make on it stays short."""
    for line_ms, batch_ms in ((20, 5), (20, 60), (5000, 30)):
        pace, now, out = Pace(64, 500), 0, 0
        waits: list[int] = []
        for _ in range(400):
            now += max(line_ms // 10, batch_ms)
            out += pace.room(out, now)
            queued = out * batch_ms
            pace.acknowledged(line_ms + queued, now)
            waits.append(queued)
            out = max(0, out - 1)
        assert max(waits[-50:]) <= 1000, (line_ms, batch_ms)
        assert pace.window >= 4, "it starves on a line that is only far"


def telemetry_of(tmp_path: Path, thinned: list[tuple[int, int | None]], until: int) -> list[int]:
    """When telemetry left, one sample a second; (from when on, thinned how)."""
    budget = JournalBudget(reserve_bytes=0, flush_ms=5000)
    journal = Journal.open(tmp_path, station="S1", boot=uuid4(), budget=budget)
    now = 0
    session = Session(SessionSettings(station="S1", agent_version="1"), journal, lambda: stamp(now))
    cloud = ModelCloud()
    at: list[int] = []
    billing = 0
    waiting = session.handle(Connected(), now)
    try:
        for now in range(250, until, 250):
            for since, times in thinned:
                session.thinned = times if now >= since else session.thinned
            if now % 1000 == 500:
                journal.add([Sample(evse=1, at=stamp(now), energy_wh=WattHours(now))])
            if now % 60_000 == 0:
                journal.commit(facts=[event(UUID(int=1), now)])
            waiting += session.handle(Tick(), now)
            while waiting:
                action = waiting.pop(0)
                if isinstance(action, Send):
                    at += [now] * (action.channel is Up.TELEMETRY)
                    billing += action.channel is Up.BILLING
                    answer = cloud.receive(action.channel, action.payload)
                    waiting += session.handle(Arrived(*answer), now) if answer else []
        assert billing == (until - 1) // 60_000, "billing is never thinned"
        assert thinned[-1][1] != 1 or journal.backlog == 0
    finally:
        journal.close()
    return at


def test_thinned_telemetry_leaves_more_seldom(tmp_path: Path) -> None:
    at = telemetry_of(tmp_path, [(0, 5)], 1_500_000)
    assert 4 <= len(at) <= 12, at


def test_held_telemetry_stays_on_disk_and_leaves_when_it_may(tmp_path: Path) -> None:
    at = telemetry_of(tmp_path, [(0, 1), (300_000, None), (900_000, 1)], 1_200_000)
    assert not [moment for moment in at if 300_000 <= moment < 900_000]
    assert len([moment for moment in at if moment >= 900_000]) >= 5
