"""Where each thing that a station tells, or agrees to, is found again over REST.

A check tells or asks one thing with values of its own, and looks for them; `Case.read` notes where
it looked, so that docs/ocpp.md can be held against it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.ocpp.version import Version
from tests.cloud.ocpp import official
from tests.cloud.ocpp.conftest import Ocpp, Station
from tests.cloud.ocpp.official import SENT, SOMEWHERE
from tests.cloud.ocpp.wire import (
    ENERGY,
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

Payload = dict[str, Any]
CARD: Final = "04C0FFEE11"
BLOCKED: Final = "04C0FFEE12"
TOKEN: Final = {"idToken": CARD, "type": "ISO14443"}
COMPONENT: Final = {"name": "Samovar", "evse": {"id": 2, "connectorId": 1}}
VARIABLE: Final = {"name": "Temperature", "instance": "Lid"}
LATER: Final = "2037-05-06T07:08:09Z"


@dataclass
class Case:
    """A station that tells or is asked one thing, and where that is looked for."""

    ocpp: Ocpp
    station: Station
    name: str
    version: Version
    action: str
    read: set[str] = field(default_factory=set)

    @property
    def is_old(self) -> bool:
        return self.version is Version.V16

    async def tell(self, payload: Payload, action: str | None = None) -> Payload:
        """The answer, which the official schema has judged."""
        action = action or self.action
        official.request(self.version, action).check(payload)
        answer = await self.station.call(action, payload)
        official.response(self.version, action).check(answer)
        return answer

    async def ask(
        self, payload: Payload, action: str | None = None, answer: Payload | None = None
    ) -> Payload:
        """Call the station, which agrees; what REST says of it."""
        action = action or self.action
        answer = official.response(self.version, action).minimal | (answer or {})
        official.response(self.version, action).check(answer)
        self.station.answers[action] = answer
        called = await self.ocpp.api.post(f"/stations/{self.name}/ocpp/{action}", json=payload)
        assert called.status_code == 200, called.text
        found: Payload = called.json()
        assert (found["accepted"], found["response"]) == (True, answer)
        return found

    async def get(self, path: str, **query: Any) -> Any:
        self.read.add(path)
        return await self.ocpp.get(path.format(s=self.name), **query)

    async def items(self, path: str, **query: Any) -> list[Payload]:
        return list((await self.get(path, **query))["items"])

    async def only(self, path: str, **query: Any) -> Payload:
        """The one that the list has."""
        (found,) = await self.items(path, **query)
        return found

    def hurry(self) -> None:
        """The gateway need not wait for the station to settle after its boot."""
        gateway = self.ocpp.gateway
        held = [gateway.live(station) for station in gateway.stations()]
        for conversation in held:
            if conversation is not None and conversation.party.identity == self.name:
                conversation.quiet_until = 0.0


Check = Callable[[Case], Awaitable[None]]


def shows(found: Payload, **wanted: Any) -> None:
    held = {name: found[name] for name in wanted}
    assert held == wanted, f"{held} is not {wanted}"


# --------------------------------------------------------------------------- station, EVSEs, tokens


async def _boot(case: Case) -> None:
    if case.is_old:
        modem = {"iccid": "89998010", "imsi": "43404711"}
        fields: Payload = {
            "chargePointVendor": "Registan",
            "chargePointModel": "Minor-22",
            "chargePointSerialNumber": "SN-4711",
            "firmwareVersion": "9.8.7",
            "meterType": "Hisob",
            "meterSerialNumber": "M-4712",
            **modem,
        }
        more = {"meter_type": "Hisob", "meter_serial": "M-4712", "reason": "Unknown"}
    else:
        what = {
            "vendorName": "Registan",
            "model": "Minor-22",
            "serialNumber": "SN-4711",
            "firmwareVersion": "9.8.7",
            "modem": {"iccid": "89998010", "imsi": "43404711"},
        }
        fields, more = {"reason": "Watchdog", "chargingStation": what}, {"reason": "Watchdog"}
    assert (await case.tell(fields))["status"] == "Accepted"
    shows(
        (await case.get("/stations/{s}"))["hardware"],
        vendor="Registan",
        model="Minor-22",
        serial="SN-4711",
        firmware="9.8.7",
        iccid="89998010",
        imsi="43404711",
        **more,
    )


async def _heartbeat(case: Case) -> None:
    told = datetime.fromisoformat((await case.tell({}))["currentTime"])
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)


async def _authorize(case: Case) -> None:
    nobody = "Invalid" if case.is_old else "Unknown"
    for token, status in {CARD: "Accepted", BLOCKED: "Blocked", "04FF": nobody}.items():
        if case.is_old:
            info = (await case.tell({"idTag": token}))["idTagInfo"]
        else:
            info = (await case.tell({"idToken": {**TOKEN, "idToken": token}}))["idTokenInfo"]
        assert info["status"] == status


async def _status(case: Case) -> None:
    if case.is_old:
        await case.tell(status_16(2, "Faulted", 3, errorCode="GroundFailure", info="wet"))
        status, error = "Faulted", "GroundFailure wet"
    else:
        await case.tell(status_201(2, 3, "Reserved", 3))
        status, error = "Reserved", ""
    found = await case.only("/stations/{s}/evses")
    assert found["evse"] == 2
    shows(found["state"]["value"], status=status, error=error)
    assert (found["state"]["at"], found["state"]["source"]) == (at(3), "station")
    if not case.is_old:
        assert found["connectors"] == [3]


# --------------------------------------------------------------------------- transactions


async def _start(case: Case) -> None:
    started = await case.tell(start_16(CARD, 2, 4_711))
    found = await case.only("/transactions", station=case.name)
    shows(found, number=started["transactionId"], state="open", meter_wh=4_711, started_at=at(2))
    assert found["id_token"]["value"] == CARD


async def _stop(case: Case) -> None:
    started = await case.tell(start_16(CARD, 2, 4_711), "StartTransaction")
    stop = stop_16(started["transactionId"], 33, 5_822, reason="EVDisconnected")
    assert await case.tell({**stop, "idTag": CARD}) == {"idTagInfo": {"status": "Accepted"}}
    found = await case.only("/transactions", station=case.name)
    shows(found, state="ended", energy_wh=1_111, ended_at=at(33), reason="EVDisconnected")


async def _event(case: Case) -> None:
    key = f"tx-{case.version}"
    for event in (
        event_201("Started", 0, 2, key, CARD, 4_711),
        event_201("Updated", 1, 20, key, None, 5_000),
        event_201("Ended", 2, 33, key, None, 5_822, info={"stoppedReason": "EVDisconnected"}),
    ):
        answer = await case.tell(event)
        assert ("idTokenInfo" in answer) is ("idToken" in event)
    found = await case.only("/transactions", station=case.name)
    shows(found, native_key=key, state="ended", energy_wh=1_111, reason="EVDisconnected", evse=1)
    shows(found, started_at=at(2), ended_at=at(33))
    assert found["id_token"]["value"] == CARD


async def _meter(case: Case) -> None:
    """The values are telemetry, and the energy of the transaction that is under way."""
    value = moment(12, sample("5000" if case.is_old else 5_000, ENERGY))
    if case.is_old:
        started = await case.tell(start_16(CARD, 2, 4_711), "StartTransaction")
        await case.tell(meter_16(value, number=started["transactionId"]))
    else:
        event = event_201("Started", 0, 2, f"m-{case.version}", CARD, 4_711)
        await case.tell(event, "TransactionEvent")
        await case.tell({"evseId": 1, "meterValue": [value]})
    span = {"from": at(11), "to": at(13), "every": "1m", "evse": 1}
    assert (await case.only("/stations/{s}/telemetry", **span))["energy_wh"] == 5_000
    shows(await case.only("/transactions", station=case.name), energy_wh=289, state="open")


# --------------------------------------------------------------------------- its condition


async def _transfer(case: Case) -> None:
    data: Any = "samovar" if case.is_old else {"samovar": [1, None]}
    told = {"vendorId": "uz.karvon", "messageId": "Choy", "data": data}
    assert await case.tell(told) == {"status": "UnknownVendorId"}
    found = await case.only("/stations/{s}/notices", action="DataTransfer")
    assert found["payload"] == told


async def _firmware(case: Case) -> None:
    numbered = {} if case.action == "FirmwareStatusNotification" and case.is_old else {
        "requestId": 4711
    }  # fmt: skip
    for status in ("Downloading", "InstallationFailed"):
        await case.tell({"status": status, **numbered})
    found = await case.only("/stations/{s}/firmware")
    shows(found, status="InstallationFailed", open=False, request=numbered.get("requestId"))
    assert [one["status"] for one in found["history"]] == ["Downloading", "InstallationFailed"]


async def _published(case: Case) -> None:
    where = [f"{SOMEWHERE}/a", f"{SOMEWHERE}/b"]
    await case.tell({"status": "Downloaded", "requestId": 4711})
    told = {"status": "Published", "requestId": 4711, "location": where}
    await case.tell(told)
    shows(await case.only("/stations/{s}/firmware"), status="Published", open=False, request=4711)
    found = await case.only("/stations/{s}/notices", action=case.action)
    assert found["payload"] == told


async def _diagnostics(case: Case) -> None:
    for status in ("Uploading", "UploadFailed"):
        await case.tell({"status": status})
    found = await case.only("/stations/{s}/logs")
    shows(found, status="UploadFailure", open=False)
    assert [one["status"] for one in found["history"]] == ["Uploading", "UploadFailure"]


async def _log(case: Case) -> None:
    await case.tell({"status": "PermissionDenied", "requestId": 4712})
    shows(
        await case.only("/stations/{s}/logs"), status="PermissionDenied", request=4712, open=False
    )


async def _security(case: Case) -> None:
    told = {"type": "TamperDetectionActivated", "timestamp": at(7), "techInfo": "lid 4711"}
    await case.tell(told)
    found = await case.only("/stations/{s}/security-events")
    shows(found, type="TamperDetectionActivated", at=at(7), text="lid 4711", link="ocpp")


async def _sign(case: Case) -> None:
    case.hurry()
    asked = {"csr": signing_request(case.name)}
    assert (await case.tell(asked))["status"] == "Accepted"
    found = await case.only("/ocpp-certificates", station=case.name)
    sent = await case.station.was_asked("CertificateSigned")
    official.request(case.version, "CertificateSigned").check(sent)
    assert sent["certificateChain"] == found["pem"]


def signing_request(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


# --------------------------------------------------------------------------- the device model


async def _report(case: Case) -> None:
    about = {"dataType": "decimal", "supportsMonitoring": True, "unit": "Celsius"}
    attribute = {"type": "Target", "value": "96.5", "mutability": "ReadOnly"}
    one = {
        "component": COMPONENT,
        "variable": VARIABLE,
        "variableAttribute": [attribute],
        "variableCharacteristics": about,
    }
    told = {"requestId": 4711, "generatedAt": at(5), "seqNo": 0, "reportData": [one]}
    await case.tell(told)
    shows(
        await case.only("/stations/{s}/variables"),
        component="Samovar",
        evse=2,
        connector=1,
        variable="Temperature",
        variable_instance="Lid",
        attribute="Target",
        value="96.5",
        mutability="ReadOnly",
        characteristics=about,
    )


async def _notify_event(case: Case) -> None:
    one = {
        "eventId": 4711,
        "timestamp": at(6),
        "trigger": "Alerting",
        "actualValue": "98.5",
        "eventNotificationType": "CustomMonitor",
        "component": COMPONENT,
        "variable": VARIABLE,
    }
    told = {"generatedAt": at(6), "seqNo": 0, "eventData": [one]}
    await case.tell(told)
    assert (await case.only("/stations/{s}/notices"))["payload"] == told
    (alert,) = await case.items("/events", station=case.name, kind="station.alert")
    shows(alert["data"], component="Samovar", variable="Temperature", value="98.5")


async def _monitoring_report(case: Case) -> None:
    watching = {"id": 4711, "transaction": True, "value": 95.5, "type": "UpperThreshold"}
    if case.version is Version.V21:
        watching["eventNotificationType"] = "CustomMonitor"
    monitor = {
        "component": COMPONENT,
        "variable": VARIABLE,
        "variableMonitoring": [{**watching, "severity": 3}],
    }
    await case.tell({"requestId": 1, "seqNo": 0, "generatedAt": at(1), "monitor": [monitor]})
    shows(
        await case.only("/stations/{s}/monitors"),
        monitor=4711,
        component=COMPONENT,
        variable=VARIABLE,
        type="UpperThreshold",
        value=95.5,
        severity=3,
        only_in_transaction=True,
    )


async def _display(case: Case) -> None:
    message = shown(4711)
    await case.tell({"requestId": 1, "messageInfo": [message]})
    shows(await case.only("/stations/{s}/display-messages"), message=4711, details=message)


def shown(number: int) -> Payload:
    text = {"format": "UTF8", "language": "uz", "content": "Xush kelibsiz"}
    return {"id": number, "priority": "InFront", "message": text}


# --------------------------------------------------------------------------- limits, reservations


def profile(number: int) -> Payload:
    """In 2.x's words."""
    periods = [{"startPeriod": 0, "limit": 13.5}, {"startPeriod": 60, "limit": 6.5}]
    schedule = {"id": 1, "chargingRateUnit": "A", "chargingSchedulePeriod": periods}
    return {
        "id": number,
        "stackLevel": 4,
        "chargingProfilePurpose": "TxDefaultProfile",
        "chargingProfileKind": "Relative",
        "chargingSchedule": [schedule],
    }


