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
    world,
    mounts: list[Path],
    sample_size: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    station = world.station("P", start=False)
    image, cut = tmp_path / "disk", tmp_path / "disk-at-the-cut"
    _run("truncate", "--size", "64M", image)
    _run("mkfs.ext4", "-q", "-F", image)
    _mount(mounts, station.journal, "-o", "loop", image)
    world.start(station)
    drivers = world.drivers(station)
    cuts = sample_size(1, 40)
    for _ in range(cuts):
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
    record_property("cuts of power", cuts)
    station.agent.stop()
    _run("umount", station.journal)


@pytest.mark.parametrize("trouble", ["every write fails", "it turns read-only"])
def test_a_disk_that_takes_no_more(world, mounts: list[Path], tmp_path: Path, trouble: str) -> None:
    """Nothing new begins, what runs goes on, it is said, and the agent lives on in one piece."""
    station = world.station("D-bad", start=False)
    image, kept = tmp_path / "disk", tmp_path / "disk-before"
    _run("truncate", "--size", "64M", image)
    _run("mkfs.ext4", "-q", "-F", image)
    _mount(mounts, station.journal, "-o", "loop", image)
    world.start(station)
    world.begin(station)
    world.network.kill(station.agent.name, signal.SIGSTOP)
    shutil.copyfile(image, kept)
    if trouble == "every write fails":
        _shrink(image)
    else:
        _run("mount", "-o", "remount,abort", station.journal)
    world.network.kill(station.agent.name, signal.SIGCONT)
    world.network.wait_for(lambda: _alarmed(station), 60, "the alarm")
    assert station.current_ma() > 0, "the running session was given up"
    world.leave(station)
    station.plug(300, 32_000)
    with contextlib.suppress(DemoError):
        station.present(TOKEN)
    time.sleep(2)  # time to do the wrong thing: current without a record
    assert station.current_ma() == 0, "it charges what it cannot record"
    world.leave(station)
    assert station.agent.alive, station.agent.tail()
    station.agent.stop()
    _run("umount", "--lazy", station.journal)
    # until it is detached it may still write the superblock into what is mounted next
    world.network.wait_for(lambda: not _devices(image), 60, "the device to be let go")
    shutil.copyfile(kept, image)
    _run("mount", "-o", "loop", image, station.journal)
    station.agent.start()
    world.agree(station)


def _shrink(image: Path) -> None:
    """The device ends before any block of a file: to every write the kernel says EIO."""
    (device,) = _devices(image)
    os.truncate(image, 16 * 1024)
    _run("losetup", "--set-capacity", device)


def _devices(image: Path) -> list[str]:
    """Those that it is behind."""
    command = ["losetup", "--associated", str(image), "--noheadings", "--output", "NAME"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return told.stdout.split()


def _alarmed(station) -> bool:
    alarms = station.agent_status()["status"]["alarms"]
    return any("could not be written" in text for text in alarms)


def test_a_damaged_journal_is_kept_rebuilt_and_reported(world) -> None:
    """First its log is cut short, then pages are gone: what was said is not lost or said twice."""
    station = world.station("D-hurt")
    world.charge(station)
    world.agree(station)
    world.begin(station)
    station.agent.kill()
    log = station.journal / "billing.sqlite-wal"
    os.truncate(log, log.stat().st_size * 2 // 3)
    station.agent.start()
    world.network.wait_for(lambda: _runs(station), 30, "the agent to live with a cut log")
    station.agent.stop()
    _scratch(station.journal / "billing.sqlite")
    station.agent.start()
    world.network.wait_for(lambda: _reports_damage(station), 30, "the damage to be reported")
    assert list(station.journal.glob("billing.sqlite.damaged-*")), "no copy was kept"
    world.leave(station)
    # A list that was sent half a minute ago goes again with the next greeting, or when it changes.
    world.network.rest.post("/id-tokens", {"value": "04F0E0D0C0B0A0"})
    world.network.wait_for(lambda: _has_list(station), 60, "the cloud to give the list again")
    world.charge(station)
    world.agree(station, sessions=3, journal_lost=True)


def _has_list(station) -> bool:
    return bool(station.agent_status()["status"]["local_list_version"])


def _runs(station) -> bool:
    try:
        return bool(station.agent_status())
    except DemoError:
        return False


def _scratch(file: Path) -> None:
    """Zeros over the pages behind the first: the header still says that it is a database."""
    with file.open("r+b") as pages:
        pages.seek(1024)
        pages.write(bytes(min(6 * 1024, file.stat().st_size - 1024)))


def _reports_damage(station) -> bool:
    try:
        alarms = station.agent_status()["status"]["alarms"]
    except DemoError:
        return False
    return any("damaged" in text for text in alarms)
