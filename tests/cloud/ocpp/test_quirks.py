"""Every known way in which chargers break OCPP: talked as they do, read back through the API.

The numbers are those of the catalogue of quirks, S1 to S32, that the code refers to as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from tests.cloud.ocpp.conftest import Ocpp, Refused, Station, serving
from tests.cloud.ocpp.wire import (
    BEGAN,
    ENERGY,
    POWER,
    at,
    event_201,
    meter_16,
    moment,
    sample,
    start_16,
    status_16,
    status_201,
    stop_16,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
V16, V201 = "ocpp1.6", "ocpp2.0.1"
CARD = "04A1B2C3D4"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ocpp(house: Ocpp) -> Ocpp:
    """The module's gateway; each test takes stations of its own."""
    await house.token(CARD)
    return house


async def begun(station: Station, **more: Any) -> int:
    """A session of the card that has started; its number."""
    return int((await station.call("StartTransaction", start_16(CARD, **more)))["transactionId"])


async def buckets(ocpp: Ocpp, station: str, evse: int = 1, **more: Any) -> list[dict[str, Any]]:
    span = {"from": at(-60), "to": at(120), "every": "1m", "evse": evse, **more}
    return list((await ocpp.get(f"/stations/{station}/telemetry", **span))["items"])


async def evse_of(ocpp: Ocpp, station: str) -> dict[str, Any]:
    (found,) = (await ocpp.get(f"/stations/{station}"))["evses"]
    return dict(found["state"]["value"])


# --------------------------------------------------------------------------- transactions


@pytest.mark.parametrize("number", [-1, 0])
async def test_s01_a_stop_of_an_unanswered_start_ends_that_session(ocpp: Ocpp, number: int) -> None:
    name = f"S1{number}"
    station = await ocpp.booted(name)
    await begun(station)
    reading = moment(20, sample("4000", ENERGY))
    assert await station.call("MeterValues", meter_16(reading, number=number)) == {}
    for _ in range(2):
        answer = await station.call("StopTransaction", stop_16(number, idTag=CARD))
        assert answer["idTagInfo"]["status"] == "Accepted"
    found = await ocpp.transaction(name)
    assert (found["energy_wh"], found["state"], found["review"]) == (7_400, "ended", None)


