"""Days without network: the backlog replays in order while live data stays live."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

SAMPLE_EVERY = timedelta(seconds=1)
LATE_AT_MOST = timedelta(seconds=2)


def test_live_data_is_not_starved_by_the_backlog(
    world, sample_size: Callable[[int, int], int]
) -> None:
    station = world.station("O", start=False)
    proxy = world.uplink_proxy(station)
    world.start(station)
    drivers = world.drivers(station)
    proxy.blackhole = True
    proxy.cut()
    world.traffic(drivers, sample_size(15, 900))
    world.everybody_leaves(station)
    world.begin(station)
    proxy.blackhole = False
    proxy.cut()
    world.network.wait_online(station)
    _settled_in(world)
    late = [probe for probe in range(10) if not _is_live(world, station)]
    assert not late, f"live data came late in probes {late} of 10"
    station.unplug()
    world.agree(station, sessions=3)


def _settled_in(world) -> None:
    """The first two seconds after the reconnect belong to the handshake."""
    time.sleep(2)


def _is_live(world, station) -> bool:
    """Whether REST shows a sample that is not older than samples come, and 2 s more."""
    time.sleep(0.25)
    since = datetime.now(UTC) - SAMPLE_EVERY - LATE_AT_MOST
    return world.newest_sample(station, since) is not None
