"""Lines that are slow, torn, half-open or frozen; boards that are silent or noisy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest


def _freeze(world, name: str, seconds: float) -> None:
    world.network.kill(name, signal.SIGSTOP)
    time.sleep(seconds)
    world.network.kill(name, signal.SIGCONT)


@pytest.mark.parametrize("victim", ["agent", "cloud", "broker", "database"])
def test_frozen_and_thawed(world, sample_size: Callable[[int, int], int], victim: str) -> None:
    station = world.station(f"F-{victim}")
    world.begin(station)
    _freeze(world, station.agent.name if victim == "agent" else victim, sample_size(4, 60))
    world.network.wait_online(station)
    station.unplug()
    world.agree(station)


def test_a_slow_line_loses_nothing(world) -> None:
    station = world.station("L-slow", start=False)
    proxy = world.uplink_proxy(station)
    proxy.delay_s = 0.3
    world.start(station)
    world.charge(station)
    world.agree(station)


def test_a_line_that_is_reset_again_and_again_loses_nothing(world) -> None:
    station = world.station("L-reset", start=False)
    proxy = world.uplink_proxy(station)
    world.start(station)
    proxy.reset_every = 12_000
    proxy.cut()
    world.charge(station)
    world.charge(station)
    assert proxy.resets > 0, "the line was never reset"
    world.agree(station, sessions=2)


def test_a_half_open_line_is_noticed_and_replaced(world) -> None:
    station = world.station("L-half", start=False)
    proxy = world.uplink_proxy(station)
    world.start(station)
    before = proxy.connections
    proxy.blackhole = True
    world.charge(station)
    world.network.wait_for(
        lambda: proxy.connections > before, 90, "the agent to give up the dead connection"
    )
    proxy.blackhole = False
    world.agree(station)


def test_a_half_open_board_pauses_nobody_for_ever(world) -> None:
    station = world.station("B-half", start=False)
    proxy = world.board_proxy(station)
    world.start(station)
    world.begin(station)
    proxy.blackhole = True
    world.network.wait_for(lambda: _faulted(world, station), 30, "the silence to be reported")
    proxy.blackhole = False
    world.network.wait_for(lambda: not _faulted(world, station), 30, "the board to be back")
    station.unplug()
    world.agree(station)


@pytest.mark.parametrize(
    ("trouble", "extent"),
    [("silence", {"seconds": 8}), ("noise", {"replies": 6}), ("half_open", {})],
)
def test_a_board_with(world, trouble: str, extent: dict[str, int]) -> None:
    station = world.station(f"B-{trouble}", serial=trouble == "noise")
    world.begin(station)
    station.board(trouble, **extent)
    time.sleep(9)
    world.network.wait_for(lambda: not _faulted(world, station), 30, "the board to be back")
    station.unplug()
    world.agree(station)


def _faulted(world, station) -> bool:
    state = world.network.rest.get(f"/stations/{station.identity}")["evses"][0]["state"]
    return state["value"]["status"] == "Faulted" or state["stale"]
