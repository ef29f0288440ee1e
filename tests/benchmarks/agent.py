"""agent.*: what the agent costs on a controller, with eight charging connectors polled at 1 Hz.

Two RTU buses at 19200 baud and a charger on TCP (`edge_site.py`), one agent in production
configuration with journal and uplink, the real cloud behind it. Memory and CPU are the agent
process's own; written bytes are what the kernel sent to the block device for it. CPU is given
beside a reference loop of the same run, because a controller's core is slower than this machine's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cloud_process import ROOT, cloud_process
from edge_site import ENVIRONMENT, EdgeSite, Spot, await_
from figure import Figure

WARM_UP_S = 15.0
MEASURED_S = 180.0
STARTS = 5
HELPS = 9
UNSET_MA = 32_000
"""What every simulated charger allows by itself: a limit below it is the agent's."""


async def measure(runs: int) -> list[Figure]:
    """Starts are repeated `STARTS` times; the steady part is one long run."""
    del runs
    bare = _median_s([sys.executable, "-c", "pass"])
    shown = _median_s([sys.executable, "-m", "karvon", "agent", "--help"])
    with cloud_process() as cloud, tempfile.TemporaryDirectory() as name:
        site = EdgeSite(Path(name))
        with site.chargers():
            site.join(cloud, "BENCH-AGENT")
            site.configure("BENCH-AGENT")
            starts = [_start_to_safe(site) for _ in range(STARTS)]
            steady = _steady(site)
            connectors = len(site.spots)
    return [
        Figure(
            name="agent.start_to_safe_limit_s",
            value=statistics.median(starts),
            unit="s",
            at_most=3,
            detail={"worst_s": round(max(starts), 2), "starts": STARTS},
        ),
        Figure(
            name="agent.rss_mib",
            value=steady["rss_mib"],
            unit="MiB",
            at_most=60,
            detail={"connectors": connectors},
        ),
        Figure(
            name="agent.cpu_share",
            value=steady["cpu_share"],
            unit="of one core",
            at_most=0.05,
            detail={"reference_loop_s": round(_reference_loop(), 3)},
        ),
        Figure(
            name="agent.written_mb_per_day",
            value=steady["written_mb_per_day"],
            unit="MB/day",
            at_most=200,
            detail={"measured_s": MEASURED_S},
        ),
        Figure(
            name="agent.help_s",
            value=shown,
            unit="s",
            at_most=0.3,
            detail={"bare_interpreter_s": round(bare, 3), "runs": HELPS},
        ),
    ]


def _median_s(command: list[str]) -> float:
    """Seconds of a command, the median of several; the first, which reads from disk, apart."""
    took = []
    for _ in range(HELPS + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=ENVIRONMENT)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def _reference_loop() -> float:
    """Seconds for ten million additions: how fast this core is."""
    began = time.perf_counter()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - began


def _start_to_safe(site: EdgeSite) -> float:
    """Seconds from the start of the process until every connector holds a limit written by it."""
    for spot in site.spots:
        spot.ask("reset_board")
    before = {spot.number: spot.requests() for spot in site.spots}
    began = time.monotonic()
    with site.agent():
        await_(lambda: all(_limited(spot, before[spot.number]) for spot in site.spots), 30)
        return time.monotonic() - began


def _limited(spot: Spot, before: int) -> bool:
    return spot.requests() > before and spot.evse()["set_limit_ma"] < UNSET_MA


def _steady(site: EdgeSite) -> dict[str, float]:
    with site.agent() as process:
        site.all_charge()
        time.sleep(WARM_UP_S)  # the steady state is measured, not the start
        watched = psutil.Process(process.pid)
        cpu, written, began = _cpu(watched), watched.io_counters().write_bytes, time.monotonic()
        time.sleep(MEASURED_S)  # the stretch over which the agent's own work is counted
        passed = time.monotonic() - began
        bytes_written = watched.io_counters().write_bytes - written
        return {
            "rss_mib": watched.memory_info().rss / 2**20,
            "cpu_share": (_cpu(watched) - cpu) / passed,
            "written_mb_per_day": bytes_written / passed * 86400 / 1e6,
        }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
