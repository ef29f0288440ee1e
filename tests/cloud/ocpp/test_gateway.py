"""Connections: who gets in, who stays, what a dead or second one can do, on one gateway or two."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.cloud.ocpp.conftest import Ocpp, Refused, serving


async def test_the_newest_connection_of_a_station_wins(ocpp: Ocpp) -> None:
    """Quirk S22: power was lost, no close frame came, the charger is back."""
    old = await ocpp.booted("CP-1")
    new = await ocpp.booted("CP-1")
    assert (await old.closed())[0] == 1008
    assert await new.call("Heartbeat", {})
    await asyncio.sleep(0.3)  # the old one's end must have been entered, and have changed nothing
    shown = await ocpp.get("/stations/CP-1")
    assert shown["online"]


async def test_a_closed_connection_is_shown_with_its_reason(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CP-1")
    await station.socket.close(1000, "good night")

    async def gone() -> Any:
        (found,) = (await ocpp.get("/connections"))["items"]
        return None if found["online"] else found

    assert "good night" in (await ocpp.until(gone, "the end"))["closed_because"]


async def test_two_gateways_fence_each_other(cloud_dsn: str, tmp_path: Path) -> None:
    async with (
        serving(cloud_dsn, tmp_path / "a") as one,
        serving(cloud_dsn, tmp_path / "b") as other,
    ):
        old = await one.booted("CP-1")
        new = await other.booted("CP-1")
        assert (await old.closed())[0] == 1008
        await asyncio.sleep(0.3)  # the first gateway enters the old one's end meanwhile
        assert (await one.get("/stations/CP-1"))["online"]
        command = await one.api.post(
            "/stations/CP-1/commands/set-availability", json={"evse": 0, "operative": False}
        )
        assert command.status_code == 202, command.text
        asked = await new.was_asked("ChangeAvailability")
        assert asked == {"connectorId": 0, "type": "Inoperative"}

        async def done() -> Any:
            found = await other.get(f"/commands/{command.json()['command']}")
            return found["status"] == "executed"

        await other.until(done, "the command's answer")


async def test_a_gateway_that_stops_leaves_its_stations_offline(
    cloud_dsn: str, tmp_path: Path
) -> None:
    async with serving(cloud_dsn, tmp_path / "b") as other:
        async with serving(cloud_dsn, tmp_path / "a") as one:
            station = await one.booted("CP-1")
        assert (await station.closed())[0] in {1012, 1006}

        async def offline() -> bool:
            return not (await other.get("/stations/CP-1"))["online"]

        await other.until(offline, "the station to be shown offline")


async def test_calls_can_wait_for_a_station_that_is_away(ocpp: Ocpp) -> None:
    """It is not an agent's just because it had a connection."""
    await (await ocpp.booted("CP-1")).socket.close()

    async def offline() -> bool:
        return not (await ocpp.get("/stations/CP-1"))["online"]

    await ocpp.until(offline, "the station to be shown offline")
    url = "/stations/CP-1/ocpp/ClearCache"
    refused = await ocpp.api.post(url, json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "station.not_connected")
    waiting = await ocpp.api.post(url, json={}, headers={"Prefer": "respond-async"})
    assert waiting.status_code == 202, waiting.text
    asked = await ocpp.api.post("/stations/CP-1/commands/reset", json={"kind": "soft"})
    assert asked.status_code == 202, asked.text
    back = await ocpp.booted("CP-1")
    await back.was_asked("ClearCache")
    await back.was_asked("Reset")


async def test_a_pending_station_waits_for_its_approval(cloud_dsn: str, tmp_path: Path) -> None:
    """Quirk S9: it may say other things meanwhile; they are refused, not crashed on."""
    async with serving(cloud_dsn, tmp_path, registration="pending") as ocpp:
        station = await ocpp.connect("CP-1")
        boot = await station.boot()
        assert (boot["status"], boot["interval"]) == ("Pending", 30)
        with pytest.raises(Refused, match="SecurityError"):
            await station.call("Authorize", {"idTag": "x"})
        listed = await ocpp.get("/stations", registration="pending")
        assert [one["station"] for one in listed["items"]] == ["CP-1"]
        approved = await ocpp.api.post("/pending/CP-1/approval")
        assert approved.status_code < 300, approved.text
        assert (await station.boot())["status"] == "Accepted"
        assert await station.call("Authorize", {"idTag": "x"})


