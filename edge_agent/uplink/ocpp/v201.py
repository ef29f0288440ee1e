"""The station's words in OCPP 2.0.1: they live only here. An EVSE has one connector, number 1."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from edge_agent.rules.authorization import Heard
from edge_agent.rules.charging_profiles import STATION, Pattern, Period, Profile, Purpose, Unit
from edge_agent.uplink.ocpp.device import Access, DeviceModel, Kind, Result, Variable
from edge_agent.uplink.ocpp.port import (
    CancelReservation,
    Charger,
    Outcome,
    Reserve,
    Restart,
    SetOperative,
    Start,
    Stop,
)
from edge_agent.uplink.ocpp.readings import ENERGY, Reading, of_event, of_sample, register_at
from edge_agent.uplink.ocpp.speaker import (
    UNKNOWN_TOKEN,
    Refusal,
    Speaker,
    optional_ms,
    tenths,
    told,
    unix_ms,
)
from edge_agent.uplink.ocpp.station import (
    Call,
    RefusedCallError,
    Registered,
    Reply,
    Taken,
    Transferred,
)
from protocols.agent_link import (
    EvseStatus,
    IdToken,
    SecurityEvent,
    SignedMoment,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.ocpp.sampling import iso
from protocols.ocpp.version import Version

log = logging.getLogger(__name__)
LONGEST_TOKEN: Final = 36
LONGEST_SIGNED: Final = 2500
"""Characters of a SignedMeterValueType's signedMeterData and publicKey."""
PER_REPORT: Final = 25
MOST_REMOTE_ID: Final = 2**31
_TOKEN_TYPES: Final = frozenset(
    {
        "Central",
        "eMAID",
        "ISO14443",
        "ISO15693",
        "KeyCode",
        "Local",
        "MacAddress",
        "NoAuthorization",
    }
)
_CONTEXTS: Final = {
    TransactionEventType.STARTED: "Transaction.Begin",
    TransactionEventType.UPDATED: "Sample.Periodic",
    TransactionEventType.ENDED: "Transaction.End",
}
_DONE: Final = {
    Outcome.ACCEPTED: "Accepted",
    Outcome.SCHEDULED: "Scheduled",
    Outcome.REJECTED: "Rejected",
}
_YES_OR_NO: Final = {Outcome.ACCEPTED: "Accepted", Outcome.REJECTED: "Rejected"}
_RESERVED: Final = {
    Outcome.ACCEPTED: "Accepted",
    Outcome.REJECTED: "Rejected",
    Outcome.OCCUPIED: "Occupied",
    Outcome.FAULTED: "Faulted",
    Outcome.UNAVAILABLE: "Unavailable",
}


def _status(status: str, refusal: Refusal | None = None) -> dict[str, Any]:
    info = None
    if refusal is not None:
        info = {"reasonCode": refusal.code[:20], "additionalInfo": refusal.text[:512]}
    return told(status=status, statusInfo=info)


def _accepted() -> Reply:
    return Reply(_status("Accepted"))


def _rejected(code: str = "UnsupportedRequest", text: str = "this station does not do it") -> Reply:
    return Reply(_status("Rejected", Refusal(code, text)))


