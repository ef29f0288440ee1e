"""Campaigns over REST, with what stations tell fed through the commit path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from cloud.kernel import events
from cloud.kernel.facts import Delivery, Spoken
from cloud.kernel.handover import Move
from cloud.kernel.http import Role
from cloud.ota.campaigns import UpdateHandover, forget_station, taker
from cloud.ota.cohorts import Candidate
from cloud.ota.writer import UpdateWriter
from cloud.stations.api import to_ms
from protocols.agent_link import (
    ClockQuality,
    Stamp,
    StateBatch,
    StationStatus,
    Stream,
    Update,
    UpdateState,
    UpdateStatus,
)
from protocols.ocpp.asks import UpdateFirmware
from protocols.ocpp.messages import Answer, Answered, Boot, Firmware
from protocols.quantities import Milliseconds
from protocols.release import Kind
from tests.cloud.ota.conftest import IMAGE

URL = "/api/v1/campaigns"
NEW, OLD = "2.0.0", "1.9.0"
TERMS = {"success_percent": 90, "error_percent": 20, "min_sample": 2, "deadline_s": 3600}


class Fleet:
    """Stations with agents, and what they tell."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.stations: dict[str, Any] = {}
        self.outbox = UUID(int=5)
        self.seq = 0

    async def add(self, count: int, link: str = "agent") -> None:
        for number in range(len(self.stations) + 1, len(self.stations) + count + 1):
            station = await self.world.station(f"CP-{number}")
            self.stations[station.identity] = station
            self.world.link.linked[station.id] = link

    def stamp(self) -> Stamp:
        now = Milliseconds(to_ms(self.world.clock()))
        return Stamp(now, Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)

    async def tell(self, identity: str, *facts: Any, seq: int | None = None) -> None:
        self.seq += 1
        station = self.stations[identity]
        batch = StateBatch(self.outbox, seq or self.seq, seq or self.seq, self.stamp(), facts)
        await self.world.commit(
            Delivery(station.id, station.tenant_id, self.outbox, self.world.clock(), Stream.STATE,
                     batch)
        )  # fmt: skip

    def runs(self, version: str, *hardware: str) -> StationStatus:
        return StationStatus(
            at=self.stamp(), agent_version=version, boards={"main": "ABB Terra AC"},
            local_list_version=0, pending_billing=0, pending_telemetry=0, journal_bytes=0,
            hardware=hardware,
        )  # fmt: skip

    def status(self, request: str, state: str, reason: str = "") -> UpdateStatus:
        return UpdateStatus(UUID(request), "agent/x", NEW, UpdateState(state), self.stamp(), reason)

    async def succeed(self, identity: str, request: str) -> None:
        await self.tell(identity, self.runs(NEW), self.status(request, "Installed"))

    async def fail(self, identity: str, request: str) -> None:
        await self.tell(identity, self.status(request, "InstallationFailed", "rolled back"))


@pytest.fixture
def fleet(world: Any) -> Fleet:
    return Fleet(world)


