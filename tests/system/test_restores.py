"""State that was wiped, cloned, or put back from an older copy."""

from __future__ import annotations

import shutil
from pathlib import Path


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True, ignore=_sockets)
    _same_owners(source, target)


def _sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_socket()}


def _same_owners(source: Path, target: Path) -> None:
    for one in [source, *source.rglob("*")]:
        twin = target / one.relative_to(source)
        if twin.exists():
            shutil.chown(twin, one.stat().st_uid, one.stat().st_gid)


def test_the_brokers_state_is_wiped(world) -> None:
    network = world.network
    station = world.station("W")
    world.charge(station)
    world.begin(station, 600)
    network.cloud.stop()
    shutil.rmtree(network.data / "broker" / "jetstream")
    network.start_cloud()
    network.wait_for(station.full, 60, "the vehicle to be full")
    station.unplug()
    world.agree(station, sessions=2)


def test_an_agent_restored_in_the_midst_of_a_session(world) -> None:
    station = world.station("A-mid")
    old = station.folder / "yesterday"
    station.agent.stop()
    _copy(station.journal, old)
    station.agent.start()
    world.begin(station)
    world.network.wait_for(
        lambda: world.network.transactions(station), 30, "the transaction in the cloud"
    )
    station.agent.kill()
    _copy(old, station.journal)
    station.agent.start()
    world.network.wait_online(station)
    world.traffic([], 3)
    station.unplug()
    world.agree(station, journal_lost=True)


def test_a_journal_restored_from_yesterday_and_cloned(world) -> None:
    station = world.station("A-clone")
    world.charge(station)
    world.agree(station)
    station.agent.stop()
    original = station.folder / "original"
    _copy(station.journal, original)
    station.agent.start()
    world.charge(station)
    world.agree(station, sessions=2)
    station.agent.stop()
    twin = station.folder / "twin"
    _copy(station.journal, twin)
    _copy(original, station.journal)
    station.agent.start()
    world.network.wait_online(station)
    world.charge(station)
    world.agree(station, sessions=3, journal_lost=True)
    station.agent.stop()
    _copy(twin, station.journal)
    station.agent.start()
    world.network.wait_online(station)
    world.charge(station)
    world.agree(station, sessions=4, journal_lost=True)


def test_the_cloud_restored_from_an_older_copy(own_world) -> None:
    world, network = own_world, own_world.network
    station = world.station("C-old")
    world.charge(station)
    world.agree(station)
    network.cloud.stop(30)
    yesterday = network.folder / "yesterday"
    _copy(network.data, yesterday)
    network.start_cloud()
    world.charge(station)
    world.begin(station, 100_000)
    world.network.wait_for(lambda: len(network.transactions(station)) == 3, 30, "three in it")
    network.cloud.stop(30)
    _copy(yesterday, network.data)
    network.start_cloud()
    network.wait_online(station)
    station.unplug()
    world.agree(station, sessions=3)
