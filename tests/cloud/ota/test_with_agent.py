"""The agent's own client against the cloud: what a campaign offers becomes a slot, and no more."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
from ota_slots import Controller, image

from cloud.kernel.http import Role
from edge_agent.updates import launcher, packing
from edge_agent.updates.download import Pace
from edge_agent.updates.messages import Current, Failure, Job, Message, Nothing, Ready
from edge_agent.updates.worker import Worker
from protocols.agent_link import UpdateState
from protocols.release import Encoding
from tests.cloud.ota.conftest import ReleaseKeys

HARDWARE = "linux-test"
STATION = "UZ*KRV*E1"


class Station:
    """A controller that looks for updates at the cloud's address."""

    def __init__(self, folder: Path, address: str, trust: dict[str, str]) -> None:
        folder.mkdir()
        self.folder, self.address = folder, address
        self.controller = Controller(folder)
        self.running = self.controller.install("1.0")
        self.controller.record(confirmed=self.running)
        for name in ("root", "director_root"):
            (folder / name).write_text(trust[name])

    async def look(self, now_ms: int, **fields: Any) -> tuple[Message, list[Message]]:
        """One run of the worker; its result, and all it told."""
        job: dict[str, Any] = {
            "root": str(self.controller.folder), "state": str(self.folder / "state"),
            "images_root": str(self.folder / "root"),
            "director_root": str(self.folder / "director_root"), "station": STATION,
            "hardware": HARDWARE, "version": "1.0", "running": self.running, "now_ms": now_ms,
            "clock_trusted": True, "url": self.address, "selftest": ("selftest",), **fields,
        }  # fmt: skip
        told: list[Message] = []
        worker = Worker(Job(**job), told.append, Pace(sleep=lambda _: None, tries=2))
        return await asyncio.to_thread(worker.run), told


async def campaign(world: Any, admin: httpx.AsyncClient, release: int) -> int:
    station = await world.station(STATION)
    world.link.linked[station.id] = "agent"
    cohort = (await admin.post("/api/v1/cohorts", json={"name": "all"})).json()["id"]
    body = {"name": "all", "release": release, "cohort": cohort}
    made = int((await admin.post("/api/v1/campaigns", json=body)).json()["id"])
    async with await world.client(Role.OPERATOR) as other:
        begun = await other.post(f"/api/v1/campaigns/{made}/approval")
        assert begun.status_code == 200, begun.text
    return made


async def test_the_agents_client_installs_what_a_campaign_offers_and_nothing_else(
    world: Any, admin: httpx.AsyncClient, release_keys: ReleaseKeys, upload: Any, publish: Any,
    address: str, tmp_path: Path,
) -> None:  # fmt: skip
    made = image("2.0")
    packed = packing.compress(made)
    release_keys.add("2.0", made, packed=packed, encoding=Encoding.ZSTD, hw_ids=(HARDWARE,))
    await upload(packed)
    answer = await publish(
        root=release_keys.root(), targets=release_keys.targets(), agent=release_keys.role("agent")
    )
    (released,) = answer.json()["releases"]
    trust = (await admin.get("/api/v1/release-trust")).json()
    station = Station(tmp_path / "station", address, trust)
    now_ms = round(world.clock().timestamp() * 1000)
    unknown, _ = await station.look(now_ms)
    assert isinstance(unknown, Failure), "the cloud has no such station yet"
    number = await campaign(world, admin, released["id"])
    ready, told = await station.look(now_ms)
    assert isinstance(ready, Ready), ready
    assert ready.slot == hashlib.sha256(made).hexdigest()
    assert launcher.usable(station.controller.folder, ready.slot)
    devices = (await admin.get(f"/api/v1/campaigns/{number}/devices")).json()["items"]
    assert str(ready.about.request) == devices[0]["request"]
    states = [one.state for one in told if hasattr(one, "state")]
    assert states == [
        UpdateState.DOWNLOADING, UpdateState.DOWNLOADED, UpdateState.SIGNATURE_VERIFIED,
    ]  # fmt: skip
    again, _ = await station.look(now_ms, running=ready.slot, version="2.0")
    assert isinstance(again, Current)
    await admin.post(f"/api/v1/campaigns/{number}/abort")
    withdrawn, _ = await station.look(now_ms)
    assert isinstance(withdrawn, Nothing)


async def test_ota_f18_a_stolen_cloud_cannot_have_an_older_release_installed(
    world: Any, admin: httpx.AsyncClient, release_keys: ReleaseKeys, upload: Any, publish: Any,
    address: str, tmp_path: Path,
) -> None:  # fmt: skip
    """Everything that it holds is used: director, online key, campaigns."""
    numbers = {}
    for counter, version in ((1, "0.9"), (2, "2.0")):
        made = image(version)
        packed = packing.compress(made)
        release_keys.add(
            version, made, packed=packed, encoding=Encoding.ZSTD, hw_ids=(HARDWARE,),
            release_counter=counter,
        )  # fmt: skip
        await upload(packed)
    answer = await publish(
        root=release_keys.root(), targets=release_keys.targets(), agent=release_keys.role("agent")
    )
    for one in answer.json()["releases"]:
        numbers[one["version"]] = one["id"]
    trust = (await admin.get("/api/v1/release-trust")).json()
    station = Station(tmp_path / "station", address, trust)
    now_ms = round(world.clock().timestamp() * 1000)
    await campaign(world, admin, numbers["2.0"])
    ready, _ = await station.look(now_ms)
    assert isinstance(ready, Ready)
    from edge_agent.updates.floors import Floors

    floors = Floors(tmp_path / "station" / "state")
    floors.raise_counter(ready.component, ready.counter)
    floors.close()
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "UPDATE ota.device SET path = (SELECT path FROM ota.target WHERE release_id = %s)",
            (numbers["0.9"],),
        )
    refused, _ = await station.look(now_ms, running=ready.slot, version="2.0")
    assert isinstance(refused, Failure)
    assert "release counter 1 is below 2" in refused.reason
