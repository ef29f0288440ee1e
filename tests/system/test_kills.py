"""kill -9 at random moments, and at the instants between persist, publish, commit and ack."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from karvon.demo.process import DemoError, wait_for
from karvon.demo.session import TOKEN

CLOUD_INSTANTS = (
    "cloud.before_commit",
    "cloud.after_commit",
    "cloud.before_ack",
    "cloud.after_ack",
)
AGENT_INSTANTS = (
    "agent.before_persist",
    "agent.after_persist",
    "agent.before_publish",
    "agent.after_ack",
)
DIE_S = 120.0
DEAD_S = 4.0
"""At the simulator's speed a whole session: the vehicle may be full, and gone, meanwhile."""


@pytest.fixture(scope="module")
def station(world):
    return world.station("K")


@pytest.mark.parametrize("victim", ["agent", "cloud", "broker", "database"])
def test_killed_at_random_moments(
    world, station, kills, sample_size: Callable[[int, int], int], victim: str
) -> None:
    drivers = world.drivers(station)
    chance = random.Random(f"{victim} 2")
    for _ in range(sample_size(1, 25)):
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
    world.traffic(drivers, 1.0)
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
        _until_dead(world, drivers, station.agent)
        kills.count(instant)
        world.traffic(drivers, chance.uniform(0.0, DEAD_S))
        station.agent.start()
        world.traffic(drivers, chance.uniform(0.5, 2.0))
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


@pytest.mark.parametrize("instant", CLOUD_INSTANTS)
def test_the_cloud_killed_at(
    world, station, kills, sample_size: Callable[[int, int], int], instant: str
) -> None:
    drivers = world.drivers(station)
    chance = random.Random(instant)
    cloud = world.network.cloud
    for _ in range(sample_size(1, 25)):
        cloud.stop()
        passes = chance.randint(2, sample_size(4, 15))
        world.network.start_cloud({"KARVON_FAULT": f"{instant}:{passes}"})
        _until_dead(world, drivers, cloud)
        kills.count(instant)
        world.traffic(drivers, chance.uniform(0.0, 1.0))
        world.network.start_cloud()
        world.traffic(drivers, chance.uniform(0.5, 2.0))
    world.everybody_leaves(station)
    world.agree(station)


def test_no_instant_was_left_out(kills) -> None:
    for instant in (*AGENT_INSTANTS, *CLOUD_INSTANTS):
        assert kills.so_far[instant] > 0, f"nothing was ever killed at {instant}"


def _until_it_runs(world, drivers, name: str) -> None:
    """The cloud restarts what it supervises in growing pauses, so the next kill may come early."""

    def running() -> bool:
        world.traffic(drivers, 0.2)
        try:
            return bool(world.network.pid(name))
        except DemoError:
            return False

    wait_for(running, DIE_S, f"{name} to run again")


def _until_dead(world, drivers, child) -> None:
    def gone() -> bool:
        world.traffic(drivers, 0.2)
        return not child.alive

    wait_for(gone, DIE_S, f"{child.name} to reach the armed instant")
    assert child.exit_code == -signal.SIGKILL, child.tail()
