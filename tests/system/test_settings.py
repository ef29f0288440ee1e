"""Settings from afar through the whole network: they wait for a session, hold, or are refused."""

from __future__ import annotations

import time
from typing import Any

SETTLE_S = 90.0


def until(world: Any, station: Any, **fields: Any) -> dict[str, Any]:
    """Until the station's agent reports that."""
    end = time.monotonic() + SETTLE_S
    while True:
        shown = world.network.rest.get(f"/stations/{station.identity}/settings")
        found = dict(shown["reported"] or {})
        if {name: found.get(name) for name in fields} == fields:
            return found
        assert time.monotonic() < end, shown
        time.sleep(0.2)  # polls REST of another process


def test_they_wait_for_the_session_and_are_refused_where_they_cannot_be(world: Any) -> None:
    station = world.station("C")
    path = f"/stations/{station.identity}/settings"
    until(world, station, version=0)
    world.begin(station)
    cable = {"document": {"boards": {"board": {"cable_ma": 10_000}}}}
    version = world.network.rest.put(path, cable)["desired"]["version"]
    until(world, station, told=version, state="pending")
    assert station.current_ma() > 10_000
    station.unplug()
    until(world, station, version=version, state="applied")
    world.begin(station)
    world.network.wait_for(lambda: 0 < station.current_ma() <= 10_000, 30, "the cable's limit")
    wrong = {"document": {"boards": {"another": {"priority": 1}}}}
    told = world.network.rest.put(path, wrong)["desired"]["version"]
    refused = until(world, station, told=told, state="refused")
    assert "there is no such board here" in refused["reason"]
    assert refused["version"] == version
