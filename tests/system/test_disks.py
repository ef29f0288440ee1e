"""A full disk, and a power cut: both need root for their mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from karvon.demo import witnesses
from karvon.demo.process import DemoError
from karvon.demo.session import TOKEN

NOT_ROOT = "NOT RUN: mounting needs root"


def _run(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)


@pytest.fixture
def mounts() -> Iterator[list[Path]]:
    """What is mounted here is unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip(NOT_ROOT)
    mounted: list[Path] = []
    yield mounted
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _mount(mounts: list[Path], folder: Path, *arguments: str | Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run("mount", *arguments, folder)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"NOT RUN: this machine does not let us mount ({error})")
    mounts.append(folder)


def test_a_full_disk_ends_nothing_unsafely_and_heals(world, mounts: list[Path]) -> None:
    station = world.station("D-full", start=False)
    _mount(mounts, station.journal, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    world.start(station)
    world.charge(station)
    ballasts = [station.journal / f"ballast-{number}" for number in range(2)]
    for ballast in ballasts:  # the first takes what is free, the others what the agent gives up
        _fill(ballast)
        _try_to_charge(world, station)
    for ballast in ballasts:
        ballast.unlink()
    time.sleep(6)  # the agent looks each second whether its journal can be written again
    world.charge(station)
    world.agree(station, sessions=2)


def _try_to_charge(world, station) -> None:
    """It may charge or refuse, but never charge what is not in its journal."""
    station.plug(300, 32_000)
    with contextlib.suppress(DemoError):
        station.present(TOKEN)
    time.sleep(2)  # time to do the wrong thing: current without a record
    recorded = [session for session in witnesses.kept(station) if not session.over]
    assert recorded or station.current_ma() == 0, "it charges what it cannot record"
    assert station.agent.alive, station.agent.tail()
    world.leave(station)


def test_a_disk_that_fills_during_a_session(world, mounts: list[Path]) -> None:
    station = world.station("D-mid", start=False)
    _mount(mounts, station.journal, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    world.start(station)
    world.begin(station)
    ballast = station.journal / "ballast"
    _fill(ballast)
    time.sleep(5)  # a stretch of the session that the disk refuses
    ballast.unlink()
    station.unplug()
    world.agree(station)


def _fill(ballast: Path) -> None:
    """Take the last free page: unbuffered, so that nothing is left to write at the end."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_the_power_is_cut(
    world, mounts: list[Path], sample_size: Callable[[int, int], int], tmp_path: Path
) -> None:
    station = world.station("P", start=False)
    image, cut = tmp_path / "disk", tmp_path / "disk-at-the-cut"
    _run("truncate", "--size", "64M", image)
    _run("mkfs.ext4", "-q", "-F", image)
    _mount(mounts, station.journal, "-o", "loop", image)
    world.start(station)
    drivers = world.drivers(station)
    for _ in range(sample_size(1, 40)):
        world.traffic(drivers, 4.0)
        world.network.kill(station.agent.name, signal.SIGSTOP)
        shutil.copyfile(image, cut)
        station.agent.kill()
        _run("umount", station.journal)
        shutil.copyfile(cut, image)
        _run("mount", "-o", "loop", image, station.journal)
        station.agent.start()
    world.traffic(drivers, 4.0)
    world.everybody_leaves(station)
    world.agree(station)
    station.agent.stop()
    _run("umount", station.journal)
