"""A controller without a battery-backed clock boots in 1970 and learns the time later."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

LIBRARY = "faketime/libfaketime.so.1"


def _faketime() -> Path:
    for folder in (*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib")):
        if (folder / LIBRARY).exists():
            return folder / LIBRARY
    pytest.skip("NOT RUN: libfaketime is not installed")


def test_a_session_at_1970_gets_its_true_time_later(world, tmp_path: Path) -> None:
    library = _faketime()
    station = world.station("T")
    station.agent.stop()
    clock = tmp_path / "clock"
    clock.write_text("@1970-01-01 00:00:05")
    station.agent.start(
        {
            "LD_PRELOAD": str(library),
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
