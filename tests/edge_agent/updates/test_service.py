"""The agent's side of an update: boards in memory, real slots, the real fetching process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from ota_server import Server
from ota_world import HARDWARE, STATION, World

from edge_agent import pulse
from edge_agent.agent import STUCK_AFTER_S
from edge_agent.rules.station import RefusedError
from edge_agent.rules.update import LATE_MS, STEADY_MS, Fetch
from edge_agent.updates import launcher, service
from edge_agent.updates.launcher import Failed, Record
from edge_agent.updates.messages import Failure, Ready, Subject
from edge_agent.updates.service import LONGEST_STEP_S, PENDING, Place, Updates, on_battery
from protocols.agent_link import (
    Command,
    CommandStatus,
    ConnectorStatus,
    SecurityEvent,
    SetAvailability,
    Update,
    UpdateState,
)
from protocols.quantities import Milliseconds

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
ASKED = UUID(int=5)


class Agent:
    """An agent's updates on a controller, and whether it wanted to restart."""

    def __init__(self, world: World, rig: Rig, **fields: Any) -> None:
        world.job()  # hands out the roots
        self.world, self.rig = world, rig
        self.restarts, self.cloud = 0, True
        known: dict[str, Any] = {
            "root": world.controller.folder,
            "state": world.state,
            "slot": world.running,
            "images_root": world.folder / "images.root.json",
            "director_root": world.folder / "director.root.json",
            "station": STATION,
            "hardware": HARDWARE,
            "version": "1.0",
            "selftest": ("selftest",),
            "power": world.folder / "power",
        }
        self.updates = Updates(
            Place(**(known | fields)),
            rig.loop,
            restart=self._restart,
            cloud=lambda: self.cloud,
        )
        rig.desk.update = self.updates.asked

    def _restart(self) -> None:
        self.restarts += 1

    async def until(self, state: UpdateState) -> None:
        """Time goes on until this state is told."""
        deadline = time.monotonic() + 90
        while state not in self.states():
            assert time.monotonic() < deadline, (self.states(), self.updates.trouble())
            await self.second()
            await asyncio.sleep(0.02)

    async def prepared(self) -> None:
        """A slot is made, as the fetching process would have it."""
        slot = self.world.controller.install("2.0")
        self.updates.rules.asked(ASKED)
        await self.updates._do(self.updates.rules.heard(ready(self.world, slot)))

    async def second(self) -> None:
        await self.rig.seconds(1)
        await self.updates.tick()

    def states(self) -> list[UpdateState]:
        return [each.state for each in self.rig.store.updates]

    def last(self) -> Any:
        return self.rig.store.updates[-1]

    @property
    def record(self) -> Record:
        return self.world.controller.stands


@pytest.fixture
def running(world: World) -> World:
    world.install_running()
    return world


@pytest.fixture
async def server(running: World) -> AsyncIterator[Server]:
    server = Server(running.out)
    yield server
    server.close()


def agent(world: World, rig: Rig, **fields: Any) -> Agent:
    return Agent(world, rig, **fields)


async def command(rig: Rig, request: UUID = ASKED) -> None:
    now = rig.clock.now().wall_ms
    do = Update(request)
    await rig.desk.command(Command(id=uuid4(), issued_ms=now, valid_ms=Milliseconds(30_000), do=do))


def on_the_wall(rig: Rig) -> None:
    """The rig's clock shows what the system's shows: metadata has real dates."""
    offset = round(time.time() * 1000) - rig.system_time().wall_ms
    system = rig.system_time
    rig.clock._source = lambda: replace(system(), wall_ms=system().wall_ms + offset)
    rig.clock.observe()