class V201(Speaker):
    """See `edge_agent.uplink.ocpp.station.Dialect`."""

    version: Final = Version.V201

    def __init__(
        self,
        charger: Charger,
        device: DeviceModel,
        numbers: Mapping[UUID, int],
        *,
        vendor: str,
        model: str,
    ) -> None:
        super().__init__(charger, device, numbers)
        self._vendor, self._model = vendor, model
        self._askers: Mapping[str, Callable[[Any], Reply]] = {
            "CancelReservation": lambda asked: self.deed(
                CancelReservation(asked.reservationId), _YES_OR_NO
            ),
            "CertificateSigned": lambda _: _rejected(),
            "ChangeAvailability": self._change_availability,
            "ClearCache": self._clear_cache,
            "ClearChargingProfile": self._clear_charging_profile,
            "ClearDisplayMessage": lambda _: Reply({"status": "Unknown"}),
            "ClearVariableMonitoring": self._clear_monitoring,
            "CostUpdated": lambda _: Reply({}),
            "CustomerInformation": lambda _: _rejected(),
            "DataTransfer": lambda _: Reply({"status": "UnknownVendorId"}),
            "DeleteCertificate": lambda _: Reply({"status": "NotFound"}),
            "GetBaseReport": self._get_base_report,
            "GetChargingProfiles": self._get_charging_profiles,
            "GetCompositeSchedule": self._get_composite_schedule,
            "GetDisplayMessages": lambda _: Reply({"status": "Unknown"}),
            "GetInstalledCertificateIds": lambda _: Reply({"status": "NotFound"}),
            "GetLocalListVersion": lambda _: Reply(
                {"versionNumber": self.charger.local_list().version}
            ),
            "GetLog": self.get_log,
            "GetMonitoringReport": lambda _: Reply({"status": "NotSupported"}),
            "GetReport": self._get_report,
            "GetTransactionStatus": self._get_transaction_status,
            "GetVariables": self._get_variables,
            "InstallCertificate": lambda _: _rejected(),
            "PublishFirmware": lambda _: _rejected(),
            "RequestStartTransaction": self._request_start,
            "RequestStopTransaction": self._request_stop,
            "ReserveNow": self._reserve_now,
            "Reset": self._reset,
            "SendLocalList": self._send_local_list,
            "SetChargingProfile": self._set_charging_profile,
            "SetDisplayMessage": lambda _: _rejected(),
            "SetMonitoringBase": lambda _: Reply({"status": "NotSupported"}),
            "SetMonitoringLevel": lambda _: _rejected(),
            "SetNetworkProfile": lambda _: _rejected(),
            "SetVariableMonitoring": self._set_monitoring,
            "SetVariables": self._set_variables,
            "TriggerMessage": self._trigger,
            "UnlockConnector": self._unlock,
            "UnpublishFirmware": lambda _: Reply({"status": "NoFirmware"}),
            "UpdateFirmware": lambda _: _rejected(),
        }

    # ------------------------------------------------------------------ telling

    def boot(self, reason: str) -> Call:
        station = {
            "model": self._model[:20],
            "vendorName": self._vendor[:50],
            "serialNumber": self.charger.station[:25],
            "firmwareVersion": self.charger.version[:50],
        }
        return Call("BootNotification", {"reason": reason, "chargingStation": station})

    def registered(self, response: Any) -> Registered:
        return Registered(response.status, unix_ms(response.currentTime), response.interval)

    def time(self, response: Any) -> int:
        return unix_ms(response.currentTime)

    def statuses(self, known: Mapping[int, EvseStatus]) -> list[tuple[int, Call]]:
        return [(evse, self._status(known[evse])) for evse in sorted(known)]

    def _status(self, status: EvseStatus) -> Call:
        return Call(
            "StatusNotification",
            {
                "timestamp": self.at(status.at),
                "connectorStatus": status.status.value,
                "evseId": status.evse,
                "connectorId": 1,
            },
        )

    def authorize(self, id_token: IdToken) -> Call | None:
        if not 0 < len(id_token.value) <= LONGEST_TOKEN:
            return None
        return Call("Authorize", {"idToken": _token(id_token)})

    def authorized(self, response: Any) -> Heard:
        return _heard(response.idTokenInfo)

    def fact(self, event: TransactionEvent, number: int | None, *, offline: bool) -> Call | None:
        del number
        names_token = event.type is TransactionEventType.STARTED or (
            event.trigger in {Trigger.STOP_AUTHORIZED, Trigger.AUTHORIZED}
        )
        return Call(
            "TransactionEvent",
            told(
                eventType=event.type.value,
                timestamp=self.at(event.at),
                triggerReason=event.trigger.value,
                seqNo=event.seq_no,
                offline=offline or None,
                transactionInfo=self._info(event),
                meterValue=[self._values(event), *self._signed(event)],
                evse={"id": event.evse, "connectorId": 1},
                idToken=_token(event.id_token) if event.id_token and names_token else None,
                reservationId=self.charger.reservation(event.transaction)
                if event.type is TransactionEventType.STARTED
                else None,
            ),
        )

    def _signed(self, event: TransactionEvent) -> Iterator[dict[str, Any]]:
        """What the meter has signed; what is too long for this version is left to others."""
        for one in event.signatures:
            data, key = (b64encode(octets).decode("ascii") for octets in (one.data, one.public_key))
            if len(data) > LONGEST_SIGNED:
                log.warning("%d bytes signed: too many for OCPP 2.0.1, not sent", len(one.data))
                continue
            began = one.moment is SignedMoment.BEGIN
            sampled = {
                "value": register_at(event, one.moment),
                "context": one.moment.value,
                "measurand": ENERGY,
                "unitOfMeasure": {"unit": "Wh"},
                "signedMeterValue": {
                    "signedMeterData": data,
                    "signingMethod": "",
                    "encodingMethod": one.encoding,
                    "publicKey": key if len(key) <= LONGEST_SIGNED else "",
                },
            }
            at = self.at(event.started if began else event.at)
            yield {"timestamp": at, "sampledValue": [sampled]}

    def _info(self, event: TransactionEvent) -> dict[str, Any]:
        reason = None if event.reason is None else event.reason.value
        if reason is not None and event.trigger is Trigger.RESET:
            reason = "ImmediateReset"
        remote = None if event.command is None else event.command.int
        began = event.type is TransactionEventType.STARTED
        return told(
            transactionId=str(event.transaction),
            chargingState=event.charging_state.value,
            stoppedReason=reason,
            remoteStartId=remote
            if began and remote is not None and remote < MOST_REMOTE_ID
            else None,
        )

    def _values(self, event: TransactionEvent) -> dict[str, Any]:
        measurands: tuple[str, ...] = ()
        if event.type is TransactionEventType.UPDATED:
            measurands = self.measurands()
        readings = of_event(event, self.charger.latest(event.evse), measurands)
        return _value(self.at(event.at), readings, _CONTEXTS[event.type])

    def security(self, event: SecurityEvent) -> Call:
        payload = {"type": event.type[:50], "timestamp": self.at(event.at)}
        return Call("SecurityEventNotification", {**payload, "techInfo": event.text[:255]})

    def taken(self, event: TransactionEvent, response: Any) -> Taken:
        del event
        info = response.idTokenInfo
        return Taken(heard=None if info is None else _heard(info))

    def salvaged(self, event: TransactionEvent, answer: Mapping[str, Any]) -> Taken | None:
        del event, answer
        return Taken()

    def transferred(self, event: Transferred) -> Call:
        self.transfer = event.status
        return Call("LogStatusNotification", told(status=event.status, requestId=event.request_id))

    def aligned(self, at_ms: int) -> list[Call]:
        measurands = self.device.list("AlignedDataCtrlr", "Measurands")
        return self._live(self.evse_numbers(), measurands, "Sample.Clock", iso(at_ms))

    def _live(
        self, evses: Iterable[int], measurands: tuple[str, ...], context: str, at: str
    ) -> list[Call]:
        calls = []
        for evse in evses:
            sample = self.charger.latest(evse)
            readings = [] if sample is None else of_sample(sample, measurands)
            if readings:
                value = _value(at, readings, context)
                calls.append(Call("MeterValues", {"evseId": evse, "meterValue": [value]}))
        return calls

    # ------------------------------------------------------------------ being asked

    def asked(self, action: str, request: Any) -> Reply:
        asker = self._askers.get(action)
        if asker is None:
            raise RefusedCallError("NotSupported", f"this station does not do {action}")
        return asker(request)

    def _request_start(self, asked: Any) -> Reply:
        profile = None
        if asked.chargingProfile is not None:
            read = self._profile(asked.evseId or 1, asked.chargingProfile)
            if isinstance(read, Refusal) or read.purpose is not Purpose.TRANSACTION:
                return _rejected("InvalidProfile", "a TxProfile with one schedule is due")
            profile = read
        start = Start(
            id_token=_id_token(asked.idToken),
            evse=asked.evseId,
            remote_id=asked.remoteStartId,
            authorize=self.device.truth("AuthCtrlr", "AuthorizeRemoteStart"),
            profile=profile,
        )
        return self.deed(start, _YES_OR_NO)

    def _request_stop(self, asked: Any) -> Reply:
        transaction = _uuid(asked.transactionId)
        if transaction is None:
            return _rejected("TxNotFound", "it is not open here")
        return self.deed(Stop(transaction), _YES_OR_NO)

    def _get_transaction_status(self, asked: Any) -> Reply:
        if asked.transactionId is None:
            return Reply({"messagesInQueue": self.charger.waits(None)})
        transaction = _uuid(asked.transactionId)
        if transaction is None:
            return Reply({"ongoingIndicator": False, "messagesInQueue": False})
        running = self.charger.started(transaction) is not None
        waits = self.charger.waits(transaction)
        return Reply({"ongoingIndicator": running, "messagesInQueue": waits})

    def _change_availability(self, asked: Any) -> Reply:
        evse = STATION if asked.evse is None else asked.evse.id
        if evse != STATION and evse not in self.evse_numbers():
            return _rejected("UnknownEvse", f"there is no EVSE {evse}")
        return self.deed(SetOperative(evse, asked.operationalStatus == "Operative"), _DONE)

    def _reset(self, asked: Any) -> Reply:
        if asked.evseId:
            return _rejected("UnsupportedRequest", "the whole station only")
        idle = asked.type == "OnIdle"
        return self.deed(Restart(immediate=not idle, idle=idle), _DONE)

    def _unlock(self, asked: Any) -> Reply:
        if asked.evseId not in self.evse_numbers() or asked.connectorId != 1:
            return Reply({"status": "UnknownConnector"})
        if self.running(asked.evseId) is not None:
            return Reply({"status": "OngoingAuthorizedTransaction"})
        refusal = Refusal("UnsupportedRequest", "the agent does not control the lock")
        return Reply(_status("UnlockFailed", refusal))

    def _clear_cache(self, _asked: Any) -> Reply:
        self.charger.clear_cache()
        return _accepted()

    def _trigger(self, asked: Any) -> Reply:
        evse = None if asked.evse is None else asked.evse.id
        if evse is not None and evse not in {STATION, *self.evse_numbers()}:
            return _rejected("UnknownEvse", f"there is no EVSE {evse}")
        evses = [evse] if evse else self.evse_numbers()
        message, accepted = asked.requestedMessage, _status("Accepted")
        match message:
            case "BootNotification":
                return Reply(accepted, boot=True)
            case "Heartbeat":
                return Reply(accepted, then=(Call("Heartbeat", {}),))
            case "StatusNotification":
                known = self.statuses(self.charger.statuses())
                return Reply(accepted, then=tuple(call for one, call in known if one in evses))
            case "MeterValues":
                measurands = self.device.list("SampledDataCtrlr", "TxUpdatedMeasurands")
                live = self._live(evses, measurands, "Trigger", self.now())
                return Reply(accepted, then=tuple(live))
            case "FirmwareStatusNotification" | "LogStatusNotification":
                busy = message[0] == "L" and self.transfer == "Uploading"
                told_now = {"status": "Uploading" if busy else "Idle"}
                return Reply(accepted, then=(Call(message, told_now),))
        return Reply({"status": "NotImplemented"})

    # ------------------------------------------------------------------ the device model

    def _found(self, asked: Any) -> Variable | Result:
        component, variable = asked.component, asked.variable
        if component.instance is not None:
            return Result.UNKNOWN_COMPONENT
        evse = component.evse
        return self.device.find(
            component.name,
            variable.name,
            variable.instance or "",
            None if evse is None else evse.id,
            None if evse is None else evse.connectorId,
        )

    def _get_variables(self, asked: Any) -> Reply:
        return Reply({"getVariableResult": [self._got(one) for one in asked.getVariableData]})

    def _got(self, asked: Any) -> dict[str, Any]:
        result = _named(asked)
        found = self._found(asked)
        if isinstance(found, Result):
            return {**result, "attributeStatus": found.value}
        if asked.attributeType not in {None, "Actual"}:
            return {**result, "attributeStatus": "NotSupportedAttributeType"}
        if found.access is Access.WRITE:
            return {**result, "attributeStatus": "Rejected"}
        value = self.device.value(found)[:2500]
        return {**result, "attributeStatus": "Accepted", "attributeValue": value}

    def _set_variables(self, asked: Any) -> Reply:
        return Reply({"setVariableResult": [self._set(one) for one in asked.setVariableData]})

    def _set(self, asked: Any) -> dict[str, Any]:
        result = _named(asked)
        found = self._found(asked)
        if isinstance(found, Result):
            return {**result, "attributeStatus": found.value}
        if asked.attributeType not in {None, "Actual"}:
            return {**result, "attributeStatus": "NotSupportedAttributeType"}
        value = asked.attributeValue
        why = self.device.set(found, value.lower() if found.kind is Kind.BOOLEAN else value)
        if not why:
            return {**result, "attributeStatus": "Accepted"}
        code = "ReadOnly" if found.access is Access.READ else "InvalidValue"
        info = {"reasonCode": code, "additionalInfo": why[:512]}
        return {**result, "attributeStatus": "Rejected", "attributeStatusInfo": info}

    def _get_base_report(self, asked: Any) -> Reply:
        every = list(self.device)
        if asked.reportBase == "ConfigurationInventory":
            every = [one for one in every if one.access is not Access.READ]
        elif asked.reportBase == "SummaryInventory":
            every = [one for one in every if one.name == "AvailabilityState"]
        return self._report(asked.requestId, every)

    def _get_report(self, asked: Any) -> Reply:
        wanted = asked.componentVariable or ()
        if asked.componentCriteria and "Problem" in asked.componentCriteria:
            return Reply({"status": "EmptyResultSet"})
        every = [one for one in self.device if not wanted or any(_fits(one, w) for w in wanted)]
        return (
            self._report(asked.requestId, every) if every else Reply({"status": "EmptyResultSet"})
        )

    def _report(self, request_id: int, variables: list[Variable]) -> Reply:
        pages = [variables[at : at + PER_REPORT] for at in range(0, len(variables), PER_REPORT)]
        calls = [
            Call(
                "NotifyReport",
                {
                    "requestId": request_id,
                    "generatedAt": self.now(),
                    "seqNo": number,
                    "tbc": number < len(pages) - 1,
                    "reportData": [self._reported(one) for one in page],
                },
            )
            for number, page in enumerate(pages)
        ]
        return Reply(_status("Accepted"), then=tuple(calls))

    def _reported(self, one: Variable) -> dict[str, Any]:
        attribute = told(
            type="Actual",
            value=None if one.access is Access.WRITE else self.device.value(one)[:2500],
            mutability=one.access.value,
            persistent=one.access is not Access.READ,
        )
        number = one.kind in {Kind.INTEGER, Kind.DECIMAL}
        characteristics = told(
            dataType=one.kind.value,
            supportsMonitoring=False,
            unit=one.unit or None,
            valuesList=",".join(one.choices) or None,
            minLimit=one.least if number else None,
            maxLimit=one.most,
        )
        return {
            "component": told(name=one.component, evse=_place(one)),
            "variable": told(name=one.name, instance=one.instance or None),
            "variableAttribute": [attribute],
            "variableCharacteristics": characteristics,
        }

    @staticmethod
    def _clear_monitoring(asked: Any) -> Reply:
        results = [{"id": one, "status": "NotFound"} for one in asked.id]
        return Reply({"clearMonitoringResult": results})

    def _set_monitoring(self, asked: Any) -> Reply:
        results = []
        for one in asked.setMonitoringData:
            found = self._found(one)
            status = found.value if isinstance(found, Result) else "UnsupportedMonitorType"
            results.append(
                {**_named(one), "status": status, "type": one.type, "severity": one.severity}
            )
        return Reply({"setMonitoringResult": results})

    # ------------------------------------------------------------------ the local list

    def _send_local_list(self, asked: Any) -> Reply:
        full = asked.updateType == "Full"
        entries = []
        for one in asked.localAuthorizationList or ():
            token, info = _id_token(one.idToken), one.idTokenInfo
            if info is None and full:
                return Reply(_status("Failed", Refusal("InvalidList", "an entry without its info")))
            group = None if info is None or info.groupIdToken is None else info.groupIdToken.idToken
            entry = (
                None
                if info is None
                else self.entry(
                    token,
                    accepted=info.status == "Accepted",
                    expires=info.cacheExpiryDateTime,
                    group=group,
                )
            )
            entries.append((token, entry))
        refusal = self.update_list(asked.versionNumber, entries, full=full)
        if refusal is None:
            return _accepted()
        mismatch = refusal.code == "VersionMismatch"
        return Reply(_status("VersionMismatch" if mismatch else "Failed", refusal))

    # ------------------------------------------------------------------ smart charging

    def _profile(self, evse: int, asked: Any) -> Profile | Refusal:
        if len(asked.chargingSchedule) != 1:
            return Refusal("InvalidSchedule", "one schedule is due")
        try:
            purpose = Purpose(asked.chargingProfilePurpose)
        except ValueError:
            return Refusal(
                "InvalidProfile", f"no {asked.chargingProfilePurpose} is set from outside"
            )
        schedule = asked.chargingSchedule[0]
        unit, kind = Unit(schedule.chargingRateUnit), asked.chargingProfileKind
        pattern = Pattern(
            (asked.recurrencyKind or "Daily").lower() if kind == "Recurring" else kind.lower()
        )
        name = asked.transactionId
        return Profile(
            id=asked.id,
            evse=evse,
            stack=asked.stackLevel,
            purpose=purpose,
            pattern=pattern,
            unit=unit,
            periods=tuple(
                Period(one.startPeriod, tenths(one.limit, unit), one.numberPhases)
                for one in schedule.chargingSchedulePeriod
            ),
            set_ms=self.charger.now().wall_ms,
            start_ms=optional_ms(schedule.startSchedule),
            duration_s=schedule.duration,
            valid_from_ms=optional_ms(asked.validFrom),
            valid_to_ms=optional_ms(asked.validTo),
            transaction=None if name is None else _uuid(name) or UUID(int=0),
        )

    def _set_charging_profile(self, asked: Any) -> Reply:
        profile = self._profile(asked.evseId, asked.chargingProfile)
        refusal = profile if isinstance(profile, Refusal) else self.set_profile(profile)
        return _accepted() if refusal is None else Reply(_status("Rejected", refusal))

    def _clear_charging_profile(self, asked: Any) -> Reply:
        criteria = asked.chargingProfileCriteria
        evse = purpose = stack = None
        if criteria is not None and asked.chargingProfileId is None:
            evse, stack = criteria.evseId, criteria.stackLevel
            purpose = criteria.chargingProfilePurpose
        if purpose is not None and purpose not in {*Purpose}:
            return Reply({"status": "Unknown"})
        found = self.clear_profiles(
            asked.chargingProfileId, evse, purpose and Purpose(purpose), stack
        )
        return Reply({"status": "Accepted" if found else "Unknown"})

    def _get_charging_profiles(self, asked: Any) -> Reply:
        criterion = asked.chargingProfile
        purpose, ids = criterion.chargingProfilePurpose, criterion.chargingProfileId
        sources = criterion.chargingLimitSource
        found = [
            one
            for one in self.charger.profiles().matching(evse=asked.evseId)
            if purpose in {None, one.purpose.value}
            and criterion.stackLevel in {None, one.stack}
            and (ids is None or one.id in ids)
            and (sources is None or "CSO" in sources)
        ]
        calls = [
            Call(
                "ReportChargingProfiles",
                told(
                    requestId=asked.requestId,
                    chargingLimitSource="CSO",
                    evseId=one.evse,
                    chargingProfile=[_worded(one)],
                    tbc=number < len(found) or None,
                ),
            )
            for number, one in enumerate(found, start=1)
        ]
        return Reply({"status": "Accepted" if found else "NoProfiles"}, then=tuple(calls))

    def _get_composite_schedule(self, asked: Any) -> Reply:
        evse = asked.evseId
        if evse != STATION and evse not in self.evse_numbers():
            return _rejected("UnknownEvse", f"there is no EVSE {evse}")
        unit = Unit(asked.chargingRateUnit or "A")
        begins, steps = self.composite(evse, asked.duration)
        schedule = {
            "evseId": evse,
            "duration": asked.duration,
            "scheduleStart": iso(begins),
            "chargingRateUnit": unit.value,
            "chargingSchedulePeriod": [
                {"startPeriod": step.start_s, "limit": self.limit_of(step, evse, unit)}
                for step in steps
            ],
        }
        return Reply({"status": "Accepted", "schedule": schedule})

    # ------------------------------------------------------------------ reservations

    def _reserve_now(self, asked: Any) -> Reply:
        if asked.evseId not in self.evse_numbers():
            return _rejected("UnsupportedRequest", "an EVSE must be named")
        group = asked.groupIdToken
        reserve = Reserve(
            evse=asked.evseId,
            id=asked.id,
            id_token=_id_token(asked.idToken),
            group=None if group is None else group.idToken,
            until_wall_ms=unix_ms(asked.expiryDateTime),
        )
        return self.deed(reserve, _RESERVED)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _token(token: IdToken | None) -> dict[str, Any]:
    if token is None:
        return {"idToken": UNKNOWN_TOKEN, "type": "Central"}
    kind = token.type if token.type in _TOKEN_TYPES else "Central"
    return {"idToken": token.value[:LONGEST_TOKEN], "type": kind}


