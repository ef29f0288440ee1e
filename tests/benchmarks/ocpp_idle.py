"""ocpp.idle_*: whether five thousand connections that only beat stay as small as they began.

All connect and boot, then send a Heartbeat a minute. The process's resident memory is read every
ten seconds; the first fifth is warm-up, the rest is cut into thirds, and the last third's median
may be at most 1.02 times the middle third's. Not part of a plain run: `run.py ocpp_idle`.
"""

from __future__ import annotations

import statistics
import threading
from typing import Any

from figure import Figure
from ocpp_gateway import STORM, Server, ours, run

MINUTES = 30.0
EVERY_S = 10.0
WARM_UP = 0.2
FLAT = 1.02


class Readings:
    """Resident memory in KiB while it runs, read on a thread."""

    def __init__(self, served: Server, every_s: float) -> None:
        self.course: list[float] = []
        self._served = served
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="memory")

    def begin(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        while not self._over.wait(self._every_s):
            self.course.append(self._served.rss_kib())

    def end(self) -> list[float]:
        self._over.set()
        self._thread.join()
        return self.course


async def measure(runs: int, minutes: float = MINUTES) -> list[Figure]:
    """One long run."""
    del runs
    plan: dict[str, Any] = {
        "version": "ocpp1.6",
        "stations": STORM,
        "mode": "idle",
        "seconds": minutes * 60,
        "heartbeat_s": 60.0,
    }
    with ours() as served:
        before = served.rss_kib()
        readings = Readings(served, min(EVERY_S, minutes))
        found = run(served, readings.begin, **plan)
        course = readings.end()
    steady = course[int(len(course) * WARM_UP) :]
    third = len(steady) // 3
    middle, last = (
        statistics.median(part) for part in (steady[third : 2 * third], steady[2 * third :])
    )
    return [
        Figure(
            name="ocpp.idle_growth",
            value=last / middle,
            unit="last third / middle third",
            at_most=FLAT,
            detail={
                "minutes": minutes,
                "stations": STORM,
                "kib_at_first": round((course[0] - before) / STORM, 1),
                "kib_at_last": round((course[-1] - before) / STORM, 1),
                "lost": found.result["errors"],
            },
        )
    ]