async def test_an_update_from_the_clouds_word_to_the_restart(
    running: World, rig: Rig, server: Server
) -> None:
    on_the_wall(rig)
    name = running.offer("2.0")
    it = agent(running, rig, url=server.url)
    await rig.seconds(2)
    await command(rig)
    assert rig.store.facts[-1].status is CommandStatus.EXECUTED
    await it.until(UpdateState.INSTALL_REBOOTING)
    assert it.states() == [
        UpdateState.DOWNLOADING,
        UpdateState.DOWNLOADED,
        UpdateState.SIGNATURE_VERIFIED,
        UpdateState.INSTALL_SCHEDULED,
        UpdateState.INSTALLING,
        UpdateState.INSTALL_REBOOTING,
    ]
    assert it.restarts == 1
    assert (it.record.trial, it.record.tries) == (name, launcher.TRIES)
    assert it.record.confirmed == running.running
    assert it.record.expects == {"boards": ["board1"], "cloud": True}
    assert (it.last().request, it.last().version) == (ASKED, "2.0")
    with pytest.raises(RefusedError, match="has begun"):
        it.updates.asked(uuid4())


async def test_it_waits_for_the_session_and_then_frees_the_evse(
    running: World, make_rig: Callable[..., Rig]
) -> None:
    rig = make_rig(boards=2)
    it = agent(running, rig)
    await rig.seconds(2)
    await rig.charge(5)
    await it.prepared()
    for _ in range(5):
        await it.second()
    assert it.restarts == 0
    assert it.last().reason == "EVSE 1 in use"
    assert rig.status(2).status is ConnectorStatus.UNAVAILABLE
    assert rig.status(1).status is ConnectorStatus.OCCUPIED
    rig.boards[0].unplug()
    await it.until(UpdateState.INSTALL_REBOOTING)
    assert it.restarts == 1


async def test_evses_come_back_when_it_is_abandoned(
    running: World, make_rig: Callable[..., Rig]
) -> None:
    """And one that the operator took out of service meanwhile does not."""
    rig = make_rig(boards=3)
    it = agent(running, rig)
    await rig.seconds(2)
    await rig.charge(5)
    await it.prepared()
    await it.second()
    now = rig.clock.now().wall_ms
    await rig.desk.command(
        Command(
            id=uuid4(),
            issued_ms=now,
            valid_ms=Milliseconds(30_000),
            do=SetAvailability(evse=3, operative=False),
        )
    )
    battery = running.folder / "power" / "AC"
    battery.mkdir(parents=True)
    (battery / "type").write_text("Mains\n")
    (battery / "online").write_text("0\n")
    await it.second()
    await it.second()
    assert it.last().reason == "it runs on battery"
    assert rig.status(2).status is ConnectorStatus.AVAILABLE
    assert rig.status(3).status is ConnectorStatus.UNAVAILABLE
    rig.boards[0].unplug()
    await rig.seconds(3)
    await it.second()
    assert it.restarts == 0
    (battery / "online").write_text("1\n")
    await it.until(UpdateState.INSTALL_REBOOTING)


def ready(world: World, slot: str) -> Ready:
    return Ready(
        about=Subject(target="agent/x", version="2.0", request=ASKED),
        slot=slot,
        component="agent/karvon-agent",
        counter=7,
        valid_until_ms=2**62,
    )


async def test_ota_f37_a_session_between_decision_and_record_wins(running: World, rig: Rig) -> None:
    """The last look and the record are one step: what comes before it wins."""
    it = agent(running, rig)
    await rig.seconds(2)
    slot = running.controller.install("2.0")
    rules = it.updates.rules
    rules.asked(ASKED)
    rules.heard(ready(running, slot))
    idle = it.updates._conditions()
    rules.tick(idle)
    actions = rules.tick(idle)
    await rig.charge(3)
    await it.updates._do(actions)
    assert it.restarts == 0
    assert it.record.trial == ""
    assert it.last().state is UpdateState.INSTALL_SCHEDULED
    assert rig.status().status is ConnectorStatus.OCCUPIED


async def test_ota_f39_the_last_state_is_told_again_after_a_restart(
    running: World, rig: Rig
) -> None:
    it = agent(running, rig)
    rules = it.updates.rules
    rules.asked(ASKED)
    await it.updates._do(rules.heard(ready(running, "0" * 64)))
    told = it.last()
    it.updates.close()
    rig.start()
    rig.store.updates.clear()
    again = agent(running, rig)
    again.updates.reconcile()
    assert again.states() == [UpdateState.INSTALL_SCHEDULED]
    assert (again.last().request, again.last().target) == (told.request, told.target)


