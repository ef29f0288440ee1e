"""What the station says and does in OCPP 2.0.1's words."""

from __future__ import annotations

from base64 import b64decode
from typing import Any
from uuid import UUID, uuid4

import pytest

from edge_agent.uplink.ocpp.port import (
    CancelReservation,
    Done,
    Outcome,
    Reserve,
    Restart,
    SetOperative,
    Start,
    Stop,
)
from edge_agent.uplink.ocpp.station import Connected, Deauthorized, Performed
from protocols.agent_link import (
    ConnectorStatus,
    IdToken,
    SignedMoment,
    SignedValue,
    StoppedReason,
    Trigger,
)
from protocols.ocpp.version import Version
from tests.edge_agent.uplink.ocpp.bench import BOOTED, OCMF, Bench, Drive

TOKEN = {"idToken": "CARD", "type": "ISO14443"}


@pytest.fixture
def bench(make_bench: Any) -> Bench:
    made: Bench = make_bench(Version.V201)
    return made


def test_it_says_who_it_is_and_how_its_evses_are(bench: Bench) -> None:
    bench.do(Connected())
    ((_, action, payload),) = bench.said
    assert (action, payload["reason"]) == ("BootNotification", "PowerUp")
    assert payload["chargingStation"]["vendorName"] == "Karvon"
    bench.answer(BOOTED)
    told = [(p["evseId"], p["connectorId"], p["connectorStatus"]) for _, p in bench.quiet()]
    assert told == [(1, 1, "Available"), (2, 1, "Available")]


def test_a_session_with_a_part_offline(bench: Bench) -> None:
    drive = Drive(bench)
    drive.start()
    bench.do(Connected())
    bench.answer(BOOTED)
    bench.charger.read()
    heard = bench.quiet(TransactionEvent={"idTokenInfo": {"status": "Accepted"}})
    first = heard[-1][1]
    assert (first["eventType"], first["seqNo"], first["offline"]) == ("Started", 0, True)
    assert first["idToken"] == TOKEN
    assert first["transactionInfo"]["transactionId"] == str(drive.id)
    assert bench.charger.remembered["CARD"].accepted
    drive.state()
    drive.sample(250)
    bench.charger.read()
    drive.end(50)
    bench.later(250)
    state, sample, end = (payload for _, payload in bench.quiet())
    assert state["triggerReason"] == "ChargingStateChanged"
    assert state["transactionInfo"]["chargingState"] == "Charging"
    assert "offline" not in sample
    values = {v["measurand"]: v for v in sample["meterValue"][0]["sampledValue"]}
    assert values["Energy.Active.Import.Register"]["value"] == 5250
    assert values["Current.Import"]["phase"] == "L1"
    assert (end["eventType"], end["seqNo"]) == ("Ended", 3)
    assert end["transactionInfo"]["stoppedReason"] == "Local"
    assert bench.journal.pending_billing == 0


def test_a_remote_start_is_named_in_its_transaction(bench: Bench) -> None:
    bench.connect()
    deed = bench.ask("RequestStartTransaction", idToken=TOKEN, remoteStartId=4711, evseId=2)
    assert deed == Start(id_token=IdToken("CARD"), evse=2, remote_id=4711)
    bench.do(Performed("b1", Done(Outcome.ACCEPTED)))
    assert bench.answers["b1"] == {"status": "Accepted"}
    Drive(bench).start(command=UUID(int=4711), trigger=Trigger.REMOTE_START)
    bench.later(250)
    ((_, _, payload),) = bench.said
    assert payload["transactionInfo"]["remoteStartId"] == 4711
    assert payload["triggerReason"] == "RemoteStart"


def test_a_command_of_the_agent_link_is_no_remote_start_id(bench: Bench) -> None:
    bench.connect()
    Drive(bench).start(command=uuid4())
    bench.later(250)
    assert "remoteStartId" not in bench.said[0][2]["transactionInfo"]


