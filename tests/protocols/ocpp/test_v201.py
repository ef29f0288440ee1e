"""OCPP 2.0.1 and 2.1, where they need more than a change of form."""

from typing import Any

import msgspec
import pytest

from protocols.agent_link import (
    ChargingState,
    ConnectorStatus,
    IdToken,
    RemoteStart,
    SetLimit,
    SetLocalList,
    TransactionEventType,
)
from protocols.ocpp.dialect import NotSupported, RequestContext, dialect
from protocols.ocpp.messages import (
    Answer,
    Authorize,
    Boot,
    DataTransfer,
    Firmware,
    Heartbeat,
    Log,
    Meter,
    Notice,
    Reading,
    Registration,
    Report,
    Security,
    SignCertificate,
    Status,
    TokenInfo,
    TokenStatus,
    Told,
    Transaction,
    Variable,
)
from protocols.ocpp.schemas import codec
from protocols.ocpp.v21 import NOT_SUPPORTED
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds

NOW = 1_735_732_860_000
AT = 1_735_732_800_500
STAMP = "2025-01-01T12:00:00.500Z"
BOTH = pytest.mark.parametrize("version", [Version.V201, Version.V21])


def read(action: str, payload: dict[str, Any], version: Version = Version.V201) -> Told:
    typed = codec(version).decode_request(action, msgspec.json.encode(payload))
    return dialect(version).read(action, typed, NOW)


def answer(
    action: str, payload: dict[str, Any], version: Version = Version.V201, **parts: Any
) -> dict[str, Any]:
    told = read(action, payload, version)
    raw = dialect(version).answer(action, told, Answer(now_ms=NOW, **parts))
    codec(version).decode_response(action, raw)
    plain: dict[str, Any] = msgspec.json.decode(raw)
    return plain


def event(kind: str = "Updated", **fields: Any) -> dict[str, Any]:
    return {
        "eventType": kind,
        "timestamp": STAMP,
        "triggerReason": "MeterValuePeriodic",
        "seqNo": 3,
        "transactionInfo": {"transactionId": "tx-1"},
    } | fields


@BOTH
def test_the_least_of_an_event(version: Version) -> None:
    assert read("TransactionEvent", event(), version) == Transaction(
        event=TransactionEventType.UPDATED,
        at_ms=AT,
        trigger="MeterValuePeriodic",
        key="tx-1",
        seq_no=3,
    )


@BOTH
def test_all_of_an_event(version: Version) -> None:
    unit = {"unit": "kWh"}
    told = read(
        "TransactionEvent",
        event(
            "Ended",
            triggerReason="StopAuthorized",
            offline=True,
            numberOfPhasesUsed=3,
            cableMaxCurrent=32,
            reservationId=8,
            transactionInfo={
                "transactionId": "tx-1",
                "chargingState": "EVConnected",
                "timeSpentCharging": 1800,
                "stoppedReason": "SOCLimitReached",
                "remoteStartId": 9,
            },
            evse={"id": 2, "connectorId": 3},
            idToken={"idToken": "abc", "type": "eMAID"},
            meterValue=[
                {
                    "timestamp": STAMP,
                    "sampledValue": [
                        {
                            "value": 12.3456,
                            "unitOfMeasure": unit,
                            "context": "Transaction.End",
                            "signedMeterValue": {
                                "signedMeterData": "T0NNRg==",
                                "signingMethod": "",
                                "encodingMethod": "OCMF",
                                "publicKey": "",
                            },
                        },
                        {
                            "value": 1.104,
                            "measurand": "Power.Active.Import",
                            "unitOfMeasure": {"unit": "W", "multiplier": 4},
                            "context": "Transaction.End",
                        },
                    ],
                }
            ],
        ),
        version,
    )
    assert told == Transaction(
        event=TransactionEventType.ENDED,
        at_ms=AT,
        trigger="StopAuthorized",
        key="tx-1",
        seq_no=3,
        evse=2,
        connector=3,
        id_token=IdToken("abc", "eMAID"),
        stop_token=True,
        charging_state=ChargingState.EV_CONNECTED,
        reason="SOCLimitReached",
        offline=True,
        readings=(
            Reading(
                at_ms=AT,
                context="Transaction.End",
                energy_wh=12345,
                power_w=11040,
                signed=("T0NNRg==",),
            ),
        ),
        reservation=8,
        remote_start_id=9,
        time_spent_s=1800,
    )