async def _report_profiles(case: Case) -> None:
    told = {"requestId": 1, "chargingLimitSource": "EMS", "evseId": 2}
    await case.tell({**told, "chargingProfile": [profile(4711)]})
    shows(
        await case.only("/stations/{s}/charging-profiles"),
        profile=4711,
        evse=2,
        source="EMS",
        stack_level=4,
        purpose="TxDefaultProfile",
        details=profile(4711),
    )


async def _limit(case: Case) -> None:
    schedules = profile(1)["chargingSchedule"]
    limit = {"chargingLimitSource": "SO", "isGridCritical": True}
    await case.tell({"evseId": 2, "chargingLimit": limit, "chargingSchedule": schedules})
    found = await case.only("/stations/{s}/charging-limits")
    shows(found, evse=2, source="SO", is_grid_critical=True, schedules=schedules)


async def _limit_lifted(case: Case) -> None:
    for source in ("SO", "EMS"):
        limit = {"evseId": 2, "chargingLimit": {"chargingLimitSource": source}}
        await case.tell(limit, "NotifyChargingLimit")
    await case.tell({"chargingLimitSource": "SO", "evseId": 2})
    assert (await case.only("/stations/{s}/charging-limits"))["source"] == "EMS"


async def _reservation(case: Case) -> None:
    case.hurry()
    asked = {"id": 4711, "expiryDateTime": LATER, "idToken": TOKEN}
    await case.ask(asked, "ReserveNow")
    await case.tell({"reservationId": 4711, "reservationUpdateStatus": "Removed"})
    shows(await case.only("/stations/{s}/reservations"), reservation=4711, status="removed")


