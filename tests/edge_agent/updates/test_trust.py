"""Faults 1 to 18: what nobody can make a controller install."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from ota_world import STATION, Director, Maker, World, changed, request
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from edge_agent.updates import slots
from edge_agent.updates.messages import Current, Failure, Nothing, Ready
from edge_agent.updates.worker import available
from protocols.agent_link import UpdateState
from protocols.release import IMAGES_METADATA, IMAGES_TARGETS, Kind, custom_of, release_of

INVALID = UpdateState.INVALID_SIGNATURE


def metadata(world: World) -> Path:
    return world.out / IMAGES_METADATA


@pytest.fixture(autouse=True)
def server(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every worker of this file reads the shown folder as if it came over HTTP."""
    from ota_server import Server

    running = Server(world.out)
    job = world.job

    monkeypatch.setattr(world, "job", lambda **fields: job(**({"url": running.url} | fields)))
    yield running
    running.close()


def refused(world: World, words: str, state: UpdateState = INVALID, **fields: Any) -> None:
    """It is refused for this reason, and no slot was made of it."""
    before = world.slots()
    result = world.work(**fields)
    assert isinstance(result, Failure), result
    assert words in result.reason
    assert result.state is state
    assert world.slots() == before


def test_what_is_genuine_and_asked_for_becomes_a_slot(world: World) -> None:
    name = world.offer("2.0")
    result = world.work()
    assert isinstance(result, Ready), result
    assert (result.slot, result.about.version, result.counter) == (name, "2.0", 1)
    assert name in world.slots()
    assert [each.state for each in world.messages[:-1]] == [
        UpdateState.DOWNLOADING,
        UpdateState.DOWNLOADED,
        UpdateState.SIGNATURE_VERIFIED,
    ]


def test_what_runs_is_not_installed_again(world: World) -> None:
    world.running = world.offer("2.0")
    assert isinstance(world.work(), Current)


def test_a_director_that_asks_nothing_starts_nothing(world: World) -> None:
    world.director.ask({})
    assert isinstance(world.work(), Nothing)


# --------------------------------------------------------------------------- root and keys


def test_ota_f01_root_signed_only_by_new_keys(world: World) -> None:
    world.offer("2.0")
    assert isinstance(world.work(), Ready)
    strangers = [CryptoSigner.generate_ed25519() for _ in range(3)]

    def takeover(root: Any) -> None:
        root.version = 2
        for old in list(root.roles["root"].keyids):
            root.revoke_key(old, "root")
        for new in strangers:
            root.add_key(new.public_key, "root")

    root = Metadata.from_file(str(metadata(world) / "1.root.json"))
    (metadata(world) / "2.root.json").write_bytes(changed(root, takeover, *strangers))
    refused(world, "root was signed by 0/2 keys")


def test_ota_f02_root_version_gap_stays_on_the_last_chained(world: World) -> None:
    world.offer("2.0")
    world.maker.rotate("root")
    world.maker.publish(world.out)
    world.maker.rotate("timestamp")
    world.maker.publish(world.out)
    (metadata(world) / "2.root.json").unlink()
    refused(world, "timestamp was signed by 0/1 keys")
    history = world.state / "metadata" / "images" / "root_history"
    assert sorted(path.name for path in history.iterdir()) == ["1.root.json"]


def test_ota_f03_rotation_of_root_is_followed_hop_by_hop(world: World) -> None:
    name = world.offer("2.0")
    for number in (0, 1, 2):
        world.maker.rotate("root", number)
        world.maker.publish(world.out)
    result = world.work()
    assert isinstance(result, Ready)
    assert result.slot == name
    root = json.loads((world.state / "metadata" / "images" / "root.json").read_text())
    assert root["signed"]["version"] == 4


def test_ota_f04_targets_signed_by_one_of_two(world: World) -> None:
    world.offer("2.0")
    world.maker.workshop.renew("targets")
    world.maker.publish(world.out)
    path = metadata(world) / "2.targets.json"
    targets = Metadata.from_file(str(path))
    path.write_bytes(changed(targets, lambda _: None, world.maker.signers["targets"][0]))
    republish(world, {"targets": 2})
    refused(world, "targets was signed by 1/2 keys")