async def test_strangers_are_refused_where_stations_must_be_known(
    cloud_dsn: str, tmp_path: Path
) -> None:
    async with serving(cloud_dsn, tmp_path, registration="known") as ocpp:
        with pytest.raises(InvalidStatus) as refused:
            await ocpp.connect("CP-1")
        assert refused.value.response.status_code == 404
        assert (await ocpp.api.post("/stations", json={"station": "CP-1"})).status_code == 201
        await ocpp.booted("CP-1")


async def test_a_password_is_asked_for_before_anything_changes(ocpp: Ocpp) -> None:
    """Attacks A1, A3, A4."""
    await ocpp.api.post("/stations", json={"station": "CP-1"})
    set_ = await ocpp.api.put("/stations/CP-1/ocpp-password", json={"password": "a good password"})
    assert set_.status_code < 300, set_.text
    genuine = await ocpp.booted("CP-1", password="a good password")
    for wrong in ({}, {"password": "guess"}, {"password": "a good password", "user": "CP-2"}):
        with pytest.raises(InvalidStatus) as refused:
            await ocpp.connect("CP-1", **wrong)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 401
    assert await genuine.call("Heartbeat", {})
    assert (await ocpp.get("/connections"))["items"][0]["security_profile"] == 1


@pytest.mark.parametrize("identity", ["RDAM|123", "Ташкент 1", "CP:1", "a" * 48])
async def test_identities_are_decoded_once(ocpp: Ocpp, identity: str) -> None:
    """Quirk S29."""
    await ocpp.booted(identity)
    shown = (await ocpp.get("/connections"))["items"]
    assert [one["station"] for one in shown] == [identity]


async def test_no_subprotocol_is_refused_unless_it_was_allowed(ocpp: Ocpp) -> None:
    """Quirk S6."""
    await ocpp.api.post("/stations", json={"station": "CP-1"})
    with pytest.raises(InvalidStatus):
        await ocpp.connect("CP-1", version=None)
    changed = await ocpp.api.patch("/stations/CP-1/ocpp", json={"allow_no_subprotocol": True})
    assert changed.status_code == 200, changed.text
    station = await ocpp.booted("CP-1", version=None)
    assert station.socket.subprotocol is None


async def test_a_frame_that_is_too_long_ends_the_connection_and_no_other(ocpp: Ocpp) -> None:
    """Attack A16."""
    attacker, honest = await ocpp.booted("CP-1"), await ocpp.booted("CP-2")
    with contextlib.suppress(ConnectionClosed):
        await attacker.send("x" * 10_000_000)
    assert (await attacker.closed())[0] in {1009, 1006}  # cut off in the midst of it
    assert await honest.call("Heartbeat", {})


async def test_a_message_in_parts_is_one(ocpp: Ocpp) -> None:
    station = await ocpp.connect("CP-1")
    await station.socket.send(iter(['[2,"1","Heart', 'beat",{}]']))
    assert "currentTime" in await station.answer("1")


@pytest.mark.parametrize(
    "nonsense",
    ["", "{}", "[]", "[2]", "not json", '[2,"1"]', '[3,"9",{}]', '[4,"9","x","y",{}]',
     "[" * 100_000, '[2,"1","Heartbeat",' + '{"a":' * 2000 + "1" + "}" * 2000 + "]",
     '[2,"1","Heartbeat",{"a":1e999}]', "\x00", '[9,"1","Heartbeat",{}]'],
)  # fmt: skip
async def test_nonsense_is_survived(ocpp: Ocpp, nonsense: str) -> None:
    """Attacks A17, A20."""
    station = await ocpp.booted("CP-1")
    await station.send(nonsense)
    assert "currentTime" in await station.call("Heartbeat", {}, "after")