# --------------------------------------------------------------------------- notices

_REPLIES: Final[dict[str, Payload]] = {
    "Get15118EVCertificate": {"status": "Failed", "exiResponse": ""},
    "GetCertificateStatus": {"status": "Failed"},
    "NotifyEVChargingNeeds": {"status": "Rejected"},
    "NotifyEVChargingSchedule": {"status": "Accepted"},
}


async def _notice(case: Case) -> None:
    """All of it, as it was told."""
    whole = official.request(case.version, case.action).full
    if case.action == SENT:
        await case.station.send([6, "sent", SENT, whole])
        await case.tell({}, "Heartbeat")
        await case.ocpp.until(lambda: case.items("/stations/{s}/notices"), "what was sent")
    else:
        assert await case.tell(whole) == _REPLIES.get(case.action, {})
    found = await case.only("/stations/{s}/notices", action=case.action)
    assert found["payload"] == whole


TOLD: Final[dict[str, Check]] = {
    "Authorize": _authorize,
    "BatterySwap": _notice,
    "BootNotification": _boot,
    "ClearedChargingLimit": _limit_lifted,
    "ClosePeriodicEventStream": _notice,
    "DataTransfer": _transfer,
    "DiagnosticsStatusNotification": _diagnostics,
    "FirmwareStatusNotification": _firmware,
    "Get15118EVCertificate": _notice,
    "GetCertificateStatus": _notice,
    "Heartbeat": _heartbeat,
    "LogStatusNotification": _log,
    "MeterValues": _meter,
    "NotifyChargingLimit": _limit,
    "NotifyCustomerInformation": _notice,
    "NotifyDERAlarm": _notice,
    "NotifyDERStartStop": _notice,
    "NotifyDisplayMessages": _display,
    "NotifyEVChargingNeeds": _notice,
    "NotifyEVChargingSchedule": _notice,
    "NotifyEvent": _notify_event,
    "NotifyMonitoringReport": _monitoring_report,
    "NotifyPeriodicEventStream": _notice,
    "NotifyPriorityCharging": _notice,
    "NotifyReport": _report,
    "NotifySettlement": _notice,
    "PublishFirmwareStatusNotification": _published,
    "ReportChargingProfiles": _report_profiles,
    "ReportDERControl": _notice,
    "ReservationStatusUpdate": _reservation,
    "SecurityEventNotification": _security,
    "SignCertificate": _sign,
    "SignedFirmwareStatusNotification": _firmware,
    "StartTransaction": _start,
    "StatusNotification": _status,
    "StopTransaction": _stop,
    "TransactionEvent": _event,
}
"""What stations tell, and how it is looked for."""