def test_events_that_are_odd() -> None:
    ended = read("TransactionEvent", event("Ended", timestamp="1970-01-01T00:00:00Z"))
    assert isinstance(ended, Transaction)
    assert (ended.reason, ended.stop_token, ended.clock_trusted) == ("Local", False, False)
    free = read(
        "TransactionEvent",
        event("Started", idToken={"idToken": "", "type": "NoAuthorization"}, evse={"id": 1}),
    )
    assert isinstance(free, Transaction)
    assert (free.id_token, free.evse, free.connector) == (None, 1, 1)
    stopping = read(
        "TransactionEvent",
        event(triggerReason="StopAuthorized", idToken={"idToken": "a", "type": "Local"}),
    )
    assert isinstance(stopping, Transaction)
    assert stopping.stop_token
    started = read("TransactionEvent", event("Started", idToken={"idToken": "a", "type": "Local"}))
    assert isinstance(started, Transaction)
    assert not started.stop_token


def test_what_2_1_has_more() -> None:
    told = read(
        "TransactionEvent",
        event(
            triggerReason="RunningCost",
            transactionInfo={
                "transactionId": "t",
                "operationMode": "ChargingOnly",
                "tariffId": "T1",
                "transactionLimit": {"maxCost": 5},
            },
            idToken={"idToken": "x" * 200, "type": "DirectPayment"},
            preconditioningStatus="Ready",
            evseSleep=False,
            meterValue=[
                {
                    "timestamp": STAMP,
                    "sampledValue": [
                        {
                            "value": 55,
                            "measurand": "Display.PresentSOC",
                            "unitOfMeasure": {"unit": "Percent"},
                        },
                        {"value": 32, "measurand": "Current.Import.Offered"},
                    ],
                }
            ],
        ),
        Version.V21,
    )
    assert isinstance(told, Transaction)
    assert told.id_token == IdToken("x" * 200, "DirectPayment")
    assert told.readings == (
        Reading(at_ms=AT, offered_ma=MilliAmperes(32_000), more={"display_presentsoc_pct": 55}),
    )


TOKEN = {"idToken": {"idToken": "04AA", "type": "ISO14443"}}


@BOTH
@pytest.mark.parametrize(
    ("action", "payload", "told"),
    [
        ("Heartbeat", {}, Heartbeat()),
        ("Authorize", TOKEN, Authorize(id_token=IdToken("04AA"))),
        (
            "StatusNotification",
            {"timestamp": STAMP, "connectorStatus": "Occupied", "evseId": 2, "connectorId": 1},
            Status(evse=2, connector=1, status=ConnectorStatus.OCCUPIED, at_ms=AT),
        ),
        (
            "StatusNotification",
            {"timestamp": STAMP, "connectorStatus": "Faulted", "evseId": 0, "connectorId": 0},
            Status(evse=0, connector=0, status=ConnectorStatus.FAULTED, at_ms=AT),
        ),
        (
            "MeterValues",
            {"evseId": 0, "meterValue": [{"timestamp": STAMP, "sampledValue": [{"value": 7}]}]},
            Meter(evse=0, readings=(Reading(at_ms=AT, energy_wh=7),)),
        ),
        (
            "BootNotification",
            {
                "reason": "PowerUp",
                "chargingStation": {
                    "model": "M",
                    "vendorName": "V",
                    "serialNumber": "S",
                    "firmwareVersion": "F",
                    "modem": {"iccid": "i", "imsi": "j"},
                },
            },
            Boot(
                vendor="V",
                model="M",
                reason="PowerUp",
                serial="S",
                firmware="F",
                iccid="i",
                imsi="j",
            ),
        ),
        (
            "BootNotification",
            {"reason": "PowerUp", "chargingStation": {"model": "M", "vendorName": "V"}},
            Boot(vendor="V", model="M", reason="PowerUp"),
        ),
        (
            "SecurityEventNotification",
            {"type": "InvalidMessages", "timestamp": STAMP, "techInfo": "x"},
            Security(type="InvalidMessages", at_ms=AT, text="x"),
        ),
        (
            "FirmwareStatusNotification",
            {"status": "Installed", "requestId": 4},
            Firmware(status="Installed", request_id=4),
        ),
        (
            "PublishFirmwareStatusNotification",
            {"status": "Published", "location": ["a", "b"], "requestId": 1},
            Firmware(status="Published", location=("a", "b"), published=True, request_id=1),
        ),
        (
            "LogStatusNotification",
            {"status": "Uploaded", "requestId": 4},
            Log(status="Uploaded", request_id=4),
        ),
        (
            "SignCertificate",
            {"csr": "c", "certificateType": "V2GCertificate"},
            SignCertificate(csr="c", type="V2GCertificate"),
        ),
        (
            "DataTransfer",
            {"vendorId": "v", "messageId": "m", "data": [1, {"a": None}]},
            DataTransfer(vendor="v", message="m", data=[1, {"a": None}]),
        ),
        (
            "ReservationStatusUpdate",
            {"reservationId": 4, "reservationUpdateStatus": "Expired"},
            Notice(
                action="ReservationStatusUpdate",
                payload={"reservationId": 4, "reservationUpdateStatus": "Expired"},
            ),
        ),
    ],
)
def test_the_other_actions(
    version: Version, action: str, payload: dict[str, Any], told: Told
) -> None:
    assert read(action, payload, version) == told