def test_stopping_and_asking_for_a_transaction(bench: Bench) -> None:
    bench.connect()
    running = uuid4()
    bench.charger.charging(running)
    assert bench.ask("RequestStopTransaction", transactionId=str(running)) == Stop(running)
    bench.do(Performed("b1", Done(Outcome.REJECTED)))
    assert bench.answers["b1"] == {"status": "Rejected"}
    assert bench.ask("RequestStopTransaction", transactionId="mine")["status"] == "Rejected"
    assert bench.ask("GetTransactionStatus", transactionId=str(running)) == {
        "ongoingIndicator": True,
        "messagesInQueue": False,
    }
    assert bench.ask("GetTransactionStatus") == {"messagesInQueue": True}
    unknown = bench.ask("GetTransactionStatus", transactionId="mine")
    assert unknown == {"ongoingIndicator": False, "messagesInQueue": False}


def test_a_refused_token_ends_the_transaction(bench: Bench) -> None:
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    info = {"status": "Blocked", "groupIdToken": {"idToken": "G", "type": "Central"}}
    actions = bench.answer({"idTokenInfo": info})
    assert Deauthorized(drive.id, "the backend says Blocked") in actions


def test_the_device_model_in_full_and_in_part(bench: Bench) -> None:
    bench.connect()
    asked = bench.ask("GetBaseReport", requestId=5, reportBase="FullInventory")
    assert asked == {"status": "Accepted"}
    pages = [payload for action, payload in bench.quiet() if action == "NotifyReport"]
    assert [page["seqNo"] for page in pages] == [*range(len(pages))]
    assert [page["tbc"] for page in pages] == [True] * (len(pages) - 1) + [False]
    told = [one for page in pages for one in page["reportData"]]
    names = {(one["component"]["name"], one["variable"]["name"]) for one in told}
    demanded = {
        ("OCPPCommCtrlr", "HeartbeatInterval"),
        ("OCPPCommCtrlr", "OfflineThreshold"),
        ("SecurityCtrlr", "BasicAuthPassword"),
        ("AuthCtrlr", "LocalPreAuthorize"),
        ("TxCtrlr", "EVConnectionTimeOut"),
        ("SampledDataCtrlr", "TxUpdatedMeasurands"),
        ("ClockCtrlr", "DateTime"),
        ("DeviceDataCtrlr", "ItemsPerMessage"),
        ("EVSE", "AvailabilityState"),
        ("Connector", "ConnectorType"),
        ("ChargingStation", "AvailabilityState"),
    }
    assert demanded <= names
    secret = next(one for one in told if one["variable"]["name"] == "BasicAuthPassword")
    assert "value" not in secret["variableAttribute"][0]
    bench.ask("GetBaseReport", requestId=6, reportBase="ConfigurationInventory")
    some = [one for _, payload in bench.quiet() for one in payload["reportData"]]
    assert all(one["variableAttribute"][0]["mutability"] != "ReadOnly" for one in some)
    wanted = [{"component": {"name": "TxCtrlr"}, "variable": {"name": "TxStartPoint"}}]
    bench.ask("GetReport", requestId=7, componentVariable=wanted)
    (only,) = (one for _, payload in bench.quiet() for one in payload["reportData"])
    assert only["variable"]["name"] == "TxStartPoint"
    nothing = [{"component": {"name": "Toaster"}}]
    empty = bench.ask("GetReport", requestId=8, componentVariable=nothing)
    assert empty == {"status": "EmptyResultSet"}


def variable(component: str, name: str, **more: Any) -> dict[str, Any]:
    return {"component": {"name": component}, "variable": {"name": name}, **more}


