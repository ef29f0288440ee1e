"""Days without network: the backlog replays in order while live data stays live.

Three days of a busy charger at the usual telemetry interval leave some 10,000 records; here they
come from a board that is read ten times a second, beside twentyfold fast sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

SAMPLE_EVERY = timedelta(seconds=1)
LATE_AT_MOST = timedelta(seconds=2)
FAST_POLL_S = 0.1
DRAINED_S = 600.0
UNDER_WAY = 40
"""What waits for an acknowledgement at any moment: two seconds of samples, and a few facts."""


def test_live_data_is_not_starved_by_the_backlog(
    world, sample_size: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    station = world.station("O", start=False, poll_s=FAST_POLL_S)
    proxy = world.uplink_proxy(station)
    world.start(station)
    drivers = world.drivers(station)
    proxy.blackhole = True
    proxy.cut()
    while _records(station) < sample_size(150, 10_000):
        world.traffic(drivers, 5)
    world.everybody_leaves(station)
    world.begin(station)
    record_property("records that waited", _records(station))
    proxy.blackhole = False
    proxy.cut()
    back = time.monotonic()
    world.network.wait_online(station)
    _settled_in(world)
    probes = _probe_until_drained(world, station, back + DRAINED_S)
    late = [number for number, in_time in enumerate(probes) if not in_time]
    assert not late, f"live data came late in probes {late} of {len(probes)}"
    record_property("live probes during the replay", len(probes))
    record_property("seconds until the backlog was drained", round(time.monotonic() - back))
    station.unplug()
    world.agree(station, sessions=3)


def _records(station) -> int:
    """What waits for the cloud: billing facts and telemetry samples."""
    status = station.agent_status()["status"]
    return int(status["pending_billing"] + status["pending_telemetry"])


def _probe_until_drained(world, station, deadline: float) -> list[bool]:
    """Whether live data was live, time and again for as long as the backlog takes."""
    probes: list[bool] = []
    while len(probes) < 10 or _records(station) > UNDER_WAY:
        assert time.monotonic() < deadline, f"{_records(station)} records still wait"
        probes.append(_is_live(world, station))
    return probes


def _settled_in(world) -> None:
    """The first two seconds after the reconnect belong to the handshake."""
    time.sleep(2)


def _is_live(world, station) -> bool:
    """Whether REST shows a sample that is not older than samples come, and 2 s more."""
    time.sleep(0.25)
    since = datetime.now(UTC) - SAMPLE_EVERY - LATE_AT_MOST
    return world.newest_sample(station, since) is not None