def test_a_notice_is_plain_data() -> None:
    payload = {
        "generatedAt": STAMP,
        "seqNo": 0,
        "eventData": [
            {
                "eventId": 1,
                "timestamp": STAMP,
                "trigger": "Alerting",
                "actualValue": "90",
                "eventNotificationType": "CustomMonitor",
                "component": {"name": "EVSE", "evse": {"id": 1}},
                "variable": {"name": "Temperature"},
                "customData": {"vendorId": "v", "more": [1]},
            }
        ],
    }
    told = read("NotifyEvent", payload)
    assert isinstance(told, Notice)
    assert msgspec.json.decode(msgspec.json.encode(told.payload)) == told.payload
    assert told.payload["eventData"][0]["customData"] == {"vendorId": "v", "more": [1]}
    assert told.payload["generatedAt"].startswith("2025-01-01T12:00:00.5")


def test_a_contract_certificate_goes_along() -> None:
    data = {
        "hashAlgorithm": "SHA256",
        "issuerNameHash": "a",
        "issuerKeyHash": "b",
        "serialNumber": "c",
        "responderURL": "http://ocsp",
    }
    asked = TOKEN | {"certificate": "-----", "iso15118CertificateHashData": [data]}
    assert read("Authorize", asked) == Authorize(
        id_token=IdToken("04AA"), certificate="-----", certificate_hashes=(data,)
    )
    accepted = TokenInfo(TokenStatus.ACCEPTED)
    assert answer("Authorize", asked, token=accepted, data="CertificateRevoked") == {
        "idTokenInfo": {"status": "Accepted"},
        "certificateStatus": "CertificateRevoked",
    }


REPORTED = {
    "component": {"name": "EVSE", "instance": "i", "evse": {"id": 1, "connectorId": 2}},
    "variable": {"name": "Power", "instance": "j"},
    "variableAttribute": [
        {"type": "Actual", "value": "7", "mutability": "ReadOnly"},
        {"type": "MaxSet"},
    ],
    "variableCharacteristics": {"unit": "W", "dataType": "decimal", "supportsMonitoring": True},
}


@BOTH
def test_a_report_has_a_variable_for_each_attribute(version: Version) -> None:
    password = {
        "component": {"name": "SecurityCtrlr"},
        "variable": {"name": "BasicAuthPassword"},
        "variableAttribute": [{"value": "secret"}],
    }
    payload = {"requestId": 1, "generatedAt": STAMP, "seqNo": 2, "tbc": True}
    told = read("NotifyReport", payload | {"reportData": [REPORTED, password]}, version)
    one = Variable(
        component="EVSE",
        component_instance="i",
        variable="Power",
        variable_instance="j",
        evse=1,
        connector=2,
        value="7",
        mutability="ReadOnly",
        characteristics={"unit": "W", "dataType": "decimal", "supportsMonitoring": True},
    )
    assert told == Report(
        request_id=1,
        seq_no=2,
        more=True,
        at_ms=AT,
        variables=(
            one,
            msgspec.structs.replace(one, attribute="MaxSet", value=None, mutability="ReadWrite"),
            Variable(
                component="SecurityCtrlr", variable="BasicAuthPassword", mutability="WriteOnly"
            ),
        ),
    )
    empty = read("NotifyReport", payload, version)
    assert isinstance(empty, Report)
    assert empty.variables == ()


