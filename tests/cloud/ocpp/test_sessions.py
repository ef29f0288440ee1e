"""Whole charging sessions, on the wire as chargers speak, read back through the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.cloud.ocpp.conftest import Ocpp, Refused, Station
from tests.cloud.ocpp.wire import at, event_201


def meter(minutes: float, wh: int, watts: int = 11_000) -> dict[str, Any]:
    return {
        "timestamp": at(minutes),
        "sampledValue": [
            {"value": str(wh), "measurand": "Energy.Active.Import.Register", "unit": "Wh"},
            {"value": str(watts), "measurand": "Power.Active.Import", "unit": "W"},
            {"value": "16.0", "measurand": "Current.Import", "phase": "L1", "unit": "A"},
        ],
    }


async def charge_16(
    station: Station,
    token: str,
    first: int,
    wh: int,
    shown: Callable[[], Awaitable[str]] | None = None,
) -> int:
    """`shown` tells the transaction's charging state."""
    status = {"connectorId": 1, "errorCode": "NoError", "timestamp": at(0)}
    await station.call("StatusNotification", {**status, "status": "Preparing"})
    assert (await station.call("Authorize", {"idTag": token}))["idTagInfo"]["status"] == "Accepted"
    start = {"connectorId": 1, "idTag": token, "meterStart": first, "timestamp": at(1)}
    started = await station.call("StartTransaction", start)
    assert started["idTagInfo"]["status"] == "Accepted"
    number = int(started["transactionId"])
    await station.call("StatusNotification", {**status, "status": "Charging", "timestamp": at(1)})
    if shown is not None:
        assert await shown() == "Charging"
    await station.call(
        "StatusNotification", {**status, "status": "SuspendedEV", "timestamp": at(35)}
    )
    if shown is not None:
        assert await shown() == "SuspendedEV"
    for step in (1, 2, 3):
        value = {"connectorId": 1, "transactionId": number,
                 "meterValue": [meter(1 + step * 10, first + wh * step // 4)]}  # fmt: skip
        assert await station.call("MeterValues", value) == {}
    stop = {"transactionId": number, "meterStop": first + wh, "timestamp": at(41),
            "idTag": token, "reason": "Local"}  # fmt: skip
    assert (await station.call("StopTransaction", stop))["idTagInfo"]["status"] == "Accepted"
    await station.call("StatusNotification", {**status, "status": "Available", "timestamp": at(42)})
    return number


async def test_a_session_in_16(ocpp: Ocpp) -> None:
    await ocpp.token("04A1B2C3")
    station = await ocpp.booted("CP-1")

    async def charging_state() -> str:
        return str((await ocpp.transaction("CP-1"))["charging_state"])

    number = await charge_16(station, "04a1b2c3", 1_000, 7_400, charging_state)
    (found,) = await ocpp.transactions(station="CP-1")
    assert (found["energy_wh"], found["state"], found["reason"]) == (7_400, "ended", "Local")
    assert (found["number"], found["origin"], found["review"]) == (number, "ocpp1.6", None)
    assert found["id_token"]["value"].lower() == "04a1b2c3"
    shown = await ocpp.get("/stations/CP-1")
    assert shown["online"]
    assert (shown["link"], shown["registration"]) == ("ocpp1.6", "registered")
    assert shown["hardware"]["vendor"] == "Acme"
    assert shown["evses"][0]["state"]["value"]["status"] == "Available"
    assert shown["evses"][0]["state"]["source"] == "station"
    span = {"from": at(0), "to": at(60), "every": "1h"}
    buckets = (await ocpp.get("/stations/CP-1/telemetry", **span))["items"]
    assert sum(bucket["samples"] for bucket in buckets) == 3


async def test_what_is_said_again_after_something_else_counts_once(ocpp: Ocpp) -> None:
    """Values of this moment, whose rows are written with the commit; and one that is late."""
    await ocpp.token("T1")
    station = await ocpp.booted("CP-1")
    start = {"connectorId": 1, "idTag": "T1", "meterStart": 1_000, "timestamp": at(58)}
    number = int((await station.call("StartTransaction", start))["transactionId"])

    def values(*minutes: float) -> list[dict[str, Any]]:
        return [
            {"connectorId": 1, "transactionId": number,
             "meterValue": [meter(minute, 1_000 + round(minute * 10))]}
            for minute in minutes
        ]  # fmt: skip

    for value in values(58.5, 59, 59.3, 59.6, 59.9, 59.3, 10, 59.95):
        assert await station.call("MeterValues", value) == {}
    found = await ocpp.transaction("CP-1")
    assert (found["energy_wh"], found["state"]) == (round(599.5), "open")
    told = (await ocpp.get(f"/transactions/{found['transaction']}/events"))["items"]
    assert len([one for one in told if one["seq_no"]]) == 7


async def test_values_metered_after_the_end_do_not_make_it_longer(ocpp: Ocpp) -> None:
    await ocpp.token("04A1B2C3")
    station = await ocpp.booted("CP-1")
    await charge_16(station, "04a1b2c3", 1_000, 7_400)
    triggered = {"connectorId": 1, "meterValue": [meter(41.5, 8_400, 0)]}
    assert await station.call("MeterValues", triggered) == {}
    (found,) = await ocpp.transactions(station="CP-1")
    assert (found["energy_wh"], found["duration_ms"]) == (7_400, 40 * 60_000)
    assert (found["ended_at"], found["review"]) == (at(41), None)


@pytest.mark.parametrize("version", ["ocpp2.0.1", "ocpp2.1"])
async def test_a_session_in_2x(ocpp: Ocpp, version: str) -> None:
    await ocpp.token("04A1B2C3", group=None)
    station = await ocpp.booted("CS-1", version)
    asked = {"idToken": {"idToken": "04A1B2C3", "type": "ISO14443"}}
    assert (await station.call("Authorize", asked))["idTokenInfo"]["status"] == "Accepted"
    status = {"timestamp": at(0), "connectorStatus": "Occupied", "evseId": 1, "connectorId": 1}
    await station.call("StatusNotification", status)
    begun = await station.call(
        "TransactionEvent", event_201("Started", 0, 1, "tx-1", "04A1B2C3", 500)
    )
    assert begun["idTokenInfo"]["status"] == "Accepted"
    await station.call("TransactionEvent", event_201("Updated", 1, 20, "tx-1", None, 3_000))
    end = event_201("Ended", 2, 40, "tx-1", "04A1B2C3", 7_900, info={"stoppedReason": "Local"})
    await station.call("TransactionEvent", end)
    (found,) = await ocpp.transactions(station="CS-1")
    assert (found["energy_wh"], found["state"], found["native_key"]) == (7_400, "ended", "tx-1")
    assert found["origin"].startswith("ocpp2")
    assert (await ocpp.get("/connections", online="true"))["items"][0]["link"] == version


async def test_an_unknown_token_may_not_charge(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CP-1")
    assert (await station.call("Authorize", {"idTag": "nobody"}))["idTagInfo"][
        "status"
    ] == "Invalid"
    await ocpp.token("nobody")
    seen = await ocpp.until(
        lambda: _is_accepted(station, "nobody"), "the news of a new token to be heard"
    )
    assert seen


async def _is_accepted(station: Station, token: str) -> bool:
    answer = await station.call("Authorize", {"idTag": token})
    return bool(answer["idTagInfo"]["status"] == "Accepted")


async def test_a_repeated_start_is_one_session(ocpp: Ocpp) -> None:
    """Quirk S4: repeated with a new message id, over the next connection too."""
    await ocpp.token("T1")
    station = await ocpp.booted("CP-1")
    start = {"connectorId": 1, "idTag": "T1", "meterStart": 10, "timestamp": at(1)}
    first = await station.call("StartTransaction", start)
    again = await station.call("StartTransaction", start)
    await station.socket.close()
    station = await ocpp.booted("CP-1")
    third = await station.call("StartTransaction", start)
    assert first["transactionId"] == again["transactionId"] == third["transactionId"]
    assert len(await ocpp.transactions()) == 1


async def test_a_repeated_reading_counts_once(ocpp: Ocpp, sql: Any) -> None:
    station = await ocpp.booted("CP-1")
    reading = {"connectorId": 1, "meterValue": [meter(5, 100)]}
    await station.call("MeterValues", reading)
    await station.socket.close()
    station = await ocpp.booted("CP-1")
    await station.call("MeterValues", reading)
    assert sql("SELECT count(*) FROM telemetry.sample") == [(1,)]


async def test_what_cannot_be_read_is_refused_and_shown(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CP-1")
    with pytest.raises(Refused, match="NotImplemented"):
        await station.call("MakeCoffee", {})
    with pytest.raises(Refused):
        await station.call("StartTransaction", {"connectorId": 1})
    assert await station.call("Heartbeat", {})
    await station.socket.close()

    async def told() -> Any:
        return await ocpp.get("/stations/CP-1/deviations")

    names = {one["name"] for one in await ocpp.until(told, "the deviations")}
    assert "refused" in names


@pytest.mark.parametrize("version", ["ocpp1.6", "ocpp2.0.1"])
async def test_an_operator_sends_the_tenants_list(ocpp: Ocpp, version: str) -> None:
    """Its version is held to be the station's once it has accepted."""
    await ocpp.token("T1")
    await ocpp.token("T2", blocked=True)
    station = await ocpp.booted("CP-1", version)
    command = await ocpp.command("CP-1", "send-local-list")
    assert (await ocpp.ended(command))["status"] == "executed"
    sent = await station.was_asked("SendLocalList")
    names = ("listVersion", "idTag", "idTagInfo")
    if version != "ocpp1.6":
        names = ("versionNumber", "idToken", "idTokenInfo")
    number, token, info = names
    entries = {
        one[token] if isinstance(one[token], str) else one[token]["idToken"]: one[info]["status"]
        for one in sent["localAuthorizationList"]
    }
    assert (sent["updateType"], entries) == ("Full", {"T1": "Accepted", "T2": "Blocked"})
    assert (await ocpp.get("/stations/CP-1/local-list"))["version"] == sent[number]
