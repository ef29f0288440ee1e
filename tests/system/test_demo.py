"""What a person runs first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from karvon.demo.process import ROOT, wait_for


def _demo(*args: str) -> list[str]:
    return [sys.executable, "-m", "karvon", "demo", *args]


def test_one_checked_session_ends_with_its_summary() -> None:
    done = subprocess.run(
        _demo("--once", "--json"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] is True
    energy = summary["energy_wh"]
    assert energy["simulator"] > 100
    assert energy["agent"] == energy["cloud"]
    assert abs(energy["cloud"] - energy["simulator"]) <= 1
    assert abs(energy["telemetry"] - energy["simulator"]) <= 1


def test_the_living_network_stops_cleanly_and_leaves_nothing_behind(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        subprocess.Popen(
            _demo("--stations", "2", "--data-dir", str(tmp_path / "data")),
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as demo,
    ):
        wait_for(lambda: b"curl" in out.read_bytes(), 60, "the live view")
        pids = _below(demo.pid)
        assert len(pids) >= 7, "cloud, database, broker, two agents, two boards"
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(40) == 0, out.read_text()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_killed_it_leaves_nothing_behind_either(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        subprocess.Popen(
            _demo("--stations", "1", "--data-dir", str(tmp_path / "data")),
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as demo,
    ):
        wait_for(lambda: b"online" in out.read_bytes(), 60, "the station to be online")
        pids = _below(demo.pid)
        os.kill(demo.pid, signal.SIGKILL)
        demo.wait(10)
    wait_for(lambda: not any(_lives(pid) for pid in pids), 20, "all children to be gone")


def test_json_without_once_is_refused() -> None:
    done = subprocess.run(_demo("--json"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--once" in done.stderr


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_below(child)]
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