def _id_token(asked: Any) -> IdToken:
    return IdToken(asked.idToken, asked.type)


def _heard(info: Any) -> Heard:
    group = info.groupIdToken
    return Heard(
        accepted=info.status == "Accepted",
        why=f"the backend says {info.status}",
        expires_ms=optional_ms(info.cacheExpiryDateTime),
        group=None if group is None else group.idToken,
    )


def _value(at: str, readings: list[Reading], context: str) -> dict[str, Any]:
    sampled = [
        told(
            value=one.value,
            context=context,
            measurand=one.measurand,
            phase=one.phase or None,
            unitOfMeasure={"unit": one.unit},
        )
        for one in readings
    ]
    return {"timestamp": at, "sampledValue": sampled}


def _named(asked: Any) -> dict[str, Any]:
    """Component and variable as they were asked for."""
    evse = asked.component.evse
    place = None if evse is None else told(id=evse.id, connectorId=evse.connectorId)
    component = told(name=asked.component.name, instance=asked.component.instance, evse=place)
    variable = told(name=asked.variable.name, instance=asked.variable.instance)
    return {"component": component, "variable": variable}


def _place(one: Variable) -> dict[str, Any] | None:
    return None if one.evse is None else told(id=one.evse, connectorId=one.connector)


def _fits(one: Variable, wanted: Any) -> bool:
    component, variable = wanted.component, wanted.variable
    if component.name.lower() != one.component.lower():
        return False
    if component.evse is not None and component.evse.id != one.evse:
        return False
    return variable is None or variable.name.lower() == one.name.lower()


def _worded(one: Profile) -> dict[str, Any]:
    """A profile as it was set."""
    recurring = one.pattern.every_ms is not None
    periods = [
        told(
            startPeriod=period.start_s,
            limit=period.limit / 1000 if one.unit is Unit.AMPERE else float(period.limit),
            numberPhases=period.phases,
        )
        for period in one.periods
    ]
    schedule = told(
        id=one.id,
        startSchedule=None if one.start_ms is None else iso(one.start_ms),
        duration=one.duration_s,
        chargingRateUnit=one.unit.value,
        chargingSchedulePeriod=periods,
    )
    return told(
        id=one.id,
        stackLevel=one.stack,
        chargingProfilePurpose=one.purpose.value,
        chargingProfileKind="Recurring" if recurring else one.pattern.value.capitalize(),
        recurrencyKind=one.pattern.value.capitalize() if recurring else None,
        validFrom=None if one.valid_from_ms is None else iso(one.valid_from_ms),
        validTo=None if one.valid_to_ms is None else iso(one.valid_to_ms),
        transactionId=None if one.transaction is None else str(one.transaction),
        chargingSchedule=[schedule],
    )