# --------------------------------------------------------------------------- what it agrees to


async def _set_profile(case: Case) -> None:
    if case.is_old:
        (schedule,) = profile(1)["chargingSchedule"]
        old = {key: value for key, value in schedule.items() if key != "id"}
        given = {**profile(1), "chargingProfileId": 4720, "chargingSchedule": old}
        del given["id"]
        asked: Payload = {"connectorId": 2, "csChargingProfiles": given}
    else:
        asked = {"evseId": 2, "chargingProfile": profile(4720)}
    done = await case.ask(asked)
    shows(
        await case.only("/stations/{s}/charging-profiles"),
        profile=4720,
        evse=2,
        source="CSO",
        stack_level=4,
        command=done["command"],
    )


async def _clear_profile(case: Case) -> None:
    await _set_profile(_like(case, "SetChargingProfile"))
    await case.ask({"id" if case.is_old else "chargingProfileId": 4720})
    assert await case.items("/stations/{s}/charging-profiles") == []


def _like(case: Case, action: str) -> Case:
    """The same station, asked something else first."""
    return Case(case.ocpp, case.station, case.name, case.version, action, case.read)


async def _reserve(case: Case) -> None:
    if case.is_old:
        asked: Payload = {"reservationId": 4721, "expiryDate": LATER, "idTag": CARD}
        asked["connectorId"] = 2
    else:
        asked = {"id": 4721, "expiryDateTime": LATER, "idToken": TOKEN, "evseId": 2}
    done = await case.ask(asked)
    found = await case.only("/stations/{s}/reservations")
    shows(found, reservation=4721, evse=2, status="active", expires_at=LATER)
    assert found["command"] == done["command"]


