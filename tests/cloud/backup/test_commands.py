"""`karvon cloud backup` and `restore` on data folders whose cloud does not run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cloud.cli import app


def cloud(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> dict[str, Any]:
    result = cloud(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a cloud that ran once, and the broker's authority."""
    folder = tmp_path_factory.mktemp("cloud")
    folder.chmod(0o755)
    assert cloud("migrate", "--data-dir", folder / "data").exit_code == 0
    tls = folder / "data" / "broker" / "tls"
    tls.mkdir(parents=True)
    (tls / "ca.key").write_text("secret")
    (tls.parent / "port").write_text("8883\n")
    (tls.parent / "nats.log").write_text("not wanted")
    (folder / "data" / "mosquitto.passwd").write_text("made anew")
    return folder / "data"


@pytest.fixture(scope="module")
def backup(stopped: Path) -> Path:
    made = done("backup", "--data-dir", stopped, "--to", stopped.parent / "one.tar")
    assert made["files"] == ["broker/port", "broker/tls/ca.key"]
    return Path(made["file"])


def test_a_restored_folder_holds_the_same_however_often_it_was_killed(
    stopped: Path, backup: Path, sample_size: Callable[[int, int], int]
) -> None:
    copy = stopped.parent / "copy"
    first = done("restore", "--from", backup, "--data-dir", copy)
    assert first["wiped"] == []
    assert first["rows"] == done("backup", "--verify", backup)["rows"]
    key = copy / "broker" / "tls" / "ca.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("secret", 0o600)
    twice = cloud("restore", "--from", backup, "--data-dir", copy)
    assert (twice.exit_code, "--force" in twice.stderr) == (1, True)
    chance = random.Random(7)
    for _ in range(sample_size(1, 40)):
        _kill_a_restore(backup, copy, chance.uniform(1, 6))
        made = done("backup", "--data-dir", copy, "--to", stopped.parent / "after.tar")
        assert made["rows"] == first["rows"], "neither the old cloud nor the new one"
        Path(made["file"]).unlink()
    (copy / "broker" / "jetstream").mkdir()
    (copy / "postgres" / "data").rename(copy / "postgres" / "data.replaced")
    wiped = done("restore", "--from", backup, "--data-dir", copy, "--force")["wiped"]
    assert wiped == [str(copy / part) for part in ("postgres/data", *first["files"])]
    left = {file.name for file in (copy / "postgres").iterdir()}
    assert left == {"data", "lock", "postgres.log"}
    assert sorted(file.name for file in (copy / "broker").iterdir()) == ["lock", "port", "tls"]


def _kill_a_restore(backup: Path, data_dir: Path, after_s: float) -> None:
    command = [sys.executable, "-m", "karvon", "cloud", "restore", "--force"]
    command += ["--from", str(backup), "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    process.kill()
    process.wait(10)


def test_a_damaged_backup_changes_nothing(stopped: Path, backup: Path) -> None:
    bad = stopped.parent / "bad.tar"
    bad.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    before = (stopped / "postgres" / "data" / "PG_VERSION").stat().st_ino
    refused = cloud("restore", "--from", bad, "--data-dir", stopped, "--force")
    assert (refused.exit_code, "damaged" in refused.stderr) == (1, True)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert (stopped / "postgres" / "data" / "PG_VERSION").stat().st_ino == before
    assert cloud("backup", "--verify", bad).exit_code == 1


def test_a_folder_of_backups_keeps_the_newest(stopped: Path) -> None:
    shelf = stopped.parent / "shelf"
    shelf.mkdir()
    for name in ("karvon-20260101T000000Z.tar", "karvon-20260102T000000Z.tar", "mine.tar"):
        (shelf / name).touch()
    left = shelf / ".karvon-20260101T000000Z.tar.0a1b2c3d.partial"
    left.touch()
    os.utime(left, (0, 0))
    made = done("backup", "--data-dir", stopped, "--to", shelf, "--keep", "2")
    assert sorted(file.name for file in shelf.iterdir()) == [
        "karvon-20260102T000000Z.tar",
        Path(made["file"]).name,
        "mine.tar",
    ]


def test_what_is_asked_wrongly_is_told(stopped: Path, backup: Path, tmp_path: Path) -> None:
    exists = cloud("backup", "--data-dir", stopped, "--to", backup)
    assert (exists.exit_code, "exists already" in exists.stderr) == (2, True)
    assert cloud("backup", "--data-dir", stopped).exit_code == 2
    assert cloud("backup", "--data-dir", stopped, "--to", backup, "--keep", "3").exit_code == 2
    nothing = cloud("backup", "--data-dir", tmp_path / "no", "--to", tmp_path / "a.tar")
    assert (nothing.exit_code, "holds no cloud" in nothing.stderr) == (1, True)
    nowhere = cloud("backup", "--data-dir", stopped, "--to", tmp_path / "no" / "a.tar")
    assert (nowhere.exit_code, "does not exist" in nowhere.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