def test_what_2_1_asks_and_is_refused() -> None:
    assert dialect(Version.V21).not_supported == NOT_SUPPORTED
    payload = {"vatNumber": "DE1"}
    with pytest.raises(NotSupported):
        read("VatNumberValidation", payload, Version.V21)


# --------------------------------------------------------------------------- answers


@BOTH
@pytest.mark.parametrize("status", TokenStatus)
def test_every_token_status(version: Version, status: TokenStatus) -> None:
    for token in (TokenInfo(status), TokenInfo(status, group="a")):
        info = answer("Authorize", TOKEN, version, token=token)["idTokenInfo"]
        assert info["status"] == status


@BOTH
def test_token_answers(version: Version) -> None:
    token = TokenInfo(
        TokenStatus.ACCEPTED,
        expires_ms=Milliseconds(NOW),
        group="fleet",
        language="uz",
        personal_message="Xush kelibsiz",
    )
    info = {
        "status": "Accepted",
        "cacheExpiryDateTime": "2025-01-01T12:01:00.000Z",
        "groupIdToken": {"idToken": "fleet", "type": "Central"},
        "language1": "uz",
        "personalMessage": {"format": "UTF8", "language": "uz", "content": "Xush kelibsiz"},
    }
    assert answer("Authorize", TOKEN, version, token=token) == {"idTokenInfo": info}
    assert answer("TransactionEvent", event(), version, token=token) == {"idTokenInfo": info}
    assert answer("Authorize", TOKEN, version) == {"idTokenInfo": {"status": "Unknown"}}
    assert answer("TransactionEvent", event(), version) == {}


def test_costs() -> None:
    accepted = TokenInfo(TokenStatus.ACCEPTED)
    ended = event("Ended")
    assert answer("TransactionEvent", ended, total_cost="12.34", token=accepted) == {
        "idTokenInfo": {"status": "Accepted"},
        "totalCost": 12.34,
    }
    assert answer("TransactionEvent", event(), total_cost="12.34") == {}
    assert answer("TransactionEvent", event(), Version.V21, total_cost="0.00") == {"totalCost": 0}
    assert answer("TransactionEvent", ended, total_cost="dear") == {}


@BOTH
def test_other_answers(version: Version) -> None:
    boot = {"reason": "PowerUp", "chargingStation": {"model": "M", "vendorName": "V"}}
    assert answer("BootNotification", boot, version, registration=Registration.REJECTED) == {
        "status": "Rejected",
        "currentTime": "2025-01-01T12:01:00.000Z",
        "interval": 300,
    }
    assert answer("Heartbeat", {}, version) == {"currentTime": "2025-01-01T12:01:00.000Z"}
    assert answer("SignCertificate", {"csr": "c"}, version, status="NoCA") == {"status": "Rejected"}
    transfer = {"vendorId": "v"}
    assert answer("DataTransfer", transfer, version, data={"a": 1}) == {
        "status": "Accepted",
        "data": {"a": 1},
    }
    contract = {
        "iso15118SchemaVersion": "urn",
        "action": "Install",
        "exiRequest": "x",
    }
    asked = "Get15118EVCertificate"
    assert answer(asked, contract, version) == {"status": "Failed", "exiResponse": ""}
    given = {"status": "Accepted", "exiResponse": "abc"}
    assert answer(asked, contract, version, data=given) == given


# --------------------------------------------------------------------------- requests

CONTEXT = RequestContext(now_ms=Milliseconds(NOW), remote_start_id=9, profile_id=4)


def test_remote_start() -> None:
    start = dialect(Version.V201).request(RemoteStart(2, IdToken("a", "Central")), CONTEXT)
    assert start.action == "RequestStartTransaction"
    assert start.payload == {
        "remoteStartId": 9,
        "idToken": {"idToken": "a", "type": "Central"},
        "evseId": 2,
    }


