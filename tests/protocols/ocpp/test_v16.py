"""OCPP 1.6 as it is spoken, in the words of 2.x and back."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from protocols.agent_link import (
    ChargingState,
    ConnectorStatus,
    IdToken,
    LocalListEntry,
    RemoteStart,
    RemoteStop,
    SetLimit,
    SetLocalList,
    TransactionEventType,
)
from protocols.ocpp.dialect import NotExpressible, NotSupported, RequestContext, dialect
from protocols.ocpp.messages import (
    Answer,
    Authorize,
    Boot,
    DataTransfer,
    Firmware,
    Heartbeat,
    Log,
    Meter,
    Reading,
    Registration,
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
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds

CODEC = codec(Version.V16)
SPOKEN = dialect(Version.V16)
NOW = 1_735_732_860_000
AT = 1_735_732_800_500
STAMP = "2025-01-01T12:00:00.500Z"
OLD = "1970-01-01T00:00:12Z"


def read(action: str, payload: dict[str, Any]) -> Told:
    return SPOKEN.read(action, CODEC.decode_request(action, msgspec.json.encode(payload)), NOW)


def answer(action: str, payload: dict[str, Any], **parts: Any) -> dict[str, Any]:
    raw = SPOKEN.answer(action, read(action, payload), Answer(now_ms=NOW, **parts))
    CODEC.decode_response(action, raw)
    plain: dict[str, Any] = msgspec.json.decode(raw)
    return plain


def said(status: str, connector: int = 1, **more: Any) -> Told:
    fields = {"connectorId": connector, "errorCode": "NoError", "status": status, **more}
    return read("StatusNotification", fields)


@pytest.mark.parametrize(
    ("status", "expected", "charging"),
    [
        ("Available", ConnectorStatus.AVAILABLE, ChargingState.IDLE),
        ("Preparing", ConnectorStatus.OCCUPIED, ChargingState.EV_CONNECTED),
        ("Charging", ConnectorStatus.OCCUPIED, ChargingState.CHARGING),
        ("SuspendedEV", ConnectorStatus.OCCUPIED, ChargingState.SUSPENDED_EV),
        ("SuspendedEVSE", ConnectorStatus.OCCUPIED, ChargingState.SUSPENDED_EVSE),
        ("Finishing", ConnectorStatus.OCCUPIED, ChargingState.EV_CONNECTED),
        ("Reserved", ConnectorStatus.RESERVED, ChargingState.IDLE),
        ("Unavailable", ConnectorStatus.UNAVAILABLE, None),
        ("Faulted", ConnectorStatus.FAULTED, None),
    ],
)
def test_every_status(
    status: str, expected: ConnectorStatus, charging: ChargingState | None
) -> None:
    assert said(status, 2, timestamp=STAMP) == Status(
        evse=2, connector=1, status=expected, charging_state=charging, at_ms=AT
    )


@pytest.mark.parametrize("connector", [0, -1])
def test_connector_0_is_the_station(connector: int) -> None:
    assert said("Available", connector) == Status(
        evse=0, connector=0, status=ConnectorStatus.AVAILABLE
    )


@pytest.mark.parametrize(
    ("status", "fields", "error"),
    [
        ("Faulted", {"errorCode": "GroundFailure"}, "GroundFailure"),
        (
            "Faulted",
            {"errorCode": "OtherError", "vendorErrorCode": "E05", "info": "lock"},
            "OtherError E05 lock",
        ),
        ("Faulted", {"vendorErrorCode": "E05"}, "E05"),
        ("Faulted", {}, ""),
        ("Charging", {"errorCode": "HighTemperature"}, "HighTemperature"),
        ("Charging", {"vendorErrorCode": "0000", "info": "all is well"}, ""),
    ],
)
def test_what_is_wrong(status: str, fields: dict[str, str], error: str) -> None:
    told = said(status, **fields)
    assert isinstance(told, Status)
    assert told.error == error


def test_start() -> None:
    start = {"connectorId": 2, "idTag": "04AABB", "meterStart": 1234, "timestamp": STAMP}
    assert read("StartTransaction", start) == Transaction(
        event=TransactionEventType.STARTED,
        at_ms=AT,
        trigger="Authorized",
        evse=2,
        id_token=IdToken("04AABB"),
        charging_state=ChargingState.EV_CONNECTED,
        register_wh=1234,
    )
    odd = read("StartTransaction", start | {"meterStart": -5, "timestamp": OLD, "reservationId": 9})
    assert isinstance(odd, Transaction)
    assert (odd.register_wh, odd.at_ms, odd.clock_trusted, odd.reservation) == (
        -1,
        12_000,
        False,
        9,
    )


STOP = {"transactionId": 5, "meterStop": 2000, "timestamp": STAMP}


def test_stop() -> None:
    data = [
        {
            "timestamp": STAMP,
            "sampledValue": [{"value": "2.0001", "unit": "kWh", "context": "Transaction.End"}],
        }
    ]
    assert read("StopTransaction", STOP | {"idTag": "a", "transactionData": data}) == Transaction(
        event=TransactionEventType.ENDED,
        at_ms=AT,
        trigger="StopAuthorized",
        number=5,
        id_token=IdToken("a"),
        stop_token=True,
        reason="Local",
        register_wh=2000,
        readings=(Reading(at_ms=AT, energy_wh=2000, context="Transaction.End"),),
    )


@pytest.mark.parametrize(
    ("reason", "expected", "trigger"),
    [
        ("EmergencyStop", "EmergencyStop", "AbnormalCondition"),
        ("EVDisconnected", "EVDisconnected", "EVCommunicationLost"),
        ("HardReset", "ImmediateReset", "ResetCommand"),
        ("Local", "Local", "StopAuthorized"),
        ("Other", "Other", "AbnormalCondition"),
        ("PowerLoss", "PowerLoss", "AbnormalCondition"),
        ("Reboot", "Reboot", "AbnormalCondition"),
        ("Remote", "Remote", "RemoteStop"),
        ("SoftReset", "Reboot", "ResetCommand"),
        ("UnlockCommand", "Remote", "UnlockCommand"),
        ("DeAuthorized", "DeAuthorized", "Deauthorized"),
    ],
)
def test_every_reason(reason: str, expected: str, trigger: str) -> None:
    told = read("StopTransaction", STOP | {"reason": reason, "transactionId": -1})
    assert isinstance(told, Transaction)
    assert (told.reason, told.trigger, told.number) == (expected, trigger, -1)
    assert (told.id_token, told.stop_token) == (None, False)


def test_meter_values() -> None:
    values = {"timestamp": STAMP, "sampledValue": [{"value": "7"}]}
    reading = Reading(at_ms=AT, energy_wh=7)
    assert read("MeterValues", {"connectorId": 0, "meterValue": [values]}) == Meter(
        evse=0, readings=(reading,)
    )
    signed = {"value": "OCMF|{}|{}", "format": "SignedData"}
    old = {"timestamp": OLD, "sampledValue": [{"value": "3"}, signed]}
    told = read("MeterValues", {"connectorId": 1, "transactionId": 5, "meterValue": [values, old]})
    assert told == Meter(
        evse=1,
        number=5,
        readings=(Reading(at_ms=12_000, energy_wh=3, signed=("OCMF|{}|{}",)), reading),
        clock_trusted=False,
    )


@pytest.mark.parametrize(
    ("action", "payload", "told"),
    [
        ("Heartbeat", {}, Heartbeat()),
        ("Authorize", {"idTag": "04aabb"}, Authorize(id_token=IdToken("04aabb"))),
        (
            "BootNotification",
            {"chargePointVendor": "V", "chargePointModel": "M", "chargeBoxSerialNumber": "B"},
            Boot(vendor="V", model="M", serial="B"),
        ),
        (
            "BootNotification",
            {
                "chargePointVendor": "V",
                "chargePointModel": "M",
                "chargeBoxSerialNumber": "B",
                "chargePointSerialNumber": "S",
                "firmwareVersion": "1.2",
                "iccid": "i",
                "imsi": "j",
                "meterType": "t",
                "meterSerialNumber": "n",
            },
            Boot(
                vendor="V",
                model="M",
                serial="S",
                firmware="1.2",
                iccid="i",
                imsi="j",
                meter_type="t",
                meter_serial="n",
            ),
        ),
        (
            "DataTransfer",
            {"vendorId": "x", "messageId": "m", "data": "d"},
            DataTransfer(vendor="x", message="m", data="d"),
        ),
        ("DataTransfer", {"vendorId": "x"}, DataTransfer(vendor="x")),
        ("DiagnosticsStatusNotification", {"status": "UploadFailed"}, Log(status="UploadFailure")),
        ("DiagnosticsStatusNotification", {"status": "Uploading"}, Log(status="Uploading")),
        (
            "LogStatusNotification",
            {"status": "PermissionDenied", "requestId": 3},
            Log(status="PermissionDenied", request_id=3),
        ),
        ("FirmwareStatusNotification", {"status": "Installed"}, Firmware(status="Installed")),
        (
            "SignedFirmwareStatusNotification",
            {"status": "InvalidSignature", "requestId": 4},
            Firmware(status="InvalidSignature", request_id=4),
        ),
        (
            "SecurityEventNotification",
            {"type": "TamperDetectionActivated", "timestamp": STAMP},
            Security(type="TamperDetectionActivated", at_ms=AT),
        ),
        ("SignCertificate", {"csr": "-----BEGIN"}, SignCertificate(csr="-----BEGIN")),
    ],
)
def test_the_other_actions(action: str, payload: dict[str, Any], told: Told) -> None:
    assert read(action, payload) == told


def test_what_only_a_cloud_asks_is_not_supported() -> None:
    with pytest.raises(NotSupported):
        read("Reset", {"type": "Hard"})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TokenStatus.ACCEPTED, "Accepted"),
        (TokenStatus.BLOCKED, "Blocked"),
        (TokenStatus.EXPIRED, "Expired"),
        (TokenStatus.INVALID, "Invalid"),
        (TokenStatus.UNKNOWN, "Invalid"),
        (TokenStatus.CONCURRENT_TX, "ConcurrentTx"),
        (TokenStatus.NO_CREDIT, "Blocked"),
        (TokenStatus.NOT_ALLOWED, "Invalid"),
    ],
)
def test_every_token_status(status: TokenStatus, expected: str) -> None:
    for token in (TokenInfo(status), TokenInfo(status, group="a")):
        info = answer("Authorize", {"idTag": "a"}, token=token)["idTagInfo"]
        assert info["status"] == expected


def test_token_answers() -> None:
    token = TokenInfo(TokenStatus.ACCEPTED, expires_ms=NOW, group='f"leet')
    told = {"status": "Accepted", "expiryDate": "2025-01-01T12:01:00.000Z", "parentIdTag": 'f"leet'}
    start = {"connectorId": 1, "idTag": "a", "meterStart": 0, "timestamp": STAMP}
    assert answer("StartTransaction", start, token=token, number=7) == {
        "transactionId": 7,
        "idTagInfo": told,
    }
    assert answer("StartTransaction", start) == {
        "transactionId": 0,
        "idTagInfo": {"status": "Invalid"},
    }
    assert answer("StopTransaction", STOP | {"idTag": "a"}, token=token) == {"idTagInfo": told}
    assert answer("StopTransaction", STOP, token=token) == {}
    assert answer("StopTransaction", STOP | {"idTag": "a"}) == {}
    assert answer("Authorize", {"idTag": "a"}) == {"idTagInfo": {"status": "Invalid"}}
    long = TokenInfo(TokenStatus.ACCEPTED, group="x" * 21)
    assert answer("Authorize", {"idTag": "a"}, token=long) == {"idTagInfo": {"status": "Accepted"}}


def test_other_answers() -> None:
    boot = {"chargePointVendor": "V", "chargePointModel": "M"}
    assert answer("BootNotification", boot, registration=Registration.PENDING, interval_s=30) == {
        "status": "Pending",
        "currentTime": "2025-01-01T12:01:00.000Z",
        "interval": 30,
    }
    assert answer("Heartbeat", {}) == {"currentTime": "2025-01-01T12:01:00.000Z"}
    assert answer("SignCertificate", {"csr": "x"}) == {"status": "Accepted"}
    assert answer("SignCertificate", {"csr": "x"}, status="NoCA") == {"status": "Rejected"}
    transfer = {"vendorId": "x"}
    assert answer("DataTransfer", transfer, status="UnknownVendorId") == {
        "status": "UnknownVendorId"
    }
    assert answer("DataTransfer", transfer, data={"a": 1}) == {
        "status": "Accepted",
        "data": '{"a":1}',
    }
    assert answer("DataTransfer", transfer, data="x", status="odd") == {
        "status": "Rejected",
        "data": "x",
    }
    assert answer("FirmwareStatusNotification", {"status": "Idle"}) == {}


# --------------------------------------------------------------------------- requests

CONTEXT = RequestContext(now_ms=Milliseconds(NOW), transaction_number=77, profile_id=4)


def test_starting_and_stopping() -> None:
    token = IdToken("04AABB")
    assert SPOKEN.request(RemoteStart(2, token), CONTEXT)[:2] == (
        "RemoteStartTransaction",
        {"idTag": "04AABB", "connectorId": 2},
    )
    assert SPOKEN.request(RemoteStart(0, token), CONTEXT).payload == {"idTag": "04AABB"}
    assert SPOKEN.request(RemoteStop(UUID(int=1)), CONTEXT)[:2] == (
        "RemoteStopTransaction",
        {"transactionId": 77},
    )


def test_a_limit() -> None:
    limit = SetLimit(1, MilliAmperes(16_050), Milliseconds(60_000))
    default, of_transaction = SPOKEN.ways(limit, CONTEXT)
    assert default.payload == {
        "connectorId": 1,
        "csChargingProfiles": {
            "chargingProfileId": 4,
            "stackLevel": 0,
            "chargingProfilePurpose": "TxDefaultProfile",
            "chargingProfileKind": "Absolute",
            "chargingSchedule": {
                "startSchedule": "2025-01-01T12:01:00.000Z",
                "duration": 60,
                "chargingRateUnit": "A",
                "chargingSchedulePeriod": [{"startPeriod": 0, "limit": 16.0}],
            },
        },
    }
    profile = of_transaction.payload["csChargingProfiles"]
    assert (profile["chargingProfilePurpose"], profile["transactionId"]) == ("TxProfile", 77)


def test_the_local_list_has_what_a_tag_can_be() -> None:
    entries = (
        LocalListEntry(IdToken("a"), blocked=True),
        LocalListEntry(IdToken("x" * 21)),
        LocalListEntry(IdToken("")),
    )
    assert SPOKEN.request(SetLocalList(3, entries), CONTEXT).payload == {
        "listVersion": 3,
        "updateType": "Full",
        "localAuthorizationList": [{"idTag": "a", "idTagInfo": {"status": "Blocked"}}],
    }


@pytest.mark.parametrize(
    ("message", "action", "requested"),
    [
        ("BootNotification", "TriggerMessage", "BootNotification"),
        ("LogStatusNotification", "ExtendedTriggerMessage", "LogStatusNotification"),
        ("SignCertificate", "ExtendedTriggerMessage", "SignChargePointCertificate"),
        (
            "SignChargingStationCertificate",
            "ExtendedTriggerMessage",
            "SignChargePointCertificate",
        ),
    ],
)
def test_triggers(message: str, action: str, requested: str) -> None:
    assert SPOKEN.trigger(message)[:2] == (action, {"requestedMessage": requested})
    assert SPOKEN.trigger(message, 2).payload["connectorId"] == 2


def test_there_is_no_reset_of_one_evse() -> None:
    assert SPOKEN.reset(immediate=False).payload == {"type": "Soft"}
    with pytest.raises(NotExpressible):
        SPOKEN.reset(immediate=True, evse=1)


# --------------------------------------------------------------------------- outcomes


def key(name: str, value: str | None, mutability: str = "ReadWrite") -> Variable:
    return Variable(component="ChargingStation", variable=name, value=value, mutability=mutability)


def test_a_configuration_of_any_json() -> None:
    response = {
        "configurationKey": [
            {"key": "HeartbeatInterval", "readonly": False, "value": "300"},
            {"key": "NumberOfConnectors", "readonly": True, "value": 2},
            {"key": "LocalPreAuthorize", "readonly": False, "value": True},
            {"key": "Empty", "readonly": False, "value": ""},
            {"key": "Missing", "readonly": False},
            {"key": "AuthorizationKey", "readonly": False, "value": "secret"},
        ],
        "unknownKey": ["Nonsense"],
    }
    found = SPOKEN.outcome("GetConfiguration", {}, response)
    assert found.accepted
    assert found.text == "unknown: Nonsense"
    assert found.variables == (
        key("HeartbeatInterval", "300"),
        key("NumberOfConnectors", "2", "ReadOnly"),
        key("LocalPreAuthorize", "true"),
        key("Empty", ""),
        key("Missing", None),
        key("AuthorizationKey", None, "WriteOnly"),
    )
    assert SPOKEN.outcome("GetConfiguration", {}, {}).accepted
    assert not SPOKEN.outcome("GetConfiguration", {}, {"unknownKey": ["x"]}).accepted


def test_a_changed_configuration() -> None:
    asked = {"key": "HeartbeatInterval", "value": "60"}
    for status in ("Accepted", "RebootRequired"):
        found = SPOKEN.outcome("ChangeConfiguration", asked, {"status": status})
        assert (found.accepted, found.text) == (True, status)
        assert found.variables == (key("HeartbeatInterval", "60"),)
    refused = SPOKEN.outcome("ChangeConfiguration", asked, {"status": "NotSupported"})
    assert (refused.accepted, refused.variables) == (False, ())
    secret = {"key": "AuthorizationKey", "value": "00ff"}
    found = SPOKEN.outcome("ChangeConfiguration", secret, {"status": "Accepted"})
    assert found.variables == (key("AuthorizationKey", None, "WriteOnly"),)


def test_other_outcomes() -> None:
    assert not SPOKEN.outcome("GetLocalListVersion", {}, {"listVersion": -1}).accepted
    assert SPOKEN.outcome("GetLocalListVersion", {}, {"listVersion": 4}).text == "4"
    assert SPOKEN.outcome("GetDiagnostics", {}, {"fileName": "a.zip"}).text == "a.zip"
    assert SPOKEN.outcome("GetDiagnostics", {}, {}).accepted
    assert SPOKEN.outcome("UpdateFirmware", {}, {}).accepted