@pytest.fixture
async def second(world: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with await world.client(Role.OPERATOR) as client:
        yield client


Begin = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def begin(admin: httpx.AsyncClient, second: httpx.AsyncClient, released: Any) -> Begin:
    """`begin(waves=…, release=…)`: an approved campaign over everyone."""

    async def made(release: int | None = None, **terms: Any) -> dict[str, Any]:
        number = release or await released(NEW)
        name = f"cohort {uuid4()}"
        cohort = (await admin.post("/api/v1/cohorts", json={"name": name})).json()["id"]
        body = {"name": "Agent 2", "release": number, "cohort": cohort, **TERMS, **terms}
        draft = await admin.post(URL, json=body)
        assert draft.status_code == 201, draft.text
        assert draft.json()["stage"] == "draft"
        begun = await second.post(f"{URL}/{draft.json()['id']}/approval")
        assert begun.status_code == 200, begun.text
        return dict(begun.json())

    return made


async def devices(client: httpx.AsyncClient, campaign: Any, **query: Any) -> dict[str, Any]:
    answer = await client.get(f"{URL}/{campaign['id']}/devices", params=query)
    assert answer.status_code == 200, answer.text
    return {one["station"]: one for one in answer.json()["items"]}


async def look(client: httpx.AsyncClient, campaign: Any) -> dict[str, Any]:
    return dict((await client.get(f"{URL}/{campaign['id']}")).json())


async def under_way(client: httpx.AsyncClient, campaign: Any) -> dict[str, str]:
    held = await devices(client, campaign, standing="offered")
    return {station: one["request"] for station, one in held.items()}


# --------------------------------------------------------------------------- agents


async def test_a_campaign_goes_through_its_waves_by_what_agents_tell(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(10)
    for identity in fleet.stations:
        await fleet.tell(identity, fleet.runs(OLD))
    campaign = await begin(waves=[20])
    assert (campaign["stage"], campaign["wave"], campaign["waves"]) == ("running", 1, [20, 100])
    first = await under_way(admin, campaign)
    assert len(first) == 2
    orders = world.link.ordered
    assert {one.do for one in orders} == {Update(UUID(request)) for request in first.values()}
    assert all(one.until == world.clock() + timedelta(hours=1) for one in orders)
    for station, request in first.items():
        await fleet.tell(station, fleet.status(request, "Downloading"))
        await fleet.succeed(station, request)
    assert await world.campaigns.plan() == 1
    shown = await look(admin, campaign)
    assert (shown["wave"], shown["counts"]["succeeded"], shown["counts"]["offered"]) == (2, 2, 8)
    for station, request in (await under_way(admin, campaign)).items():
        await fleet.succeed(station, request)
    await world.campaigns.plan()
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["counts"]["succeeded"]) == ("finished", 10)
    assert shown["ended_at"] is not None
    station = next(iter(first))
    history = await admin.get(f"{URL}/{campaign['id']}/devices/{station}/history")
    assert [one["what"] for one in history.json()["items"]] == [
        "offered", "Downloading", "Installed", "succeeded",
    ]  # fmt: skip
    audit = (await admin.get(f"{URL}/{campaign['id']}/audit", params={"sort": "at"})).json()
    told = [(one["actor"].split(":")[0], one["what"]) for one in audit["items"]]
    assert told == [("key", "created"), ("key", "approved"), ("cloud", "wave 2"),
                    ("cloud", "finished")]  # fmt: skip
    happened = (await admin.get("/api/v1/events", params={"kind": "update."})).json()["items"]
    assert len(happened) == 10
    assert await world.campaigns.plan() == 0


async def test_the_author_cannot_approve_and_nothing_is_approved_twice(
    fleet: Fleet, admin: httpx.AsyncClient, second: httpx.AsyncClient, released: Any
) -> None:
    await fleet.add(1)
    release = await released(NEW)
    cohort = (await admin.post("/api/v1/cohorts", json={"name": "all"})).json()["id"]
    made = await admin.post(URL, json={"name": "x", "release": release, "cohort": cohort})
    own = await admin.post(f"{URL}/{made.json()['id']}/approval")
    assert (own.status_code, own.json()["code"]) == (403, "campaign.own")
    assert (await second.post(f"{URL}/{made.json()['id']}/approval")).status_code == 200
    again = await second.post(f"{URL}/{made.json()['id']}/approval")
    assert (again.status_code, again.json()["code"]) == (409, "campaign.stage")


async def test_ota_f51_silent_stations_fail_at_the_deadline_and_halt_the_campaign(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(5)
    campaign = await begin()
    assert await world.campaigns.plan() == 0
    world.clock.forward(minutes=59, seconds=59)
    assert await world.campaigns.plan() == 0
    world.clock.forward(seconds=1)
    assert await world.campaigns.plan() == 1
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["counts"]["failed"]) == ("halted", 5)
    assert shown["reason"] == "5 of 5 devices of wave 1 failed"


async def test_ota_f52_installed_alone_does_not_count(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(1)
    await fleet.tell("CP-1", fleet.runs(OLD))
    campaign = await begin()
    request = (await under_way(admin, campaign))["CP-1"]
    await fleet.tell("CP-1", fleet.status(request, "Installed"))
    await world.campaigns.plan()
    assert (await look(admin, campaign))["counts"]["succeeded"] == 0
    await fleet.tell("CP-1", fleet.runs(NEW))
    await world.campaigns.plan()
    assert (await look(admin, campaign))["stage"] == "finished"


async def test_ota_f39_an_outbox_that_is_replayed_changes_nothing(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(1)
    campaign = await begin()
    request = (await under_way(admin, campaign))["CP-1"]
    await fleet.tell("CP-1", fleet.status(request, "Downloading"), seq=50)
    await fleet.tell("CP-1", fleet.runs(NEW), fleet.status(request, "Installed"), seq=60)
    await fleet.tell("CP-1", fleet.status(request, "InstallationFailed"), seq=55)
    await fleet.tell("CP-1", fleet.runs(OLD), seq=58)
    await world.campaigns.plan()
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["counts"]["succeeded"]) == ("finished", 1)


async def test_ota_f54_stations_that_are_deleted_or_moved_are_counted_no_more(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(4)
    campaign = await begin()
    requests = await under_way(admin, campaign)
    await fleet.succeed("CP-1", requests["CP-1"])
    await fleet.succeed("CP-2", requests["CP-2"])
    moved, deleted = fleet.stations["CP-3"], fleet.stations["CP-4"]
    async with world.database.commit_unit() as cursor:
        await UpdateHandover(world.clock).station_moved(cursor, Move(moved.id, 1, 2))
    async with world.database.unit(deleted.tenant_id) as cursor:
        await forget_station(cursor, deleted.id, world.clock())
    await world.campaigns.plan()
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["counts"]["gone"]) == ("finished", 2)


async def test_ota_f55_a_fallback_after_the_end_is_on_record(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(2)
    campaign = await begin()
    for station, request in (await under_way(admin, campaign)).items():
        await fleet.succeed(station, request)
    await world.campaigns.plan()
    world.clock.forward(days=3)
    await fleet.tell("CP-2", fleet.runs(OLD))
    await world.campaigns.plan()
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["counts"]["succeeded"], shown["counts"]["failed"]) == (
        "finished", 1, 1,
    )  # fmt: skip
    held = await devices(admin, campaign, standing="failed")
    assert held["CP-2"]["reason"] == "it fell back to 1.9.0"
    failed = (await admin.get("/api/v1/events", params={"kind": "update.failed"})).json()
    assert len(failed["items"]) == 1


async def test_a_bad_release_halts_by_itself_and_a_person_decides(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(10)
    campaign = await begin()
    requests = await under_way(admin, campaign)
    for number in (1, 2):
        await fleet.fail(f"CP-{number}", requests[f"CP-{number}"])
    await world.campaigns.plan()
    shown = await look(admin, campaign)
    assert (shown["stage"], shown["reason"]) == ("halted", "2 of 10 devices of wave 1 failed")
    assert (await admin.post(f"{URL}/{campaign['id']}/pause")).status_code == 409
    resumed = await admin.post(f"{URL}/{campaign['id']}/resumption")
    assert (resumed.json()["stage"], resumed.json()["counts"]["excused"]) == ("running", 2)
    paused = await admin.post(f"{URL}/{campaign['id']}/pause")
    assert paused.json()["stage"] == "paused"
    world.link.ordered.clear()
    aborted = await admin.post(f"{URL}/{campaign['id']}/abort")
    assert (aborted.json()["stage"], aborted.json()["counts"]["withdrawn"]) == ("aborted", 8)
    assert len(world.link.ordered) == 8, "each is told to look again"
    stale = {"If-Match": '"0123456789abcdef"'}
    assert (await admin.post(f"{URL}/{campaign['id']}/abort", headers=stale)).status_code == 412


async def test_a_later_campaign_takes_a_station_over(
    world: Any, fleet: Fleet, begin: Begin, released: Any, admin: httpx.AsyncClient
) -> None:
    await fleet.add(2)
    first = await begin()
    newer = await begin(release=await released("2.1.0", release_counter=8))
    await world.campaigns.plan()
    assert (await look(admin, first))["counts"]["gone"] == 2
    held = await devices(admin, first)
    assert held["CP-1"]["reason"] == "a later campaign has taken it over"
    assert len(await under_way(admin, newer)) == 2
    shown = (await admin.get("/api/v1/stations/CP-1/updates")).json()["items"]
    assert {one["campaign"] for one in shown} == {first["id"], newer["id"]}


async def test_devices_are_listed_filtered_and_as_csv(
    fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(4)
    campaign = await begin(waves=[25])
    assert len(await devices(admin, campaign, wave=1)) == 1
    assert len(await devices(admin, campaign, standing="waiting")) == 3
    assert await devices(admin, campaign, word="Downloading") == {}
    sheet = await admin.get(f"{URL}/{campaign['id']}/devices", params={"format": "csv"})
    assert sheet.text.splitlines()[0].startswith("campaign,station,component,link,wave,standing")
    assert len(sheet.text.splitlines()) == 5


async def test_only_what_is_signed_and_current_makes_a_campaign(
    admin: httpx.AsyncClient, second: httpx.AsyncClient, released: Any, release_keys: Any,
    publish: Any,
) -> None:  # fmt: skip
    release = await released(NEW)
    cohort = (await admin.post("/api/v1/cohorts", json={"name": "all"})).json()["id"]
    body = {"name": "x", "release": release, "cohort": cohort}
    assert (await admin.post(URL, json={**body, "release": 999})).status_code == 404
    assert (await admin.post(URL, json={**body, "cohort": 999})).status_code == 404
    draft = await admin.post(URL, json=body)
    nobody = await second.post(f"{URL}/{draft.json()['id']}/approval")
    assert (nobody.status_code, nobody.json()["code"]) == (409, "campaign.empty")
    release_keys.files["agent"].clear()
    await publish(agent=release_keys.role("agent"))
    revoked = await admin.post(URL, json=body)
    assert (revoked.status_code, revoked.json()["code"]) == (409, "release.unusable")


@pytest.mark.parametrize(
    ("told", "tags", "images", "taken"),
    [
        (["arm"], [], ["arm", "x86"], "arm"),
        (["arm"], ["x86"], ["arm", "x86"], "arm"),
        (["arm"], [], ["x86"], None),
        ([], ["x86"], ["arm", "x86"], "x86"),
        ([], [], ["arm", "x86"], None),
        ([], [], ["x86"], "x86"),
    ],
)
def test_each_agent_gets_the_image_for_its_hardware(
    told: list[str], tags: list[str], images: list[str], taken: str | None
) -> None:
    station = Candidate(1, "CP-1", None, (), OLD, frozenset(tags), frozenset(told))
    targets: Any = [
        SimpleNamespace(path=one, custom={"hw_ids": [one], "encoding": "zstd"}) for one in images
    ]
    release: Any = SimpleNamespace(kind="agent")
    found = taker(station, "agent", release, targets)
    assert (found and found.path) == taken


# --------------------------------------------------------------------------- cohorts and tags


async def test_cohorts_are_made_changed_and_show_their_members(
    world: Any, fleet: Fleet, admin: httpx.AsyncClient
) -> None:
    await fleet.add(3)
    await fleet.tell("CP-1", fleet.runs(OLD))
    tagged = await admin.put("/api/v1/stations/CP-2/tags", json={"tags": ["pilot", "pilot"]})
    assert tagged.json() == {"tags": ["pilot"]}
    assert (await admin.get("/api/v1/stations/CP-2/tags")).json() == {"tags": ["pilot"]}

    async def members(**narrowed: Any) -> list[str]:
        name = str(uuid4())
        made = await admin.post("/api/v1/cohorts", json={"name": name, **narrowed})
        found = (await admin.get(f"/api/v1/cohorts/{made.json()['id']}/members")).json()
        assert found["count"] == len(found["stations"])
        return [one["station"] for one in found["stations"]]

    assert await members() == ["CP-1", "CP-2", "CP-3"]
    assert await members(tags=["pilot"]) == ["CP-2"]
    assert await members(models=["terra"]) == ["CP-1"]
    assert await members(versions=["1."]) == ["CP-1"]
    assert await members(sites=[5]) == []
    await fleet.tell("CP-3", fleet.runs(OLD, "linux-armv7l-cp311", "KPB-22"))
    assert await members(hardware=["KPB-22", "KPB-23"]) == ["CP-3"]
    shown = (await admin.get("/api/v1/stations/CP-3")).json()["agent"]["hardware"]
    assert shown == ["linux-armv7l-cp311", "KPB-22"]
    made = (await admin.post("/api/v1/cohorts", json={"name": "all"})).json()
    assert (await admin.post("/api/v1/cohorts", json={"name": "ALL"})).status_code == 409
    url = f"/api/v1/cohorts/{made['id']}"
    shown = await admin.get(url)
    changed = await admin.patch(
        url, json={"percent": 10}, headers={"If-Match": shown.headers["etag"]}
    )
    assert (changed.json()["percent"], changed.json()["name"]) == (10, "all")
    stale = await admin.delete(url, headers={"If-Match": shown.headers["etag"]})
    assert stale.status_code == 412
    assert (await admin.delete(url)).status_code == 204
    assert (await admin.get(url)).status_code == 404


# --------------------------------------------------------------------------- the director


async def test_the_director_names_what_the_campaign_offers_and_only_to_its_stations(
    world: Any, fleet: Fleet, begin: Begin, release_keys: Any, admin: httpx.AsyncClient
) -> None:
    await fleet.add(2)
    window = {"start": "01:00", "end": "05:00", "time_zone": "Asia/Tashkent"}
    campaign = await begin(waves=[50], window=window)
    ((station, request),) = (await under_way(admin, campaign)).items()
    base = f"/ota/director/{station}/metadata"

    async def named(of: str) -> tuple[int, dict[str, Any]]:
        stamp = (await admin.get(f"/ota/director/{of}/metadata/timestamp.json")).json()["signed"]
        version = stamp["meta"]["snapshot.json"]["version"]
        found = await admin.get(f"/ota/director/{of}/metadata/{version}.targets.json")
        return stamp["version"], dict(found.json()["signed"]["targets"])

    version, targets = await named(station)
    ((path, target),) = targets.items()
    ((image_path, image),) = release_keys.files["agent"].items()
    asked = target["custom"].pop("request")
    assert path == image_path
    assert target == msgspec.json.decode(msgspec.json.encode(image.to_dict()))
    held = (await devices(admin, campaign))[station]
    assert (asked["id"], asked["station"]) == (request, station)
    assert asked["window"]["to_ms"] - asked["window"]["from_ms"] == 4 * 3_600_000
    assert asked["expires_at"] == asked["window"]["to_ms"] + 3_600_000
    assert held["deadline_at"] is not None
    assert await named(station) == (version, targets | {path: {**target, "custom": {
        **target["custom"], "request": asked}}})  # fmt: skip
    other = next(identity for identity in fleet.stations if identity != station)
    assert (await named(other))[1] == {}
    await admin.post(f"{URL}/{campaign['id']}/abort")
    assert await named(station) == (version + 1, {})
    assert (await admin.get(f"{base}/{version}.targets.json")).status_code == 200
    assert (await admin.get(f"{base}/1.root.json")).status_code == 200
    assert (await admin.get(f"{base}/2.root.json")).status_code == 404
    assert (await admin.get("/ota/director/NOBODY/metadata/timestamp.json")).status_code == 404
    world.clock.forward(hours=13)
    assert (await named(station))[0] > version + 1, "signed anew before it expires"


# --------------------------------------------------------------------------- OCPP

Say = Callable[..., Awaitable[None]]


@pytest.fixture
def say(world: Any) -> Say:
    async def write(station: Any, *told: Any) -> None:
        answer = Answer(now_ms=Milliseconds(0))
        spoken = [
            Spoken(station.id, station.tenant_id, 1, world.clock(), one, answer) for one in told
        ]
        async with world.database.commit_unit() as cursor:
            await events.append(cursor, await UpdateWriter().write_spoken(cursor, spoken))

    return write


@pytest.fixture
async def ocpp(world: Any, fleet: Fleet, released: Any, begin: Begin) -> dict[str, Any]:
    """A campaign over three OCPP stations."""
    await fleet.add(3, link="ocpp2.0.1")
    async with world.database.listener() as owner:
        for station in fleet.stations.values():
            await owner.execute(
                "INSERT INTO stations.hardware (station_id, tenant_id, vendor, model, serial,"
                " firmware, iccid, imsi, meter_type, meter_serial, reason, booted_at)"
                " VALUES (%s, 1, 'V', 'Terra54', '', '1.9.0', '', '', '', '', '', now())",
                (station.id,),
            )
    release = await released(NEW, Kind.BOARD, hw_ids=("Terra54",), name="terra")
    return await begin(release, error_percent=70)


def answered(order: Any, status: str, number: int = 7) -> Answered:
    return Answered(
        command=order.id, action="UpdateFirmware", request={"requestId": number},
        response={"status": status}, accepted=status.startswith("Accepted"), text=status,
    )  # fmt: skip


async def test_ocpp_stations_get_a_plain_url_and_are_proven_by_their_boot(
    world: Any, fleet: Fleet, ocpp: Any, say: Say, admin: httpx.AsyncClient
) -> None:
    first, second, third = world.link.ordered
    assert isinstance(first.do, UpdateFirmware)
    assert (first.do.expected_version, first.do.retrieve_at) == (NEW, world.clock())
    assert msgspec.to_builtins(first.do)["action"] == "update_firmware"
    fetched = await admin.get(first.do.location)
    assert fetched.content == IMAGE + b"2.0.0"
    assert fetched.headers["cache-control"] == "private, no-store"
    stations = {one.id: one for one in fleet.stations.values()}
    one, two, three = (stations[order.station_id] for order in (first, second, third))
    await say(one, answered(first, "Accepted", 7))
    for status in ("Downloading", "Downloaded", "SignatureVerified", "Installing", "Installed"):
        await say(one, Firmware(status=status, request_id=7))
    await say(one, Firmware(status="InstallationFailed", request_id=6))
    await say(one, Firmware(status="Idle"))
    await world.campaigns.plan()
    assert (await look(admin, ocpp))["counts"]["succeeded"] == 0, "Installed alone is not enough"
    await say(one, Boot(vendor="V", model="Terra54", firmware="v2.0.0"))
    await say(two, Boot(vendor="V", model="Terra54", firmware=NEW))  # Installed was lost
    await say(three, answered(third, "InvalidCertificate"))
    await world.campaigns.plan()
    shown = await look(admin, ocpp)
    assert (shown["counts"]["succeeded"], shown["counts"]["failed"]) == (2, 1)
    history = await admin.get(f"{URL}/{ocpp['id']}/devices/{one.identity}/history")
    words = [step["what"] for step in history.json()["items"]]
    assert words == ["offered", "Downloading", "Downloaded", "SignatureVerified", "Installing",
                     "Installed", "succeeded"]  # fmt: skip
    assert (await admin.get(first.do.location)).status_code == 404, "it is offered no more"


@pytest.mark.parametrize(
    "status",
    ["DownloadFailed", "InvalidSignature", "InstallVerificationFailed", "InstallationFailed"],
)
async def test_every_bad_end_of_ocpp_is_a_failure(
    world: Any, fleet: Fleet, ocpp: Any, say: Say, admin: httpx.AsyncClient, status: str
) -> None:
    """Also from a 1.6 station, which gives no number."""
    await say(fleet.stations["CP-1"], Firmware(status=status))
    await world.campaigns.plan()
    held = await devices(admin, ocpp, standing="failed")
    assert {name: one["reason"] for name, one in held.items()} == {"CP-1": status}


async def test_ota_f36_a_new_request_cancels_the_one_before_or_is_rejected(
    world: Any, fleet: Fleet, ocpp: Any, say: Say, begin: Begin, released: Any,
    admin: httpx.AsyncClient,
) -> None:  # fmt: skip
    await say(fleet.stations["CP-1"], Firmware(status="Installing"))
    world.link.ordered.clear()
    release = await released("2.1.0", Kind.BOARD, hw_ids=("Terra54",), name="terra",
                             release_counter=8)  # fmt: skip
    newer = await begin(release, error_percent=70)
    by_station = {one.station_id: one for one in world.link.ordered}
    one, two = fleet.stations["CP-1"], fleet.stations["CP-2"]
    await say(one, answered(by_station[one.id], "Rejected"))
    await say(two, answered(by_station[two.id], "AcceptedCanceled"))
    await world.campaigns.plan()
    assert (await look(admin, ocpp))["counts"]["gone"] == 3
    held = await devices(admin, newer)
    assert held["CP-1"]["standing"] == "failed"
    assert held["CP-2"]["standing"] == "offered"


# --------------------------------------------------------------------------- several processes


async def test_two_planners_and_one_that_died_count_everything_once(
    world: Any, fleet: Fleet, begin: Begin, admin: httpx.AsyncClient
) -> None:
    await fleet.add(6)
    campaign = await begin(error_percent=100)
    requests = await under_way(admin, campaign)
    for station in ("CP-1", "CP-2", "CP-3", "CP-4"):
        await fleet.succeed(station, requests[station])

    class DeadError(Exception):
        pass

    async def dies(*_: Any) -> None:
        raise DeadError

    await fleet.fail("CP-6", requests["CP-6"])
    order, world.link.order = world.link.order, dies
    with pytest.raises(DeadError):
        await world.campaigns.plan()
    world.link.order = order
    assert (await look(admin, campaign))["counts"]["succeeded"] == 0
    await asyncio.gather(world.campaigns.plan(), world.campaigns.plan())
    counts = (await look(admin, campaign))["counts"]
    assert counts["succeeded"] + counts["failed"] + counts["offered"] == 6
    assert counts["failed"] == 1
