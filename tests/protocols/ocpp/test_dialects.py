"""Every version reads all that its schemas allow, and answers and asks what they allow."""

import random
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.agent_link import (
    Action,
    IdToken,
    LocalListEntry,
    RemoteStart,
    RemoteStop,
    SetAvailability,
    SetLimit,
    SetLocalList,
    Watch,
)
from protocols.ocpp.dialect import NotExpressible, NotSupported, RequestContext, dialect
from protocols.ocpp.messages import Answer, Message, Registration, TokenInfo, TokenStatus, Variable
from protocols.ocpp.schemas import SchemaError, codec
from protocols.ocpp.shapes import Kind, Shape
from protocols.ocpp.tolerance import read_request
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds

NOW = 1_735_732_860_000
UUID_1 = UUID(int=1)


TEXTS = ("", "a", "Ωż'\"\\", "1.5", "kWh", "L1", "longer than 12")
NUMBERS = (0, 1, -1, 0.1, 16.5, 1e300, 2.0**40, 123456.789)
STAMP = "2025-01-01T12:00:00.500+05:00"


def instance(shape: Shape, odds: random.Random) -> Any:
    """JSON that a shape allows: each optional field every other time, lists of up to two."""
    if shape.kind is Kind.OBJECT:
        return {
            key: instance(below, odds)
            for key, below in (shape.fields or {}).items()
            if key in shape.required or odds.random() < 0.5
        }
    if shape.kind is Kind.LIST:
        assert shape.item is not None
        least = int(shape.least or 0)
        most = min(int(shape.most or 99), max(least, 2))
        return [instance(shape.item, odds) for _ in range(odds.randint(least, most))]
    if shape.enum:
        return odds.choice(shape.enum)
    return leaf(shape, odds)


def leaf(shape: Shape, odds: random.Random) -> Any:
    match shape.kind:
        case Kind.TEXT:
            return odds.choice(TEXTS)[: int(shape.most or 99)]
        case Kind.TIME:
            return odds.choice(["1970-01-01T00:00:00Z", STAMP, "9999-12-31T23:59:59.999999Z"])
        case Kind.INTEGER:
            least = -(2**31) if shape.least is None else int(shape.least)
            most = 2**31 if shape.most is None else int(shape.most)
            return odds.choice([least, most, odds.randint(least, most)])
        case Kind.NUMBER if shape.step or shape.least is not None or shape.most is not None:
            least, most = (shape.least or 0, 1 if shape.most is None else shape.most)
            return odds.choice([n for n in (0, 1, 0.5) if least <= n <= most])
        case Kind.NUMBER:
            return odds.choice(NUMBERS)
        case Kind.BOOLEAN:
            return odds.random() < 0.5
        case _:
            return odds.choice([None, "text", {"a": [1, None]}])


def an_answer(odds: random.Random) -> Answer:
    token = TokenInfo(
        odds.choice(list(TokenStatus)),
        odds.choice([None, Milliseconds(NOW)]),
        odds.choice([None, "fleet", "x" * 30, "x" * 300]),
        odds.choice([None, "uz", "a language"]),
        odds.choice([None, "Salom", "x" * 2000]),
    )
    return Answer(
        now_ms=Milliseconds(odds.randint(0, 2**41)),
        registration=odds.choice(list(Registration)),
        interval_s=odds.randint(0, 86_400),
        token=odds.choice([None, token]),
        number=odds.choice([None, 7, 2**31]),
        total_cost=odds.choice([None, "0", "12.50", "-3", "nan", "x", "1e3"]),
        status=odds.choice(["Accepted", "Rejected", "UnknownVendorId", "odd"]),
    )


ACTIONS = [(version, action) for version in Version for action in sorted(codec(version).actions)]


BY_ALL = {"Authorize", "BootNotification", "DataTransfer", "Heartbeat", "MeterValues"} | {
    "FirmwareStatusNotification",
    "LogStatusNotification",
    "SecurityEventNotification",
    "SignCertificate",
    "StatusNotification",
}
BY_201 = BY_ALL | {
    "ClearedChargingLimit",
    "Get15118EVCertificate",
    "GetCertificateStatus",
    "NotifyChargingLimit",
    "NotifyCustomerInformation",
    "NotifyDisplayMessages",
    "NotifyEVChargingNeeds",
    "NotifyEVChargingSchedule",
    "NotifyEvent",
    "NotifyMonitoringReport",
    "NotifyReport",
    "PublishFirmwareStatusNotification",
    "ReportChargingProfiles",
    "ReservationStatusUpdate",
    "TransactionEvent",
}
TOLD: Mapping[Version, set[str]] = {
    Version.V16: BY_ALL
    | {"DiagnosticsStatusNotification", "SignedFirmwareStatusNotification"}
    | {"StartTransaction", "StopTransaction"},
    Version.V201: BY_201,
    Version.V21: BY_201
    | {
        "BatterySwap",
        "ClosePeriodicEventStream",
        "NotifyDERAlarm",
        "NotifyDERStartStop",
        "NotifyPeriodicEventStream",
        "NotifyPriorityCharging",
        "NotifySettlement",
        "ReportDERControl",
    },
}