async def test_what_is_sent_without_asking_is_kept_and_not_answered(ocpp: Ocpp) -> None:
    """2.1's SEND: not even where a call has the same message id."""
    station = await ocpp.booted("CS-1", "ocpp2.1")
    point = {"id": 1, "pending": 0, "basetime": "2026-11-28T10:00:00Z",
             "data": [{"t": 1.5, "v": "98"}]}  # fmt: skip
    status = {"timestamp": "2026-11-28T10:00:00Z", "connectorStatus": "Occupied",
              "evseId": 1, "connectorId": 1}  # fmt: skip
    asked = {"csr": "none", "requestId": 1}
    await station.send([6, "same", "NotifyPeriodicEventStream", point])
    await station.send([6, "same", "StatusNotification", status])
    await station.send([6, "same", "Heartbeat", {}])
    assert await station.call("SignCertificate", asked, "same") == {"status": "Rejected"}
    assert await station.call("Heartbeat", {})

    async def noticed() -> Any:
        return (await ocpp.get("/stations/CS-1/notices"))["items"]

    (found,) = await ocpp.until(noticed, "what was sent without asking")
    assert found["payload"] == point
    assert station.results == {}
    with pytest.raises(Refused):  # so that there is something to wait for
        await station.call("MakeCoffee", {})
    await station.leave()
    assert (await ocpp.deviations("CS-1", "refused")).keys() == {"refused"}


async def test_a_flood_is_slowed_down_and_others_are_served(ocpp: Ocpp) -> None:
    """Attack A18."""
    attacker, honest = await ocpp.booted("CP-1"), await ocpp.booted("CP-2")

    async def flood() -> None:
        for number in range(6_000):
            await attacker.send(f'[2,"f{number}","Heartbeat",{{}}]')

    task = asyncio.create_task(flood())
    loop = asyncio.get_running_loop()
    for _ in range(20):
        began = loop.time()
        await honest.call("Heartbeat", {})
        assert loop.time() - began < 5
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_deleted_station_is_cut_off(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CP-1")
    assert (await ocpp.api.delete("/stations/CP-1")).status_code == 204
    assert (await station.closed())[0] == 1008


async def test_frames_are_kept_and_exported(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CP-1")
    await station.call("Heartbeat", {})

    async def logged() -> Any:
        return (await ocpp.get("/stations/CP-1/ocpp/messages", action="heartbeat"))["items"]

    found = await ocpp.until(logged, "the frame log")
    assert {(one["direction"], one["action"]) for one in found} == {
        ("in", "Heartbeat"),
        ("out", "Heartbeat"),
    }
    exported = await ocpp.api.get("/stations/CP-1/ocpp/messages/export")
    assert len(exported.text.splitlines()) >= 4
    paged = await ocpp.get("/stations/CP-1/ocpp/messages", limit=1)
    behind = await ocpp.get("/stations/CP-1/ocpp/messages", limit=1, cursor=paged["next"])
    assert behind["items"] != paged["items"]


async def test_five_hundred_start_in_the_same_instant_with_a_small_pool(
    cloud_dsn: str, tmp_path: Path
) -> None:
    """Quirk S32: a gateway that holds one connection while it asks for another locks up."""
    async with serving(cloud_dsn, tmp_path, app_pool=2, commit_pool=3) as ocpp:
        await ocpp.token("T")
        count = 60
        stations = await asyncio.gather(*(ocpp.connect(f"S-{n}") for n in range(count)))
        await asyncio.gather(*(station.boot() for station in stations))
        start = {"connectorId": 1, "idTag": "T", "meterStart": 0,
                 "timestamp": "2026-11-28T10:00:00Z"}  # fmt: skip
        answers = await asyncio.gather(*(s.call("StartTransaction", start) for s in stations))
        assert len({answer["transactionId"] for answer in answers}) == count