def republish(world: World, versions: dict[str, int], **online: Any) -> None:
    """The online keys say these versions, without lengths and hashes: all that a thief can."""
    place = metadata(world)
    stamp = Metadata.from_file(str(place / "timestamp.json"))
    number = stamp.signed.snapshot_meta.version
    snapshot = Metadata.from_file(str(place / f"{number}.snapshot.json"))

    def say(signed: Any) -> None:
        signed.version = online.get("version", number + 1)
        for role, meta in list(signed.meta.items()):
            meta.length, meta.hashes = None, None
            meta.version = versions.get(role.removesuffix(".json"), meta.version)
            if meta.version == 0:
                del signed.meta[role]

    content = changed(snapshot, say, world.maker.signers["snapshot"][0])
    (place / f"{snapshot.signed.version}.snapshot.json").write_bytes(content)

    def point(signed: Any) -> None:
        signed.version = online.get("version", signed.version + 1)
        signed.snapshot_meta.version = snapshot.signed.version
        signed.snapshot_meta.length = signed.snapshot_meta.hashes = None

    content = changed(stamp, point, world.maker.signers["timestamp"][0])
    (place / "timestamp.json").write_bytes(content)


def test_ota_f05_a_board_key_cannot_sign_software(world: World) -> None:
    path, _ = world.maker.release("2.0")
    workshop, maker = world.maker.workshop, world.maker
    stolen = workshop.newest("agent").signed.targets[path]
    maker.publish(world.out)
    bad = "agent/karvon-agent-6.6.6-linux-test-cp311.zst"
    board = workshop.newest("board").signed
    board.targets[bad] = TargetFile(stolen.length, dict(stolen.hashes), bad)
    board.targets[bad].unrecognized_fields["custom"] = stolen.custom
    workshop._stage("board", board)
    (workshop.folder / "targets" / bad).write_bytes(
        (workshop.folder / "targets" / path).read_bytes()
    )
    maker.publish(world.out)
    named = TargetFile(stolen.length, dict(stolen.hashes), bad)
    named.unrecognized_fields["custom"] = custom_of(release_of(path, stolen.custom), request())
    world.director.ask({bad: named})
    refused(world, "no release key has signed it")


def test_ota_f06_revoked_keys_replayed(world: World) -> None:
    world.offer("2.0")
    assert isinstance(world.work(), Ready)
    old = (metadata(world) / "2.agent.json").read_bytes()
    world.maker.rotate("agent", 0)
    world.maker.rotate("agent", 1)
    world.maker.publish(world.out)
    latest = world.maker.workshop.newest("agent").signed.version
    (metadata(world) / f"{latest}.agent.json").write_bytes(old)
    republish(world, {})
    refused(world, "agent was signed by 0/2 keys")


def test_a_revoked_key_alone_signs_nothing_more(world: World) -> None:
    with pytest.raises(Exception, match="would have 1"):
        world.maker.workshop.revoke("agent", world.maker.signers["agent"][0].public_key.keyid)
    old = world.maker.signers["targets"].pop(0)
    world.maker.workshop.revoke("targets", old.public_key.keyid)
    world.maker.publish(world.out)
    world.offer("2.0")
    assert isinstance(world.work(), Ready)


# --------------------------------------------------------------------------- freshness


def replayed(world: World, *, forget: bool) -> None:
    world.offer("2.0")
    old = {path.name: path.read_bytes() for path in metadata(world).iterdir()}
    world.offer("3.0")
    assert isinstance(world.work(), Ready)
    if forget:
        world.forget_metadata()
    (metadata(world) / "timestamp.json").write_bytes(old["timestamp.json"])


def test_ota_f07_timestamp_replay(world: World) -> None:
    replayed(world, forget=False)
    refused(world, "timestamp version")


def test_ota_f08_replay_after_a_power_cut_emptied_the_cache(world: World) -> None:
    replayed(world, forget=True)
    refused(world, "is older than 3, which was here")


def test_ota_f08_the_floors_themselves_survive_damage(world: World) -> None:
    replayed(world, forget=True)
    path = world.state / "floors.db"
    path.write_bytes(b"\xff" * path.stat().st_size)
    refused(world, "is older than 3, which was here")
    assert list(world.state.glob("floors.db.damaged-*"))


def test_ota_f09_frozen_timestamp_installs_nothing(world: World) -> None:
    world.maker.time = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    world.offer("2.0")
    refused(world, "expired")


def test_ota_f10_frozen_with_a_clock_in_2020(world: World) -> None:
    """The updater believes the system's clock; the newest time that was ever trusted does not."""
    world.offer("2.0")
    later = datetime.now(UTC) + timedelta(days=3)
    with_clock = world.work(now_ms=round(later.timestamp() * 1000))
    assert isinstance(with_clock, Failure)
    assert "expired on" in with_clock.reason
    back = round(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)
    refused(world, "expired on", now_ms=back, clock_trusted=False)


def test_an_untrusted_clock_raises_no_floor(world: World) -> None:
    world.offer("2.0")
    far = round((datetime.now(UTC) + timedelta(days=3000)).timestamp() * 1000)
    assert isinstance(world.work(now_ms=far, clock_trusted=False), Failure)
    assert isinstance(world.work(), Ready)