@pytest.mark.parametrize(("version", "action"), [(v, a) for v, a in ACTIONS if a in TOLD[v]])
def test_what_is_allowed_is_read_and_answered(version: Version, action: str) -> None:
    language, spoken = codec(version), dialect(version)
    shape = language.request_shape(action)

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        odds = random.Random(seed)
        payload, answer = instance(shape, odds), an_answer(odds)
        request = language.decode_request(action, msgspec.json.encode(payload))
        told = spoken.read(action, request, NOW)
        assert isinstance(told, Message)
        assert msgspec.convert(msgspec.to_builtins(told), type(told)) == told
        raw = spoken.answer(action, told, answer)
        if action != "NotifyPeriodicEventStream":
            language.decode_response(action, raw)

    check()


@pytest.mark.parametrize(("version", "action"), [(v, a) for v, a in ACTIONS if a not in TOLD[v]])
def test_what_only_a_cloud_asks_is_not_supported(version: Version, action: str) -> None:
    with pytest.raises(NotSupported, match=action):
        dialect(version).read(action, None, NOW)


CONTEXT = RequestContext(
    now_ms=Milliseconds(NOW),
    remote_start_id=9,
    transaction_key="tx-1",
    transaction_number=77,
    profile_id=4,
    evses=1,
    failsafe_ma=MilliAmperes(6000),
)
TOKEN = IdToken("04AABBCC")
DOING: list[Action] = [
    RemoteStart(1, TOKEN),
    RemoteStart(0, TOKEN),
    RemoteStop(UUID_1),
    SetLimit(0, MilliAmperes(16_050), Milliseconds(60_000)),
    SetLimit(2, MilliAmperes(16_050), Milliseconds(60_000)),
    SetLimit(2, None, Milliseconds(60_000)),
    SetAvailability(0, operative=True),
    SetAvailability(1, operative=False),
    SetLocalList(3, ()),
    SetLocalList(
        4,
        (
            LocalListEntry(TOKEN, Milliseconds(NOW), "fleet"),
            LocalListEntry(IdToken("x" * 300), blocked=True),
            LocalListEntry(IdToken("05"), blocked=True),
        ),
    ),
]


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("do", DOING)
@pytest.mark.parametrize(
    "context",
    [CONTEXT, msgspec.structs.replace(CONTEXT, rate_unit="W", phases=1, failsafe_ma=None)],
)
def test_all_ways_to_ask_are_valid(version: Version, do: Action, context: RequestContext) -> None:
    spoken = dialect(version)
    ways = spoken.ways(do, context)
    for one in ways:
        codec(version).make_request(one.action, one.payload)
        known = msgspec.structs.replace(context, way=one.way)
        assert spoken.request(do, known) == one
    assert spoken.request(do, context) == ways[0]
    unheard = msgspec.structs.replace(context, way="unheard of")
    assert spoken.request(do, unheard) == ways[0]


@pytest.mark.parametrize("version", Version)
def test_what_has_no_words(version: Version) -> None:
    spoken = dialect(version)
    with pytest.raises(NotExpressible, match="Watch"):
        spoken.request(Watch(1, Milliseconds(1000), Milliseconds(1000)), CONTEXT)
    with pytest.raises(NotExpressible, match="transaction"):
        spoken.request(RemoteStop(UUID_1), RequestContext())
    with pytest.raises(NotExpressible, match="xxx"):
        spoken.request(RemoteStart(1, IdToken("x" * 300)), CONTEXT)
    with pytest.raises(NotExpressible, match="Reservation"):
        spoken.trigger("ReservationStatusUpdate")


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize(
    ("do", "purposes"),
    [
        (SetLimit(0, MilliAmperes(1), Milliseconds(1)), ["MaxProfile", "TxDefaultProfile"]),
        (
            SetLimit(1, MilliAmperes(1), Milliseconds(1)),
            ["TxDefaultProfile", "TxProfile", "MaxProfile"],
        ),
    ],
)
def test_limits_have_fallbacks(version: Version, do: SetLimit, purposes: list[str]) -> None:
    ways = [one.way for one in dialect(version).ways(do, CONTEXT)]
    assert [way.removeprefix("ChargePoint").removeprefix("ChargingStation") for way in ways] == (
        purposes
    )
    plain = msgspec.structs.replace(CONTEXT, evses=2, transaction_key=None, transaction_number=None)
    assert len(dialect(version).ways(do, plain)) == (2 if do.evse == 0 else 1)


