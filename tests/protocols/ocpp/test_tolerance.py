"""One test per tolerance: what a station sent, what is read, and the deviation's name."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ocpp.schemas import SchemaError, codec
from protocols.ocpp.timestamps import read_time
from protocols.ocpp.tolerance import (
    DEVIATIONS,
    Deviation,
    read_request,
    read_response,
    resolve_action,
)
from protocols.ocpp.version import Version

V16, V201, V21 = Version
NOW = datetime(2026, 3, 14, 10, 0, tzinfo=UTC)
TIME = "2026-03-14T09:26:53Z"
AT = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
START: dict[str, Any] = {"connectorId": 1, "idTag": "A", "meterStart": 5, "timestamp": TIME}
STATUS: dict[str, Any] = {"connectorId": 1, "errorCode": "NoError", "status": "Available"}
BOOT: dict[str, Any] = {"chargePointVendor": "V", "chargePointModel": "M"}
EVENT: dict[str, Any] = {
    "eventType": "Updated",
    "timestamp": TIME,
    "triggerReason": "Trigger",
    "seqNo": 3,
    "transactionInfo": {"transactionId": "t"},
}


def _read(
    version: Version, action: str, fields: Any, **given: Any
) -> tuple[Any, tuple[Deviation, ...]]:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    message, deviations = read_request(codec(version), action, raw, **given)
    assert {one.name for one in deviations} <= DEVIATIONS.keys()
    assert all(one.text.isprintable() and one.path.isprintable() for one in deviations)
    json.loads(codec(version).encode(message))
    return message, deviations


def _names(deviations: tuple[Deviation, ...]) -> list[str]:
    return [one.name for one in deviations]


def _sampled(version: Version, sample: dict[str, Any]) -> tuple[Any, list[str]]:
    place = {"connectorId": 1} if version is V16 else {"evseId": 1}
    reading = {"timestamp": TIME, "sampledValue": [{"value": "1"}, sample]}
    if version is not V16:
        reading["sampledValue"] = [{"value": 1}, sample]
    message, deviations = _read(version, "MeterValues", {**place, "meterValue": [reading]})
    return message.meterValue[0].sampledValue[-1], _names(deviations)


def test_a_good_message_has_no_deviation_and_is_strict() -> None:
    message, deviations = _read(V16, "StartTransaction", START)
    assert deviations == ()
    assert type(message) is codec(V16).request_type("StartTransaction")
    assert message.timestamp == AT


@pytest.mark.parametrize(
    ("value", "text"),
    [(1204331, "1204331"), (12.5, "12.5"), (1e-7, "0.0000001"), (1e22, "10000000000000000000000")],
)
def test_numbers_as_texts_s13(value: float, text: str) -> None:
    sample, names = _sampled(V16, {"value": value})
    assert (sample.value, names) == (text, ["number_for_text"])


def test_configuration_as_numbers_and_booleans_s25() -> None:
    keys = [
        {"key": "A", "readonly": "false", "value": 300},
        {"key": "B", "readonly": 1, "value": True},
        {"key": "C", "value": None},
    ]
    raw = json.dumps({"configurationKey": keys, "unknownKey": []}).encode()
    message, deviations = read_response(codec(V16), "GetConfiguration", raw)
    told = [(one.key, one.readonly, one.value) for one in message.configurationKey]
    assert told == [("A", False, "300"), ("B", True, "true"), ("C", False, None)]
    assert set(_names(deviations)) == {
        "number_for_text",
        "value_for_boolean",
        "null_for_absent",
        "missing_field",
    }


@pytest.mark.parametrize(
    ("value", "name"),
    [("12", "text_for_number"), (" 12 ", "text_for_number"), (12.0, "decimal_for_integer")],
)
def test_texts_and_decimals_as_integers(value: Any, name: str) -> None:
    message, deviations = _read(V16, "StartTransaction", {**START, "meterStart": value})
    assert (message.meterStart, _names(deviations)) == (12, [name])


def test_fractions_of_a_watt_hour_are_rounded_and_others_refused() -> None:
    message, deviations = _read(V16, "StartTransaction", {**START, "meterStart": 1234.6})
    assert (message.meterStart, _names(deviations)) == (1235, ["fraction_rounded"])
    with pytest.raises(SchemaError, match="/connectorId: int is due"):
        _read(V16, "StartTransaction", {**START, "connectorId": 1.5})


def test_texts_as_decimals() -> None:
    sample, names = _sampled(V201, {"value": "230.4"})
    assert (sample.value, names) == (230.4, ["text_for_number"])


@pytest.mark.parametrize("value", ["12,5", "1e999", "NaN", "0x10", "1_000", "٣", "9" * 30, True])
def test_what_is_no_number_stays_none(value: Any) -> None:
    event = {**EVENT, "seqNo": value}
    with pytest.raises(SchemaError, match="/seqNo"):
        _read(V201, "TransactionEvent", event)
    sample, names = _sampled(V201, {"value": value})
    assert (sample.value, names) == (1, ["sample_dropped"])


@pytest.mark.parametrize(
    ("value", "truth"), [("true", True), ("False", False), ("0", False), (1, True)]
)
def test_texts_and_numbers_as_booleans(value: Any, truth: bool) -> None:
    message, deviations = _read(V201, "TransactionEvent", {**EVENT, "offline": value})
    assert (message.offline, _names(deviations)) == (truth, ["value_for_boolean"])


def test_long_texts_are_kept_whole_s14() -> None:
    fields = {**BOOT, "chargePointModel": "M" * 23, "chargePointSerialNumber": "S" * 33}
    message, deviations = _read(V16, "BootNotification", fields)
    assert (message.chargePointModel, message.chargePointSerialNumber) == ("M" * 23, "S" * 33)
    assert deviations[0] == Deviation(
        "text_too_long", "/chargePointModel", "23 characters, at most 20 are due"
    )


def test_unknown_fields_are_dropped_and_named() -> None:
    message, deviations = _read(V16, "BootNotification", {**BOOT, "ssid\n": {"deep": [1]}})
    assert message.chargePointVendor == "V"
    assert deviations == (Deviation("unknown_field", "/ssid�", "dropped"),)


@pytest.mark.parametrize("written", ["connectorID", "ConnectorId", "connector_id", "connector-id"])
def test_fields_spelt_otherwise(written: str) -> None:
    fields = {**STATUS, written: 2}
    del fields["connectorId"]
    message, deviations = _read(V16, "StatusNotification", fields)
    assert (message.connectorId, _names(deviations)) == (2, ["field_case"])
    message, deviations = _read(V16, "StatusNotification", {**STATUS, written: 2})
    assert (message.connectorId, _names(deviations)) == (1, ["unknown_field"])


def test_null_is_absent_where_a_field_is_optional() -> None:
    message, deviations = _read(V16, "StatusNotification", {**STATUS, "info": None})
    assert (message.info, _names(deviations)) == (None, ["null_for_absent"])
    with pytest.raises(SchemaError, match="status is required"):
        _read(V16, "StatusNotification", {**STATUS, "status": None})


def test_lists_with_nulls_and_empty_ones() -> None:
    reading = {"timestamp": TIME, "sampledValue": [None, {"value": "1"}]}
    fields = {"connectorId": 1, "meterValue": [reading, None]}
    message, deviations = _read(V16, "MeterValues", fields)
    assert (len(message.meterValue), set(_names(deviations))) == (1, {"null_in_list"})
    for value in ([], None, [None]):
        message, deviations = _read(V16, "MeterValues", {"connectorId": 1, "meterValue": value})
        assert message.meterValue == []
        assert "empty_list" in _names(deviations)
    message, deviations = _read(V201, "TransactionEvent", {**EVENT, "meterValue": []})
    assert (message.meterValue, _names(deviations)) == (None, ["empty_list"])


def test_an_empty_plan_is_refused() -> None:
    schedule = {"id": 1, "chargingRateUnit": "A", "chargingSchedulePeriod": []}
    profile = {
        "id": 1,
        "stackLevel": 0,
        "chargingProfilePurpose": "TxProfile",
        "chargingProfileKind": "Absolute",
        "chargingSchedule": [schedule],
    }
    with pytest.raises(SchemaError, match="chargingSchedulePeriod: the number of items"):
        _read(V201, "SetChargingProfile", {"evseId": 1, "chargingProfile": profile})


def test_an_object_is_a_list_of_one_and_the_reverse() -> None:
    reading = {"timestamp": TIME, "sampledValue": {"value": "1"}}
    message, deviations = _read(V16, "MeterValues", {"connectorId": 1, "meterValue": reading})
    assert message.meterValue[0].sampledValue[0].value == "1"
    assert _names(deviations) == ["object_for_list", "object_for_list"]
    event = {**EVENT, "transactionInfo": [EVENT["transactionInfo"]]}
    message, deviations = _read(V201, "TransactionEvent", event)
    assert message.transactionInfo.transactionId == "t"
    assert _names(deviations) == ["list_for_object"]


def test_more_items_than_allowed_are_kept() -> None:
    types = codec(V201)
    field = types.request_shape("NotifyEVChargingSchedule").fields["chargingSchedule"]
    most = field.fields["chargingSchedulePeriod"].most
    period = {"startPeriod": 0, "limit": 1.0}
    schedule = {
        "id": 1,
        "chargingRateUnit": "A",
        "chargingSchedulePeriod": [period] * (most + 1),
    }
    fields = {"timeBase": TIME, "evseId": 1, "chargingSchedule": schedule}
    message, deviations = _read(V201, "NotifyEVChargingSchedule", fields)
    assert len(message.chargingSchedule.chargingSchedulePeriod) == most + 1
    assert _names(deviations) == ["too_many_items"]


@pytest.mark.parametrize(
    ("sent", "taken", "name"),
    [
        ("Celcius", "Celcius", None),  # the schema has both spellings
        ("celsius", "Celsius", "enum_case"),
        ("C", "Celsius", "enum_alias"),
        ("°C", "Celsius", "enum_alias"),
        ("Hz", "Hertz", "enum_alias"),
        ("%", "Percent", "enum_alias"),
        ("KWH", "kWh", "enum_case"),
        ("wh", "Wh", "enum_case"),
        ("Lumen", "Lumen", "unknown_qualifier"),
        ("$", "$", "unknown_qualifier"),
    ],
)
def test_units_s15(sent: str, taken: str, name: str | None) -> None:
    sample, names = _sampled(V16, {"value": "1", "unit": sent})
    assert (sample.unit, names) == (taken, [name] if name else [])


def test_qualifiers_that_do_not_exist_are_kept_raw() -> None:
    for key in ("measurand", "phase", "context", "location", "format"):
        sample, names = _sampled(V16, {"value": "1", key: "Odd"})
        assert (getattr(sample, key), names) == ("Odd", ["unknown_qualifier"])
        sample, names = _sampled(V16, {"value": "1", key: ""})
        assert (getattr(sample, key), names) == (None, ["empty_text"])
    message, deviations = _read(V201, "TransactionEvent", {**EVENT, "triggerReason": "Odd"})
    assert (message.triggerReason, _names(deviations)) == ("Odd", ["unknown_qualifier"])


@pytest.mark.parametrize("sent", ["available", "AVAILABLE", "Available ", "SUSPENDED_EV"])
def test_states_in_another_case(sent: str) -> None:
    message, deviations = _read(V16, "StatusNotification", {**STATUS, "status": sent})
    assert message.status in {"Available", "SuspendedEV"}
    assert _names(deviations) == ["enum_case"]


def test_states_of_the_older_version() -> None:
    fields = {"timestamp": TIME, "connectorStatus": "Charging", "evseId": 1, "connectorId": 1}
    message, deviations = _read(V201, "StatusNotification", fields)
    assert (message.connectorStatus, _names(deviations)) == ("Occupied", ["enum_alias"])


def test_states_are_not_made_up() -> None:
    with pytest.raises(SchemaError, match="/status: 'Dancing' is not among"):
        _read(V16, "StatusNotification", {**STATUS, "status": "Dancing"})


def test_reasons_that_do_not_exist_are_other() -> None:
    message, deviations = _read(V16, "StatusNotification", {**STATUS, "errorCode": "Error"})
    assert (message.errorCode, _names(deviations)) == ("OtherError", ["unknown_reason"])
    stop = {"transactionId": 1, "meterStop": 2, "timestamp": TIME, "reason": "Bored"}
    message, deviations = _read(V16, "StopTransaction", stop)
    assert (message.reason, _names(deviations)) == ("Other", ["unknown_reason"])
    message, deviations = _read(V16, "StopTransaction", {**stop, "reason": "EVDisconnect"})
    assert (message.reason, _names(deviations)) == ("EVDisconnected", ["enum_alias"])


@pytest.mark.parametrize(
    "sent", ["statusNotification", "STATUS_NOTIFICATION", "StatusNotification.req"]
)
def test_actions_in_another_case(sent: str) -> None:
    message, deviations = _read(V16, sent, STATUS)
    assert (type(message).__name__, _names(deviations)) == ("StatusNotification", ["action_case"])
    assert resolve_action(codec(V16), sent)[0] == "StatusNotification"
    assert resolve_action(codec(V16), "Fly") == ("Fly", None)
    with pytest.raises(SchemaError, match="no action Fly"):
        _read(V16, "Fly", {})


def test_neutral_values_for_what_nothing_depends_on() -> None:
    message, deviations = _read(V16, "BootNotification", {})
    assert (message.chargePointVendor, message.chargePointModel) == ("unknown", "unknown")
    assert _names(deviations) == ["missing_field", "missing_field"]
    message, deviations = _read(V201, "BootNotification", {})
    assert (message.reason, message.chargingStation.vendorName) == ("Unknown", "unknown")
    message, deviations = _read(V16, "StatusNotification", {"connectorId": 0, "status": "Faulted"})
    assert (message.errorCode, _names(deviations)) == ("NoError", ["missing_field"])


@pytest.mark.parametrize("missing", ["connectorId", "idTag", "meterStart"])
def test_energy_tokens_and_places_are_never_made_up(missing: str) -> None:
    fields = {key: value for key, value in START.items() if key != missing}
    with pytest.raises(SchemaError, match=f"{missing} is required"):
        _read(V16, "StartTransaction", fields, now=NOW)


def test_a_missing_time_is_the_time_of_receipt() -> None:
    reading = {"sampledValue": [{"value": "1"}]}
    fields = {"connectorId": 1, "meterValue": [reading]}
    message, deviations = _read(V16, "MeterValues", fields, now=NOW)
    assert (message.meterValue[0].timestamp, _names(deviations)) == (NOW, ["missing_timestamp"])
    with pytest.raises(SchemaError, match="timestamp is required"):
        _read(V16, "MeterValues", fields)


@pytest.mark.parametrize("sent", ["yesterday", "0000-00-00T00:00:00Z", "", -1, True, {"a": [1]}])
def test_a_time_that_is_none_is_the_time_of_receipt(sent: Any) -> None:
    fields = {**START, "timestamp": sent}
    message, deviations = _read(V16, "StartTransaction", fields, now=NOW)
    assert (message.timestamp, _names(deviations)) == (NOW, ["unreadable_timestamp"])
    with pytest.raises(SchemaError, match="/timestamp"):
        _read(V16, "StartTransaction", fields)


def test_times_of_plans_are_never_made_up() -> None:
    fields = {"connectorId": 1, "idTag": "A", "reservationId": 1, "expiryDate": "soon"}
    with pytest.raises(SchemaError, match="/expiryDate"):
        _read(V16, "ReserveNow", fields, now=NOW)

    signal = {"timestamp": "soon", "signal": 1}
    with pytest.raises(SchemaError, match="/timestamp"):
        _read(V21, "AFRRSignal", signal, now=NOW)
    with pytest.raises(SchemaError, match="status is required"):
        read_response(codec(V201), "Authorize", b'{"idTokenInfo":{}}')


def test_an_empty_time_is_absent_where_it_is_optional() -> None:
    message, deviations = _read(V16, "StatusNotification", {**STATUS, "timestamp": ""}, now=NOW)
    assert (message.timestamp, _names(deviations)) == (None, ["empty_timestamp"])


def test_local_times_s12() -> None:
    fields = {**START, "timestamp": TIME[:-1]}
    message, deviations = _read(V16, "StartTransaction", fields)
    assert (message.timestamp, _names(deviations)) == (AT, ["naive_timestamp"])
    message, deviations = _read(V16, "StartTransaction", fields, zone=ZoneInfo("Asia/Tashkent"))
    assert message.timestamp == AT - timedelta(hours=5)
    assert "taken as 2026-03-14T09:26:53+05:00" in deviations[0].text


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("2026-03-14T09:26:53Z", ""),
        ("2026-03-14t09:26:53z", ""),
        ("2026-03-14 09:26:53Z", ""),
        ("2026-03-14T09:26:53.000000000Z", ""),
        ("2026-03-14T09:26:53+0000", ""),
        ("2026-03-14T11:26:53+02", "timestamp_form"),
        ("2026-03-14T09:26:53 UTC", "timestamp_form"),
        ("2026-03-14T09:26:53,000Z", "timestamp_form"),
        ("2026-3-14 9:26:53Z", "timestamp_form"),
        (" 2026/03/14 09:26:53Z", "timestamp_form"),
        ("2026-03-14T09:26:53", "naive_timestamp"),
        ("2026-03-14 09:26:53.000000001", "naive_timestamp"),
        (1773480413, "epoch_timestamp"),
        (1773480413.0, "epoch_timestamp"),
        (1773480413000, "epoch_timestamp"),
        ("1773480413", "epoch_timestamp"),
        ("1773480413000", "epoch_timestamp"),
    ],
)
def test_ways_to_write_a_time(written: Any, name: str) -> None:
    assert read_time(written, None) == (AT, name)
    message, deviations = _read(V16, "StartTransaction", {**START, "timestamp": written})
    assert (message.timestamp, _names(deviations)) == (AT, [name] if name else [])


def test_times_without_seconds_and_leap_seconds() -> None:
    assert read_time("2026-03-14T09:26Z", None) == (AT.replace(second=0), "timestamp_form")
    assert read_time("2026-03-14T09:26:60Z", None) == (AT.replace(second=59), "timestamp_form")
    west = timezone(timedelta(hours=-3, minutes=-30))
    assert read_time("2026-03-14T09:26:53-03:30", None) == (AT.replace(tzinfo=west), "")


@pytest.mark.parametrize(
    "written",
    ["14.03.2026 09:26", "03/14/2026 09:26:53", "2026-13-01T00:00:00Z", "", "9" * 80, None],
)
def test_times_that_could_be_several_or_none(written: Any) -> None:
    assert read_time(written, None) is None


@given(st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.booleans()))
def test_reading_a_time_never_raises(written: Any) -> None:
    read = read_time(written, None)
    assert read is None or read[0].tzinfo is not None


def test_bytes_that_are_no_text() -> None:
    raw = b'{"chargePointVendor":"\xff\xfe","chargePointModel":"M"}'
    message, deviations = _read(V16, "BootNotification", raw)
    assert (message.chargePointVendor, _names(deviations)) == ("��", ["invalid_utf8"])


def test_data_as_an_object_where_a_text_is_due() -> None:
    message, deviations = _read(V16, "DataTransfer", {"vendorId": "V", "data": {"a": [1]}})
    assert (message.data, _names(deviations)) == ('{"a":[1]}', ["object_for_text"])


def test_custom_data_without_its_vendor() -> None:
    message, deviations = _read(V201, "Heartbeat", {"customData": {"mine": 1}})
    assert message.customData == {"mine": 1, "vendorId": "unknown"}
    assert _names(deviations) == ["missing_field"]


def test_a_bad_sample_does_not_cost_the_others() -> None:
    good, names = _sampled(V16, {"measurand": "SoC"})
    assert (good.value, names) == ("1", ["sample_dropped"])


def test_responses_are_read_alike() -> None:
    message, deviations = read_response(codec(V16), "Reset", b'{"status":"accepted"}')
    assert (message.status, _names(deviations)) == ("Accepted", ["enum_case"])
    with pytest.raises(SchemaError, match="status is required"):
        read_response(codec(V16), "Reset", b"{}")
    with pytest.raises(SchemaError, match="has no action"):
        read_response(codec(V21), "NotifyPeriodicEventStream", b"{}")


def test_each_deviation_is_told_once_per_field() -> None:
    reading = {"timestamp": TIME, "sampledValue": [{"value": n} for n in range(50)]}
    fields = {"connectorId": 1, "meterValue": [reading] * 5}
    _, deviations = _read(V16, "MeterValues", fields)
    (only,) = deviations
    assert only.path == "/meterValue/0/sampledValue/0/value"
    _, deviations = _read(V16, "Heartbeat", {f"x{n}": n for n in range(100)})
    assert len(deviations) == 32


def test_what_takes_too_many_repairs_is_refused_at_once() -> None:
    fields = {f"x{n}": n for n in range(60_000)}
    raw = json.dumps({**STATUS, **fields}).encode()
    began = time.process_time()
    with pytest.raises(SchemaError, match="there is no field x0"):
        read_request(codec(V16), "StatusNotification", raw)
    assert time.process_time() - began < 0.15


def test_equal_keys_of_which_one_is_wrong_are_refused() -> None:
    """The last would count, but what the station meant is in doubt."""
    with pytest.raises(SchemaError, match="/idTag: str is due"):
        _read(V16, "Authorize", b'{"idTag":5,"idTag":"A"}')


@pytest.mark.parametrize("name", ["x" * 400_000, " - at `$.a`" * 40_000, "`" * 400_000])
def test_a_long_name_costs_no_time(name: str) -> None:
    raw = json.dumps({"idTag": "A", name: 1, "type": name}).encode()
    began = time.process_time()
    _, deviations = _read(V16, "Authorize", raw)
    with pytest.raises(SchemaError):
        _read(V16, "Reset", raw)
    assert time.process_time() - began < 0.1
    assert all(len(one.path) < 80 for one in deviations)


def test_what_is_no_list_is_no_list_of_one() -> None:
    with pytest.raises(SchemaError, match="/meterValue: array is due"):
        _read(V16, "MeterValues", {"connectorId": 1, "meterValue": "x"})


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_depth_is_no_danger(depth: int) -> None:
    """A17."""
    deep = b"[" * depth + b"]" * depth
    for field in (b"timestamp", b"status", b"connectorId", b"extra", b"info"):
        raw = b'{"errorCode":"NoError","%b":%b}' % (field, deep)
        with pytest.raises(SchemaError):
            read_request(codec(V16), "StatusNotification", raw, now=NOW)


@pytest.mark.parametrize("fields", [[], None, 5, "x", True])
def test_what_is_no_object_is_refused(fields: Any) -> None:
    with pytest.raises(SchemaError) as refused:
        _read(V16, "Heartbeat", fields)
    assert refused.value.code == "FormationViolation"


def test_what_is_read_leniently_can_be_told_from_the_strict_type() -> None:
    message, _ = _read(V16, "StatusNotification", {**STATUS, "info": "x" * 99})
    with pytest.raises(SchemaError):
        codec(V16).convert(
            msgspec.to_builtins(message), codec(V16).request_type("StatusNotification")
        )
