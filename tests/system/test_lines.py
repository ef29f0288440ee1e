"""Lines that are slow, torn, half-open or frozen; boards that are silent or noisy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psutil
import pytest


def test_frozen_and_thawed(world, sample_size: Callable[[int, int], int]) -> None:
    station = world.station("F")
    world.begin(station)
    for victim in (station.agent.name, "cloud", "broker", "database"):
        world.network.kill(victim, signal.SIGSTOP)
        time.sleep(sample_size(2, 600 if victim == station.agent.name else 60))
        world.network.kill(victim, signal.SIGCONT)
        time.sleep(1)
    world.network.wait_online(station)
    world.leave(station)
    world.agree(station)


def test_slow_torn_and_half_open_uplinks_lose_nothing(
    world, sample_size: Callable[[int, int], int]
) -> None:
    slow, torn, half = (
        world.station(f"L-{name}", start=False) for name in ("slow", "torn", "half")
    )
    proxies = [world.uplink_proxy(station) for station in (slow, torn, half)]
    for station in (slow, torn, half):
        world.start(station)
    proxies[0].delay_s = 0.3
    proxies[1].reset_every = 6_000
    proxies[1].cut()
    before, proxies[2].blackhole = proxies[2].connections, True
    drivers = world.drivers(slow, torn, half)
    world.traffic(drivers, sample_size(14, 600))
    world.network.wait_for(
        lambda: proxies[2].connections > before, 60, "the agent to give up the dead connection"
    )
    proxies[2].blackhole = False
    assert proxies[1].resets > 0, "the line was never torn"
    world.everybody_leaves(slow, torn, half)
    proxies[1].reset_every = 0
    world.agree(slow, torn, half)


def test_a_line_that_is_torn_while_the_backlog_replays(world) -> None:
    station = world.station("L-replay", start=False)
    proxy = world.uplink_proxy(station)
    world.start(station)
    proxy.blackhole = True
    proxy.cut()
    world.charge(station)
    world.charge(station)
    proxy.blackhole = False
    proxy.reset_every = 9_000
    proxy.cut()
    world.agree(station, sessions=2)


@pytest.fixture
def boards(world):
    """A station for each kind of trouble, in the midst of a session."""
    stations = {
        trouble: world.station(f"B-{trouble}", start=False, serial=trouble == "noise")
        for trouble in ("silence", "noise", "half_open", "blackhole")
    }
    proxy = world.board_proxy(stations["blackhole"])
    for station in stations.values():
        world.start(station)
        world.begin(station)
    return stations, proxy


def test_silent_noisy_and_half_open_boards(world, boards) -> None:
    stations, proxy = boards
    files = {name: _open_files(station) for name, station in stations.items()}
    stations["silence"].board("silence", seconds=8)
    stations["noise"].board("noise", replies=4)
    stations["half_open"].board("half_open")
    proxy.blackhole = True
    world.network.wait_for(
        lambda: _faulted(world, stations["blackhole"]), 30, "the silence to be reported"
    )
    proxy.blackhole = False
    for station in stations.values():
        _wait_healed(world, station)
        world.leave(station)
    world.agree(*stations.values())
    for name, station in stations.items():
        assert _open_files(station) <= files[name] + 2, f"files stay open after {name}"


def _open_files(station) -> int:
    return psutil.Process(station.agent.pid).num_fds()


def _wait_healed(world, station) -> None:
    world.network.wait_for(lambda: not _faulted(world, station), 40, "the board to be back")


def _faulted(world, station) -> bool:
    state = world.network.rest.get(f"/stations/{station.identity}")["evses"][0]["state"]
    return state["value"]["status"] == "Faulted" or state["stale"]
