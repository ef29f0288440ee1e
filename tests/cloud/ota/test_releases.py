"""Releases over REST: what is refused, and what python-tuf's own client makes of the rest."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from tuf.ngclient import Updater, UpdaterConfig

from cloud.kernel.http import Role
from cloud.ota.storage import Files
from cloud.ota.uploads import Uploads
from protocols.agent_link import escape
from protocols.release import Encoding, Kind, request_of, without_request
from tests.cloud.ota.conftest import IMAGE, ReleaseKeys, signer

URL = "/api/v1/releases"


def client(address: str, folder: Path, repository: str, root: bytes) -> Updater:
    folder.mkdir(exist_ok=True)
    return Updater(
        str(folder),
        f"{address}/ota/{repository}/metadata/",
        target_dir=str(folder),
        target_base_url=f"{address}/ota/images/targets/",
        config=UpdaterConfig(prefix_targets_with_hash=True),
        bootstrap=root,
    )


def fetch(updater: Updater, path: str) -> tuple[Any, bytes]:
    info = updater.get_targetinfo(path)
    assert info is not None
    return info, Path(updater.download_target(info)).read_bytes()


# --------------------------------------------------------------------------- what is taken


async def test_a_station_gets_what_the_release_keys_signed(
    release_keys: ReleaseKeys, upload: Any, publish: Any, address: str, tmp_path: Path,
    admin: httpx.AsyncClient,
) -> None:  # fmt: skip
    path = release_keys.add()
    await upload()
    root = release_keys.root()
    answer = await publish(
        agent=release_keys.role("agent"), targets=release_keys.targets(), root=root
    )
    assert answer.status_code == 201, answer.text
    (made,) = answer.json()["releases"]
    assert (made["kind"], made["version"], made["counter"]) == ("agent", "2.0.0", 7)
    assert made["files"][0]["path"] == path
    updater = client(address, tmp_path / "one", "images", root)
    info, image = await asyncio.to_thread(fetch, updater, path)
    assert image == IMAGE
    assert info.custom["release_counter"] == 7
    shown = await admin.get(f"{URL}/{made['id']}")
    assert shown.json() == made
    again = await admin.get(f"{URL}/{made['id']}", headers={"If-None-Match": shown.headers["etag"]})
    assert again.status_code == 304
    assert [one["id"] for one in (await admin.get(URL)).json()["items"]] == [made["id"]]
    happened = (await admin.get("/api/v1/events", params={"kind": "release."})).json()["items"]
    assert [one["kind"] for one in happened] == ["release.published"]


async def test_ota_f17_both_repositories_agree_for_the_station_that_is_meant(
    world: Any, released: Any, release_keys: ReleaseKeys, address: str, tmp_path: Path,
    admin: httpx.AsyncClient,
) -> None:  # fmt: skip
    """What the director names is, but for its request, what the release keys signed."""
    release = await released("2.0.0")
    (path,) = release_keys.files["agent"]
    for identity in ("CP-1", "CP/2"):
        station = await world.station(identity)
        world.link.linked[station.id] = "agent"
    cohort = (await admin.post("/api/v1/cohorts", json={"name": "all"})).json()["id"]
    made = await admin.post(
        "/api/v1/campaigns", json={"name": "x", "release": release, "cohort": cohort}
    )
    async with await world.client(Role.OPERATOR) as other:
        begun = await other.post(f"/api/v1/campaigns/{made.json()['id']}/approval")
        assert begun.status_code == 200, begun.text
    trust = (await admin.get("/api/v1/release-trust")).json()
    for identity in ("CP-1", "CP/2"):
        folder, where = tmp_path / escape(identity), f"director/{escape(identity)}"
        director = client(address, folder, where, trust["director_root"].encode())
        info, image = await asyncio.to_thread(fetch, director, path)
        assert image == IMAGE + b"2.0.0"
        assert request_of(path, info.custom).station == identity
        images = client(address, tmp_path / "images", "images", trust["root"].encode())
        genuine, _ = await asyncio.to_thread(fetch, images, path)
        assert (genuine.length, genuine.hashes) == (info.length, info.hashes)
        assert genuine.custom == without_request(info.custom)


async def test_the_same_upload_again_changes_nothing(
    release_keys: ReleaseKeys, upload: Any, publish: Any
) -> None:
    release_keys.add()
    await upload()
    sent = {"root": release_keys.root(), "targets": release_keys.targets(),
            "agent": release_keys.role("agent")}  # fmt: skip
    assert len((await publish(**sent)).json()["releases"]) == 1
    again = await publish(**sent)
    assert (again.status_code, again.json()) == (201, {"releases": []})


async def test_keys_are_rotated_and_a_release_is_revoked(
    release_keys: ReleaseKeys, released: Any, publish: Any, address: str, tmp_path: Path,
    admin: httpx.AsyncClient,
) -> None:  # fmt: skip
    first = await released("2.0.0")
    trust = (await admin.get("/api/v1/release-trust")).json()
    root = trust["root"].encode()
    old = release_keys.roots
    release_keys.roots = [signer() for _ in range(3)]
    rotated = release_keys.root(*old[:2], *release_keys.roots[1:])
    assert (await publish(root=rotated)).status_code == 201
    second = await released("2.1.0")
    release_keys.files["agent"] = {
        path: file for path, file in release_keys.files["agent"].items() if "2.0.0" not in path
    }
    assert (await publish(agent=release_keys.role("agent"))).status_code == 201
    assert (await admin.get(f"{URL}/{first}")).json()["revoked_at"] is not None
    kept = (await admin.get(URL, params={"revoked": False})).json()["items"]
    assert [one["id"] for one in kept] == [second]
    updater = client(address, tmp_path / "one", "images", root)
    (path,) = release_keys.files["agent"]
    _, image = await asyncio.to_thread(fetch, updater, path)
    assert image == IMAGE + b"2.1.0"
    gone = path.replace("2.1.0", "2.0.0")
    assert await asyncio.to_thread(updater.get_targetinfo, gone) is None


# --------------------------------------------------------------------------- what is refused


async def refused(answer: httpx.Response, text: str, code: str = "release.refused") -> None:
    assert answer.json()["code"] == code, answer.text
    assert text in answer.json()["detail"]


async def test_what_too_few_keys_have_signed_is_refused_and_not_seen(
    release_keys: ReleaseKeys, upload: Any, publish: Any, admin: httpx.AsyncClient
) -> None:
    path = release_keys.add()
    digest = await upload()
    one = release_keys.roots[:1]
    await refused(await publish(root=release_keys.root(*one)), "root is signed by 1 of the 2 keys")
    release_keys.versions["root"] = 0
    root = release_keys.root()
    lone = release_keys.targets(release_keys.tops[0])
    await refused(await publish(root=root, targets=lone), "targets is signed by 1 of the 2 keys")
    base = {"root": root, "targets": release_keys.targets()}
    few = release_keys.role("agent", release_keys.roles["agent"][0])
    await refused(await publish(**base, agent=few), "agent is signed by 1 of the 2 keys")
    wrong = release_keys.role("agent", *release_keys.roles["board"])
    await refused(await publish(**base, agent=wrong), "agent is signed by 0 of the 2 keys")
    assert (await admin.get(URL)).json()["items"] == []
    hidden = path.replace("agent/", f"agent/{digest}.")
    assert (await admin.get(f"/ota/images/targets/{hidden}")).status_code == 404
    assert (await admin.get("/ota/images/metadata/1.root.json")).status_code == 404


async def test_a_role_signs_what_is_its_own_only(
    release_keys: ReleaseKeys, upload: Any, publish: Any
) -> None:
    release_keys.add()
    await upload()
    release_keys.files["board"] = release_keys.files["agent"]
    answer = await publish(
        root=release_keys.root(), targets=release_keys.targets(), board=release_keys.role("board")
    )
    await refused(answer, "board may not sign agent/")


async def test_a_root_must_name_this_clouds_key_and_follow_the_one_before(
    release_keys: ReleaseKeys, publish: Any
) -> None:
    other = release_keys.root(online=signer().public_key)
    await refused(await publish(root=other), "does not let this cloud's online key")
    release_keys.versions["root"] = 0
    assert (await publish(root=release_keys.root())).status_code == 201
    release_keys.versions["root"] = 2
    await refused(await publish(root=release_keys.root()), "root 3 does not follow root 1")
    release_keys.versions["root"] = 1
    thief = [signer() for _ in range(3)]
    release_keys.roots, owners = thief, release_keys.roots
    await refused(await publish(root=release_keys.root()), "root is signed by 0 of the 2 keys")
    release_keys.roots = owners
    release_keys.versions["root"] = 0
    fresh = release_keys.root(*owners)
    await refused(await publish(root=fresh), "root 1 is published with another content")


async def test_old_and_expired_metadata_is_refused(
    release_keys: ReleaseKeys, released: Any, publish: Any
) -> None:
    old = release_keys.role("agent")
    await released("2.0.0")
    await refused(await publish(agent=old), "agent 1 is older than 2, which is published")
    release_keys.now -= timedelta(days=91)
    await refused(await publish(agent=release_keys.role("agent")), "expired at")


async def test_metadata_without_its_files_waits_for_them(
    release_keys: ReleaseKeys, upload: Any, publish: Any
) -> None:
    release_keys.add()
    sent = {"root": release_keys.root(), "targets": release_keys.targets(),
            "agent": release_keys.role("agent")}  # fmt: skip
    await refused(await publish(**sent), "has not come, or is damaged", "release.incomplete")
    await upload()
    assert (await publish(**sent)).status_code == 201


@pytest.mark.parametrize(
    ("role", "body", "text"),
    [
        ("root", "{}", "no TUF metadata"),
        ("root", "[" * 5000, "no TUF metadata"),
        ("agent", "{}", "there is no root yet"),
    ],
)
async def test_what_is_no_metadata_is_refused(
    publish: Any, role: str, body: str, text: str
) -> None:
    await refused(await publish(**{role: body.encode()}), text)


async def test_custom_fields_are_checked(
    release_keys: ReleaseKeys, upload: Any, publish: Any
) -> None:
    path = release_keys.add()
    await upload()
    release_keys.files["agent"][path].unrecognized_fields["custom"]["release_counter"] = 0
    answer = await publish(
        root=release_keys.root(), targets=release_keys.targets(), agent=release_keys.role("agent")
    )
    await refused(answer, "has a counter from 1 on")


# --------------------------------------------------------------------------- files


async def test_a_damaged_upload_is_thrown_away_and_begins_again(
    release_keys: ReleaseKeys, upload: Any, publish: Any, admin: httpx.AsyncClient
) -> None:
    release_keys.add()
    sent = {"root": release_keys.root(), "targets": release_keys.targets(),
            "agent": release_keys.role("agent")}  # fmt: skip
    url = f"/api/v1/release-files/{hashlib.sha256(IMAGE).hexdigest()}"
    assert (await admin.get(url)).status_code == 404
    torn = IMAGE[:-1] + b"!"
    assert (await admin.put(url, params={"offset": 0}, content=torn)).status_code == 200
    await refused(await publish(**sent), "is damaged", "release.incomplete")
    assert (await admin.get(url)).json()["received"] == 0
    await upload()
    assert (await publish(**sent)).status_code == 201
    repeated = await admin.put(url, params={"offset": 0}, content=IMAGE[:10])
    assert repeated.json()["received"] == len(IMAGE)


async def test_parts_come_in_their_order(admin: httpx.AsyncClient) -> None:
    url = f"/api/v1/release-files/{'0' * 64}"
    await admin.put(url, params={"offset": 0}, content=b"0123")
    again = await admin.put(url, params={"offset": 0}, content=b"0123")
    assert (again.status_code, again.json()["received"]) == (200, 4)
    late = await admin.put(url, params={"offset": 8}, content=b"89")
    assert (late.status_code, late.json()["params"]["received"]) == (409, 4)
    assert (await admin.put(url, params={"offset": 4}, content=b"4567")).json()["received"] == 8


async def test_images_come_in_ranges_and_go_on_where_they_were_cut(
    released: Any, release_keys: ReleaseKeys, admin: httpx.AsyncClient
) -> None:
    await released("2.0.0")
    ((path, file),) = release_keys.files["agent"].items()
    image, digest = IMAGE + b"2.0.0", file.hashes["sha256"]
    url = f"/ota/images/targets/{path.replace('agent/', f'agent/{digest}.')}"
    whole = await admin.get(url)
    assert whole.content == image
    assert whole.headers["etag"] == f'"{digest}"'
    assert "immutable" in whole.headers["cache-control"]
    rest = {"Range": "bytes=1000-", "If-Range": f'"{digest}"'}
    part = await admin.get(url, headers=rest)
    assert (part.status_code, part.content) == (206, image[1000:])
    changed = await admin.get(url, headers={**rest, "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, image)
    beyond = await admin.get(url, headers={"Range": "bytes=9999999-"})
    assert beyond.status_code == 416


async def test_metadata_is_cached_as_long_as_it_holds(
    released: Any, admin: httpx.AsyncClient
) -> None:
    await released("2.0.0")
    stamp = await admin.get("/ota/images/metadata/timestamp.json")
    assert stamp.headers["cache-control"] == "no-cache"
    seen = {"If-None-Match": stamp.headers["etag"]}
    assert (await admin.get("/ota/images/metadata/timestamp.json", headers=seen)).status_code == 304
    root = await admin.get("/ota/images/metadata/1.root.json")
    assert "immutable" in root.headers["cache-control"]
    for missing in ("2.root.json", "root.json", "1.timestamp.json", "x", "1.agent.json.bak"):
        assert (await admin.get(f"/ota/images/metadata/{missing}")).status_code == 404


async def test_freshness_is_signed_anew_before_it_ends(
    world: Any, released: Any, admin: httpx.AsyncClient
) -> None:
    await released("2.0.0")

    async def stamp() -> tuple[int, int]:
        signed = (await admin.get("/ota/images/metadata/timestamp.json")).json()["signed"]
        return signed["version"], signed["meta"]["snapshot.json"]["version"]

    first = await stamp()
    world.clock.forward(hours=23)
    assert await stamp() == first
    world.clock.forward(hours=2)
    second = await stamp()
    assert second[0] > first[0]
    assert second[1] == first[1]
    world.clock.forward(days=4)
    third = await stamp()
    assert third[0] > second[0]
    assert third[1] > second[1]


async def test_a_cloud_from_a_backup_signs_above_what_stations_have_seen(
    world: Any, released: Any, admin: httpx.AsyncClient
) -> None:
    await released("2.0.0")
    seen = (await admin.get("/ota/images/metadata/timestamp.json")).json()["signed"]["version"]
    async with world.database.commit_unit() as cursor:
        await cursor.execute("DELETE FROM ota.metadata WHERE role IN ('snapshot', 'timestamp')")
    world.clock.forward(seconds=1)
    then = (await admin.get("/ota/images/metadata/timestamp.json")).json()["signed"]["version"]
    assert then > seen


async def test_who_asks_too_often_is_told_to_wait(world: Any, admin: httpx.AsyncClient) -> None:
    answers = [await admin.get("/ota/images/metadata/1.root.json") for _ in range(301)]
    assert [one.status_code for one in answers[-2:]] == [404, 429]
    world.clock.forward(seconds=1)
    assert (await admin.get("/ota/images/metadata/1.root.json")).status_code == 404


async def test_a_delta_is_served_beside_the_image_it_saves(
    release_keys: ReleaseKeys, released: Any, upload: Any, publish: Any, admin: httpx.AsyncClient
) -> None:
    release = await released("2.0.0")
    delta = b"a delta"
    release_keys.add("2.0.0", delta, Kind.AGENT, encoding=Encoding.ZSTD_DELTA, base_sha256="0" * 64)
    await upload(delta)
    answer = await publish(agent=release_keys.role("agent"))
    assert answer.json() == {"releases": []}
    files = (await admin.get(f"{URL}/{release}")).json()["files"]
    assert sorted(one["encoding"] for one in files) == ["raw", "zstd-delta"]


async def test_an_upload_that_nobody_goes_on_with_is_removed_and_can_begin_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, registry = datetime.now(UTC), CollectorRegistry()
    files = Files(tmp_path)
    old, new, whole = (hashlib.sha256(name).hexdigest() for name in (b"old", b"new", IMAGE))
    for owner, digest, part in ((1, old, b"half"), (2, new, b"ha"), (1, whole, IMAGE)):
        await files.append(owner, digest, 0, part)
    assert await files.finish(1, whole, len(IMAGE))
    hours_ago = clock.timestamp() - 73 * 3600
    for name in (f"incoming/1-{old}", f"targets/{whole}"):
        os.utime(tmp_path / name, (hours_ago, hours_ago))
    uploads = Uploads(files, timedelta(hours=72), lambda: clock, registry)
    caplog.set_level("INFO")
    assert await uploads.sweep() == 1
    assert "1 uploads got no part" in caplog.text
    assert registry.get_sample_value("karvon_ota_uploads_abandoned_total") == 1
    assert await uploads.sweep() == 0
    assert (await files.received(1, old), await files.received(2, new)) == (0, 2)
    assert await files.path(whole) is not None, "what was published stays, however old"
    assert await files.append(1, old, 0, b"half again") == 10