def test_ota_f11_new_snapshot_names_an_older_delegated_file(world: World) -> None:
    world.offer("2.0")
    world.offer("3.0")
    assert isinstance(world.work(), Ready)
    republish(world, {"agent": 2})
    refused(world, "Expected agent.json version")


def test_ota_f11_also_when_the_cache_is_gone(world: World) -> None:
    world.offer("2.0")
    world.offer("3.0")
    assert isinstance(world.work(), Ready)
    world.forget_metadata()
    republish(world, {"agent": 2})
    refused(world, "agent version 2 is older than 3")


def test_ota_f12_role_dropped_from_snapshot(world: World) -> None:
    world.offer("2.0")
    assert isinstance(world.work(), Ready)
    republish(world, {"agent": 0})
    refused(world, "agent.json")


def test_ota_f13_fast_forward_is_recovered_by_rotation(world: World) -> None:
    world.offer("2.0")
    republish(world, {}, version=10**9)
    assert isinstance(world.work(), Ready)
    world.offer("3.0")
    refused(world, "version")
    world.maker.rotate("snapshot")
    world.maker.rotate("timestamp")
    name = world.offer("4.0")
    result = world.work()
    assert isinstance(result, Ready), result
    assert result.slot == name


def test_ota_f15_oversized_metadata(world: World) -> None:
    world.offer("2.0")
    (metadata(world) / "timestamp.json").write_bytes(b"{" + b" " * (17 * 1024))
    refused(world, "exceeding", UpdateState.DOWNLOAD_FAILED)


