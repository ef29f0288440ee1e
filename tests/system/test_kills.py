"""kill -9 at random moments, and at the agent's instants between persist, publish and ack."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from karvon.demo.process import DemoError, wait_for
from karvon.demo.session import TOKEN

AGENT_INSTANTS = (
    "agent.before_persist",
    "agent.after_persist",
    "agent.before_publish",
    "agent.after_ack",
)
RUN_S = 120.0
ASKING = 8
DEAD_S = 4.0
"""At the simulator's speed a whole session: the vehicle may be full, and gone, meanwhile."""


@pytest.fixture
def station(world):
    """One of the test's own, so that it is judged by its own kills only."""
    station = world.station("K")
    yield station
    station.stop()


@pytest.mark.parametrize(
    ("victim", "full"),
    [("agent", 200), ("cloud", 25), ("broker", 25), ("database", 25)],
    ids=["agent", "cloud", "broker", "database"],
)
def test_killed_at_random_moments(
    world, station, kills, sample_size: Callable[[int, int], int], victim: str, full: int
) -> None:
    drivers = world.drivers(station)
    chance = random.Random(f"{victim} 2")
    for _ in range(sample_size(1, full)):
        world.traffic(drivers, chance.uniform(1.0, 6.0))
        name = station.agent.name if victim == "agent" else victim
        _until_it_runs(world, drivers, name)
        world.network.kill(name)
        kills.count(f"a random moment of the {victim}")
        world.traffic(drivers, chance.uniform(0.0, 1.0))
        if victim == "agent":
            station.agent.kill()
            station.agent.start()
        elif victim == "cloud":
            world.network.restart("cloud")
    world.until_charged(drivers, station)
    world.everybody_leaves(station)
    world.agree(station)


@pytest.mark.parametrize("instant", AGENT_INSTANTS)
def test_the_agent_killed_at(
    world, station, kills, sample_size: Callable[[int, int], int], instant: str
) -> None:
    drivers = world.drivers(station)
    chance = random.Random(instant)
    for _ in range(sample_size(1, 25)):
        station.agent.stop()
        passes = chance.randint(1, sample_size(3, 8))
        station.agent.start({"KARVON_FAULT": f"{instant}:{passes}"})
        world.until_dead(drivers, station.agent)
        kills.count(instant)
        world.traffic(drivers, chance.uniform(0.0, DEAD_S))
        station.agent.start()
        world.traffic(drivers, chance.uniform(0.5, 2.0))
    world.until_charged(drivers, station)
    world.everybody_leaves(station)
    world.agree(station)


def test_a_vehicle_is_changed_while_the_agent_is_dead(world, kills) -> None:
    """Nobody charges on the card of somebody who has left."""
    station = world.station("C")
    world.begin(station, 150)
    world.network.wait_for(station.full, 60, "the vehicle to be full")
    station.agent.kill()
    kills.count("a full vehicle, changed before the agent lives again")
    station.unplug()
    station.plug(250, 32_000)
    station.agent.start()
    world.network.wait_for(lambda: world.awaits_card(station), 30, "the last session to end")
    station.present(TOKEN)
    world.network.wait_for(station.full, 60, "the next vehicle to be full")
    world.leave(station)
    world.agree(station, sessions=2)


def test_no_instant_was_left_out(kills) -> None:
    for instant in AGENT_INSTANTS:
        assert kills.so_far[instant] > 0, f"nothing was ever killed at {instant}"


def _until_it_runs(world, drivers, name: str) -> None:
    """The cloud restarts what it supervises in growing pauses, so the next kill may come early."""

    def running() -> bool:
        world.traffic(drivers, 0.2)
        try:
            return bool(world.network.pid(name))
        except DemoError:
            return False

    wait_for(running, RUN_S, f"{name} to run again")


def test_the_kernel_kills_the_agent_for_want_of_memory(world, kills) -> None:
    """Its successor goes on with the session, and books it once."""
    station = world.station("M")
    world.begin(station)
    with _starved(station.agent.pid):
        wait_for(lambda: _is_dead(station), RUN_S, "the kernel to kill it")
    assert station.agent.exit_code == -signal.SIGKILL, station.agent.tail()
    kills.count("no memory left for the agent")
    station.agent.start()
    world.network.wait_for(lambda: station.current_ma() > 0, 40, "the session to go on")
    world.leave(station)
    world.agree(station)


def _is_dead(station) -> bool:
    """Many who ask at once make it want memory."""
    lines = []
    for _ in range(ASKING):
        line = socket.socket(socket.AF_UNIX)
        line.setblocking(False)
        with contextlib.suppress(OSError):
            line.connect(str(station.control_socket))
            line.send(b'{"do": "log"}\n')
        lines.append(line)
    time.sleep(0.2)  # it works on what was asked
    for line in lines:
        line.close()
    return not station.agent.alive


@contextlib.contextmanager
def _starved(pid: int) -> Iterator[None]:
    """The process may not have one page more than it has, in a memory group of its own."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(root) / f"karvon-test-{pid}"
        try:
            group.mkdir()
            (group / limit).write_text(str(128 * 1024))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        yield
        wait_for(lambda group=group: _removed(group), 10, "the memory group to be left")
        return
    pytest.skip("NOT RUN: this machine does not let us limit a process's memory")


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
