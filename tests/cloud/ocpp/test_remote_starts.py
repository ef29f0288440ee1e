"""A transaction that an operator started from afar shows which command it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cloud.ocpp.conftest import Ask, Ocpp, Station
from tests.cloud.ocpp.wire import event_201, start_16, status_16, status_201, stop_16

V16, V201 = "ocpp1.6", "ocpp2.0.1"
CARD = {"value": "T1", "type": "ISO14443"}


def now(**later: float) -> str:
    return (datetime.now(UTC) + timedelta(**later)).isoformat().replace("+00:00", "Z")


@pytest.fixture
async def station(ocpp: Ocpp) -> Station:
    """Of 1.6, with two connectors, and a token that may charge there."""
    await ocpp.token("T1")
    came = await ocpp.booted("CP", V16)
    for connector in (1, 2):
        await came.call("StatusNotification", status_16(connector, "Available"))
    return came


async def ordered(ocpp: Ocpp, station: str, evse: int = 1) -> str:
    """A remote start that the station has accepted."""
    command = await ocpp.command(station, "remote-start", evse=evse, id_token=CARD)
    assert (await ocpp.ended(command))["status"] == "executed"
    return command


async def begun(station: Station, token: str = "T1", **more: Any) -> int:
    start = start_16(token, **{"timestamp": now(), **more})
    return int((await station.call("StartTransaction", start))["transactionId"])


async def commands(ocpp: Ocpp, station: str) -> dict[str, str | None]:
    """By the transaction's native key."""
    found = await ocpp.transactions(station=station)
    return {one["native_key"]: one["command"] for one in found}


async def test_2x_names_what_it_was_started_by(ocpp: Ocpp) -> None:
    await ocpp.token("T1")
    station = await ocpp.booted("CS", V201)
    await station.call("StatusNotification", status_201(1, 1, "Occupied"))
    command = await ordered(ocpp, "CS")
    number = (await station.was_asked("RequestStartTransaction"))["remoteStartId"]
    strange = event_201("Started", 0, 50, "other", "T1", 500, info={"remoteStartId": number + 1})
    await station.call("TransactionEvent", strange)
    info = {"remoteStartId": number, "chargingState": "EVConnected"}
    started = event_201("Started", 0, 59, "tx", "T1", 500, info=info)
    await station.call("TransactionEvent", {**started, "timestamp": now()})
    assert await commands(ocpp, "CS") == {"other": None, "tx": command}
    late = event_201("Updated", 2, 60, "tx", None, 700)
    await station.call("TransactionEvent", {**late, "timestamp": now(seconds=2)})
    late = event_201("Updated", 1, 60, "tx", None, 600, offline=True)
    await station.call("TransactionEvent", {**late, "timestamp": now(seconds=1)})
    (found,) = [one for one in await ocpp.transactions() if one["native_key"] == "tx"]
    assert (await ocpp.get(f"/transactions/{found['transaction']}"))["command"] == command


async def test_16_is_matched_by_token_and_connector(ocpp: Ocpp, station: Station) -> None:
    await ocpp.token("T2")
    command = await ordered(ocpp, "CP", evse=2)
    other_card = await begun(station, "T2", connectorId=2, meterStart=1)
    other_connector = await begun(station, meterStart=2)
    meant = await begun(station, connectorId=2, meterStart=3)
    found = {one["number"]: one["command"] for one in await ocpp.transactions()}
    assert found == {other_card: None, other_connector: None, meant: command}


async def test_a_command_begins_one_transaction(ocpp: Ocpp, station: Station) -> None:
    command = await ordered(ocpp, "CP")
    first = await begun(station, "t1", meterStart=1)
    await station.call("StopTransaction", {**stop_16(first, register=1), "timestamp": now()})
    second = await begun(station, meterStart=2)
    found = {one["number"]: one["command"] for one in await ocpp.transactions()}
    assert found == {first: command, second: None}


async def test_an_expired_command_has_begun_nothing(ocpp: Ocpp, station: Station, sql: Ask) -> None:
    await ordered(ocpp, "CP")
    sql("UPDATE communication.command SET expires_at = now() - interval '1 second'")
    await begun(station)
    assert (await ocpp.transaction("CP"))["command"] is None


async def test_what_began_before_the_command_was_not_begun_by_it(
    ocpp: Ocpp, station: Station
) -> None:
    """Told late: an offline start from before."""
    await ordered(ocpp, "CP")
    await begun(station, timestamp=now(minutes=-10))
    assert (await ocpp.transaction("CP"))["command"] is None


async def test_a_refused_command_has_begun_nothing(ocpp: Ocpp, station: Station) -> None:
    station.answers["RemoteStartTransaction"] = {"status": "Rejected"}
    command = await ocpp.command("CP", "remote-start", evse=1, id_token=CARD)
    assert (await ocpp.ended(command))["status"] == "rejected"
    await begun(station)
    assert (await ocpp.transaction("CP"))["command"] is None
