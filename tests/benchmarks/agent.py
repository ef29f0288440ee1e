"""agent.*: what the agent costs on a controller, with four charging connectors polled at 1 Hz.

Four simulated ABB Terra AC (each a process with a vehicle that draws 3 x 16 A), one agent in
production configuration with journal and uplink, the real cloud behind it. Memory and CPU are the
agent process's own; written bytes are what the kernel sent to the block device for it. CPU is given
beside a reference loop of the same run, because a controller's core is slower than this machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from cloud_process import ROOT, CloudProcess, cloud_process
from figure import Figure

CONNECTORS = 4
WARM_UP_S = 15.0
MEASURED_S = 180.0
STARTS = 5
TOKEN = "04A1B2C3D4E5F6"  # an RFID card's UID


async def measure(runs: int) -> list[Figure]:
    """Starts are repeated `STARTS` times; the steady part is one long run."""
    del runs
    with cloud_process() as cloud, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _chargers(folder) as controls:
            _configure(cloud, folder, controls)
            starts = [_start_to_safe(folder, controls) for _ in range(STARTS)]
            steady = _steady(folder, controls)
    return [
        Figure(
            name="agent.start_to_safe_limit_s",
            value=statistics.median(starts),
            unit="s",
            at_most=3,
            detail={"worst_s": round(max(starts), 2), "starts": STARTS},
        ),
        Figure(name="agent.rss_mib", value=steady["rss_mib"], unit="MiB", at_most=60),
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
    ]


def _reference_loop() -> float:
    """Seconds for ten million additions: how fast this core is."""
    began = time.perf_counter()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - began


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _karvon(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "karvon", *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


@contextlib.contextmanager
def _chargers(folder: Path) -> Iterator[list[tuple[int, int]]]:
    """Simulators; gives their Modbus and control ports."""
    ports = [(_free_port(), _free_port()) for _ in range(CONNECTORS)]
    processes = [
        _karvon(
            *("sim", "charger", "--profile", "abb_terra_ac"),
            *("--tcp", f"127.0.0.1:{modbus}", "--control", f"127.0.0.1:{control}"),
            log=folder / "sim.log",
        )
        for modbus, control in ports
    ]
    try:
        for _, control in ports:
            _await(lambda control=control: _ask(control, {"do": "status"}) is not None, 20)
        yield ports
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)


def _ask(port: int, command: dict[str, Any]) -> dict[str, Any] | None:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as line, line.makefile("rw") as io:
            io.write(json.dumps(command) + "\n")
            io.flush()
            return dict(json.loads(io.readline()))
    except (OSError, json.JSONDecodeError):
        return None


def _await(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)  # polls other processes, which send no signal when it holds


def _configure(cloud: CloudProcess, folder: Path, ports: list[tuple[int, int]]) -> None:
    joined = cloud.join("BENCH-AGENT")
    cloud.call("POST", "/api/v1/id-tokens", {"value": TOKEN, "type": "ISO14443"})
    (folder / "ca.pem").write_text(joined.ca_pem)
    kept = {name: getattr(joined, name) for name in ("station", "mqtt_url", "username", "password")}
    (folder / "credentials.json").write_text(json.dumps(kept))
    (folder / "credentials.json").chmod(0o600)
    text = 'station = "BENCH-AGENT"\n[journal]\nfolder = "journal"\n[uplink]\n'
    for number, (modbus, _) in enumerate(ports, start=1):
        text += (
            f'[[boards]]\nname = "board{number}"\nprofile = "abb_terra_ac"\nevses = [{number}]\n'
            f'link = {{ kind = "tcp", host = "127.0.0.1", port = {modbus} }}\n'
        )
    (folder / "agent.toml").write_text(text)


def _agent(folder: Path) -> subprocess.Popen[bytes]:
    return _karvon("agent", "run", "--config", str(folder / "agent.toml"), log=folder / "agent.log")


def _start_to_safe(folder: Path, ports: list[tuple[int, int]]) -> float:
    """Seconds from the start of the process until every charger holds a limit written by it."""
    for _, control in ports:
        _ask(control, {"do": "reset_board"})
    before = {control: _requests(control) for _, control in ports}
    began = time.monotonic()
    process = _agent(folder)
    try:
        _await(lambda: all(_limited(control, before[control]) for _, control in ports), 20)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait(20)


def _requests(control: int) -> int:
    status = _ask(control, {"do": "status"})
    assert status is not None
    return int(status["requests"])


def _limited(control: int, before: int) -> bool:
    status = _ask(control, {"do": "status"})
    return (
        status is not None
        and status["requests"] > before
        and status["evses"][0]["set_limit_ma"] < 32000
    )


def _steady(folder: Path, ports: list[tuple[int, int]]) -> dict[str, float]:
    process = _agent(folder)
    try:
        for _, control in ports:
            _ask(control, {"do": "plug", "evse": 1, "wants_wh": 80000, "max_current_ma": 16000})
        time.sleep(3)  # the boards' vehicles negotiate in real time before a card counts
        _present(folder)
        _await(lambda: all(_draws(control) for _, control in ports), 60)
        time.sleep(WARM_UP_S)  # the steady state is measured, not the start
        watched = psutil.Process(process.pid)
        cpu, written, began = _cpu(watched), watched.io_counters().write_bytes, time.monotonic()
        time.sleep(MEASURED_S)  # the stretch over which the agent's own work is counted
        passed = time.monotonic() - began
        return {
            "rss_mib": watched.memory_info().rss / 2**20,
            "cpu_share": (_cpu(watched) - cpu) / passed,
            "written_mb_per_day": (watched.io_counters().write_bytes - written)
            / passed
            * 86400
            / 1e6,
        }
    finally:
        process.terminate()
        process.wait(20)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _present(folder: Path) -> None:
    """Present the card at each EVSE, as a driver would."""
    for evse in range(1, CONNECTORS + 1):
        subprocess.run(
            [
                *(sys.executable, "-m", "karvon", "agent", "token", TOKEN),
                *("--evse", str(evse), "--config", str(folder / "agent.toml")),
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


def _draws(control: int) -> bool:
    status = _ask(control, {"do": "status"})
    return status is not None and status["evses"][0]["current_ma"] > 6000
