"""`karvon cloud serve` as a real process: ready, killed, back with everything, stopped cleanly."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.system
Running = tuple[subprocess.Popen[str], dict[str, Any]]


@contextmanager
def serving(
    folder: Path, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and its ready line; killed at the end if it still runs."""
    command = [
        sys.executable, "-m", "karvon", "cloud", "serve", "--data-dir", str(folder / "data"),
        "--http-port", "0", "--admin-key-file", str(folder / "admin.key"), "--json",
    ]  # fmt: skip
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **settings},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def client(folder: Path, ready: dict[str, Any]) -> httpx.Client:
    key = (folder / "admin.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=ready["ready"], headers=headers, timeout=60)


def test_a_killed_cloud_comes_back_with_everything(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, ready):
        with client(tmp_path, ready) as admin:
            assert admin.get("/health").json()["components"] == {"database": "ok", "broker": "ok"}
            made = admin.post("/api/v1/stations", json={"station": "CP-1"}).json()
            claim = {"station": "CP-1", "code": made["claim"]["code"]}
            credential = admin.post("/api/v1/claims", json=claim).json()
            assert credential["mqtt_url"] == ready["mqtt_url"]
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    key = (tmp_path / "admin.key").read_text()
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    with serving(tmp_path) as (process, again):
        assert again["mqtt_url"] == ready["mqtt_url"]
        assert (tmp_path / "admin.key").read_text() == key
        with client(tmp_path, again) as admin:
            shown = admin.get("/api/v1/stations/CP-1").json()
            assert shown["registration"] == "registered"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert _processes_in(tmp_path) == []


def test_real_servers_may_be_used_instead(tmp_path: Path, pg_dsn: str, mosquitto: Any) -> None:
    url = f"mqtts://{mosquitto.cloud_user}:{mosquitto.cloud_secret}@localhost:{mosquitto.port}"
    settings = {
        "KARVON_DATABASE_URL": pg_dsn,
        "KARVON_MQTT_URL": url,
        "KARVON_MQTT_CA_FILE": str(mosquitto.ca_file),
    }
    with serving(tmp_path, **settings) as (process, ready), client(tmp_path, ready) as admin:
        assert ready["mqtt_url"] == f"mqtts://localhost:{mosquitto.port}"
        assert admin.get("/health").json()["components"] == {"database": "ok", "broker": "ok"}
        made = admin.post("/api/v1/stations", json={"station": "CP-1"}).json()
        claim = {"station": "CP-1", "code": made["claim"]["code"]}
        assert admin.post("/api/v1/claims", json=claim).status_code == 200
        accounts = (tmp_path / "data" / "mosquitto.passwd").read_text().splitlines()
        assert [line.split(":")[0] for line in accounts] == [mosquitto.cloud_user, "CP-1"]
        assert not (tmp_path / "data" / "postgres").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def _processes_in(folder: Path) -> list[str]:
    """Processes that still work below the folder: children that outlived their parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                where = str((entry / "cwd").readlink())
            except OSError:
                continue
            if where.startswith(str(folder)):
                found.append((entry / "cmdline").read_text())
    return found


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "karvon", "cloud", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, ready):
        port = ready["ready"].rsplit(":", 1)[1]
        other = tmp_path / "other"
        outcome = _run("serve", "--data-dir", str(other), "--http-port", port)
        assert outcome.returncode == 3
        assert "Address already in use" in outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1
        assert not other.exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--registration", "maybe", "registration"),
        ("--http-port", "70000", "http_port"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, option: str, value: str, word: str) -> None:
    outcome = _run("serve", "--data-dir", str(tmp_path), option, value)
    assert outcome.returncode == 2
    assert word in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_the_environment_sets_what_options_do_not(tmp_path: Path) -> None:
    outcome = _run("serve", KARVON_DATA_DIR=str(tmp_path), KARVON_REGISTRATION="nobody")
    assert outcome.returncode == 2
    assert "registration" in outcome.stderr


def test_an_unreachable_database_is_one_line(tmp_path: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2"
    outcome = _run("migrate", "--database-url", nowhere)
    assert outcome.returncode == 3
    assert "--database-url" in outcome.stderr


def test_a_key_can_be_made_when_none_is_left(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert _run("migrate", "--data-dir", data).returncode == 0
    made = _run("new-key", "rescue", "--data-dir", data, "--json")
    assert json.loads(made.stdout)["key"].startswith("kv_")
