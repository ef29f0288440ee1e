"""A controller's clock: none at the start, wrong in between, or past the end of 32 bits."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from karvon.demo import witnesses


def test_a_session_at_1970_gets_its_true_time_later(faketime: Path, world, tmp_path: Path) -> None:
    station = world.station("T")
    station.agent.stop()
    clock = tmp_path / "clock"
    clock.write_text("@1970-01-01 00:00:05")
    station.agent.start(_faked(faketime, clock))
    began = time.time()
    world.charge(station)
    ended = time.time()
    clock.write_text("+0")
    world.agree(station)
    (transaction,) = world.network.transactions(station)
    started = datetime.fromisoformat(transaction["started_at"])
    assert began - 3 <= started.timestamp() <= ended + 3, started
    assert datetime.fromisoformat(transaction["ended_at"]) <= datetime.now(UTC)


def test_a_clock_that_jumps_in_a_session_changes_neither_its_length_nor_its_energy(
    faketime: Path, world, tmp_path: Path
) -> None:
    """A day forward, then an hour back, as an operator's hand or a bad server would do it."""
    station = world.station("T-jumps")
    station.agent.stop()
    clock = tmp_path / "clock"
    clock.write_text("+0")
    station.agent.start(_faked(faketime, clock))
    before = time.monotonic()
    world.begin(station)
    began = time.monotonic()
    for jump in ("+1d", "-1h"):
        clock.write_text(jump)
        time.sleep(2)  # a stretch of the session in which that time holds
    ended = time.monotonic()
    world.leave(station)
    longest = time.monotonic() - before
    clock.write_text("+0")
    world.agree(station)
    (transaction,) = world.network.transactions(station)
    assert (ended - began) * 1000 <= transaction["duration_ms"] <= longest * 1000
    assert transaction["started_dating"] != "unset"


def test_the_end_of_2038s_seconds_is_a_time_like_any_other(
    faketime: Path, world, tmp_path: Path
) -> None:
    """A session across 2038-01-19 03:14:07, when 32 bits are full, on an agent by itself."""
    station = world.station("T-2038", start=False)
    station.config.write_text(_alone(station.config.read_text()))
    clock = tmp_path / "clock"
    clock.write_text("@2038-01-19 03:14:02")
    station.sim.start()
    station.sim.ready()
    station.agent.start(_faked(faketime, clock))
    world.begin(station)
    time.sleep(6)  # the seconds around the end
    world.leave(station)
    (session,) = witnesses.agent_says(station, "sessions")
    rollover = 2**31 * 1000
    assert session["started"]["wall_ms"] < rollover < session["last"]["wall_ms"]
    assert session["last"]["wall_ms"] - session["started"]["wall_ms"] < 60_000
    (true,) = station.truth()
    assert abs(session["energy_wh"] * 1000 - true.energy_mwh) <= 1000


def _faked(library: Path, clock: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": "UTC",
    }


def _alone(text: str) -> str:
    """The configuration without its uplink, where strangers may charge."""
    head, _, rest = text.partition("[uplink]")
    boards = rest[rest.index("[[boards]]") :]
    return f'{head}[authorization]\nunknown = "allow"\n{boards}'