async def _cancel(case: Case) -> None:
    await _reserve(_like(case, "ReserveNow"))
    await case.ask({"reservationId": 4721})
    shows(await case.only("/stations/{s}/reservations"), reservation=4721, status="cancelled")


async def _send_list(case: Case) -> None:
    number = "listVersion" if case.is_old else "versionNumber"
    await case.ask({number: 4722, "updateType": "Full"})
    assert (await case.get("/stations/{s}/local-list"))["version"] == 4722


async def _list_version(case: Case) -> None:
    await case.ask({}, answer={"listVersion" if case.is_old else "versionNumber": 4723})
    assert (await case.get("/stations/{s}/local-list"))["version"] == 4723


async def _update(case: Case) -> None:
    where = {"location": f"{SOMEWHERE}/fw"}
    asked = official.request(case.version, case.action).minimal
    if "firmware" in asked:
        asked["firmware"] |= where
    else:
        asked |= where
    number = asked.get("requestId")
    done = await case.ask(asked)
    found = await case.only("/stations/{s}/firmware")
    shows(found, location=f"{SOMEWHERE}/fw", request=number, command=done["command"], open=True)


async def _get_log(case: Case) -> None:
    asked = official.request(case.version, case.action).minimal
    name = "fileName" if case.action == "GetDiagnostics" else "filename"
    done = await case.ask(asked, answer={name: "4724.zip"})
    found = await case.only("/stations/{s}/logs")
    shows(found, location=SOMEWHERE, filename="4724.zip", command=done["command"], open=True)
    assert found["request"] == asked.get("requestId")


