"""Looking at a station through the whole network: a value a second, and falling back by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

SAMPLES = 9
MOST_S = 30.0


@contextmanager
def _cloud(world: Any, *arguments: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The JSON lines that a following command writes."""
    command = [sys.executable, "-m", "karvon", "cloud", *arguments, "--json"]
    url = world.network.rest.base.removesuffix("/api/v1")
    settings = {"KARVON_URL": url, "KARVON_API_KEY_FILE": str(world.network.key_file)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **settings},
    )
    assert process.stdout is not None
    try:
        yield (json.loads(line) for line in process.stdout)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_a_watched_station_tells_every_second_what_it_does(world) -> None:
    station = world.station("V")
    world.begin(station)
    with _cloud(world, "live", station.identity, "--minutes", "1") as lines:
        first = next(lines)
        assert (first["event"], first["online"]) == ("station", True)
        watched = next(line for line in lines if line["event"] == "watch")
        assert watched["status"] in {"requested", "sent", "executed"}
        at, came = [], []
        for line in lines:
            if line["event"] == "sample":
                at.append(datetime.fromisoformat(line["at"]))
                came.append(time.monotonic())
            if len(at) > SAMPLES:
                break
    assert sorted(set(at)) == at
    assert came[-1] - came[0] < MOST_S, "they came with the minute's batch"
    assert came[-1] - came[0] > SAMPLES / 3, "they came at once"
    with _cloud(world, "limit", station.identity, "10000", "--for", "1m") as lines:
        assert next(lines)["status"] == "executed"
    world.leave(station)
    world.agree(station)


def test_following_events_outlives_the_cloud(world) -> None:
    network = world.network
    station = world.station("E")
    only = ("--kind", "transaction.ended", "--station", station.identity)
    with _cloud(world, "events", "follow", *only) as lines:
        world.charge(station)
        first = next(lines)
        network.cloud.kill()
        network.start_cloud()
        network.wait_online(station)
        world.charge(station)
        second = next(lines)
    assert first["station"] == second["station"] == station.identity
    assert first["subject"] != second["subject"]
    replay = ("--cursor", first["cursor"], "--count", "1")
    with _cloud(world, "events", "follow", *only, *replay) as lines:
        assert next(lines)["id"] == second["id"]
