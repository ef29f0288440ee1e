"""The station's dialogue, sans-IO, in OCPP 1.6's words."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from edge_agent.journal import JournalError
from edge_agent.rules.authorization import Heard
from edge_agent.uplink.ocpp.port import (
    Done,
    LogKind,
    Outcome,
    Restart,
    SetOperative,
    Start,
    Stop,
    Upload,
)
from edge_agent.uplink.ocpp.station import (
    Asked,
    Close,
    CloudTime,
    Connected,
    Deauthorized,
    Judged,
    LinkChanged,
    Performed,
    Transferred,
)
from protocols.agent_link import (
    ChargingState,
    ClockCorrected,
    ClockQuality,
    ConnectorStatus,
    IdToken,
    SecurityEvent,
    SignedMoment,
    SignedValue,
    StoppedReason,
    Trigger,
)
from protocols.ocpp.version import Version
from protocols.quantities import Milliseconds
from tests.edge_agent.uplink.ocpp.bench import ABOUT, BOOTED, OCMF, Bench, Drive, stamp, started

MakeBench = Callable[..., Bench]

# --------------------------------------------------------------------------- registration


def test_first_it_says_who_it_is_and_nothing_else(bench: Bench) -> None:
    Drive(bench).start()
    bench.do(Connected())
    ((_, action, payload),) = bench.said
    assert action == "BootNotification"
    assert payload["chargePointVendor"] == "Karvon"
    assert payload["chargePointSerialNumber"] == "KRV-1"
    bench.later(1000)
    assert bench.actions_said() == ["BootNotification"]


def test_accepted_it_tells_all_statuses_and_takes_the_interval(bench: Bench) -> None:
    bench.do(Connected())
    actions = bench.answer(BOOTED)
    assert CloudTime(1_789_992_000_000) in actions
    assert LinkChanged(up=True, reason="registered with the backend") in actions
    heard = bench.quiet()
    assert [(a, p["connectorId"]) for a, p in heard] == [
        ("StatusNotification", 0),
        ("StatusNotification", 1),
        ("StatusNotification", 2),
    ]
    assert bench.device.text("OCPPCommCtrlr", "HeartbeatInterval") == "600"
    bench.later(599_000)
    assert bench.said == []
    bench.later(1_000)
    assert bench.actions_said() == ["Heartbeat"]


@pytest.mark.parametrize("status", ["Pending", "Rejected"])
def test_not_yet_accepted_it_waits_as_long_as_it_is_told(bench: Bench, status: str) -> None:
    Drive(bench).start()
    bench.do(Connected())
    bench.answer({**BOOTED, "status": status, "interval": 120})
    bench.later(119_000)
    assert bench.said == []
    bench.later(1_000)
    assert bench.actions_said() == ["BootNotification"]


def test_pending_it_can_be_configured_but_starts_nothing(bench: Bench) -> None:
    bench.do(Connected())
    bench.answer({**BOOTED, "status": "Pending"})
    change = {"key": "HeartbeatInterval", "value": "77"}
    assert bench.ask("ChangeConfiguration", **change) == {"status": "Accepted"}
    assert bench.ask("RemoteStartTransaction", idTag="CARD") == {"status": "Rejected"}
    assert bench.deeds == []


def test_rejected_it_does_nothing_that_it_is_asked(bench: Bench) -> None:
    bench.do(Connected())
    bench.answer({**BOOTED, "status": "Rejected"})
    assert bench.ask("Reset", type="Hard")[0] == "SecurityError"
    assert bench.deeds == []


def test_a_backend_that_never_answers_is_left(bench: Bench) -> None:
    bench.do(Connected())
    for _ in range(3):
        bench.later(30_000)
    assert any(isinstance(one, Close) for one in bench.actions)


def test_a_backend_that_cannot_register_us_is_asked_again(bench: Bench) -> None:
    bench.do(Connected())
    bench.refuse("InternalError")
    bench.later(29_000)
    assert bench.said == []
    bench.later(1_000)
    assert bench.actions_said() == ["BootNotification"]


# --------------------------------------------------------------------------- statuses


def test_only_what_changed_is_told(bench: Bench) -> None:
    bench.connect()
    bench.later(1000)
    bench.charger.tell(1)  # again the same, later
    bench.later(1000)
    assert bench.said == []
    bench.charger.tell(
        1, status=ConnectorStatus.OCCUPIED, charging_state=ChargingState.EV_CONNECTED
    )
    bench.later(250)
    ((_, _, payload),) = bench.said
    assert (payload["connectorId"], payload["status"]) == (1, "Preparing")


def test_a_vehicle_that_stays_after_its_transaction_is_finishing(bench: Bench) -> None:
    bench.connect()
    bench.charger.charging(UUID(int=5))
    bench.later(250)
    assert bench.quiet()[0][1]["status"] == "Charging"
    occupied = {
        "status": ConnectorStatus.OCCUPIED,
        "charging_state": ChargingState.EV_CONNECTED,
    }
    bench.charger.tell(1, **occupied)
    bench.later(250)
    assert bench.quiet()[0][1]["status"] == "Finishing"
    bench.charger.tell(1)
    bench.later(250)
    assert bench.quiet()[0][1]["status"] == "Available"
    bench.charger.tell(1, **occupied)
    bench.later(250)
    assert bench.quiet()[0][1]["status"] == "Preparing"


def test_a_fault_has_its_reason(bench: Bench) -> None:
    bench.connect()
    bench.charger.tell(2, status=ConnectorStatus.FAULTED, error="board left: no answer " * 5)
    bench.later(250)
    ((_, _, payload),) = bench.said
    assert (payload["errorCode"], payload["status"]) == ("OtherError", "Faulted")
    assert payload["info"].startswith("board left")


# --------------------------------------------------------------------------- authorization


def test_a_token_is_judged_by_the_backend(bench: Bench) -> None:
    bench.connect()
    bench.do(Asked(1, IdToken("CARD")))
    expiry = "2026-10-01T00:00:00Z"
    info = {"status": "Accepted", "parentIdTag": "G", "expiryDate": expiry}
    (judged,) = bench.answer({"idTagInfo": info}, action="Authorize")
    assert isinstance(judged, Judged)
    heard = judged.heard
    assert heard == Heard(
        accepted=True, why="the backend says Accepted", expires_ms=1_790_812_800_000, group="G"
    )


def test_who_cannot_ask_says_so_at_once(bench: Bench) -> None:
    assert bench.do(Asked(1, IdToken("CARD"))) == [Judged(1, None)]
    bench.connect()
    bench.do(Asked(2, IdToken("CARD")))
    bench.do(Asked(3, IdToken("OTHER")))
    bench.lose()
    judged = {one.ticket for one in bench.actions if isinstance(one, Judged)}
    assert judged == {1, 2, 3}


def test_a_token_that_is_no_tag_is_refused_without_asking(bench: Bench) -> None:
    bench.connect()
    (judged,) = bench.do(Asked(1, IdToken("X" * 21)))
    assert isinstance(judged, Judged)
    assert judged.heard is not None
    assert not judged.heard.accepted
    assert bench.said == []


# --------------------------------------------------------------------------- transactions


def test_a_session_as_it_happens(bench: Bench) -> None:
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    ((_, action, payload),) = bench.said
    assert action == "StartTransaction"
    assert {k: payload[k] for k in ("connectorId", "idTag", "meterStart")} == {
        "connectorId": 1,
        "idTag": "CARD",
        "meterStart": 5000,
    }
    bench.answer(started(77))
    drive.state()
    drive.sample(250)
    bench.charger.read()
    bench.later(250)
    ((_, action, payload),) = bench.said
    assert (action, payload["transactionId"]) == ("MeterValues", 77)
    (value,) = payload["meterValue"]
    values = {one["measurand"]: one["value"] for one in value["sampledValue"]}
    assert values == {
        "Energy.Active.Import.Register": "5250",
        "Power.Active.Import": "11040",
        "Current.Import": "16",
        "Voltage": "230.1",
    }
    bench.answer({})
    drive.end(50)
    bench.later(250)
    ((_, action, payload),) = bench.said
    assert action == "StopTransaction"
    assert (payload["transactionId"], payload["meterStop"]) == (77, 5300)
    assert (payload["reason"], payload["idTag"]) == ("Local", "CARD")
    bench.answer({})
    assert bench.journal.pending_billing == 0
    assert bench.journal.numbers() == {}


def test_a_session_offline_is_told_in_order_and_gets_its_number(bench: Bench) -> None:
    drive = Drive(bench)
    drive.start()
    drive.sample()
    drive.end()
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet(StartTransaction=started(9))
    assert [a for a, _ in heard[-3:]] == ["StartTransaction", "MeterValues", "StopTransaction"]
    assert [p["transactionId"] for _, p in heard[-2:]] == [9, 9]


def test_the_number_outlives_the_process(bench: Bench) -> None:
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    bench.quiet(StartTransaction=started(41))
    bench.restart()
    drive.end()
    bench.connect()
    bench.later(250)
    assert bench.station.numbers == {}
    assert bench.journal.pending_billing == 0


def test_what_was_not_answered_is_said_again(bench: Bench) -> None:
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    first = bench.said[0]
    bench.lose()
    bench.do(Connected())
    bench.answer(BOOTED)
    while bench.actions_said() != ["StartTransaction"]:
        bench.answer({})
    assert bench.said[0][2] == first[2]
    assert bench.said[0][0] != first[0]


def test_live_transactions_do_not_wait_for_the_backlog(make_bench: MakeBench) -> None:
    bench = make_bench(per_second=4)
    for _ in range(50):
        Drive(bench, evse=2).start()
    bench.do(Connected())
    bench.answer(BOOTED)
    bench.quiet(StartTransaction=started(1))
    waiting = bench.journal.pending_billing
    assert waiting > 40
    live = Drive(bench)
    live.start()
    bench.later(10)
    assert bench.said[0][2]["connectorId"] == 1
    bench.quiet(StartTransaction=started(2))
    for _ in range(4):
        bench.later(250)
        bench.quiet(StartTransaction=started(3))
    assert 2 <= waiting - bench.journal.pending_billing <= 6


def test_a_refused_start_is_put_apart_with_its_stop_and_others_go_on(bench: Bench) -> None:
    bench.connect()
    bad, good = Drive(bench), Drive(bench, evse=2)
    bad.start()
    bench.later(250)
    bench.refuse(text="no such\n\x1b[31mtag")
    bad.end()
    good.start()
    bench.later(250)
    assert bench.said[0][2]["connectorId"] == 2
    bench.quiet(StartTransaction=started(5))
    for _ in range(2):
        bench.beating("StartTransaction")
        bench.refuse(text="no such\n\x1b[31mtag")
    refused = bench.journal.refused
    assert refused[0].why == "FormationViolation: no such  [31mtag"
    assert "does not know this transaction" in refused[1].why
    assert bench.journal.pending_billing == 0
    assert bench.journal.refused_again() == 2
    bench.later(250)
    heard = bench.quiet(StartTransaction=started(6))
    assert [a for a, _ in heard][-2:] == ["StartTransaction", "StopTransaction"]
    assert bench.journal.refused == []


def test_an_ill_backend_costs_no_session(bench: Bench) -> None:
    """It answers everything with an error for hours: nothing is given up."""
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    for _ in range(12):
        bench.refuse("InternalError", "database is down")
        bench.beating("StartTransaction")
    assert bench.journal.refused == []
    bench.answer(started(3))
    assert bench.journal.pending_billing == 0


def test_what_only_one_transaction_gets_as_an_error_is_put_apart(bench: Bench) -> None:
    bench.connect()
    bad = Drive(bench)
    bad.start()
    bench.later(250)
    for _ in range(2):
        bench.refuse("InternalError", "boom")
        bench.beating("StartTransaction")
    bench.refuse("InternalError", "boom")
    assert bench.journal.refused == []
    Drive(bench, evse=2).start()
    bench.later(250)
    assert bench.said[0][2]["connectorId"] == 2
    bench.answer(started(5))
    bench.beating("StartTransaction")
    bench.refuse("InternalError", "boom")
    assert [one.why for one in bench.journal.refused] == ["InternalError: boom"]


def test_an_answer_that_breaks_its_schema_is_an_answer(bench: Bench) -> None:
    """Otherwise the backend would be told of the same session again and again."""
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    bench.answer({"transactionId": 31, "something": "else"})
    drive.end()
    bench.later(250)
    assert bench.said[0][2]["transactionId"] == 31
    bench.answer({"idTagInfo": {"status": "Splendid"}})
    assert bench.journal.pending_billing == 0
    assert bench.journal.refused == []


def test_a_disk_that_refuses_costs_an_answer_but_no_session(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect()
    Drive(bench).start()
    bench.later(250)

    def refuse(*_: object) -> None:
        raise JournalError("not written", "the disk is full", "Free some space")

    with monkeypatch.context() as broken:
        broken.setattr(bench.journal, "delivered", refuse)
        assert bench.answer(started(3)) == []
        bench.later(1000)
        assert bench.said == []
    bench.beating("StartTransaction")
    bench.answer(started(4))
    assert bench.journal.pending_billing == 0


def test_much_that_is_passed_over_is_not_done_in_one_turn(bench: Bench) -> None:
    drive = Drive(bench)
    drive.start()
    for _ in range(120):
        drive.state()
    bench.connect()
    bench.beating("StartTransaction")
    bench.answer(started(3))
    assert bench.journal.pending_billing > 60
    bench.later(250)
    bench.later(250)
    bench.later(250)
    assert bench.journal.pending_billing == 0


def test_a_misspelt_action_is_understood(bench: Bench) -> None:
    bench.connect()
    assert bench.ask("clearCache") == {"status": "Accepted"}


def test_a_start_without_a_number_is_tried_again(bench: Bench) -> None:
    bench.connect()
    Drive(bench).start()
    bench.later(250)
    bench.answer({"idTagInfo": {"status": "Accepted"}})
    assert bench.journal.pending_billing == 1
    bench.beating("StartTransaction")
    bench.answer(started(8))
    assert bench.journal.pending_billing == 0


def test_a_refused_token_ends_a_running_transaction(bench: Bench) -> None:
    bench.connect()
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    actions = bench.answer(started(4, "Blocked"))
    assert actions == [Deauthorized(drive.id, "the backend says Blocked")]
    assert not bench.charger.remembered["CARD"].accepted
    bench.ask("ChangeConfiguration", key="StopTransactionOnInvalidId", value="false")
    other = Drive(bench)
    other.start()
    bench.later(250)
    assert bench.answer(started(5, "Blocked")) == []


def test_times_of_an_unset_clock_are_told_as_they_became_known(bench: Bench) -> None:
    drive = Drive(bench)
    at = stamp(500, ClockQuality.UNSET)
    old = type(at)(Milliseconds(5000), at.mono_ms, at.boot, at.quality)
    drive.start(started=old, at=old)
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet(StartTransaction=started(1))
    assert heard[-1][1]["timestamp"] == "2026-09-21T14:13:20.500Z"


def test_alone_it_takes_what_else_there_is(bench: Bench) -> None:
    bench.connect()
    event = SecurityEvent(id=UUID(int=9), at=stamp(1), type="MeterJumped", text="it jumped")
    clock = ClockCorrected(
        id=UUID(int=8), boot=UUID(int=1), offset_ms=Milliseconds(1), quality=ClockQuality.CLOUD
    )
    bench.journal.commit(facts=[event, clock])
    bench.later(250)
    heard = bench.quiet()
    assert heard[0][0] == "SecurityEventNotification"
    assert heard[0][1]["techInfo"] == "it jumped"
    assert bench.journal.pending_billing == 0


def test_beside_the_agent_link_it_takes_only_transactions(make_bench: MakeBench) -> None:
    bench = make_bench(others=False)
    bench.connect()
    event = SecurityEvent(id=UUID(int=9), at=stamp(1), type="MeterJumped", text="it jumped")
    bench.journal.commit(facts=[event])
    Drive(bench).start()
    bench.later(250)
    assert [a for a, _ in bench.quiet(StartTransaction=started(1))] == ["StartTransaction"]
    assert bench.journal.pending_billing == 1
    assert [one.facts for one in bench.journal.billing(limit=9, transactions=False)] == [(event,)]


def test_a_reset_tells_its_reason(bench: Bench) -> None:
    drive = Drive(bench)
    drive.start()
    drive.end(reason=StoppedReason.OTHER, trigger=Trigger.RESET)
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet(StartTransaction=started(1))
    assert heard[-1][1]["reason"] == "SoftReset"


# --------------------------------------------------------------------------- being asked


def test_starting_and_stopping_from_outside(bench: Bench) -> None:
    bench.connect()
    deed = bench.ask("RemoteStartTransaction", idTag="CARD", connectorId=2)
    assert deed == Start(id_token=IdToken("CARD"), evse=2)
    bench.do(Performed("b1", Done(Outcome.ACCEPTED)))
    assert bench.answers["b1"] == {"status": "Accepted"}
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    bench.quiet(StartTransaction=started(12))
    assert bench.ask("RemoteStopTransaction", transactionId=12) == Stop(drive.id)
    bench.do(Performed("b2", Done(Outcome.ACCEPTED)))
    assert bench.ask("RemoteStopTransaction", transactionId=13) == {"status": "Rejected"}


def test_a_deed_of_a_connection_that_is_gone_is_not_answered(bench: Bench) -> None:
    bench.connect()
    bench.ask("Reset", type="Soft")
    bench.lose()
    bench.connect()
    assert bench.do(Performed("b1", Done(Outcome.ACCEPTED))) == []


def test_availability_and_reset(bench: Bench) -> None:
    bench.connect()
    asked = bench.ask("ChangeAvailability", connectorId=1, type="Inoperative")
    assert asked == SetOperative(1, operative=False)
    bench.do(Performed("b1", Done(Outcome.SCHEDULED)))
    assert bench.answers["b1"] == {"status": "Scheduled"}
    refused = bench.ask("ChangeAvailability", connectorId=7, type="Inoperative")
    assert refused == {"status": "Rejected"}
    assert bench.ask("Reset", type="Hard") == Restart(immediate=True)


def test_keys_are_read_and_changed(bench: Bench) -> None:
    bench.connect()
    everything = bench.ask("GetConfiguration")
    keys = {one["key"]: one for one in everything["configurationKey"]}
    assert keys["NumberOfConnectors"] == {
        "key": "NumberOfConnectors",
        "readonly": True,
        "value": "2",
    }
    assert "value" not in keys["AuthorizationKey"]
    some = bench.ask("GetConfiguration", key=["heartbeatinterval", "Nonsense"])
    assert some["configurationKey"][0]["value"] == "600"
    assert some["unknownKey"] == ["Nonsense"]
    for key, value, status in (
        ("MeterValueSampleInterval", "60", "Accepted"),
        ("MeterValueSampleInterval", "soon", "Rejected"),
        ("MeterValuesSampledData", "Energy.Active.Import.Register", "Accepted"),
        ("MeterValuesSampledData", "SoC", "Rejected"),
        ("LocalPreAuthorize", "False", "Accepted"),
        ("NumberOfConnectors", "3", "Rejected"),
        ("Nonsense", "3", "NotSupported"),
    ):
        assert bench.ask("ChangeConfiguration", key=key, value=value) == {"status": status}
    assert ("SampledDataCtrlr", "TxUpdatedInterval", "60") in bench.charger.changes
    bench.restart()
    bench.charger.changes.clear()
    bench.device.apply()
    assert ("SampledDataCtrlr", "TxUpdatedInterval", "60") in bench.charger.changes
    assert bench.device.text("AuthCtrlr", "LocalPreAuthorize") == "false"


def test_triggered_messages_come_at_once(bench: Bench) -> None:
    bench.connect()
    bench.charger.read()
    for message, action in (
        ("Heartbeat", "Heartbeat"),
        ("MeterValues", "MeterValues"),
        ("FirmwareStatusNotification", "FirmwareStatusNotification"),
        ("DiagnosticsStatusNotification", "DiagnosticsStatusNotification"),
        ("BootNotification", "BootNotification"),
    ):
        answered = bench.ask("TriggerMessage", requestedMessage=message)
        assert answered == {"status": "Accepted"}
        assert bench.said[0][1] == action
        bench.quiet()
    bench.ask("TriggerMessage", requestedMessage="StatusNotification", connectorId=2)
    ((_, _, payload),) = bench.said
    assert payload["connectorId"] == 2


def test_the_local_list_in_whole_and_in_part(bench: Bench) -> None:
    bench.connect()
    entry = {"idTag": "A", "idTagInfo": {"status": "Accepted"}}
    blocked = {"idTag": "B", "idTagInfo": {"status": "Blocked"}}
    send = {"listVersion": 3, "updateType": "Full", "localAuthorizationList": [entry, blocked]}
    assert bench.ask("SendLocalList", **send) == {"status": "Accepted"}
    assert bench.ask("GetLocalListVersion") == {"listVersion": 3}
    differ = {"updateType": "Differential", "localAuthorizationList": [{"idTag": "a"}]}
    assert bench.ask("SendLocalList", listVersion=3, **differ) == {"status": "VersionMismatch"}
    assert bench.ask("SendLocalList", listVersion=4, **differ) == {"status": "Accepted"}
    assert [one.id_token.value for one in bench.charger.local.entries] == ["B"]
    assert bench.charger.local.entries[0].blocked


def profile(
    number: int = 1, purpose: str = "TxDefaultProfile", **more: object
) -> dict[str, object]:
    schedule = {
        "chargingRateUnit": "A",
        "chargingSchedulePeriod": [
            {"startPeriod": 0, "limit": 10.0},
            {"startPeriod": 60, "limit": 16.0},
        ],
    }
    return {
        "chargingProfileId": number,
        "stackLevel": 0,
        "chargingProfilePurpose": purpose,
        "chargingProfileKind": "Absolute",
        "chargingSchedule": schedule,
        **more,
    }


def test_charging_profiles_are_taken_told_and_cleared(bench: Bench) -> None:
    bench.connect()
    taken = bench.ask("SetChargingProfile", connectorId=1, csChargingProfiles=profile())
    assert taken == {"status": "Accepted"}
    composite = bench.ask("GetCompositeSchedule", connectorId=1, duration=300)
    assert composite["status"] == "Accepted"
    assert composite["chargingSchedule"]["chargingSchedulePeriod"] == [
        {"startPeriod": 0, "limit": 10.0},
        {"startPeriod": 60, "limit": 16.0},
    ]
    lone = profile(2, "TxProfile")
    refused = bench.ask("SetChargingProfile", connectorId=1, csChargingProfiles=lone)
    assert refused == {"status": "Rejected"}
    bench.charger.charging(UUID(int=5))
    assert bench.ask("SetChargingProfile", connectorId=1, csChargingProfiles=lone) == {
        "status": "Accepted"
    }
    assert bench.ask("ClearChargingProfile", id=1) == {"status": "Accepted"}
    assert bench.ask("ClearChargingProfile", id=1) == {"status": "Unknown"}
    assert [one.id for one in bench.charger.held.held] == [2]


def test_clock_aligned_values_come_at_whole_intervals(bench: Bench) -> None:
    bench.connect()
    bench.ask("ChangeConfiguration", key="ClockAlignedDataInterval", value="60")
    bench.charger.read()
    bench.later(250)
    assert bench.said == []
    bench.later(60_000)
    ((_, action, payload),) = bench.said
    assert action == "MeterValues"
    assert payload["meterValue"][0]["sampledValue"][0]["context"] == "Sample.Clock"
    assert payload["meterValue"][0]["timestamp"].endswith(":00.000Z")


def test_on_a_link_that_costs_money_clock_aligned_values_are_thinned(
    bench: Bench,
) -> None:
    bench.connect()
    bench.ask("ChangeConfiguration", key="ClockAlignedDataInterval", value="60")
    bench.charger.read()
    assert [values_in_ten_minutes(bench, times) for times in (1, 5, None)] == [10, 2, 0]


def values_in_ten_minutes(bench: Bench, times: int | None) -> int:
    bench.station.thin(times)
    count = 0
    for _ in range(10):
        bench.later(60_000)
        count += [action for _, action, _ in bench.said].count("MeterValues")
        bench.quiet()
    return count


def test_on_such_a_link_a_transaction_tells_its_register_alone(bench: Bench) -> None:
    bench.connect()
    bench.station.thin(5)
    drive = Drive(bench)
    drive.start()
    bench.later(250)
    bench.answer(started(77))
    drive.state()
    drive.sample(250)
    bench.charger.read()
    bench.later(250)
    ((_, action, payload),) = bench.said
    (value,) = payload["meterValue"]
    told = [(one["measurand"], one["value"]) for one in value["sampledValue"]]
    assert (action, told) == ("MeterValues", [("Energy.Active.Import.Register", "5250")])


def test_firmware_is_refused_honestly(bench: Bench) -> None:
    bench.connect()
    asked = {"location": "https://x.example/f", "retrieveDate": "2026-09-21T12:00:00Z"}
    assert bench.ask("UpdateFirmware", **asked) == {}
    assert bench.said[0][2] == {"status": "DownloadFailed"}
    bench.quiet()
    assert bench.ask("GetDiagnostics", location="https://x.example/d") == Upload(
        kind=LogKind.DIAGNOSTICS, location="https://x.example/d"
    )
    bench.do(Performed("b2", Done(Outcome.REJECTED)))
    assert bench.answers["b2"] == {}


def test_how_an_upload_goes_is_told_also_after_a_loss(bench: Bench) -> None:
    bench.connect()
    log = {"remoteLocation": "https://x.example/d/"}
    asked = bench.ask("GetLog", logType="SecurityLog", requestId=4, log=log, retries=2)
    assert asked == Upload(
        kind=LogKind.SECURITY, location="https://x.example/d/", request_id=4, retries=2
    )
    bench.do(Performed("b1", Done(Outcome.ACCEPTED, "log.json.gz")))
    assert bench.answers["b1"] == {"status": "Accepted", "filename": "log.json.gz"}
    bench.do(Transferred(4, "Uploading"))
    assert bench.said[0][1:] == (
        "LogStatusNotification",
        {"status": "Uploading", "requestId": 4},
    )
    bench.lose()
    bench.do(Transferred(None, "UploadFailure"))
    bench.do(Connected())
    bench.answer(BOOTED)
    assert bench.said[0][1:] == ("DiagnosticsStatusNotification", {"status": "UploadFailed"})


def test_what_cannot_be_read_is_an_error_and_the_dialogue_goes_on(bench: Bench) -> None:
    bench.connect()
    assert bench.ask("Reset", type="Explode")[0] == "PropertyConstraintViolation"
    assert bench.ask("MakeCoffee")[0] == "NotImplemented"
    assert bench.ask("Heartbeat")[0] == "NotSupported"
    assert bench.ask("ClearCache") == {"status": "Accepted"}
    assert bench.charger.cleared == 1


def test_every_key_that_1_6_demands_is_there() -> None:
    demanded = {
        *("AuthorizeRemoteTxRequests", "ClockAlignedDataInterval", "ConnectionTimeOut"),
        *("ConnectorPhaseRotation", "GetConfigurationMaxKeys", "HeartbeatInterval"),
        *("LocalAuthorizeOffline", "LocalPreAuthorize", "MeterValuesAlignedData"),
        *("MeterValuesSampledData", "MeterValueSampleInterval", "NumberOfConnectors"),
        *("ResetRetries", "StopTransactionOnEVSideDisconnect", "StopTransactionOnInvalidId"),
        *("StopTxnAlignedData", "StopTxnSampledData", "SupportedFeatureProfiles"),
        *("TransactionMessageAttempts", "TransactionMessageRetryInterval"),
        *("UnlockConnectorOnEVSideDisconnect", "LocalAuthListEnabled", "LocalAuthListMaxLength"),
        *("SendLocalListMaxLength", "ChargeProfileMaxStackLevel", "ChargingScheduleMaxPeriods"),
        *("ChargingScheduleAllowedChargingRateUnit", "MaxChargingProfilesInstalled"),
        *("AuthorizationKey", "SecurityProfile"),
    }
    from edge_agent.uplink.ocpp.v16 import KEYS

    assert demanded <= KEYS.keys()
    assert ABOUT.security_profile == 0
    assert Version.V16 == "ocpp1.6"


def test_signed_values_go_with_the_stop_as_they_are(bench: Bench) -> None:
    drive = Drive(bench)
    drive.start()
    begin = SignedValue(SignedMoment.BEGIN, "OCMF", OCMF["begin"].encode())
    end = SignedValue(SignedMoment.END, "OCMF", OCMF["end"].encode())
    binary = SignedValue(SignedMoment.END, "EDL", b"\x00\xff")
    drive.end(300, signed=(begin, end, binary))
    bench.do(Connected())
    bench.answer(BOOTED)
    heard = bench.quiet(StartTransaction=started(7))
    (stop,) = [payload for action, payload in heard if action == "StopTransaction"]
    sampled = [one["sampledValue"][0] for one in stop["transactionData"]]
    assert [one["value"] for one in sampled] == [OCMF["begin"], OCMF["end"], "AP8="]
    assert {one["format"] for one in sampled} == {"SignedData"}
    assert [one["context"] for one in sampled[:2]] == ["Transaction.Begin", "Transaction.End"]