async def _set_monitors(case: Case) -> None:
    place = {"component": COMPONENT, "variable": VARIABLE, "type": "Delta", "severity": 4}
    result = {"status": "Accepted", "id": 4725, **place}
    await case.ask(
        {"setMonitoringData": [{**place, "value": 2.5}]}, answer={"setMonitoringResult": [result]}
    )
    found = await case.only("/stations/{s}/monitors")
    shows(found, monitor=4725, component=COMPONENT, type="Delta", value=2.5, severity=4)


async def _clear_monitors(case: Case) -> None:
    await _set_monitors(_like(case, "SetVariableMonitoring"))
    result = {"status": "Accepted", "id": 4725}
    await case.ask({"id": [4725]}, answer={"clearMonitoringResult": [result]})
    assert await case.items("/stations/{s}/monitors") == []


async def _show(case: Case) -> None:
    await case.ask({"message": shown(4726)})
    shows(await case.only("/stations/{s}/display-messages"), message=4726, details=shown(4726))


async def _clear_message(case: Case) -> None:
    await _show(_like(case, "SetDisplayMessage"))
    await case.ask({"id": 4726})
    assert await case.items("/stations/{s}/display-messages") == []


async def _get_configuration(case: Case) -> None:
    key = {"key": "HeartbeatInterval", "readonly": True, "value": "4727"}
    await case.ask({}, answer={"configurationKey": [key]})
    found = await case.only("/stations/{s}/variables")
    shows(found, variable="HeartbeatInterval", value="4727", mutability="ReadOnly")


async def _change_configuration(case: Case) -> None:
    await case.ask({"key": "HeartbeatInterval", "value": "4728"})
    shows(await case.only("/stations/{s}/variables"), variable="HeartbeatInterval", value="4728")


async def _variables(case: Case) -> None:
    side = "set" if case.action == "SetVariables" else "get"
    place = {"component": COMPONENT, "variable": VARIABLE}
    asked = {**place, "attributeValue": "4729"} if side == "set" else place
    told = {} if side == "set" else {"attributeValue": "4729"}
    result = {"attributeStatus": "Accepted", **place, **told}
    await case.ask({f"{side}VariableData": [asked]}, answer={f"{side}VariableResult": [result]})
    found = await case.only("/stations/{s}/variables")
    shows(found, component="Samovar", evse=2, variable="Temperature", value="4729")


AGREED: Final[dict[str, Check]] = {
    "CancelReservation": _cancel,
    "ChangeConfiguration": _change_configuration,
    "ClearChargingProfile": _clear_profile,
    "ClearDisplayMessage": _clear_message,
    "ClearVariableMonitoring": _clear_monitors,
    "GetConfiguration": _get_configuration,
    "GetDiagnostics": _get_log,
    "GetLocalListVersion": _list_version,
    "GetLog": _get_log,
    "GetVariables": _variables,
    "PublishFirmware": _update,
    "ReserveNow": _reserve,
    "SendLocalList": _send_list,
    "SetChargingProfile": _set_profile,
    "SetDisplayMessage": _show,
    "SetVariableMonitoring": _set_monitors,
    "SetVariables": _variables,
    "SignedUpdateFirmware": _update,
    "UpdateFirmware": _update,
}
"""What a station that agrees then holds, and how it is looked for."""