def test_ota_f16_a_request_that_expired_meanwhile(world: World) -> None:
    """What is ready says until when; after that it is asked for anew, and refused."""
    path, _ = world.maker.release("2.0")
    world.maker.publish(world.out)
    soon = round((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1000)
    world.ask(path, expires_at=soon)
    ready = world.work()
    assert isinstance(ready, Ready)
    assert ready.valid_until_ms == soon
    refused(world, "request for it has expired", UpdateState.INSTALLATION_FAILED, now_ms=soon)


# --------------------------------------------------------------------------- whose it is


def test_ota_f17_metadata_of_another_station(world: World) -> None:
    path, _ = world.maker.release("2.0")
    world.maker.publish(world.out)
    world.ask(path, station="UZ*KRV*E2")
    refused(world, "another station, UZ*KRV*E2")


def test_ota_f17_wrong_hardware(world: World) -> None:
    world.offer("2.0", hw_ids=("linux-sparc-cp311",))
    refused(world, "it is for linux-sparc-cp311", UpdateState.INSTALLATION_FAILED)


def test_ota_f17_one_component_named_twice(world: World) -> None:
    one, _ = world.maker.release("2.0")
    other, _ = world.maker.release("3.0")
    world.maker.publish(world.out)
    world.director.ask({one: world.target(one), other: world.target(other)})
    refused(world, "twice", UpdateState.INSTALLATION_FAILED)


def test_ota_f17_a_component_that_nobody_has_here(world: World) -> None:
    release = {"kind": Kind.SETTINGS, "name": "profiles"}
    path, _ = world.maker.release("2.0", **release)
    world.maker.publish(world.out)
    world.ask(path)
    text = "nothing here takes profiles, a release of kind settings"
    refused(world, text, UpdateState.INSTALLATION_FAILED)


@pytest.mark.parametrize("part", ["length", "hashes", "custom"])
def test_ota_f17_director_and_images_disagree(world: World, part: str) -> None:
    path, _ = world.maker.release("2.0")
    world.maker.publish(world.out)
    named = world.target(path)
    if part == "length":
        named.length += 1
    elif part == "hashes":
        named.hashes["sha256"] = "0" * 64
    else:
        named.unrecognized_fields["custom"]["release_counter"] = 99
    world.director.ask({path: named})
    refused(world, "name different files")


def test_a_director_of_somebody_else(world: World, tmp_path: Path) -> None:
    world.offer("2.0")
    assert isinstance(world.work(), Ready)
    thief = Director(tmp_path / "other", STATION)
    thief.ask({}, version=7)
    for path in thief.place.iterdir():
        (world.director.place / path.name).write_bytes(path.read_bytes())
    refused(world, "signed by 0/1 keys")


def test_ota_f18_lower_release_counter_in_newer_metadata(world: World) -> None:
    path, _ = world.maker.release("2.0", release_counter=5)
    newer, _ = world.maker.release("3.0", release_counter=6)
    world.maker.publish(world.out)
    world.ask(newer)
    assert isinstance(world.work(), Ready)
    floors = world.floors()
    floors.raise_counter("agent/karvon-agent", 6)
    floors.close()
    world.ask(path)
    refused(world, "release counter 5 is below 6", UpdateState.INSTALLATION_FAILED)


def test_a_release_that_needs_another_first(world: World) -> None:
    from protocols.release import Requires

    world.offer("3.0", requires=Requires(agent="2.0"))
    refused(world, "it needs agent 2.0 first", UpdateState.INSTALLATION_FAILED)
    assert isinstance(world.work(version="2.0.1"), Ready)


# --------------------------------------------------------------------------- images


def image_file(world: World) -> Path:
    (path,) = (world.out / IMAGES_TARGETS / "agent").glob("*2.0*.zst")
    return path


@pytest.mark.parametrize("fault", ["flipped", "short", "endless"])
def test_ota_f14_target_flipped_short_endless(world: World, server: Any, fault: str) -> None:
    world.offer("2.0")

    def damaged(content: bytes) -> bytes:
        if fault == "flipped":
            return content[:50] + bytes([content[50] ^ 1]) + content[51:]
        return content[:-1] if fault == "short" else content + bytes(10_000_000)

    server.body = damaged
    state = INVALID if fault == "flipped" else UpdateState.DOWNLOAD_FAILED
    refused(world, "2.0", state)
    assert not list((world.state / "downloads").glob("*.part"))
    server.body = lambda content: content
    assert isinstance(world.work(), Ready)


def test_a_delta_is_taken_where_it_fits(world: World, server: Any) -> None:
    bulk = {"bulk.py": "".join(f"N{number} = {number * 7919 % 10007}\n" for number in range(3000))}
    base, made = world.maker.release("1.1", files=bulk)
    world.running = world.controller.install("1.1", **bulk)
    name = world.offer("1.2", files=bulk, delta_from=("1.1",))
    whole = image_file_size(world, "1.2")
    without_memory = world.work(memory=lambda: 0)
    assert isinstance(without_memory, Ready)
    assert without_memory.received == whole
    slots.wipe(world.controller.folder / "slots" / name)
    result = world.work()
    assert isinstance(result, Ready), result
    assert result.slot == name
    assert result.received < 1500 < whole
    assert base != made


def test_memory_is_what_the_system_says_or_unknown(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  999 kB\nMemAvailable:  123 kB\n")
    assert available(told) == 123 * 1024
    told.write_text("MemTotal:  999 kB\n")
    assert available(told) is None
    assert available(tmp_path / "none") is None


def image_file_size(world: World, version: str) -> int:
    (path,) = (world.out / IMAGES_TARGETS / "agent").glob(f"*{version}*.zst")
    return path.stat().st_size


def test_where_what_runs_was_changed_the_whole_image_comes(world: World) -> None:
    bulk = {"bulk.py": "".join(f"N{number} = {number * 7919 % 10007}\n" for number in range(3000))}
    world.maker.release("1.1", files=bulk)
    world.running = world.controller.install("1.1", **bulk)
    name = world.offer("1.2", files=bulk, delta_from=("1.1",))
    (changed_file,) = (world.controller.folder / "slots" / world.running).rglob("bulk.py")
    changed_file.write_text("N = 1\n")
    result = world.work()
    assert isinstance(result, Ready), result
    assert result.slot == name


def test_an_update_from_a_folder_has_the_same_trust(world: World, tmp_path: Path) -> None:
    """A USB stick: the newest that fits, from the images repository alone."""
    name = world.offer("2.0")
    result = world.work(folder=str(world.out), url="")
    assert isinstance(result, Ready), result
    assert (result.slot, result.about.request) == (name, None)
    image = image_file(world)
    image.write_bytes(image.read_bytes()[:-1])
    world.controller.folder.joinpath("slots", name).rename(tmp_path / "gone")
    refused(world, "2.0", UpdateState.DOWNLOAD_FAILED, folder=str(world.out), url="")


def test_nothing_newer_in_the_folder(world: World) -> None:
    world.running = world.offer("2.0")
    assert isinstance(world.work(folder=str(world.out), url=""), Nothing)


def test_two_makers_never_share_trust(world: World, tmp_path: Path) -> None:
    world.offer("2.0")
    stranger = Maker(tmp_path / "stranger")
    stranger.release("9.0")
    stranger.publish(tmp_path / "stick")
    refused(world, "signed by 0/", folder=str(tmp_path / "stick"), url="")


def test_ota_f23_no_room_for_a_slot_is_said_before_anything_is_fetched(
    world: World, server: Any, small_disk: Path
) -> None:
    world.offer("2.0")
    refused(world, "a slot needs", UpdateState.DOWNLOAD_FAILED, root=str(small_disk))
    assert not [path for path, *_ in server.asked if "/targets/" in path]


def test_ids_are_kept_through(world: World) -> None:
    path, _ = world.maker.release("2.0")
    world.maker.publish(world.out)
    world.ask(path, id=UUID(int=77), force=True)
    result = world.work()
    assert isinstance(result, Ready)
    assert (result.about.request, result.force) == (UUID(int=77), True)