def on_trial(world: World, rig: Rig, tries: int = 2, **expects: Any) -> Agent:
    """The second of two lives: a new version's first start."""
    old, new = world.running, world.controller.install("2.0")
    floors = world.floors()
    floors.keep_note(PENDING, msgspec.json.encode(ready(world, new)))
    floors.close()
    world.controller.record(
        confirmed=old,
        trial=new,
        tries=tries,
        request=str(ASKED),
        expects={"boards": ["board1"], "cloud": True} | expects,
    )
    it = Agent(world, rig, slot=new)
    it.updates.reconcile()
    return it


async def test_a_trial_that_is_well_is_confirmed_and_told(running: World, rig: Rig) -> None:
    it = on_trial(running, rig)
    for _ in range(STEADY_MS // 1000 + 2):
        await it.second()
    assert it.states() == [UpdateState.INSTALLED]
    assert (it.record.confirmed, it.record.previous) == (it.updates.place.slot, running.running)
    assert it.record.trial == ""
    floors = running.floors()
    assert floors.counter("agent/karvon-agent") == 7
    floors.close()
    assert it.restarts == 0


async def test_what_waited_for_this_version_is_looked_for_once_it_is_confirmed(
    running: World, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release for the boards may need the new host."""
    monkeypatch.setattr(service, "EVERY_S", 0.01)
    it = on_trial(running, rig)
    it.updates.place = replace(it.updates.place, url="http://127.0.0.1:9")
    looks: list[Fetch] = []

    async def look(asked: Fetch) -> None:
        looks.append(asked)

    monkeypatch.setattr(it.updates, "_fetch", look)
    work = asyncio.create_task(it.updates.run())
    deadline = time.monotonic() + 60
    while not looks:
        assert time.monotonic() < deadline, it.states()
        await rig.seconds(1)
        await asyncio.sleep(0.01)  # a round of its own work
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert it.states() == [UpdateState.INSTALLED]
    assert looks == [Fetch(None, "")]


async def test_ota_f30_a_trial_without_the_cloud_that_was_there_restarts(
    running: World, rig: Rig
) -> None:
    it = on_trial(running, rig)
    it.cloud = False
    for _ in range(LATE_MS // 1000 + 2):
        await it.second()
    assert it.restarts == 1
    assert it.record.trial == it.updates.place.slot
    assert UpdateState.INSTALLED not in it.states()


async def test_ota_f30_a_cloud_that_was_down_before_extends_the_trial(
    running: World, rig: Rig
) -> None:
    it = on_trial(running, rig, cloud=False)
    it.cloud = False
    for _ in range(LATE_MS // 1000 + 5):
        await it.second()
    assert (it.restarts, it.record.trial) == (0, it.updates.place.slot)
    it.cloud = True
    await it.second()
    assert it.states() == [UpdateState.INSTALLED]


async def test_a_trial_refuses_another_update(running: World, rig: Rig) -> None:
    it = on_trial(running, rig)
    with pytest.raises(RefusedError, match="on trial"):
        it.updates.asked(uuid4())


async def test_a_rollback_is_told_once_with_its_reason(running: World, rig: Rig) -> None:
    it = on_trial(running, rig)
    it.updates.close()
    new = it.updates.place.slot
    running.controller.record(
        confirmed=running.running, failed=Failed(new, "it did not confirm itself", str(ASKED))
    )
    for told in (1, 2):
        rig.start()
        back = Agent(running, rig)
        back.updates.reconcile()
        assert back.last().state is UpdateState.INSTALLATION_FAILED
        assert back.last().reason == "rolled back: it did not confirm itself"
        assert len(rig.store.updates) == told
        assert back.record.failed is None
        back.updates.close()


async def test_a_confirmation_cut_before_it_was_told_is_told_then(running: World, rig: Rig) -> None:
    it = on_trial(running, rig)
    it.updates.close()
    new = it.updates.place.slot
    running.controller.record(confirmed=new, previous=running.running)
    rig.start()
    again = Agent(running, rig, slot=new)
    again.updates.reconcile()
    assert again.states() == [UpdateState.INSTALLED]


async def test_ota_f34_a_disk_that_refuses_installs_nothing_and_charging_goes_on(
    running: World, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = agent(running, rig)
    await rig.seconds(2)
    slot = running.controller.install("2.0")
    rules = it.updates.rules
    rules.asked(ASKED)
    rules.heard(ready(running, slot))

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(launcher, "write", refuse)
    for _ in range(3):
        await it.second()
    assert it.last().state is UpdateState.INSTALLATION_FAILED
    assert "Read-only file system" in it.last().reason
    assert it.restarts == 0
    await it.second()
    monkeypatch.undo()
    await rig.charge(3)
    assert rig.status().status is ConnectorStatus.OCCUPIED


async def test_ota_f38_stopping_ends_the_fetching_process(
    running: World, rig: Rig, server: Server
) -> None:
    """An abort in the middle of a download: the process is gone, nothing was installed."""
    on_the_wall(rig)
    running.offer("2.0")
    it = agent(running, rig, url=server.url, rate=1)
    await command(rig)
    await it.until(UpdateState.DOWNLOADING)
    await it.updates._stop_fetching()
    assert [path for path in running.slots() if path != running.running] == []
    running.director.ask({})
    it.updates.rules.asked(uuid4())
    it.updates._todo = it.updates.rules.asked(ASKED)
    await it.until(UpdateState.INSTALLATION_FAILED)
    assert it.last().reason == "it is not asked for any more"


async def test_a_fetching_process_that_dies_is_said_to_have_failed(
    running: World, rig: Rig
) -> None:
    it = agent(running, rig, url="http://127.0.0.1:9")
    running.state.joinpath("worker.lock").mkdir(parents=True)
    await command(rig)
    await it.until(UpdateState.DOWNLOAD_FAILED)
    assert "ended with 1" in it.last().reason
    assert "updates: " in it.updates.trouble()


async def test_what_was_rolled_back_is_not_tried_again(running: World, rig: Rig) -> None:
    """The director asks for it as before; only a new request is another try."""
    on_the_wall(rig)
    name = running.offer("2.0")
    floors = running.floors()
    floors.keep_note(PENDING, msgspec.json.encode(ready(running, name)))
    floors.close()
    running.controller.record(confirmed=running.running, failed=Failed(name, "why", str(ASKED)))
    with Server(running.out) as server:
        it = agent(running, rig, url=server.url)
        it.updates.reconcile()
        await command(rig)
        deadline = time.monotonic() + 60
        while "not tried again" not in it.updates.trouble():
            assert time.monotonic() < deadline
            await it.second()
            await asyncio.sleep(0.02)
        assert it.restarts == 0
        path = next(iter(running.maker.workshop.newest("agent").signed.targets))
        running.ask(path, id=UUID(int=6))
        await command(rig, UUID(int=6))
        await it.until(UpdateState.INSTALL_REBOOTING)


async def test_a_restart_between_note_and_record_is_told(running: World, rig: Rig) -> None:
    floors = running.floors()
    floors.keep_note(PENDING, msgspec.json.encode(ready(running, "0" * 64)))
    floors.close()
    it = agent(running, rig)
    it.updates.reconcile()
    assert it.last().reason == "the restart came before it began; ask again"


async def test_an_earlier_version_that_had_to_be_started_is_an_alarm(
    running: World, rig: Rig
) -> None:
    running.controller.record(confirmed="0" * 64, previous=running.running)
    it = agent(running, rig)
    it.updates.reconcile()
    assert "an earlier version runs" in it.updates.trouble()


async def test_what_nobody_signed_is_a_security_event(running: World, rig: Rig) -> None:
    it = agent(running, rig)
    about = Subject(target="agent/x", version="2.0", request=ASKED)
    refusal = Failure(UpdateState.INVALID_SIGNATURE, "images: signed by 0/2 keys", about)
    for _ in range(2):
        it.updates.rules.asked(ASKED)
        await it.updates._do(it.updates.rules.heard(refusal))
    (event,) = [fact for fact in rig.store.facts if isinstance(fact, SecurityEvent)]
    assert event.type == "InvalidFirmwareSignature"
    assert event.text == "2.0 images: signed by 0/2 keys"


async def test_a_folder_that_is_none_is_refused(running: World, rig: Rig) -> None:
    it = agent(running, rig)
    with pytest.raises(RefusedError, match="is no folder"):
        it.updates.from_folder("/no/such/stick")
    with pytest.raises(RefusedError, match="give a folder"):
        it.updates.from_folder("")
    await command(rig)
    assert rig.store.facts[-1].status is CommandStatus.REJECTED


def test_without_a_mains_supply_there_is_no_battery(tmp_path: Path) -> None:
    assert not on_battery(tmp_path)
    assert not on_battery(tmp_path / "none")


def test_the_running_agent_carries_none_of_what_checks_and_fetches() -> None:
    """Memory of a controller: that is the business of a process that ends."""
    looks = (
        "import sys, edge_agent.updates.service, edge_agent.main\n"
        "print({'tuf', 'urllib3', 'cryptography', 'securesystemslib'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", looks], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "set()"


# --------------------------------------------------------------------------- supervision


class Gated(Updates):
    """Each second's work waits at a gate that the test holds, and is then the real one."""

    def open(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.inside, self.rounds = False, 0

    async def tick(self) -> None:
        self.inside = True
        await self.gate.wait()
        await super().tick()
        self.inside = False
        self.rounds += 1

    async def another_round(self) -> None:
        before = self.rounds
        await self._until(lambda: self.rounds > before)

    async def shut(self) -> None:
        """The next round begins, and does not end."""
        self.gate.clear()
        await self._until(lambda: self.inside)

    @staticmethod
    async def _until(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached():
                await asyncio.sleep(0.02)  # polls what no event tells of


async def test_updates_beat_each_round_and_one_that_hangs_is_found_and_forgiven(
    running: World, rig: Rig
) -> None:
    """A step may take its four minutes; a minute more is too much for the supervision."""
    now = 0.0
    heart = pulse.Pulse(lambda: now)
    mine = heart.of("updates", STUCK_AFTER_S)
    place = Agent(running, rig).updates.place
    updates = Gated(replace(place, state=place.state / "supervised"), rig.loop, restart=list)
    updates.open()

    async def supervised() -> None:
        pulse.adopt(mine)
        await updates.run()

    task = asyncio.create_task(supervised())
    try:
        await updates.another_round()
        now += LONGEST_STEP_S + STUCK_AFTER_S - 1
        assert heart.overdue() == []
        await updates.another_round()
        now += LONGEST_STEP_S + STUCK_AFTER_S - 1
        assert heart.overdue() == [], "it has beaten again meanwhile"
        await updates.shut()
        now += LONGEST_STEP_S + STUCK_AFTER_S + 1
        assert heart.overdue() == ["updates"]
        updates.gate.set()
        await updates.another_round()
        await updates.another_round()
        assert heart.overdue() == []
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        updates.close()


async def test_what_was_aborted_is_remembered_until_it_is_asked_for_anew(
    running: World, rig: Rig
) -> None:
    first = agent(running, rig, url="http://127.0.0.1:9")
    await first.prepared()
    first.updates.abort()
    first.updates.close()
    second = agent(running, rig, url="http://127.0.0.1:9")
    second.updates.reconcile()
    assert second.updates.rules.aborted == ASKED
    second.updates.asked(ASKED)
    second.updates.close()
    third = agent(running, rig, url="http://127.0.0.1:9")
    third.updates.reconcile()
    assert third.updates.rules.aborted is None
    third.updates.close()
