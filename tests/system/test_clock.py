"""A controller without a battery-backed clock boots in 1970 and learns the time later."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


def test_a_session_at_1970_gets_its_true_time_later(faketime: Path, world, tmp_path: Path) -> None:
    station = world.station("T")
    station.agent.stop()
    clock = tmp_path / "clock"
    clock.write_text("@1970-01-01 00:00:05")
    station.agent.start(
        {
            "LD_PRELOAD": str(faketime),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "TZ": "UTC",
        }
    )
    began = time.time()
    world.charge(station)
    ended = time.time()
    clock.write_text("+0")
    world.agree(station)
    (transaction,) = world.network.transactions(station)
    started = datetime.fromisoformat(transaction["started_at"])
    assert began - 3 <= started.timestamp() <= ended + 3, started
    assert datetime.fromisoformat(transaction["ended_at"]) <= datetime.now(UTC)
