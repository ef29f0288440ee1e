from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ota_world import Maker, World


@pytest.fixture
def world(tmp_path: Path, makers: Maker) -> World:
    return World(tmp_path, makers)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB, really mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("NOT RUN: file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