def test_variables_are_read_and_set(bench: Bench) -> None:
    bench.connect()
    asked = [
        variable("ocppcommctrlr", "heartbeatinterval"),
        variable("SecurityCtrlr", "BasicAuthPassword"),
        variable("TxCtrlr", "Nonsense"),
        variable("Toaster", "Heat"),
        variable("TxCtrlr", "TxStartPoint", attributeType="Target"),
    ]
    results = bench.ask("GetVariables", getVariableData=asked)["getVariableResult"]
    assert [one["attributeStatus"] for one in results] == [
        "Accepted",
        "Rejected",
        "UnknownVariable",
        "UnknownComponent",
        "NotSupportedAttributeType",
    ]
    assert results[0]["attributeValue"] == "600"
    wanted = [
        variable("SampledDataCtrlr", "TxUpdatedInterval", attributeValue="60"),
        variable("SampledDataCtrlr", "TxUpdatedInterval", attributeValue="-1"),
        variable("SecurityCtrlr", "BasicAuthPassword", attributeValue="short"),
        variable("SecurityCtrlr", "BasicAuthPassword", attributeValue="a long enough password"),
        variable("TxCtrlr", "TxStartPoint", attributeValue="EVConnected"),
    ]
    results = bench.ask("SetVariables", setVariableData=wanted)["setVariableResult"]
    statuses = [one["attributeStatus"] for one in results]
    assert statuses == ["Accepted", "Rejected", "Rejected", "Accepted", "Rejected"]
    assert results[4]["attributeStatusInfo"]["reasonCode"] == "ReadOnly"
    secret = ("SecurityCtrlr", "BasicAuthPassword", "a long enough password")
    assert secret in bench.charger.changes
    assert b"long enough" not in (bench.folder / "billing.sqlite").read_bytes()


def test_profiles_are_set_told_and_cleared(bench: Bench) -> None:
    bench.connect()
    schedule = {
        "id": 1,
        "chargingRateUnit": "W",
        "chargingSchedulePeriod": [{"startPeriod": 0, "limit": 6900.0}],
    }
    profile = {
        "id": 3,
        "stackLevel": 1,
        "chargingProfilePurpose": "TxDefaultProfile",
        "chargingProfileKind": "Absolute",
        "chargingSchedule": [schedule],
    }
    taken = bench.ask("SetChargingProfile", evseId=0, chargingProfile=profile)
    assert taken == {"status": "Accepted"}
    external = {**profile, "chargingProfilePurpose": "ChargingStationExternalConstraints"}
    refused = bench.ask("SetChargingProfile", evseId=0, chargingProfile=external)
    assert (refused["status"], refused["statusInfo"]["reasonCode"]) == (
        "Rejected",
        "InvalidProfile",
    )
    composite = bench.ask("GetCompositeSchedule", evseId=1, duration=60, chargingRateUnit="A")
    assert composite["schedule"]["chargingSchedulePeriod"] == [{"startPeriod": 0, "limit": 10.0}]
    got = bench.ask("GetChargingProfiles", requestId=9, chargingProfile={})
    assert got == {"status": "Accepted"}
    ((action, report),) = bench.quiet()
    assert (action, report["evseId"], report["requestId"]) == ("ReportChargingProfiles", 0, 9)
    assert report["chargingProfile"][0]["chargingSchedule"][0]["chargingSchedulePeriod"] == [
        {"startPeriod": 0, "limit": 6900.0}
    ]
    criteria = {"chargingProfilePurpose": "TxDefaultProfile"}
    cleared = bench.ask("ClearChargingProfile", chargingProfileCriteria=criteria)
    assert cleared == {"status": "Accepted"}
    none = bench.ask("GetChargingProfiles", requestId=9, chargingProfile={})
    assert none == {"status": "NoProfiles"}


def test_what_is_done_outside_the_dialogue(bench: Bench) -> None:
    bench.connect()
    expiry = "2026-09-21T20:00:00Z"
    reserve = {"id": 8, "expiryDateTime": expiry, "idToken": TOKEN}
    for action, payload, deed, outcome, status in (
        (
            "ChangeAvailability",
            {"operationalStatus": "Inoperative"},
            SetOperative(0, operative=False),
            Outcome.SCHEDULED,
            "Scheduled",
        ),
        (
            "ChangeAvailability",
            {"operationalStatus": "Operative", "evse": {"id": 2}},
            SetOperative(2, operative=True),
            Outcome.ACCEPTED,
            "Accepted",
        ),
        (
            "Reset",
            {"type": "OnIdle"},
            Restart(immediate=False, idle=True),
            Outcome.SCHEDULED,
            "Scheduled",
        ),
        (
            "ReserveNow",
            {**reserve, "evseId": 1},
            Reserve(
                evse=1,
                id=8,
                id_token=IdToken("CARD"),
                group=None,
                until_wall_ms=1_790_020_800_000,
            ),
            Outcome.OCCUPIED,
            "Occupied",
        ),
        (
            "CancelReservation",
            {"reservationId": 8},
            CancelReservation(8),
            Outcome.REJECTED,
            "Rejected",
        ),
    ):
        assert bench.ask(action, **payload) == deed
        message_id = f"b{bench.asked}"
        bench.do(Performed(message_id, Done(outcome)))
        assert bench.answers[message_id] == {"status": status}
    assert bench.ask("ReserveNow", **reserve)["status"] == "Rejected"
    assert bench.ask("Reset", type="Immediate", evseId=1)["status"] == "Rejected"


