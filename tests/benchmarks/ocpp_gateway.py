"""ocpp.*: the gateway under load, against the plain WebSocket library in the same minutes.

W is a server of the `websockets` library on asyncio that decodes JSON and sends a constant answer.
Ours is `karvon cloud serve` as it is installed, one process with everything in it and the embedded
PostgreSQL beside it, fsync on: every CALL parsed, checked, authorized, committed, logged, and told
to the event log before it is answered. The load (`ocpp_load.py`) runs a whole charging session a
cycle: 18 CALLs in 1.6, 16 in 2.0.1, with ten readings of eight values.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from figure import Figure
from ingest_house import tree_cpu_ms
from ocpp_load import token

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STATIONS = 500
STORM = 5_000
VERSIONS = {"ocpp1.6": ("16", 6.0), "ocpp2.0.1": ("201", 7.0)}


@dataclass(frozen=True)
class Server:
    """A server under load, by the port that it serves OCPP on."""

    pid: int
    port: int
    url: str = ""
    key: str = ""
    tls_port: int = 0

    def own_cpu_ms(self) -> float:
        spent = psutil.Process(self.pid).cpu_times()
        return (spent.user + spent.system) * 1000

    def all_cpu_ms(self) -> float:
        return tree_cpu_ms(self.pid)

    def rss_kib(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss) / 1024


@contextmanager
def bare(kind: str) -> Iterator[Server]:
    """One of `baselines/bare_ocpp.py`'s servers."""
    command = [sys.executable, str(HERE / "baselines" / "bare_ocpp.py"), kind]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it tells of each of thousands of connections that end
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(process.pid, json.loads(process.stdout.readline())["port"])
        finally:
            process.kill()


