"""Boards that vanish from their line, start over, or tell an energy that cannot be."""

from __future__ import annotations

import psutil
import pytest

from karvon.demo.process import DemoError

JUMPS_WH = (8_000, -3_000)
"""Forward, then back to where no session that started over could have come to so soon."""
UNREAD_WH = 600
"""What may flow, at the simulator's speed, between the last reading and a board's death."""


@pytest.fixture(scope="module")
def charging(world):
    """A station for each kind of trouble in the midst of a session; they have it side by side."""
    stations = {
        name: world.station(f"B-{name}", serial=name == "gone")
        for name in ("gone", "reset", "jump")
    }
    for station in stations.values():
        world.begin(station)
    stations["files"] = _files(stations["gone"])
    stations["gone"].sim.stop()
    stations["reset"].board("reset_board")
    stations["jump"].board("jump_register", wh=JUMPS_WH[0])
    yield stations
    for name in ("gone", "reset", "jump"):
        stations[name].stop()


def test_a_serial_line_that_is_unplugged_and_comes_back(world, charging) -> None:
    station, files = charging["gone"], charging["files"]
    assert not station.line.exists(), "the line is still there"
    world.network.wait_for(lambda: _shows(station, "status") == "Faulted", 30, "the loss to show")
    station.sim.start()
    station.sim.ready()
    world.network.wait_for(lambda: station.current_ma() > 0, 40, "the session to go on")
    assert _files(station) <= files + 1, "it opens the line again and again without closing it"
    world.leave(station)
    world.agree(station)
    assert len(world.network.transactions(station)) == 1


def test_a_board_that_starts_over_in_a_session(world, charging) -> None:
    """The vehicle goes on charging or the session ends with a reason; no energy is made up."""
    station = charging["reset"]
    world.network.wait_for(
        lambda: station.current_ma() > 0 or world.awaits_card(station), 40, "what follows"
    )
    world.leave(station)
    world.network.wait_for(lambda: _all_ended(world, station), 60, "the end to be told")
    told = world.network.transactions(station)
    true_mwh = sum(session.energy_mwh for session in station.truth())
    lost_mwh = true_mwh - sum(one["energy_wh"] for one in told) * 1000
    assert -1000 * len(told) <= lost_mwh <= UNREAD_WH * 1000
    assert all(one["reason"] for one in told)


def test_a_register_that_jumps_is_never_billed(world, charging) -> None:
    station = charging["jump"]
    world.network.wait_for(lambda: _jumps(world, station) == 1, 40, "the jump to be reported")
    station.board("jump_register", wh=JUMPS_WH[1])
    world.network.wait_for(lambda: _jumps(world, station) == 2, 40, "the other jump too")
    world.leave(station)
    world.network.wait_for(lambda: _all_ended(world, station), 60, "the end to be told")
    (one,) = world.network.transactions(station)
    true_wh = sum(session.energy_mwh for session in station.truth()) // 1000
    assert 0 <= one["energy_wh"] <= true_wh + 1
    events = world.network.rest.get(f"/transactions/{one['transaction']}")["events"]
    energies = [event["energy_wh"] for event in sorted(events, key=lambda each: each["seq_no"])]
    assert energies == sorted(energies), "energy ran back"


def _shows(station, what: str) -> str:
    try:
        evses = station.agent_status()["evses"]
    except DemoError:
        return ""
    return str(evses[0][what]) if evses else ""


def _files(station) -> int:
    return psutil.Process(station.agent.pid).num_fds()


def _all_ended(world, station) -> bool:
    told = world.network.transactions(station)
    return bool(told) and all(one["state"] == "ended" for one in told)


def _jumps(world, station) -> int:
    found = world.network.rest.items(f"/stations/{station.identity}/security-events")
    return sum(1 for one in found if one["type"] == "MeterJumped")