async def test_s01_a_stop_that_comes_before_its_start_waits_for_it(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S1-late")
    await station.call("StopTransaction", stop_16(-1, idTag=CARD))
    assert (await ocpp.transaction("S1-late"))["review"] == "unmatched"
    await begun(station)
    found = await ocpp.transaction("S1-late")
    assert (found["energy_wh"], found["state"], found["review"]) == (7_400, "ended", None)
    assert found["duration_ms"] == 40 * 60_000


async def test_s02_a_stop_of_a_transaction_that_was_never_issued_is_taken(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S2")
    told = [
        moment(1, sample("1000", ENERGY, context="Transaction.Begin")),
        moment(41, sample("8400", ENERGY, context="Transaction.End")),
    ]
    assert await station.call("StopTransaction", stop_16(4711, transactionData=told)) == {}
    free = await ocpp.transaction("S2")
    assert (free["energy_wh"], free["state"], free["start_seen"]) == (7_400, "ended", False)
    assert (await station.call("StopTransaction", stop_16(4712, 50, 9_000))) == {}
    unmatched = {one["review"]: one["energy_wh"] for one in await ocpp.transactions(station="S2")}
    assert unmatched == {None: 7_400, "unmatched": 0}, "without a start's register nothing is due"
    assert await begun(station, minutes=55)


async def test_s02_in_201_an_end_without_a_beginning_is_taken(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S2-201", V201)
    end = event_201("Ended", 9, 40, "free-1", None, 8_400, info={"stoppedReason": "Local"})
    assert await station.call("TransactionEvent", end) == {}
    assert (await ocpp.transaction("S2-201"))["review"] == "unmatched"


async def test_s03_clock_aligned_values_go_with_the_session_of_their_time(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S3")
    number = await begun(station)
    during = moment(15, sample("3000", ENERGY, context="Sample.Clock"))
    assert await station.call("MeterValues", meter_16(during)) == {}
    assert (await ocpp.transaction("S3"))["energy_wh"] == 2_000
    await station.call("StopTransaction", stop_16(number, 20, 3_500, idTag=CARD))
    idle = moment(45, sample("3501", ENERGY, context="Sample.Clock"))
    await station.call("MeterValues", meter_16(idle))
    late = moment(10, sample("2000", ENERGY, context="Sample.Clock"))
    await station.call("MeterValues", meter_16(late))
    found = await ocpp.transaction("S3")
    assert (found["energy_wh"], found["review"]) == (2_500, None)
    events = (await ocpp.get(f"/transactions/{found['transaction']}"))["events"]
    assert [one["meter_wh"] for one in events] == [1_000, 2_000, 3_000, 3_500]
    registers = [one["energy_wh"] for one in await buckets(ocpp, "S3")]
    assert registers == [2_000, 3_000, 3_501], "the idle one is kept all the same"


async def test_s03_in_201_meter_values_name_no_transaction_at_all(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S3-201", V201)
    await station.call("TransactionEvent", event_201("Started", 0, 1, "a", CARD, 1_000))
    value = {"evseId": 1, "meterValue": [moment(15, sample(3_000, ENERGY))]}
    assert await station.call("MeterValues", value) == {}
    assert (await ocpp.transaction("S3-201"))["energy_wh"] == 2_000


async def test_s04_a_start_that_is_repeated_is_one_session(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S4")
    await asyncio.gather(
        *(station.send([2, f"again-{n}", "StartTransaction", start_16(CARD)]) for n in range(3))
    )
    answers = [await station.answer(f"again-{n}") for n in range(3)]
    await station.leave()
    station = await ocpp.booted("S4")
    answers.append(await station.call("StartTransaction", start_16(CARD.lower())))
    assert len({answer["transactionId"] for answer in answers}) == 1
    assert {answer["idTagInfo"]["status"] for answer in answers} == {"Accepted"}
    assert len(await ocpp.transactions(station="S4")) == 1
    assert await begun(station, minutes=2) != answers[0]["transactionId"], "this one is another"


async def test_s04_in_201_an_event_that_is_repeated_counts_once(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S4-201", V201)
    start = event_201("Started", 0, 1, "tx", CARD, 1_000)
    for more in ({}, {}, {"offline": True}):
        answer = await station.call("TransactionEvent", {**start, **more})
        assert answer["idTokenInfo"]["status"] == "Accepted"
    found = await ocpp.transaction("S4-201")
    detail = await ocpp.get(f"/transactions/{found['transaction']}")
    assert (len(detail["events"]), found["conflicts"]) == (1, 0)


async def test_s05_a_second_start_ends_the_first_session(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S5")
    first = await begun(station)
    await station.call("MeterValues", meter_16(moment(10, sample("3000", ENERGY)), number=first))
    second = await begun(station, minutes=30, register=5_000)
    rows = {one["number"]: one for one in await ocpp.transactions(station="S5")}
    assert (rows[first]["state"], rows[first]["reason"]) == ("ended", "superseded")
    assert (rows[first]["energy_wh"], rows[first]["concluded"]) == (4_000, True)
    assert rows[second]["state"] == "open"
    await station.call("StopTransaction", stop_16(first, 29, 4_900, idTag=CARD))
    rows = {one["number"]: one for one in await ocpp.transactions(station="S5")}
    assert (rows[first]["energy_wh"], rows[first]["reason"]) == (3_900, "Local")
    assert (rows[second]["energy_wh"], rows[second]["state"]) == (0, "open")


async def test_s05_a_start_on_the_other_connector_ends_nothing(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S5-two")
    await begun(station)
    await begun(station, minutes=2, connectorId=2)
    assert {one["state"] for one in await ocpp.transactions(station="S5-two")} == {"open"}


async def test_s05_in_201_a_second_start_ends_the_first_session(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S5-201", V201)
    await station.call("TransactionEvent", event_201("Started", 0, 1, "one", CARD, 1_000))
    await station.call("TransactionEvent", event_201("Started", 0, 30, "two", CARD, 5_000))
    rows = {one["native_key"]: one for one in await ocpp.transactions(station="S5-201")}
    assert (rows["one"]["reason"], rows["one"]["energy_wh"]) == ("superseded", 4_000)
    assert rows["two"]["state"] == "open"


# --------------------------------------------------------------------------- connecting


async def test_s06_no_subprotocol_is_refused_and_the_log_says_why(
    ocpp: Ocpp, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await ocpp.api.post("/stations", json={"station": "S6"})).status_code == 201
    with pytest.raises(InvalidStatus) as refused:
        await ocpp.connect("S6", version=None)
    assert refused.value.response.status_code == 400
    assert "no_subprotocol" not in (refused.value.response.body or b"").decode()
    (line,) = [r.getMessage() for r in caplog.records if "S6" in r.getMessage()]
    assert "no_subprotocol" in line
    allowed = {"allow_no_subprotocol": True}
    assert (await ocpp.api.patch("/stations/S6/ocpp", json=allowed)).status_code == 200
    station = await ocpp.booted("S6", None)
    assert station.socket.subprotocol is None
    assert await begun(station)
    with pytest.raises(InvalidStatus) as refused:
        await ocpp.connect("S6", "ocpp1.5")
    assert refused.value.response.status_code == 400


async def test_s07_a_station_that_never_boots_is_served(
    ocpp: Ocpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await ocpp.booted("S7")).leave()
    monkeypatch.setattr("cloud.communication.gateway.SETTLE_S", 1.0)
    came = time.monotonic()
    station = await ocpp.connect("S7")
    number = await begun(station)
    await station.call("StatusNotification", status_16(1, "Charging"))
    assert (await ocpp.get("/stations/S7"))["online"]
    await ocpp.command("S7", "trigger-message", message="StatusNotification", evse=1)
    assert await station.was_asked("TriggerMessage")
    assert time.monotonic() - came >= 1.0, "not before it has settled"
    await station.call("StopTransaction", stop_16(number, idTag=CARD))
    assert (await ocpp.transaction("S7"))["energy_wh"] == 7_400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(
    ocpp: Ocpp, house_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ocpp]:
    """A second gateway of the same house, which soon asks for a boot."""
    folder = tmp_path_factory.mktemp("impatient")
    async with serving(house_dsn, folder, ocpp_boot_wait_s=1) as served:
        yield served


@pytest.mark.parametrize("willing", [True, False])
@pytest.mark.parametrize("version", [V16, V201])
async def test_s07_a_station_that_does_not_boot_is_asked_to_once(
    impatient: Ocpp, monkeypatch: pytest.MonkeyPatch, version: str, willing: bool
) -> None:
    monkeypatch.setattr("cloud.communication.gateway.SETTLE_S", 0.5)
    name = f"S7-{version}-{willing}"
    station = await impatient.booted(name, version)
    for connector in (1, 2):
        told = (
            status_16(connector, "Available")
            if version == V16
            else status_201(1, connector, "Available")
        )
        await station.call("StatusNotification", told)
    await station.leave()
    station = await impatient.connect(name, version)
    if not willing:
        station.answers["TriggerMessage"] = {"status": "Rejected"}
    asked = await station.was_asked("TriggerMessage")
    assert asked == {"requestedMessage": "BootNotification"}
    if willing:
        assert (await station.boot())["status"] == "Accepted"
    about = {"requestedMessage": "StatusNotification"}
    wanted = (
        [about]
        if version == V16
        else [{**about, "evse": {"id": 1, "connectorId": connector}} for connector in (1, 2)]
    )

    async def told_so() -> bool:
        return [what for _, what in station.asked][1:] == wanted

    assert await impatient.until(told_so, "the questions for the connectors")
    await asyncio.sleep(1.5)  # longer than the gateway waits: a second question would have come
    assert len(station.asked) == 1 + len(wanted), "once"
    assert await station.call("Heartbeat", {})


async def test_s07_a_station_that_boots_is_asked_nothing(impatient: Ocpp) -> None:
    station = await impatient.booted("S7-boots")
    await asyncio.sleep(1.5)  # longer than the gateway waits before it asks
    assert station.asked == []


@pytest.mark.parametrize("version", [V16, V201])
async def test_s08_a_status_before_the_boot_is_taken(ocpp: Ocpp, version: str) -> None:
    name = f"S8-{version}"
    await (await ocpp.booted(name, version)).leave()
    station = await ocpp.connect(name, version)
    if version == V16:
        await station.call("StatusNotification", status_16(1, "Faulted", errorCode="GroundFailure"))
    else:
        await station.call("StatusNotification", status_201(1, 1, "Faulted"))
    assert (await evse_of(ocpp, name))["status"] == "Faulted"
    assert (await station.boot())["status"] == "Accepted"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(
    ocpp: Ocpp, house_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ocpp]:
    """A second gateway of the same house, where strangers wait for their approval."""
    folder = tmp_path_factory.mktemp("strict")
    async with serving(house_dsn, folder, registration="pending") as served:
        yield served


@pytest.mark.parametrize("version", [V16, V201])
async def test_s09_what_comes_while_pending_is_refused_and_taken_later(
    strict: Ocpp, version: str
) -> None:
    name = f"S9-{version}"
    station = await strict.connect(name, version)
    assert (await station.boot())["status"] == "Pending"
    start = (
        ("StartTransaction", start_16(CARD))
        if version == V16
        else ("TransactionEvent", event_201("Started", 0, 1, "tx", CARD, 1_000))
    )
    with pytest.raises(Refused, match="SecurityError"):
        await station.call(*start)
    assert "currentTime" in await station.call("Heartbeat", {})
    assert (await strict.api.post(f"/pending/{name}/approval")).status_code < 300
    assert (await station.boot())["status"] == "Accepted"
    assert await station.call(*start)
    assert (await strict.transaction(name))["state"] == "open"


@pytest.mark.parametrize("version", [V16, V201])
async def test_s10_nothing_is_asked_before_the_boot_was_answered(ocpp: Ocpp, version: str) -> None:
    name = f"S10-{version}"
    await (await ocpp.booted(name, version)).leave()
    await ocpp.command(name, "set-availability", evse=0, operative=False)
    station = await ocpp.connect(name, version)
    await station.call("Heartbeat", {})
    await asyncio.sleep(0.3)
    assert station.asked == []
    assert (await station.boot())["status"] == "Accepted"
    answered = time.monotonic()
    assert await station.was_asked("ChangeAvailability")
    assert time.monotonic() - answered > 0.8, "a pause after the answer, too"


# --------------------------------------------------------------------------- clocks


async def test_s11_times_of_1970_are_those_of_receipt(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S11")
    boot = "1970-01-01T00:00:42Z"
    before = datetime.now(UTC)
    await station.call("StatusNotification", {**status_16(1, "Charging"), "timestamp": boot})
    number = await begun(station, timestamp=boot)
    assert await begun(station, timestamp=boot) == number
    reading = moment("1970-01-01T00:05:00Z", sample("1500", ENERGY))
    await station.call("MeterValues", meter_16(reading, number=number))
    right = datetime.now(UTC).replace(microsecond=0)
    await station.call(
        "StopTransaction", {**stop_16(number, register=1_700), "timestamp": right.isoformat()}
    )
    found = await ocpp.transaction("S11")
    assert before <= datetime.fromisoformat(found["started_at"]) <= datetime.now(UTC)
    assert (found["started_dating"], found["ended_dating"]) == ("estimated", "cloud")
    assert datetime.fromisoformat(found["ended_at"]) >= right
    assert (found["energy_wh"], found["review"]) == (700, None)
    now = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert [one["energy_wh"] for one in await buckets(ocpp, "S11", to=now)] == [1_500]

    async def logged() -> Any:
        return (await ocpp.get("/stations/S11/ocpp/messages", text=boot))["items"]

    assert await ocpp.until(logged, "the frame with the original time")


async def test_s11_in_201_times_of_1970_are_those_of_receipt(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S11-201", V201)
    start = event_201("Started", 0, 0, "tx", CARD, 1_000)
    await station.call("TransactionEvent", {**start, "timestamp": "1970-01-01T00:00:42Z"})
    found = await ocpp.transaction("S11-201")
    assert found["started_dating"] == "estimated"
    assert found["started_at"] > at(0)


@pytest.mark.parametrize("zone", ["Asia/Tashkent", None])
async def test_s12_local_times_are_read_by_the_stations_zone(ocpp: Ocpp, zone: str | None) -> None:
    name = f"S12-{zone}".replace("/", "-")
    assert (await ocpp.api.post("/stations", json={"station": name})).status_code == 201
    if zone is not None:
        set_ = await ocpp.api.patch(f"/stations/{name}/ocpp", json={"time_zone": zone})
        assert set_.status_code == 200, set_.text
    station = await ocpp.booted(name)
    local = BEGAN.astimezone(ZoneInfo(zone or "UTC"))
    await begun(station, timestamp=f"{local:%Y-%m-%dT%H:%M:%S}")
    assert (await ocpp.transaction(name))["started_at"] == at(0)
    await station.leave()
    assert "naive_timestamp" in await ocpp.deviations(name, "naive_timestamp")


# --------------------------------------------------------------------------- measured values


async def test_s13_values_may_be_numbers(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S13")
    number = await begun(station)
    told = moment(
        10, sample(3000, ENERGY, unit="Wh"), sample(7.4, POWER, unit="kW"),
        sample(16.05, "Current.Import", phase="L1", unit="A"),
    )  # fmt: skip
    assert await station.call("MeterValues", meter_16(told, number=number)) == {}
    assert (await ocpp.transaction("S13"))["energy_wh"] == 2_000
    (bucket,) = await buckets(ocpp, "S13")
    assert (bucket["power_w"], bucket["current_l1_ma"]) == (7_400, 16_050)
    await station.leave()
    assert (await ocpp.deviations("S13", "number_for_text"))["number_for_text"]["count"] == 1


async def test_s13_in_201_values_may_be_texts(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S13-201", V201)
    await station.call("TransactionEvent", event_201("Started", 0, 1, "tx", CARD, "1000"))
    await station.call("TransactionEvent", event_201("Updated", 1, 9, "tx", None, "3000.5"))
    assert (await ocpp.transaction("S13-201"))["energy_wh"] == 2_000
    await station.leave()
    assert await ocpp.deviations("S13-201", "text_for_number")


@pytest.mark.parametrize("version", [V16, V201])
async def test_s14_long_texts_are_kept_whole(ocpp: Ocpp, version: str) -> None:
    name, serial, model = f"S14-{version}", "S" * 33, "M" * 23
    station = await ocpp.connect(name, version)
    if version == V16:
        told = {"chargePointModel": model, "chargePointSerialNumber": serial}
    else:
        what = {"vendorName": "Acme", "model": model, "serialNumber": serial}
        told = {"chargingStation": what}
    assert (await station.boot(**told))["status"] == "Accepted"
    hardware = (await ocpp.get(f"/stations/{name}"))["hardware"]
    assert (hardware["model"], hardware["serial"]) == (model, serial)
    await station.leave()
    assert await ocpp.deviations(name, "text_too_long")


async def test_s15_other_names_of_units_are_known_and_unknown_ones_bill_nothing(
    ocpp: Ocpp, house_sql: Callable[..., list[Any]]
) -> None:
    station = await ocpp.booted("S15")
    number = await begun(station)
    told = moment(
        10, sample("50.1", "Frequency", unit="Hz"), sample("31.5", "Temperature", unit="Celcius"),
        sample("2.5", ENERGY, unit="kilowatthours?"), sample("7400", POWER, unit="W"),
    )  # fmt: skip
    assert await station.call("MeterValues", meter_16(told, number=number)) == {}
    (bucket,) = await buckets(ocpp, "S15")
    assert (bucket["power_w"], bucket["energy_wh"]) == (7_400, None)
    assert (await ocpp.transaction("S15"))["energy_wh"] == 0
    await station.leave()
    await ocpp.deviations("S15", "enum_alias", "unknown_qualifier")
    found = house_sql("SELECT name, value FROM telemetry.extra WHERE time = %s ORDER BY 1", at(10))
    assert ("frequency_mhz", 50_100) in found
    assert ("temperature_mc", 31_500) in found


@pytest.mark.parametrize("version", [V16, V201])
async def test_s16_kilowatt_hours_that_are_called_watt_hours_are_looked_at(
    ocpp: Ocpp, version: str
) -> None:
    """11 kW for 40 minutes, and a register that moves by 7."""
    name = f"S16-{version}"
    station = await ocpp.booted(name, version)
    moments = [moment(n, sample(f"{1000 + n // 6}", ENERGY, unit="Wh"), sample("11000", POWER))
               for n in (1, 11, 21, 31)]  # fmt: skip
    if version == V16:
        number = await begun(station)
        for one in moments:
            await station.call("MeterValues", meter_16(one, number=number))
        await station.call("StopTransaction", stop_16(number, 41, 1_007, idTag=CARD))
    else:
        for n, one in enumerate(moments):
            for value in one["sampledValue"]:
                value["value"] = float(value["value"])
                value.pop("unit", None)
            kind = "Updated" if n else "Started"
            event = event_201(kind, n, 1 + 10 * n, "tx", CARD, 0, meterValue=[one])
            await station.call("TransactionEvent", event)
        end = event_201("Ended", 4, 41, "tx", None, 1_007, info={"stoppedReason": "Local"})
        await station.call("TransactionEvent", end)
    found = await ocpp.transaction(name)
    assert (found["energy_wh"], found["review"]) == (7, "energy_against_power")
    listed = await ocpp.transactions(station=name, review="true")
    assert [one["transaction"] for one in listed] == [found["transaction"]]


async def test_s16_the_opposite_is_looked_at_too(ocpp: Ocpp) -> None:
    """Watt-hours called kWh, or a clock that stands: counted as told, and a person looks."""
    station = await ocpp.booted("S16-fast")
    number = await begun(station, minutes=1)
    await station.call("StopTransaction", stop_16(number, 1 + 2 / 60, 11_000, idTag=CARD))
    found = await ocpp.transaction("S16-fast")
    assert (found["energy_wh"], found["review"]) == (10_000, "energy_against_power")


async def test_s17_a_unit_may_be_missing_and_kilowatt_hours_are_exact(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S17")
    number = await begun(station)
    await station.call("MeterValues", meter_16(moment(5, sample("1500")), number=number))
    assert (await ocpp.transaction("S17"))["energy_wh"] == 500
    kwh = moment(10, sample("4.0999", ENERGY, unit="kWh"))
    await station.call("MeterValues", meter_16(kwh, number=number))
    assert (await ocpp.transaction("S17"))["energy_wh"] == 3_099
    told = [moment(41, sample("8.4", unit="kWh", context="Transaction.End"))]
    stop = stop_16(number, transactionData=told)
    await station.call("StopTransaction", stop)
    assert (await ocpp.transaction("S17"))["energy_wh"] == 7_400


async def test_s17_in_201_a_multiplier_is_one_more_way_to_say_it(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S17-201", V201)
    await station.call("TransactionEvent", event_201("Started", 0, 1, "tx", CARD, 1_000))
    kwh = sample(4.0999, unitOfMeasure={"unit": "Wh", "multiplier": 3})
    event = event_201("Updated", 1, 9, "tx", None, 0, meterValue=[moment(9, kwh)])
    await station.call("TransactionEvent", event)
    assert (await ocpp.transaction("S17-201"))["energy_wh"] == 3_099


def phases(measurand: str, *values: int) -> list[dict[str, Any]]:
    return [sample(str(v), measurand, phase=f"L{n}") for n, v in enumerate(values, 1)]


async def test_s18_energy_per_phase_is_summed_unless_there_is_a_total(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S18")
    number = await begun(station)
    parts = moment(10, *phases(ENERGY, 1_000, 700, 300))
    await station.call("MeterValues", meter_16(parts, number=number))
    assert (await ocpp.transaction("S18"))["energy_wh"] == 1_000
    both = moment(20, *phases(ENERGY, 1_500, 1_200, 800), sample("3500", ENERGY))
    await station.call("MeterValues", meter_16(both, number=number))
    assert (await ocpp.transaction("S18"))["energy_wh"] == 2_500
    assert [one["energy_wh"] for one in await buckets(ocpp, "S18")] == [2_000, 3_500]


async def test_s18_a_total_that_carries_a_phase_is_taken_for_it(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S18-key")
    number = await begun(station)
    told = moment(10, sample("3000", ENERGY, phase="L1"))
    await station.call("MeterValues", meter_16(told, number=number))
    assert (await ocpp.transaction("S18-key"))["energy_wh"] == 2_000


async def test_s19_power_per_phase_is_summed(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S19")
    await station.call("MeterValues", meter_16(moment(10, *phases(POWER, 2_300, 2_310, 2_290))))
    named = [sample("1.1", POWER, phase=f"L{n}-N", unit="kW") for n in (1, 2, 3)]
    await station.call("MeterValues", meter_16(moment(20, *named)))
    assert [one["power_w"] for one in await buckets(ocpp, "S19")] == [6_900, 3_300]


async def test_s20_power_is_derived_where_only_the_register_is_told(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S20")
    for minutes, register in ((10, 1_000), (11, 1_000), (12, 1_100), (14, 1_300)):
        await station.call("MeterValues", meter_16(moment(minutes, sample(str(register), ENERGY))))
    told = [(one["power_w"], one["energy_wh"]) for one in await buckets(ocpp, "S20")]
    assert told == [(None, 1_000), (0, 1_000), (6_000, 1_100), (6_000, 1_300)]


async def test_s20_power_that_is_told_stands(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S20-told")
    for minutes, register in ((10, 1_000), (11, 1_100)):
        told = moment(minutes, sample(str(register), ENERGY), sample("7000", POWER))
        await station.call("MeterValues", meter_16(told))
    assert [one["power_w"] for one in await buckets(ocpp, "S20-told")] == [7_000, 7_000]


async def test_s21_connector_0_is_the_station_itself(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S21")
    await station.call("StatusNotification", status_16(0, "Unavailable"))
    await station.call("StatusNotification", status_16(1, "Available"))
    value = meter_16(moment(10, sample("123456", ENERGY)), connector=0)
    assert await station.call("MeterValues", value) == {}
    shown = await ocpp.get("/stations/S21")
    assert shown["status"]["value"]["status"] == "Unavailable"
    assert [one["evse"] for one in shown["evses"]] == [1]
    assert [one["energy_wh"] for one in await buckets(ocpp, "S21", evse=0)] == [123_456]
    assert await ocpp.transactions(station="S21") == []


# --------------------------------------------------------------------------- living together


@pytest.mark.parametrize("version", [V16, V201])
async def test_s22_a_new_connection_replaces_the_old_one(ocpp: Ocpp, version: str) -> None:
    name = f"S22-{version}"
    old = await ocpp.booted(name, version)
    new = await ocpp.booted(name, version)
    assert (await old.closed())[0] == 1008
    command = await ocpp.command(name, "set-availability", evse=0, operative=True)
    assert await new.was_asked("ChangeAvailability")
    assert (await ocpp.ended(command))["status"] == "executed"
    assert old.asked == []
    assert (await ocpp.get(f"/stations/{name}"))["online"]


async def test_s23_pings_that_nobody_answers_end_nothing_while_frames_come(
    ocpp: Ocpp,
    house_dsn: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud.communication.gateway.BEAT_S", 0.2)
    monkeypatch.setattr("cloud.communication.gateway.SILENCE", 0.01)
    async with serving(house_dsn, tmp_path_factory.mktemp("pings")) as quick:
        stations: dict[str, Station] = {}
        pings: dict[str, list[Any]] = {}
        for name, ping_s in (("S23", 1), ("S23-off", 0), ("S23-dead", 1)):
            await ocpp.api.post("/stations", json={"station": name})
            set_ = await ocpp.api.patch(f"/stations/{name}/ocpp", json={"ping_s": ping_s})
            assert set_.status_code == 200, set_.text
            stations[name] = await quick.booted(name)
            _answer_no_pings(stations[name], pings.setdefault(name, []))
        while not stations["S23-dead"].over:
            await asyncio.sleep(0.2)
            await stations["S23"].call("StatusNotification", status_16(1, "Available"))
            await stations["S23-off"].call("Heartbeat", {})
        assert not stations["S23"].over
        assert not stations["S23-off"].over
        assert pings["S23-dead"]
        assert pings["S23-off"] == []

        async def gone() -> Any:
            (found,) = (await ocpp.get("/connections", station="S23-dead"))["items"]
            return found["closed_because"]

        assert "silent" in await ocpp.until(gone, "the end of the one that is dead")


def _answer_no_pings(station: Station, heard: list[Any]) -> None:
    protocol = station.socket.protocol
    send = protocol.send_frame

    def without_pongs(frame: Any) -> None:
        if frame.opcode is Opcode.PONG:
            heard.append(frame)
        else:
            send(frame)

    protocol.send_frame = without_pongs  # type: ignore[method-assign]


async def test_s24_weeks_of_stored_messages_come_in_and_bad_ones_hold_nothing_up(
    ocpp: Ocpp,
) -> None:
    station, other = await ocpp.booted("S24"), await ocpp.booted("S24-live")
    weeks = 21

    def old(days: int, minutes: float) -> str:
        return at(minutes - days * 24 * 60)

    refused = 0
    for day in range(weeks, 0, -1):
        number = await begun(station, timestamp=old(day, 0), register=10_000 - day * 100)
        for bad in (
            ("StatusNotification", {"connectorId": 1, "status": "Sleeping", "errorCode": "None"}),
            ("MeterValues", {"connectorId": 1}),
            ("FirmwareStatusNotification", {"status": 7}),
        ):
            try:
                await station.call(*bad)
            except Refused:
                refused += 1
        reading = moment(old(day, 20), sample(str(10_050 - day * 100), ENERGY))
        await station.call("MeterValues", meter_16(reading, number=number))
        stop = {**stop_16(number, register=10_090 - day * 100), "timestamp": old(day, 40)}
        await station.call("StopTransaction", stop)
        assert await other.call("Heartbeat", {})
    rows = await ocpp.transactions(station="S24", limit=100)
    assert len(rows) == weeks
    assert {(one["energy_wh"], one["state"], one["review"]) for one in rows} == {
        (90, "ended", None)
    }
    assert rows[-1]["started_at"] == old(weeks, 0)
    assert refused >= weeks
    await station.leave()

    async def noted() -> bool:
        return (await ocpp.deviations("S24", "refused"))["refused"]["count"] == refused

    await ocpp.until(noted, "every refusal to be noted")
    span = {"from": old(weeks, 0), "to": old(weeks, 60), "every": "1m"}
    (bucket,) = (await ocpp.get("/stations/S24/telemetry", **span))["items"]
    assert bucket["energy_wh"] == 10_050 - weeks * 100


# --------------------------------------------------------------------------- asking


async def test_s25_configuration_values_come_in_any_json(ocpp: Ocpp) -> None:
    keys = [
        {"key": "HeartbeatInterval", "readonly": False, "value": 300},
        {"key": "LocalPreAuthorize", "readonly": "false", "value": True},
        {"key": "MeterValuesSampledData", "readonly": False, "value": ""},
        {"key": "WebSocketPingInterval", "readonly": True},
        {"key": "StopTxnSampledData", "value": None},
    ]
    answer = {"configurationKey": keys}
    station = await ocpp.booted("S25", answers={"GetConfiguration": answer})
    got = await ocpp.ended(await ocpp.command("S25", "get-variables", variables=[]))
    assert (got["status"], got["error"]) == ("executed", "")
    held = (await ocpp.get("/stations/S25/variables"))["items"]
    values = {one["variable"]: one["value"] for one in held}
    assert values["HeartbeatInterval"] == "300"
    assert values["LocalPreAuthorize"] == "true"
    assert values["MeterValuesSampledData"] in {"", None}
    assert {"WebSocketPingInterval", "StopTxnSampledData"} <= values.keys()
    station.answers["GetConfiguration"] = {"configurationKey": []}
    got = await ocpp.ended(await ocpp.command("S25", "get-variables", variables=[]))
    assert (got["status"], got["error"]) == ("executed", "")


async def test_s26_another_kind_of_profile_is_tried_and_remembered(ocpp: Ocpp) -> None:
    purposes: list[str] = []
    station = await ocpp.booted("S26")

    def picky(payload: dict[str, Any]) -> dict[str, Any]:
        purposes.append(payload["csChargingProfiles"]["chargingProfilePurpose"])
        return {"status": "Accepted" if purposes[-1] == "TxDefaultProfile" else "Rejected"}

    station.choose["SetChargingProfile"] = picky
    for _ in range(2):
        limit = {"evse": 0, "limit_ma": 16_000, "valid_s": 600}
        command = await ocpp.command("S26", "set-limit", **limit)
        assert (await ocpp.ended(command))["status"] == "executed"
    maximum, default = "ChargePointMaxProfile", "TxDefaultProfile"
    assert purposes == [maximum, default, default]
    await station.boot(firmwareVersion="2.0")
    command = await ocpp.command("S26", "set-limit", **limit)
    assert (await ocpp.ended(command))["status"] == "executed"
    assert purposes[3:] == [maximum, default], "another firmware may know better"


@pytest.mark.parametrize("version", [V16, V201])
async def test_s27_tokens_are_the_same_in_any_case(ocpp: Ocpp, version: str) -> None:
    name = f"S27-{version}"
    station = await ocpp.booted(name, version)
    if version == V16:
        asked = await station.call("Authorize", {"idTag": CARD.lower()})
        assert asked["idTagInfo"]["status"] == "Accepted"
        started = await station.call("StartTransaction", start_16(CARD.lower()))
        assert started["idTagInfo"]["status"] == "Accepted"
        await station.call("StopTransaction", stop_16(-1, idTag=CARD.title()))
    else:
        token = {"idToken": CARD.lower(), "type": "ISO14443"}
        asked = await station.call("Authorize", {"idToken": token})
        assert asked["idTokenInfo"]["status"] == "Accepted"
        await station.call("TransactionEvent", event_201("Started", 0, 1, "t", CARD.lower(), 1_000))
        end = event_201("Ended", 1, 41, "t", CARD.title(), 8_400, info={"stoppedReason": "Local"})
        await station.call("TransactionEvent", end)
    found = await ocpp.transaction(name)
    assert (found["state"], found["energy_wh"]) == ("ended", 7_400)
    assert [one["station"] for one in await ocpp.transactions(id_token=CARD, station=name)] == [
        name
    ]


@pytest.mark.parametrize(
    ("sent", "form"),
    [("text", "text"), ("bytes", "bytes"), ("upper", "text")],
)
async def test_s28_a_key_is_right_in_either_form(ocpp: Ocpp, sent: str, form: str) -> None:
    name = f"S28-{sent}"
    await ocpp.api.post("/stations", json={"station": name})
    made = await ocpp.api.put(f"/stations/{name}/ocpp-password", json={})
    key = made.json()["password"]
    assert len(key) == 40
    shown = {"text": key, "bytes": bytes.fromhex(key), "upper": key.upper()}[sent]
    await ocpp.booted(name, password=shown)
    assert (await ocpp.get(f"/stations/{name}/ocpp"))["key_form"] == form


async def test_s28_a_text_may_come_as_its_hex_digits(ocpp: Ocpp) -> None:
    await ocpp.api.post("/stations", json={"station": "S28-hex"})
    text = "a long enough secret"
    await ocpp.api.put("/stations/S28-hex/ocpp-password", json={"password": text})
    await ocpp.booted("S28-hex", password=text.encode().hex())
    assert (await ocpp.get("/stations/S28-hex/ocpp"))["key_form"] == "hex"


@pytest.mark.parametrize("identity", ["RDAM|123", "S29 Тошкент", "S29:1", "S29%7C"])
async def test_s29_identities_are_decoded_once_and_are_the_user(ocpp: Ocpp, identity: str) -> None:
    made = await ocpp.api.post("/stations", json={"station": identity})
    assert made.status_code == 201, made.text
    path = f"/stations/{quote(identity, safe='')}"
    set_ = await ocpp.api.put(f"{path}/ocpp-password", json={"password": "right password"})
    assert set_.status_code == 200, set_.text
    await ocpp.booted(identity, password="right password")
    assert (await ocpp.get(path))["online"]
    with pytest.raises(InvalidStatus):
        await ocpp.connect(identity, password="right password", user=quote(identity, safe="") + "x")


@pytest.mark.parametrize("version", [V16, V201])
async def test_s30_an_update_is_done_when_the_station_boots_with_it(
    ocpp: Ocpp, version: str
) -> None:
    name = f"S30-{version}"
    station = await ocpp.booted(name, version)
    update = {"location": "https://firmware.example.com/2.1.bin", "expected_version": "2.1",
              "retrieve_at": at(0)}  # fmt: skip
    command = await ocpp.command(name, "update-firmware", **update)
    await ocpp.ended(command)
    for status in ("Downloading", "Downloaded", "Installing"):
        await station.call("FirmwareStatusNotification", {"status": status})
    (held,) = (await ocpp.get(f"/stations/{name}/firmware"))["items"]
    assert held["open"]
    await station.leave()
    if version == V16:
        await ocpp.booted(name, version, boot={"firmwareVersion": "v2.1"})
    else:
        what = {"vendorName": "Acme", "model": "One", "firmwareVersion": "v2.1"}
        await ocpp.booted(name, version, boot={"chargingStation": what})
    (held,) = (await ocpp.get(f"/stations/{name}/firmware"))["items"]
    assert (held["open"], held["status"], held["concluded"]) == (False, "Installed", True)


async def test_s31_in_201_evse_0_is_the_station_itself(ocpp: Ocpp) -> None:
    station = await ocpp.booted("S31", V201)
    await station.call("StatusNotification", status_201(0, 0, "Unavailable"))
    await station.call("StatusNotification", status_201(1, 1, "Available"))
    value = {"evseId": 0, "meterValue": [moment(10, sample(123_456, ENERGY))]}
    assert await station.call("MeterValues", value) == {}
    shown = await ocpp.get("/stations/S31")
    assert shown["status"]["value"]["status"] == "Unavailable"
    assert [one["evse"] for one in shown["evses"]] == [1]
    assert [one["energy_wh"] for one in await buckets(ocpp, "S31", evse=0)] == [123_456]


async def test_s32_starts_that_are_repeated_before_their_answer_are_one_each(ocpp: Ocpp) -> None:
    """All come back at once, and each asks twice because the first answer is slow."""
    count = 60
    stations = await asyncio.gather(*(ocpp.booted(f"S32-{n}") for n in range(count)))

    async def impatient(station: Station) -> set[int]:
        for repeat in range(2):
            await station.send([2, f"r{repeat}", "StartTransaction", start_16(CARD)])
        return {int((await station.answer(f"r{n}"))["transactionId"]) for n in range(2)}

    numbers = await asyncio.gather(*(impatient(station) for station in stations))
    assert all(len(one) == 1 for one in numbers)
    assert len(set.union(*numbers)) == count
    for n in range(0, count, 20):
        assert await ocpp.transaction(f"S32-{n}")