def test_a_limit_and_what_follows_it() -> None:
    limit = SetLimit(1, MilliAmperes(16_099), Milliseconds(90_500))
    safe = msgspec.structs.replace(CONTEXT, failsafe_ma=MilliAmperes(6000))
    profile = dialect(Version.V201).request(limit, safe).payload["chargingProfile"]
    assert profile == {
        "id": 4,
        "stackLevel": 0,
        "chargingProfilePurpose": "TxDefaultProfile",
        "chargingProfileKind": "Absolute",
        "chargingSchedule": [
            {
                "id": 4,
                "startSchedule": "2025-01-01T12:01:00.000Z",
                "chargingRateUnit": "A",
                "chargingSchedulePeriod": [
                    {"startPeriod": 0, "limit": 16.0},
                    {"startPeriod": 90, "limit": 6.0},
                ],
            }
        ],
    }
    watts = msgspec.structs.replace(CONTEXT, rate_unit="W", phases=1)
    (schedule,) = (
        dialect(Version.V201).request(limit, watts).payload["chargingProfile"]["chargingSchedule"]
    )
    assert schedule["duration"] == 90
    assert schedule["chargingSchedulePeriod"] == [
        {"startPeriod": 0, "limit": 3702.7, "numberPhases": 1}
    ]


def test_tokens_that_only_2_1_can_write() -> None:
    entries = SetLocalList(1, ())
    assert dialect(Version.V201).request(entries, CONTEXT).payload == {
        "versionNumber": 1,
        "updateType": "Full",
    }
    start = RemoteStart(1, IdToken("x" * 200, "DirectPayment"))
    assert dialect(Version.V21).request(start, CONTEXT).payload["idToken"] == {
        "idToken": "x" * 200,
        "type": "DirectPayment",
    }


def test_a_status_is_asked_of_a_connector() -> None:
    spoken = dialect(Version.V201)
    assert spoken.trigger("StatusNotification", 2).payload == {
        "requestedMessage": "StatusNotification",
        "evse": {"id": 2, "connectorId": 1},
    }
    assert spoken.trigger("MeterValues", 2).payload["evse"] == {"id": 2}
    assert spoken.reset(immediate=True, evse=2).payload == {"type": "Immediate", "evseId": 2}


# --------------------------------------------------------------------------- outcomes


def test_variables_that_were_read() -> None:
    results = [
        {
            "attributeStatus": "Accepted",
            "attributeValue": "60",
            "component": {"name": "OCPPCommCtrlr"},
            "variable": {"name": "HeartbeatInterval"},
        },
        {
            "attributeStatus": "UnknownVariable",
            "attributeStatusInfo": {"reasonCode": "NotFound"},
            "component": {"name": "OCPPCommCtrlr"},
            "variable": {"name": "Nonsense"},
        },
    ]
    found = dialect(Version.V201).outcome("GetVariables", {}, {"getVariableResult": results})
    assert not found.accepted
    assert found.text == "OCPPCommCtrlr.Nonsense: UnknownVariable: NotFound"
    assert found.variables == (
        Variable(component="OCPPCommCtrlr", variable="HeartbeatInterval", value="60"),
    )


def test_variables_that_were_set() -> None:
    spoken = dialect(Version.V201)
    wanted = (
        Variable(component="OCPPCommCtrlr", variable="HeartbeatInterval", value="60"),
        Variable(component="SecurityCtrlr", variable="BasicAuthPassword", value="secret"),
        Variable(component="AuthCtrlr", variable="Enabled", value="true"),
    )
    (request,) = spoken.change(wanted)
    statuses = ("Rejected", "Accepted", "RebootRequired")
    results = [
        {
            "attributeStatus": status,
            "component": {"name": one["component"]["name"].upper()},
            "variable": one["variable"],
        }
        for one, status in zip(
            reversed(request.payload["setVariableData"]), reversed(statuses), strict=True
        )
    ]
    found = spoken.outcome("SetVariables", request.payload, {"setVariableResult": results})
    assert not found.accepted
    assert "AUTHCTRLR.Enabled: RebootRequired" in found.text
    assert [(one.variable, one.value) for one in found.variables] == [
        ("Enabled", "true"),
        ("BasicAuthPassword", None),
    ]


def test_other_outcomes() -> None:
    spoken = dialect(Version.V201)
    refused = {"status": "Rejected", "statusInfo": {"reasonCode": "Busy", "additionalInfo": "x"}}
    assert spoken.outcome("Reset", {}, refused).text == "Rejected: Busy: x"
    assert spoken.outcome("GetLocalListVersion", {}, {"versionNumber": 5}).text == "5"
    assert spoken.outcome("CostUpdated", {}, {}).accepted
    cleared = {"clearMonitoringResult": [{"id": 1, "status": "NotFound"}]}
    found = spoken.outcome("ClearVariableMonitoring", {}, cleared)
    assert (found.accepted, found.text) == (False, "NotFound")