def test_the_local_list(bench: Bench) -> None:
    bench.connect()
    entry = {"idToken": TOKEN, "idTokenInfo": {"status": "Accepted"}}
    send = {"versionNumber": 3, "updateType": "Full", "localAuthorizationList": [entry]}
    assert bench.ask("SendLocalList", **send) == {"status": "Accepted"}
    assert bench.ask("GetLocalListVersion") == {"versionNumber": 3}
    late = {**send, "updateType": "Differential"}
    assert bench.ask("SendLocalList", **late)["status"] == "VersionMismatch"


def test_triggers_locks_and_what_it_does_not_do(bench: Bench) -> None:
    bench.connect()
    bench.charger.read()
    for message, action in (
        ("Heartbeat", "Heartbeat"),
        ("StatusNotification", "StatusNotification"),
        ("MeterValues", "MeterValues"),
        ("LogStatusNotification", "LogStatusNotification"),
        ("BootNotification", "BootNotification"),
    ):
        asked = bench.ask("TriggerMessage", requestedMessage=message)
        assert asked == {"status": "Accepted"}
        assert bench.said[0][1] == action
        bench.quiet()
    never = bench.ask("TriggerMessage", requestedMessage="SignV2GCertificate")
    assert never == {"status": "NotImplemented"}
    bench.charger.charging(uuid4())
    assert bench.ask("UnlockConnector", evseId=1, connectorId=1) == {
        "status": "OngoingAuthorizedTransaction"
    }
    assert bench.ask("UnlockConnector", evseId=2, connectorId=1)["status"] == "UnlockFailed"
    assert bench.ask("UnlockConnector", evseId=3, connectorId=1) == {"status": "UnknownConnector"}


def test_a_fault_and_a_reset_in_its_words(bench: Bench) -> None:
    bench.charger.tell(1, status=ConnectorStatus.FAULTED, error="no answer")
    drive = Drive(bench)
    drive.start()
    drive.end(reason=StoppedReason.OTHER, trigger=Trigger.RESET)
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet()
    assert heard[0][1]["connectorStatus"] == "Faulted"
    assert heard[-1][1]["transactionInfo"]["stoppedReason"] == "ImmediateReset"
    assert heard[-1][1]["triggerReason"] == "ResetCommand"


def test_signed_values_go_out_in_base64_where_they_fit(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    drive = Drive(bench)
    drive.start()
    begin = SignedValue(SignedMoment.BEGIN, "OCMF", OCMF["begin"].encode(), b"key")
    end = SignedValue(SignedMoment.END, "OCMF", OCMF["end"].encode())
    long = SignedValue(SignedMoment.END, "EDL", bytes(1876))
    drive.end(300, signed=(begin, end, long))
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet(TransactionEvent={"idTokenInfo": {"status": "Accepted"}})
    (told,) = [p for a, p in heard if a == "TransactionEvent" and p["eventType"] == "Ended"]
    _, first, last = (one["sampledValue"][0] for one in told["meterValue"])
    assert (first["context"], first["value"]) == ("Transaction.Begin", 5000)
    assert (last["context"], last["value"]) == ("Transaction.End", 5300)
    assert b64decode(first["signedMeterValue"]["signedMeterData"]).decode() == OCMF["begin"]
    assert b64decode(last["signedMeterValue"]["signedMeterData"]).decode() == OCMF["end"]
    assert first["signedMeterValue"]["encodingMethod"] == "OCMF"
    assert b64decode(first["signedMeterValue"]["publicKey"]) == b"key"
    assert "1876 bytes signed: too many for OCPP 2.0.1" in caplog.text
    assert bench.journal.pending_billing == 0