@contextmanager
def ours() -> Iterator[Server]:
    """`karvon cloud serve` with everything embedded, and the fleet's id tokens entered."""
    with tempfile.TemporaryDirectory(prefix="karvon-ocpp-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = [sys.executable, "-m", "karvon", "cloud", "serve", "--json"]
        command += ["--http-port", "0", "--ocpp-port", "0", "--ocpp-tls-port", "0"]
        command += ["--registration", "open"]
        command += ["--data-dir", str(folder / "data"), "--admin-key-file", str(folder / "key")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            port, tls_port = (urlsplit(ready[url]).port or 0 for url in ("ocpp_url", "ocpps_url"))
            key = (folder / "key").read_text().strip()
            served = Server(process.pid, port, ready["ready"], key, tls_port)
            _enter_tokens(served)
            yield served
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _enter_tokens(served: Server) -> None:
    rows = [{"value": token(number)} for number in range(STATIONS)]
    request = urllib.request.Request(
        f"{served.url}/api/v1/id-tokens/import",
        data=json.dumps(rows).encode(),
        headers={"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["failed"] == 0


@dataclass
class Measured:
    result: dict[str, Any]
    own_cpu_ms: float
    all_cpu_ms: float

    @property
    def calls_per_s(self) -> float:
        return float(self.result["calls"] / self.result["seconds"])

    def per_call(self, spent_ms: float) -> float:
        return spent_ms / max(1, self.result["calls"])


def run(server: Server, on_booted: Callable[[], None] | None = None, **plan: Any) -> Measured:
    """The load's plan against the server; CPU is counted over the measured stretch alone."""
    command = [
        sys.executable,
        str(HERE / "ocpp_load.py"),
        json.dumps({"port": server.port, **plan}),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        own = everything = 0.0
        for line in load.stdout:
            told = json.loads(line)
            phase = told.get("phase")
            if phase == "booted" and on_booted is not None:
                on_booted()
            if phase == "measuring" or (
                phase == "connecting" and plan["mode"] in {"idle", "start"}
            ):
                own, everything = server.own_cpu_ms(), server.all_cpu_ms()
            elif phase == "measured" or (phase == "booted" and plan["mode"] == "idle"):
                own, everything = server.own_cpu_ms() - own, server.all_cpu_ms() - everything
            if phase in {"booted", "measuring", "measured"}:
                with contextlib.suppress(BrokenPipeError):
                    load.stdin.write("\n")
                    load.stdin.flush()
            if "result" in told:
                return Measured(told["result"], own, everything)
    raise RuntimeError("the load ended without a result")


async def measure(runs: int) -> list[Figure]:
    """All figures; medians of `runs`, each with its own W."""
    figures: list[Figure] = []
    with ours() as served:
        for version, (short, most_all) in VERSIONS.items():
            figures += _against_w(served, version, short, most_all, runs)
        figures.append(_at_a_rate(served, runs))
        figures.append(_started_together(served, runs))
    figures += _storm()
    return figures


def _against_w(
    served: Server, version: str, short: str, most_all: float, runs: int
) -> list[Figure]:
    ratios, own, everything, rates, anchors = [], [], [], [], []
    tls_ratios, tls_own = [], []
    errors = 0
    for _ in range(runs):
        plan: dict[str, Any] = {"version": version, "stations": STATIONS, "mode": "closed"}
        with bare("websockets") as anchor:
            w = run(anchor, **plan)
        us = run(served, **plan)
        sealed = run(replace(served, port=served.tls_port), **plan, tls=True)
        w_call = w.per_call(w.own_cpu_ms)
        ratios.append(us.calls_per_s / w.calls_per_s)
        own.append(us.per_call(us.own_cpu_ms) / w_call)
        everything.append(us.per_call(us.all_cpu_ms) / w_call)
        rates.append(us.calls_per_s)
        anchors.append(w_call * 1000)
        tls_ratios.append(sealed.calls_per_s / w.calls_per_s)
        tls_own.append(sealed.per_call(sealed.own_cpu_ms) / w_call)
        errors += us.result["errors"] + sealed.result["errors"]
    median = statistics.median
    return [
        Figure(
            name=f"ocpp.calls_vs_w_{short}",
            value=median(ratios),
            unit="ratio",
            at_least=0.25,
            detail={"calls_per_s": round(median(rates)), "w_us_per_call": round(median(anchors), 1),
                    "over_tls": round(median(tls_ratios), 3), "errors": errors},
        ),
        Figure(
            name=f"ocpp.cpu_vs_w_{short}",
            value=median(own),
            unit="W",
            at_most=2.5,
            detail={"with_database_and_broker": round(median(everything), 2), "must_all": most_all,
                    "over_tls": round(median(tls_own), 2)},
        ),
    ]  # fmt: skip


def _at_a_rate(served: Server, runs: int) -> Figure:
    found = [
        run(served, version="ocpp1.6", stations=STATIONS, mode="rate", rate=1000.0, seconds=8.0)
        for _ in range(runs)
    ]
    p99 = statistics.median(one.result["p99_ms"] for one in found)
    cores = statistics.median(one.all_cpu_ms / 1000 / one.result["seconds"] for one in found)
    p50 = statistics.median(one.result["p50_ms"] for one in found)
    with bare("websockets") as anchor:
        w = run(anchor, version="ocpp1.6", stations=STATIONS, mode="closed")
    w_ms = w.per_call(w.own_cpu_ms)
    return Figure(
        name="ocpp.p99_ms_1000",
        value=p99,
        unit="ms",
        at_most=15.0,
        detail={
            "p50_ms": round(p50, 2),
            "cores": round(cores, 2),
            "w_us_per_call": round(w_ms * 1000, 1),
            "p50_in_w": round(p50 / w_ms),
            "cpu_in_w": round(cores / w_ms, 1),  # a thousand calls a second: cores are ms a call
            "errors": sum(one.result["errors"] for one in found),
        },
    )


def _started_together(served: Server, runs: int) -> Figure:
    found = [
        run(served, version="ocpp1.6", stations=STATIONS, mode="start").result for _ in range(runs)
    ]
    return Figure(
        name="ocpp.sync_start_p99_over_p50",
        value=statistics.median(one["p99_ms"] / one["p50_ms"] for one in found),
        unit="ratio",
        at_most=3.0,
        detail={
            "p50_ms": round(statistics.median(one["p50_ms"] for one in found), 1),
            "errors": sum(one["errors"] for one in found),
        },
    )


def _storm() -> list[Figure]:
    """Five thousand connect and boot, then stay: ours in a fresh house, unknown until now."""
    plan: dict[str, Any] = {"version": "ocpp1.6", "stations": STORM, "mode": "idle", "seconds": 5.0}
    with bare("ocpp") as package:
        theirs = run(package, **plan)
    with ours() as served:
        before = served.rss_kib()
        after: list[float] = []
        us = run(served, lambda: after.append(served.rss_kib()), **plan)
    return [
        Figure(
            name="ocpp.boot_storm_vs_lib",
            value=us.result["booted_s"] / theirs.result["booted_s"],
            unit="times",
            at_most=2.0,
            detail={
                "seconds": round(us.result["booted_s"], 2),
                "library_s": round(theirs.result["booted_s"], 2),
                "cpu_ms_per_station": round(us.all_cpu_ms / STORM, 2),
            },
        ),
        Figure(
            name="ocpp.idle_kib",
            value=(after[0] - before) / STORM,
            unit="KiB",
            at_most=40.0,
            detail={"rss_mib": round(after[0] / 1024)},
        ),
    ]
