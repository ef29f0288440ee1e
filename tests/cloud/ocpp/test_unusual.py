"""What stations may do and few do: each against what the specification expects of the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.cloud.ocpp.conftest import Ocpp, Payload, Refused, Station
from tests.cloud.ocpp.wire import (
    ENERGY,
    at,
    event_201,
    meter_16,
    moment,
    sample,
    start_16,
    status_16,
    stop_16,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
V16, V201, V21 = "ocpp1.6", "ocpp2.0.1", "ocpp2.1"
CARD = "UNUSUAL1"


@pytest.fixture
def ocpp(house: Ocpp) -> Ocpp:
    return house


@pytest.fixture(autouse=True)
async def card(ocpp: Ocpp) -> None:
    await ocpp.api.post("/id-tokens", json={"value": CARD})


# ----------------------------------------------------------- a 1.6 station that starts offline


async def replay(station: Station, own: int, first: int, begin: float) -> int:
    """A session that was had offline, in its own number; returns the number that it was given."""
    answer = await station.call("StartTransaction", start_16(CARD, begin, first))
    assert answer["idTagInfo"]["status"] == "Accepted"
    for n in (1, 2):
        told = moment(begin + 2 * n, sample(str(first + 1_000 * n), ENERGY))
        assert await station.call("MeterValues", meter_16(told, number=own)) == {}
    stop = stop_16(own, begin + 6, first + 3_000, idTag=CARD)
    assert await station.call("StopTransaction", stop) in (
        {"idTagInfo": {"status": "Accepted"}},
        {},
    )
    return int(answer["transactionId"])


async def sessions(ocpp: Ocpp, name: str) -> list[tuple[str, int, int, bool]]:
    found = await ocpp.transactions(station=name)
    return sorted(
        (one["started_at"], one["energy_wh"], one["meter_start_wh"], one["ended_at"] is not None)
        for one in found
    )


@pytest.mark.parametrize("own", [-1, 0, 1, 17])
@pytest.mark.parametrize("twice", [False, True])
async def test_sessions_had_offline_are_each_one_with_their_energy(
    ocpp: Ocpp, own: int, *, twice: bool
) -> None:
    name = f"OFF-{own}-{twice}"
    station = await ocpp.booted(name)
    numbers = [await replay(station, own, 1_000, 1), await replay(station, own, 4_000, 11)]
    assert len(set(numbers)) == 2
    if twice:
        await station.leave()
        station = await ocpp.booted(name)
        again = [await replay(station, own, 1_000, 1), await replay(station, own, 4_000, 11)]
        assert again == numbers, "a repeated start is answered with its first number"
    found = await ocpp.transactions(station=name)
    assert sorted((o["energy_wh"], o["ended_at"] is not None, o["review"]) for o in found) == [
        (3_000, True, None), (3_000, True, None),
    ], found  # fmt: skip


async def test_an_own_number_that_was_given_once_ends_the_session_of_its_time(ocpp: Ocpp) -> None:
    """A station that counts by itself comes to a number that it was given for another session."""
    station = await ocpp.booted("OFF-own")
    given = (await station.call("StartTransaction", start_16(CARD, 1, 1_000)))["transactionId"]
    await station.call("StopTransaction", stop_16(given, 5, 2_000, idTag=CARD))
    assert await replay(station, given, 2_000, 11) != given
    found = await ocpp.transactions(station="OFF-own", sort="started_at")
    assert [(o["energy_wh"], o["state"], o["review"]) for o in found] == [
        (1_000, "ended", None), (3_000, "ended", None),
    ]  # fmt: skip


async def test_a_stop_told_before_its_offline_start_waits_for_it(ocpp: Ocpp) -> None:
    station = await ocpp.booted("OFF-late")
    await station.call("StopTransaction", stop_16(-1, 9, 4_000, idTag=CARD))
    await station.call("StartTransaction", start_16(CARD, 2, 1_000))
    found = await ocpp.transaction("OFF-late")
    assert (found["energy_wh"], found["state"], found["review"]) == (3_000, "ended", None)


# ----------------------------------------------------------- the address and the handshake


@pytest.mark.parametrize("tail", ["", "/", "?v=1"])
async def test_an_address_may_end_in_other_ways(ocpp: Ocpp, tail: str) -> None:
    url = f"ws://127.0.0.1:{ocpp.gateway.port}/ocpp/URL-{len(tail)}{tail}"
    async with connect(url, subprotocols=["ocpp1.6"]) as socket:  # type: ignore[list-item]
        station = Station(socket, {})
        assert (await station.boot())["status"] == "Accepted"
    assert (await ocpp.get(f"/stations/URL-{len(tail)}"))["station"] == f"URL-{len(tail)}"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["soap", V16], V16),
        ([V16, V201], V16),
        ([V201, V16], V201),
        ([V21, V201, V16], V21),
        (["ocpp1.2", "ocpp1.5", V16], V16),
    ],
)
async def test_of_several_versions_the_first_that_is_spoken_here_is_chosen(
    ocpp: Ocpp, offered: list[str], chosen: str
) -> None:
    url = f"ws://127.0.0.1:{ocpp.gateway.port}/ocpp/SUB-{'-'.join(offered)}"
    async with connect(url, subprotocols=offered) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == chosen


@pytest.mark.parametrize("identity", ["a b", "станция 1", "a+b", "ü%", "CP:1", "CP&1=2"])
async def test_identities_of_any_letters(ocpp: Ocpp, identity: str) -> None:
    station = await ocpp.booted(identity)
    assert "currentTime" in await station.call("Heartbeat", {})


# ----------------------------------------------------------- frames


async def test_a_binary_frame_with_json_is_answered_or_the_connection_goes_on(ocpp: Ocpp) -> None:
    station = await ocpp.booted("BIN")
    await station.send(json.dumps([2, "b1", "Heartbeat", {}]).encode())
    assert "currentTime" in await station.call("Heartbeat", {}, "after")


async def test_an_answer_to_nothing_is_left(ocpp: Ocpp) -> None:
    station = await ocpp.booted("NOBODY")
    await station.send([3, "never-asked", {"status": "Accepted"}])
    await station.send([4, "never-asked", "InternalError", "", {}])
    assert "currentTime" in await station.call("Heartbeat", {})


async def test_the_same_id_on_another_connection_is_another_message(ocpp: Ocpp) -> None:
    station = await ocpp.booted("SAMEID")
    first = await station.call("StartTransaction", start_16(CARD, 1, 100), "1")
    await station.leave()
    station = await ocpp.connect("SAMEID")
    assert (await station.call("BootNotification", boot_16(), "1"))["status"] == "Accepted"
    second = await station.call("StartTransaction", start_16(CARD, 20, 900), "2")
    assert first["transactionId"] != second["transactionId"]


def boot_16(**more: Any) -> Payload:
    return {"chargePointVendor": "Acme", "chargePointModel": "One", **more}


async def test_a_boot_twice_ends_nothing(ocpp: Ocpp) -> None:
    station = await ocpp.booted("TWICE")
    number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
    assert (await station.boot())["status"] == "Accepted"
    assert (await ocpp.transaction("TWICE"))["state"] != "ended"
    await station.call("StopTransaction", stop_16(number))
    assert (await ocpp.transaction("TWICE"))["energy_wh"] == 7_400


@pytest.mark.parametrize(
    "stamp",
    [
        "2026-05-01T12:00:00+05:00",
        "2026-05-01T12:00:00.1234567Z",
        "2026-05-01T12:00:00.123456789+00:00",
        "2026-05-01T12:00Z",
        "2026-05-01T12:00:00",
        "2026-05-01 12:00:00Z",
        "20260501T120000Z",
        "2026-05-01T12:00:00z",
        "2026-05-01T12:00:00+0500",
        "2026-12-31T23:59:60Z",
    ],
)
async def test_times_in_many_spellings_are_read(ocpp: Ocpp, stamp: str) -> None:
    name = "T-" + "".join(letter for letter in stamp if letter.isalnum())
    station = await ocpp.booted(name)
    status = status_16(1, "Available") | {"timestamp": stamp}
    assert await station.call("StatusNotification", status) == {}


async def test_types_of_other_kinds_are_read(ocpp: Ocpp) -> None:
    station = await ocpp.booted("TYPES")
    told = start_16(CARD) | {"connectorId": "1", "meterStart": "1000"}
    number = (await station.call("StartTransaction", told))["transactionId"]
    stop = stop_16(number) | {"transactionId": str(number), "meterStop": 8_400.0}
    await station.call("StopTransaction", stop)
    found = await ocpp.transaction("TYPES")
    assert (found["energy_wh"], found["state"]) == (7_400, "ended")


@pytest.mark.parametrize("reason", ["Whatever", "", "local", None])
async def test_a_stop_for_a_reason_of_ones_own_is_taken(ocpp: Ocpp, reason: str | None) -> None:
    name = f"WHY-{reason}"
    station = await ocpp.booted(name)
    number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
    stop = stop_16(number) | {"reason": reason}
    await station.call("StopTransaction", stop)
    assert (await ocpp.transaction(name))["state"] == "ended"


async def test_a_register_that_ends_below_its_beginning_is_looked_at(ocpp: Ocpp) -> None:
    station = await ocpp.booted("BELOW")
    number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
    assert await station.call("StopTransaction", stop_16(number, register=10)) is not None
    found = await ocpp.transaction("BELOW")
    assert (found["energy_wh"], found["state"]) == (0, "ended")
    assert found["review"]


async def test_tokens_and_vendors_that_nobody_knows_are_told_so(ocpp: Ocpp) -> None:
    station = await ocpp.booted("VENDOR")
    low = await station.call("Authorize", {"idTag": CARD.lower()})
    assert low["idTagInfo"]["status"] == "Accepted"
    none = await station.call("Authorize", {"idTag": "nobody"})
    assert none["idTagInfo"]["status"] == "Invalid"
    told = await station.call("DataTransfer", {"vendorId": "com.unknown", "data": "x"})
    assert told["status"] == "UnknownVendorId"
    with pytest.raises(Refused, match="NotImplemented"):
        await station.call("MakeCoffee", {})


# ----------------------------------------------------------- 2.x


@pytest.mark.parametrize("version", [V201, V21])
async def test_events_in_odd_orders_make_one_session(ocpp: Ocpp, version: str) -> None:
    name = f"ODD-{version}"
    station = await ocpp.booted(name, version)
    say = lambda *args, **more: station.call(  # noqa: E731
        "TransactionEvent", event_201(*args, **more)
    )
    await say("Updated", 5, 10, "tx", None, 2_000)
    await say("Started", 0, 1, "tx", CARD, 1_000)
    for _ in range(2):
        await say("Ended", 9, 30, "tx", None, 5_000, info={"stoppedReason": "Local"})
    await say("Updated", 7, 20, "tx", None, 3_000, offline=True)
    found = await ocpp.transaction(name)
    assert (found["energy_wh"], found["state"], found["review"]) == (4_000, "ended", None)


async def test_a_report_in_many_parts_is_one(ocpp: Ocpp) -> None:
    station = await ocpp.booted("PARTS", V201)
    for n in (0, 2, 1):
        one = {
            "component": {"name": "EVSE", "evse": {"id": 0 if n else 1}},
            "variable": {"name": f"V{n}"},
            "variableAttribute": [{"value": str(n)}],
            "variableCharacteristics": {"dataType": "integer", "supportsMonitoring": False},
        }
        part = {"requestId": 1, "generatedAt": at(1), "seqNo": n, "tbc": n < 2, "reportData": [one]}
        assert await station.call("NotifyReport", part) == {}
    found = await ocpp.get("/stations/PARTS/variables")
    assert sorted(one["variable"] for one in found["items"]) == ["V0", "V1", "V2"]


async def test_two_calls_at_once_are_both_answered(ocpp: Ocpp) -> None:
    """A station should wait for its answer; one that does not is served all the same."""
    station = await ocpp.booted("EAGER")
    told = await asyncio.gather(*(station.call("Heartbeat", {}, f"h{n}") for n in range(20)))
    assert all("currentTime" in one for one in told)


async def test_meter_values_without_what_they_need_are_taken(ocpp: Ocpp) -> None:
    station = await ocpp.booted("METERS")
    for connector, number in ((0, None), (1, None), (9, 12345678)):
        told = meter_16(moment(1, sample("1", ENERGY)), number=number, connector=connector)
        assert await station.call("MeterValues", told) == {}
