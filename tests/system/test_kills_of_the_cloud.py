"""kill -9 at the cloud's instants between commit and ack."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from karvon.demo.process import DemoError

CLOUD_INSTANTS = (
    "cloud.before_commit",
    "cloud.after_commit",
    "cloud.before_ack",
    "cloud.after_ack",
)


@pytest.fixture
def station(world):
    """One of the test's own, so that it is judged by its own kills only."""
    station = world.station("K")
    yield station
    station.stop()


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
        try:
            world.network.start_cloud({"KARVON_FAULT": f"{instant}:{passes}"})
        except DemoError:  # agents brought it to the instant before it could say that it is ready
            assert cloud.exit_code == -signal.SIGKILL, cloud.tail()
        world.until_dead(drivers, cloud)
        kills.count(instant)
        world.traffic(drivers, chance.uniform(0.0, 1.0))
        world.network.start_cloud()
        world.traffic(drivers, chance.uniform(0.5, 2.0))
    world.until_charged(drivers, station)
    world.everybody_leaves(station)
    world.agree(station)


def test_no_instant_was_left_out(kills) -> None:
    for instant in CLOUD_INSTANTS:
        assert kills.so_far[instant] > 0, f"nothing was ever killed at {instant}"
