"""One campaign over stations of every version, on real sockets, down to the lost word."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloud.kernel.config import CloudConfig
from cloud.kernel.etags import ANYTHING
from cloud.kernel.http import Caller, Role
from cloud.kernel.paging import Part
from cloud.kernel.serving import supervised
from cloud.main import Updates, utc_now
from cloud.ota import campaign_store
from cloud.ota.campaigns import Draft
from cloud.ota.cohorts import Cohort
from cloud.ota.releases import Keys
from cloud.ota.signing import OnlineKey
from cloud.users.service import DEFAULT_TENANT
from protocols.release import Kind
from tests.cloud.ocpp.conftest import Ocpp, Station
from tests.cloud.ota.conftest import IMAGE, ReleaseKeys

AUTHOR, OTHER = (Caller(DEFAULT_TENANT, subject, Role.ADMIN) for subject in ("key:1", "key:2"))
TERMS: dict[str, Any] = {
    "success_percent": 100, "error_percent": 100, "min_sample": 9, "deadline_s": 3600,
    "waves": [100], "window": None, "force": False, "signed": None,
}  # fmt: skip
SIGNED = {"certificate": "-----BEGIN CERTIFICATE-----", "signature": "c2lnbmVk"}
OLD = {"firmwareVersion": "1.0"}


@dataclass
class Rollout:
    """A release for this model, and campaigns over whoever is there."""

    ocpp: Ocpp
    updates: Updates
    release: int

    async def begin(self, **terms: Any) -> int:
        campaigns = self.updates.campaigns
        cohort = await campaigns.add_cohort(AUTHOR, "all", Cohort())
        draft = Draft("all", self.release, cohort.id, {**TERMS, **terms})
        made = await campaigns.create(AUTHOR, draft)
        await campaigns.approve(OTHER, made.row.id, ANYTHING)
        return made.row.id

    async def ended(self, campaign: int) -> dict[str, tuple[str, str]]:
        """What each station came to, once nobody is under way any more."""

        async def over() -> Any:
            part = Part(campaign_store.DEVICES, "wave", 100)
            cut = await self.updates.campaigns.devices(AUTHOR, campaign, part, None, None, None)
            held = {one.station: (str(one.row.standing), one.row.word) for one in cut.rows}
            return held if all(standing != "offered" for standing, _ in held.values()) else None

        return dict(await self.ocpp.until(over, "the campaign's end"))


@pytest.fixture
async def rollout(ocpp: Ocpp) -> AsyncIterator[Rollout]:
    config = CloudConfig(data_dir=ocpp.folder)
    updates = Updates.over(
        ocpp.database, ocpp.modules.stations, config, "http://files.example", CollectorRegistry()
    )
    keys = [OnlineKey.kept(ocpp.folder / "ota" / f"{name}.pem") for name in ("online", "director")]
    makers = ReleaseKeys(Keys(*keys), utc_now())
    makers.add("2.0", IMAGE, Kind.BOARD, name="one", hw_ids=("One",))
    digest = hashlib.sha256(IMAGE).hexdigest()
    await updates.releases.append(AUTHOR, digest, 0, IMAGE)
    signed = [("root", makers.root()), ("targets", makers.targets())]
    (made,) = await updates.releases.publish(AUTHOR, [*signed, ("board", makers.role("board"))])
    async with supervised("campaigns", updates.campaigns.run):
        yield Rollout(ocpp, updates, made.row.id)


async def tell(station: Station, *words: str, action: str = "", **more: Any) -> None:
    for word in words:
        await station.call(action or "FirmwareStatusNotification", {"status": word, **more})


async def test_one_campaign_updates_every_version_by_the_boot_that_proves_it(
    ocpp: Ocpp, rollout: Rollout
) -> None:
    old = await ocpp.booted("V16", "ocpp1.6", OLD)
    what = {"chargingStation": {"vendorName": "Acme", "model": "One", **OLD}}
    stations = {version: await ocpp.booted(version, version, what)
                for version in ("ocpp2.0.1", "ocpp2.1")}  # fmt: skip
    campaign = await rollout.begin()
    asked = await old.was_asked("UpdateFirmware")
    address = asked["location"]
    assert address.startswith("http://files.example/ota/files/")
    token = address.split("/")[-2]
    assert await rollout.updates.campaigns.offered_file(token) == "board/one-2.0-One.bin"
    await tell(old, "Downloading", "Downloaded", "Installing")
    await old.leave()  # into the new firmware: Installed is never said
    await ocpp.booted("V16", "ocpp1.6", {"firmwareVersion": "2.0"})
    for version, station in stations.items():
        request = (await station.was_asked("UpdateFirmware"))["requestId"]
        await tell(station, "Downloading", "Installing", "InstallRebooting", requestId=request)
        new = {"vendorName": "Acme", "model": "One", "firmwareVersion": "2.0"}
        again = await ocpp.booted(version, version, {"chargingStation": new})
        await tell(again, "Installed", requestId=request)
    assert {one: standing for one, (standing, _) in (await rollout.ended(campaign)).items()} == {
        "V16": "succeeded", "ocpp2.0.1": "succeeded", "ocpp2.1": "succeeded",
    }  # fmt: skip
    assert await rollout.updates.campaigns.offered_file(token) is None
    assert len(await ocpp.events("V16", "update.succeeded")) == 1


async def test_signed_updates_and_every_way_to_refuse_them(ocpp: Ocpp, rollout: Rollout) -> None:
    what = {"chargingStation": {"vendorName": "Acme", "model": "One", **OLD}}
    answers = {
        "rejects": {"UpdateFirmware": {"status": "Rejected"}},
        "revoked": {"UpdateFirmware": {"status": "RevokedCertificate"}},
        "unsigned": {"UpdateFirmware": {"status": "Accepted"}},
    }
    stations = {
        name: await ocpp.booted(name, "ocpp2.0.1", what, answers=given)
        for name, given in answers.items()
    }
    old = await ocpp.booted("V16", "ocpp1.6", OLD)
    campaign = await rollout.begin(signed=SIGNED)
    asked = await old.was_asked("SignedUpdateFirmware")
    assert asked["firmware"]["signature"] == SIGNED["signature"]
    number = asked["requestId"]
    signed = "SignedFirmwareStatusNotification"
    await tell(old, "Downloading", "DownloadFailed", action=signed, requestId=number)
    request = (await stations["unsigned"].was_asked("UpdateFirmware"))["requestId"]
    await tell(stations["unsigned"], "Downloading", "InvalidSignature", requestId=request)
    async with asyncio.timeout(60):
        found = await rollout.ended(campaign)
    assert found == {
        "rejects": ("failed", "Rejected"), "revoked": ("failed", "RevokedCertificate"),
        "unsigned": ("failed", "InvalidSignature"), "V16": ("failed", "DownloadFailed"),
    }  # fmt: skip
