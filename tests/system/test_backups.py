"""A cloud that is lost and comes back from its backup, its agents filling what came later."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any


def _cloud(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "karvon", "cloud", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _done(*arguments: str) -> dict[str, Any]:
    ran = _cloud(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_the_drill(own_world) -> None:
    """As docs/backup.md tells it: back up, go on, lose everything, restore."""
    world, network = own_world, own_world.network
    station = world.station("B")
    world.charge(station)
    world.begin(station, 100_000)
    network.wait_for(lambda: len(network.transactions(station)) == 2, 30, "two in it")
    shelf = network.folder / "shelf"
    shelf.mkdir()
    made = _done("backup", "--data-dir", str(network.data), "--to", str(shelf))
    backup = Path(made["file"])
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    world.leave(station)
    world.charge(station)
    mqtt_ca = (network.data / "broker" / "tls" / "ca.pem").read_bytes()
    refused = _cloud("restore", "--from", str(backup), "--data-dir", str(network.data), "--force")
    assert refused.returncode == 3
    assert "in use by another Karvon" in refused.stderr
    network.cloud.stop(30)
    shutil.rmtree(network.data)
    restored = _done("restore", "--from", str(backup), "--data-dir", str(network.data))
    assert restored["rows"] == made["rows"]
    assert (network.data / "broker" / "tls" / "ca.pem").read_bytes() == mqtt_ca
    assert _open_to_others(network.data) == []
    network.start_cloud()
    network.wait_online(station)
    world.charge(station)
    world.agree(station, sessions=4)


def _open_to_others(folder: Path) -> list[Path]:
    """Secrets that others may read: files whose mode is wider than 600 outside a 700 folder."""
    kept = [folder, folder / "broker", folder / "postgres", folder / "broker" / "tls"]
    return [path for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077] + [
        file for file in (folder / "broker" / "tls").glob("*.key") if file.stat().st_mode & 0o077
    ]
