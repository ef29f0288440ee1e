"""What stations told of their condition, over REST."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx

from cloud.diagnostics.writer import DiagnosticsWriter
from cloud.kernel.facts import Delivery, Spoken
from cloud.stations.api import to_ms
from protocols.agent_link import BillingBatch, ClockQuality, SecurityEvent, Stamp, Stream
from protocols.ocpp.messages import (
    HEARTBEAT,
    Answer,
    Answered,
    Boot,
    DataTransfer,
    Firmware,
    Log,
    Meter,
    Notice,
    Security,
)
from protocols.quantities import Milliseconds

URL = "/api/v1/stations/CP-1"
PLACE = {"component": {"name": "ChargingStation"}, "variable": {"name": "Power"}}
MONITOR = {**PLACE, "type": "UpperThreshold", "severity": 3}


def answered(action: str, request: Any, response: Any = None, command: int = 5) -> Answered:
    return Answered(
        command=UUID(int=command), action=action, request=request,
        response=response or {"status": "Accepted"}, accepted=True,
    )  # fmt: skip


async def items(client: httpx.AsyncClient, what: str, **query: Any) -> list[Any]:
    answer = await client.get(f"{URL}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


# --------------------------------------------------------------------------- security events


async def test_agents_and_stations_security_events_are_one_list(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    now = world.clock()
    stamp = Stamp(Milliseconds(to_ms(now)), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
    batch = BillingBatch(UUID(int=2), 1, 1, stamp, (SecurityEvent(uuid4(), stamp, "Agent", "a"),))
    await world.commit(
        Delivery(station.id, station.tenant_id, UUID(int=2), now, Stream.BILLING, batch)
    )
    world.clock.forward(minutes=10)
    told = Security(type="TamperDetectionActivated", at_ms=Milliseconds(to_ms(now) + 60_000))
    assert [event.kind for event in await say(station, told)] == ["station.security"]
    assert await say(station, told, told) == []
    shown = await items(admin, "security-events")
    assert [(one["type"], one["link"]) for one in shown] == [
        ("TamperDetectionActivated", "ocpp"), ("Agent", "agent"),
    ]  # fmt: skip
    assert len(await items(admin, "security-events", type="Agent")) == 1
    assert len(await items(admin, "security-events", **{"from": shown[0]["at"]})) == 1
    page = (await admin.get(f"{URL}/security-events", params={"limit": 1})).json()
    rest = await items(admin, "security-events", limit=1, cursor=page["next"])
    assert rest == shown[1:]


async def test_a_clock_that_cannot_be_is_not_believed(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    for at_ms in (0, to_ms(world.clock() + timedelta(days=400)), 2**60):
        await say(station, Security(type=str(at_ms), at_ms=Milliseconds(at_ms)))
    shown = await items(admin, "security-events")
    assert {one["at"] for one in shown} == {"2026-05-01T12:00:00Z"}
    assert len(shown) == 3


# --------------------------------------------------------------------------- transfers


def firmware(command: int, number: int | None = 7) -> Answered:
    location = {"location": "ftp://user:secret@fw.example/1.bin"}
    if number is None:
        return answered("UpdateFirmware", location, {}, command)
    return answered("UpdateFirmware", {"requestId": number, "firmware": location}, None, command)


async def test_an_update_has_its_history(world: Any, say: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await say(station, firmware(5))
    for status in ("Downloading", "Downloading", "Downloaded", "InstallationFailed"):
        world.clock.forward(minutes=1)
        await say(station, Firmware(status=status, request_id=7))
    await say(station, firmware(5))  # told again
    (shown,) = await items(admin, "firmware")
    assert (shown["status"], shown["open"], shown["request"]) == ("InstallationFailed", False, 7)
    assert [one["status"] for one in shown["history"]] == [
        "Asked", "Downloading", "Downloaded", "InstallationFailed",
    ]  # fmt: skip
    assert "secret" not in shown["location"]
    kinds = (await admin.get("/api/v1/events", params={"kind": "station.firmware"})).json()
    assert [one["data"]["status"] for one in kinds["items"]] == [
        "Downloading", "Downloaded", "InstallationFailed",
    ]  # fmt: skip
    assert await items(admin, "firmware", status="Downloaded") == []


async def test_an_update_whose_end_is_never_told_is_concluded_from_the_boot(
    world: Any, say: Any, versions: dict[UUID, str], admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    versions[UUID(int=5)] = "2.1"
    await say(station, firmware(5, None))
    await say(station, Firmware(status="Installing"))
    await say(station, Boot(vendor="V", model="M", firmware="2.0"))
    assert (await items(admin, "firmware"))[0]["open"]
    told = await say(station, Boot(vendor="V", model="M", firmware="2.1"))
    assert [event.data for event in told] == [{"status": "Installed", "concluded": True}]
    (shown,) = await items(admin, "firmware")
    assert (shown["status"], shown["open"], shown["concluded"], shown["expected_version"]) == (
        "Installed", False, True, "2.1",
    )  # fmt: skip
    assert await say(station, Boot(vendor="V", model="M", firmware="2.1")) == []
    assert await say(station, Firmware(status="Installed")) == []


async def test_a_later_update_makes_the_earlier_one_old(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    await say(station, firmware(5, None))
    world.clock.forward(hours=1)
    await say(station, firmware(6, None))
    await say(station, Firmware(status="Downloading"))
    shown = await items(admin, "firmware")
    assert [(one["status"], one["open"]) for one in shown] == [
        ("Downloading", True), ("Asked", False),
    ]  # fmt: skip


async def test_what_nobody_asked_for_is_kept_too(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    await say(station, Log(status="Idle"), Firmware(status="Idle"))
    assert await items(admin, "logs") == []
    told = await say(station, Log(status="Uploading"))
    assert [event.kind for event in told] == ["station.log"]
    await say(station, Log(status="Uploaded"))
    asked = {
        "requestId": 3,
        "log": {"remoteLocation": "ftp://x.example/"},
        "logType": "SecurityLog",
    }
    await say(station, answered("GetLog", asked, {"status": "Accepted", "filename": "a.log"}))
    await say(station, Log(status="UploadFailure", request_id=3))
    shown = await items(admin, "logs", sort="asked_at")
    assert [(one["status"], one["filename"], one["open"]) for one in shown] == [
        ("Uploaded", "", False), ("UploadFailure", "a.log", False),
    ]  # fmt: skip


async def test_where_firmware_was_published_is_kept(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    where = ("https://a.example/1", "ftp://b.example/2")
    published = {"request_id": 5, "location": where, "published": True}
    await say(station, Firmware(status="Published", **published))
    (found,) = await items(admin, "firmware")
    assert (found["request"], found["status"], found["open"]) == (5, "Published", False)
    (told,) = await items(admin, "notices")
    assert (told["action"], told["payload"]) == (
        "PublishFirmwareStatusNotification",
        {"status": "Published", "requestId": 5, "location": [*where]},
    )


# --------------------------------------------------------------------------- monitors, messages


async def test_monitors_are_set_reported_and_cleared(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    request = {"setMonitoringData": [{**MONITOR, "value": 11.5}]}
    response = {"setMonitoringResult": [{**MONITOR, "status": "Accepted", "id": 1}]}
    report = {
        "requestId": 1, "seqNo": 0, "generatedAt": "2026-05-01T12:00:00Z",
        "monitor": [{**PLACE, "variableMonitoring": [
            {"id": 2, "transaction": True, "value": 5, "type": "Delta", "severity": 8},
        ]}],
    }  # fmt: skip
    await say(
        station,
        answered("SetVariableMonitoring", request, response),
        Notice(action="NotifyMonitoringReport", payload=report),
    )
    shown = await items(admin, "monitors")
    assert [(one["monitor"], one["value"], one["only_in_transaction"]) for one in shown] == [
        (1, 11.5, False), (2, 5.0, True),
    ]  # fmt: skip
    assert len(await items(admin, "monitors", severity=3, component="ChargingStation")) == 1
    cleared = {"clearMonitoringResult": [{"id": 1, "status": "Accepted"}]}
    await say(station, answered("ClearVariableMonitoring", {"id": [1]}, cleared))
    assert [one["monitor"] for one in await items(admin, "monitors")] == [2]


async def test_display_messages_come_and_go(world: Any, say: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    message = {"id": 4, "priority": "InFront", "message": {"format": "UTF8", "content": "Hi"}}
    await say(station, answered("SetDisplayMessage", {"message": message}))
    told = {"requestId": 1, "messageInfo": [{**message, "id": 5}]}
    await say(station, Notice(action="NotifyDisplayMessages", payload=told))
    shown = await items(admin, "display-messages")
    assert [one["message"] for one in shown] == [4, 5]
    assert shown[0]["details"] == message
    await say(station, answered("ClearDisplayMessage", {"id": 4}))
    assert [one["message"] for one in await items(admin, "display-messages")] == [5]


# --------------------------------------------------------------------------- notices


async def test_whatever_else_is_told_is_kept_for_its_time(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    event = {"eventId": 1, "trigger": "Alerting", "actualValue": "99", **PLACE}
    quiet = {**event, "trigger": "Periodic"}
    told = await say(
        station,
        Notice(action="NotifyEvent", payload={"seqNo": 0, "eventData": [event, quiet]}),
        Notice(action="NotifyEvent", payload={"seqNo": 1, "eventData": [quiet]}),
        Notice(action="NotifyEVChargingNeeds", payload={"evseId": 1, "text": "a\0b"}),
        DataTransfer(vendor="com.example", message="hi", data={"n": 1}),
    )
    assert [(one.kind, one.data["count"], one.data["value"]) for one in told] == [
        ("station.alert", 1, "99"),
    ]  # fmt: skip
    assert len(await items(admin, "notices")) == 4
    (transfer,) = await items(admin, "notices", action="DataTransfer")
    assert transfer["payload"] == {
        "vendorId": "com.example", "messageId": "hi", "data": {"n": 1},
    }  # fmt: skip
    world.clock.forward(days=10)
    await say(station, Notice(action="NotifyEvent", payload={}))
    assert await world.diagnostics.tidy(timedelta(days=5)) == 4
    assert len(await items(admin, "notices")) == 1


async def test_most_commits_cost_nothing(world: Any) -> None:
    answer = Answer(now_ms=Milliseconds(0))
    told = (Meter(evse=1, readings=()), HEARTBEAT)
    spoken = [Spoken(1, world.clock and 1, 1, world.clock(), one, answer) for one in told]  # type: ignore[arg-type]  # any tenant
    writer = DiagnosticsWriter(None)  # type: ignore[arg-type]  # not used
    assert await writer.write_spoken(None, spoken) == []  # type: ignore[arg-type]  # not used