@pytest.mark.parametrize("version", Version)
def test_resets_triggers_and_variables_are_valid(version: Version) -> None:
    spoken, language = dialect(version), codec(version)
    for immediate in (True, False):
        action, payload, _ = spoken.reset(immediate=immediate)
        language.make_request(action, payload)
    for message in ("BootNotification", "StatusNotification", "MeterValues", "SignCertificate"):
        for evse in (None, 0, 2):
            action, payload, _ = spoken.trigger(message, evse)
            language.make_request(action, payload)
    some = (
        Variable(component="ChargingStation", variable="HeartbeatInterval", value="60"),
        Variable(
            component="EVSE",
            component_instance="a",
            variable="Power",
            variable_instance="b",
            evse=1,
            connector=1,
            attribute="MaxSet",
        ),
    )
    requests = [spoken.ask(some), spoken.ask((), request_id=3), *spoken.change(some)]
    assert spoken.change(()) == ()
    for action, payload, _ in requests:
        language.make_request(action, payload)


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize(
    ("action", "response", "accepted", "text"),
    [
        ("ClearCache", {"status": "Accepted"}, True, "Accepted"),
        ("ClearCache", {"status": "Rejected"}, False, "Rejected"),
        ("ChangeAvailability", {"status": "Scheduled"}, True, "Scheduled"),
        ("ClearChargingProfile", {"status": "Unknown"}, True, "Unknown"),
        ("UnlockConnector", {"status": "Unlocked"}, True, "Unlocked"),
        ("UnlockConnector", {"status": "UnlockFailed"}, False, "UnlockFailed"),
        ("GetLog", {"status": "AcceptedCanceled", "filename": "x"}, True, "AcceptedCanceled"),
        ("SendLocalList", {"status": "VersionMismatch"}, False, "VersionMismatch"),
        ("DataTransfer", {"status": "UnknownVendorId"}, False, "UnknownVendorId"),
    ],
)
def test_outcomes(
    version: Version, action: str, response: dict[str, Any], accepted: bool, text: str
) -> None:
    typed = codec(version).decode_response(action, msgspec.json.encode(response))
    for form in (response, typed):
        found = dialect(version).outcome(action, {}, form)
        assert (found.accepted, found.text) == (accepted, text)


@pytest.mark.parametrize(
    ("version", "action"),
    [(v, a) for v, a in ACTIONS if a not in TOLD[v] | dialect(v).not_supported],
)
def test_every_answer_of_a_station_has_an_outcome(version: Version, action: str) -> None:
    language = codec(version)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        odds = random.Random(seed)
        request = instance(language.request_shape(action), odds)
        payload = instance(language.response_shape(action), odds)
        response = language.decode_response(action, msgspec.json.encode(payload))
        found = dialect(version).outcome(action, request, response)
        assert isinstance(found.text, str)

    check()


def test_data_that_does_not_fit_is_told_to_us_not_to_the_station() -> None:
    spoken = dialect(Version.V201)
    told = spoken.read(
        "GetCertificateStatus",
        codec(Version.V201).make_request(
            "GetCertificateStatus",
            {
                "ocspRequestData": {
                    "hashAlgorithm": "SHA256",
                    "issuerNameHash": "a",
                    "issuerKeyHash": "b",
                    "serialNumber": "c",
                    "responderURL": "d",
                }
            },
        ),
        NOW,
    )
    wrong = Answer(now_ms=NOW, data={"status": "Maybe"})
    with pytest.raises(SchemaError):
        spoken.answer("GetCertificateStatus", told, wrong)


def heard(version: Version, action: str, payload: dict[str, Any]) -> Any:
    raw = msgspec.json.encode(payload)
    request, deviations = read_request(codec(version), action, raw)
    assert deviations
    return dialect(version).read(action, request, NOW)


def test_what_deviates_is_read_too() -> None:
    values = [
        {"value": 12.5, "unit": "kWh"},
        {"value": "7", "measurand": "Power.Active.Import", "unit": "horsepower"},
        {"value": "9", "measurand": "Vendor.Fan", "unit": "rpm", "phase": "L9"},
        {"value": "41", "measurand": "Temperature", "unit": "Celcius"},
        {"value": "50", "measurand": "Frequency", "unit": "Hz", "context": "Odd"},
    ]
    told = heard(
        Version.V16,
        "MeterValues",
        {"connectorId": "1", "meterValue": [{"timestamp": STAMP, "sampledValue": values}]},
    )
    by_context = {one.context: one for one in told.readings}
    usual = by_context["Sample.Periodic"]
    assert usual.energy_wh == 12_500
    assert usual.raw == ("Power.Active.Import=7 horsepower",)
    assert usual.more == {"vendor_fan_l9_rpm": 9, "temperature_mc": 41_000}
    assert by_context["Odd"].more == {"frequency_mhz": 50_000}


@pytest.mark.parametrize("version", [Version.V201, Version.V21])
def test_an_unheard_of_trigger_is_passed_on(version: Version) -> None:
    told = heard(
        version,
        "TransactionEvent",
        {
            "eventType": "Updated",
            "timestamp": STAMP,
            "triggerReason": "Moonrise",
            "seqNo": "3",
            "transactionInfo": {"transactionId": "t"},
            "meterValue": [{"timestamp": STAMP, "sampledValue": [{"value": "7"}]}],
        },
    )
    assert (told.trigger, told.seq_no, told.readings[0].energy_wh) == ("Moonrise", 3, 7)


def test_boots_of_long_serials_are_kept_whole() -> None:
    told = heard(
        Version.V16,
        "BootNotification",
        {
            "chargePointVendor": "V" * 30,
            "chargePointModel": "M",
            "chargePointSerialNumber": "S" * 33,
        },
    )
    assert (told.vendor, told.serial) == ("V" * 30, "S" * 33)
