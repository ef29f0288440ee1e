"""The station's words in OCPP 1.6 (edition 2) with the security whitepaper: they live only here.

Connector n is EVSE n, connector 0 the station; an idTag is an id token of at most 20 characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from edge_agent.rules.authorization import Heard
from edge_agent.rules.charging_profiles import STATION, Pattern, Period, Profile, Purpose, Unit
from edge_agent.uplink.ocpp import device as model
from edge_agent.uplink.ocpp.device import Access, DeviceModel, Kind, Result, Variable
from edge_agent.uplink.ocpp.port import (
    CancelReservation,
    Charger,
    LogKind,
    Outcome,
    Reserve,
    Restart,
    SetOperative,
    Start,
    Stop,
    Upload,
)
from edge_agent.uplink.ocpp.readings import ENERGY, Reading, of_event, of_sample, signed_text
from edge_agent.uplink.ocpp.speaker import (
    UNKNOWN_TOKEN,
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
    UndeliverableError,
)
from protocols.agent_link import (
    ChargingState,
    ConnectorStatus,
    EvseStatus,
    IdToken,
    SecurityEvent,
    SignedMoment,
    SignedValue,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.ocpp.sampling import iso
from protocols.ocpp.version import Version

LONGEST_TAG: Final = 20
EXTRA: Final = "Ocpp16"
"""Not a component of 2.x: what only 1.6 has a key for."""

KEYS: Final[Mapping[str, tuple[str, str, str]]] = {
    "AllowOfflineTxForUnknownId": ("AuthCtrlr", "OfflineTxForUnknownIdEnabled", ""),
    "AuthorizationCacheEnabled": ("AuthCacheCtrlr", "Enabled", ""),
    "AuthorizationKey": ("SecurityCtrlr", "BasicAuthPassword", ""),
    "AuthorizeRemoteTxRequests": ("AuthCtrlr", "AuthorizeRemoteStart", ""),
    "ChargeProfileMaxStackLevel": ("SmartChargingCtrlr", "ProfileStackLevel", ""),
    "ChargingScheduleAllowedChargingRateUnit": (EXTRA, "RateUnits", ""),
    "ChargingScheduleMaxPeriods": ("SmartChargingCtrlr", "PeriodsPerSchedule", ""),
    "ClockAlignedDataInterval": ("AlignedDataCtrlr", "Interval", ""),
    "ConnectionTimeOut": ("TxCtrlr", "EVConnectionTimeOut", ""),
    "ConnectorPhaseRotation": (EXTRA, "ConnectorPhaseRotation", ""),
    "CpoName": ("SecurityCtrlr", "OrganizationName", ""),
    "GetConfigurationMaxKeys": ("DeviceDataCtrlr", "ItemsPerMessage", "GetVariables"),
    "HeartbeatInterval": ("OCPPCommCtrlr", "HeartbeatInterval", ""),
    "LocalAuthListEnabled": ("LocalAuthListCtrlr", "Enabled", ""),
    "LocalAuthListMaxLength": (EXTRA, "LocalAuthListMaxLength", ""),
    "LocalAuthorizeOffline": ("AuthCtrlr", "LocalAuthorizeOffline", ""),
    "LocalPreAuthorize": ("AuthCtrlr", "LocalPreAuthorize", ""),
    "MaxChargingProfilesInstalled": ("SmartChargingCtrlr", "Entries", "ChargingProfiles"),
    "MeterValueSampleInterval": ("SampledDataCtrlr", "TxUpdatedInterval", ""),
    "MeterValuesAlignedData": ("AlignedDataCtrlr", "Measurands", ""),
    "MeterValuesSampledData": ("SampledDataCtrlr", "TxUpdatedMeasurands", ""),
    "NumberOfConnectors": (EXTRA, "NumberOfConnectors", ""),
    "ReserveConnectorZeroSupported": ("ReservationCtrlr", "NonEvseSpecific", ""),
    "ResetRetries": ("OCPPCommCtrlr", "ResetRetries", ""),
    "SecurityProfile": ("SecurityCtrlr", "SecurityProfile", ""),
    "SendLocalListMaxLength": ("LocalAuthListCtrlr", "ItemsPerMessage", ""),
    "StopTransactionOnEVSideDisconnect": ("TxCtrlr", "StopTxOnEVSideDisconnect", ""),
    "StopTransactionOnInvalidId": ("TxCtrlr", "StopTxOnInvalidId", ""),
    "StopTxnAlignedData": ("AlignedDataCtrlr", "TxEndedMeasurands", ""),
    "StopTxnSampledData": (EXTRA, "StopTxnSampledData", ""),
    "SupportedFeatureProfiles": (EXTRA, "SupportedFeatureProfiles", ""),
    "TransactionMessageAttempts": ("OCPPCommCtrlr", "MessageAttempts", "TransactionEvent"),
    "TransactionMessageRetryInterval": (
        "OCPPCommCtrlr",
        "MessageAttemptInterval",
        "TransactionEvent",
    ),
    "UnlockConnectorOnEVSideDisconnect": ("OCPPCommCtrlr", "UnlockOnEVSideDisconnect", ""),
    "WebSocketPingInterval": ("OCPPCommCtrlr", "WebSocketPingInterval", ""),
}
"""Section 9, and the whitepaper's: which of 2.x's variables each is."""
_BY_NAME: Final = {key.lower(): key for key in KEYS}


def extra_variables(charger: Charger) -> list[Variable]:
    """What only 1.6 has keys for."""
    profiles = "Core,LocalAuthListManagement,RemoteTrigger,Reservation,SmartCharging"
    values = {
        "ConnectorPhaseRotation": "NotApplicable",
        "LocalAuthListMaxLength": str(model.MOST_ENTRIES),
        "NumberOfConnectors": str(len(charger.evses())),
        "RateUnits": "Current,Power",
        "StopTxnSampledData": "",
        "SupportedFeatureProfiles": profiles,
    }
    return [Variable(component=EXTRA, name=name, value=value) for name, value in values.items()]


_CHARGING: Final = {
    ChargingState.IDLE: "Preparing",
    ChargingState.EV_CONNECTED: "Preparing",
    ChargingState.CHARGING: "Charging",
    ChargingState.SUSPENDED_EV: "SuspendedEV",
    ChargingState.SUSPENDED_EVSE: "SuspendedEVSE",
}
_REASONS: Final = {
    StoppedReason.LOCAL: "Local",
    StoppedReason.REMOTE: "Remote",
    StoppedReason.EV_DISCONNECTED: "EVDisconnected",
    StoppedReason.DEAUTHORIZED: "DeAuthorized",
    StoppedReason.POWER_LOSS: "PowerLoss",
    StoppedReason.GROUND_FAULT: "Other",
    StoppedReason.OTHER: "Other",
}
_PURPOSES: Final = {
    "ChargePointMaxProfile": Purpose.STATION_MAX,
    "TxDefaultProfile": Purpose.DEFAULT,
    "TxProfile": Purpose.TRANSACTION,
}
_DONE: Final = {
    Outcome.ACCEPTED: "Accepted",
    Outcome.SCHEDULED: "Scheduled",
    Outcome.REJECTED: "Rejected",
}
_STARTED: Final = {Outcome.ACCEPTED: "Accepted", Outcome.REJECTED: "Rejected"}
_RESERVED: Final = {
    Outcome.ACCEPTED: "Accepted",
    Outcome.REJECTED: "Rejected",
    Outcome.OCCUPIED: "Occupied",
    Outcome.FAULTED: "Faulted",
    Outcome.UNAVAILABLE: "Unavailable",
}
_UPLOADS: Final = {"UploadFailure": "UploadFailed"}
"""DiagnosticsStatus (7.24) has other words for some of 2.x's."""
_RATE: Final = {"A": Unit.AMPERE, "W": Unit.WATT}


def _accepted() -> Reply:
    return Reply({"status": "Accepted"})


def _rejected() -> Reply:
    return Reply({"status": "Rejected"})


class V16(Speaker):
    """See `edge_agent.uplink.ocpp.station.Dialect`."""

    version: Final = Version.V16

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
            "CancelReservation": self._cancel_reservation,
            "CertificateSigned": lambda _: _rejected(),
            "ChangeAvailability": self._change_availability,
            "ChangeConfiguration": self._change_configuration,
            "ClearCache": self._clear_cache,
            "ClearChargingProfile": self._clear_charging_profile,
            "DataTransfer": lambda _: Reply({"status": "UnknownVendorId"}),
            "DeleteCertificate": lambda _: Reply({"status": "NotFound"}),
            "ExtendedTriggerMessage": self._trigger,
            "GetCompositeSchedule": self._get_composite_schedule,
            "GetConfiguration": self._get_configuration,
            "GetDiagnostics": self._get_diagnostics,
            "GetInstalledCertificateIds": lambda _: Reply({"status": "NotFound"}),
            "GetLocalListVersion": lambda _: Reply(
                {"listVersion": self.charger.local_list().version}
            ),
            "GetLog": self.get_log,
            "InstallCertificate": lambda _: _rejected(),
            "RemoteStartTransaction": self._remote_start,
            "RemoteStopTransaction": self._remote_stop,
            "ReserveNow": self._reserve_now,
            "Reset": lambda asked: self.deed(Restart(asked.type == "Hard"), _STARTED),
            "SendLocalList": self._send_local_list,
            "SetChargingProfile": self._set_charging_profile,
            "SignedUpdateFirmware": lambda _: _rejected(),
            "TriggerMessage": self._trigger,
            "UnlockConnector": lambda _: Reply({"status": "NotSupported"}),
            "UpdateFirmware": lambda _: Reply({}, then=(_firmware("DownloadFailed"),)),
        }

    # ------------------------------------------------------------------ telling

    def boot(self, reason: str) -> Call:
        del reason
        return Call(
            "BootNotification",
            {
                "chargePointVendor": self._vendor[:20],
                "chargePointModel": self._model[:20],
                "chargePointSerialNumber": self.charger.station[:25],
                "firmwareVersion": self.charger.version[:50],
            },
        )

    def registered(self, response: Any) -> Registered:
        return Registered(response.status, unix_ms(response.currentTime), response.interval)

    def time(self, response: Any) -> int:
        return unix_ms(response.currentTime)

    def statuses(self, known: Mapping[int, EvseStatus]) -> list[tuple[int, Call]]:
        usable = any(self.charger.operative(evse) for evse in self.evse_numbers())
        station = {
            "connectorId": 0,
            "errorCode": "NoError",
            "status": "Available" if usable else "Unavailable",
            "timestamp": self.now(),
        }
        each = [(evse, self._status(known[evse])) for evse in sorted(known)]
        return [(0, Call("StatusNotification", station)), *each]

    def _status(self, status: EvseStatus) -> Call:
        faulted = status.status is ConnectorStatus.FAULTED
        return Call(
            "StatusNotification",
            told(
                connectorId=status.evse,
                errorCode="OtherError" if faulted else "NoError",
                info=status.error[:50] or None,
                status=self._word(status),
                timestamp=self.at(status.at),
            ),
        )

    def _word(self, status: EvseStatus) -> str:
        finishing = self.finishing(status)
        if status.status is not ConnectorStatus.OCCUPIED:
            return status.status.value
        return "Finishing" if finishing else _CHARGING[status.charging_state]

    def authorize(self, id_token: IdToken) -> Call | None:
        if not 0 < len(id_token.value) <= LONGEST_TAG:
            return None
        return Call("Authorize", {"idTag": id_token.value})

    def authorized(self, response: Any) -> Heard:
        return _heard(response.idTagInfo)

    def fact(self, event: TransactionEvent, number: int | None, *, offline: bool) -> Call | None:
        del offline
        if event.type is TransactionEventType.STARTED:
            return self._start(event)
        if event.type is TransactionEventType.UPDATED:
            told_apart = event.trigger is Trigger.METER_VALUE_PERIODIC
            return self._values(event, number) if told_apart and number is not None else None
        if number is None:
            raise UndeliverableError(
                f"EVSE {event.evse}: the backend does not know this transaction: it was begun"
                " under another uplink, or its start was refused"
            )
        return self._stop(event, number)

    def _tag(self, token: IdToken | None) -> str:
        return (UNKNOWN_TOKEN if token is None else token.value)[:LONGEST_TAG]

    def _start(self, event: TransactionEvent) -> Call:
        return Call(
            "StartTransaction",
            told(
                connectorId=event.evse,
                idTag=self._tag(event.id_token),
                meterStart=event.meter_wh - event.energy_wh,
                timestamp=self.at(event.started),
                reservationId=self.charger.reservation(event.transaction),
            ),
        )

    def _values(self, event: TransactionEvent, number: int) -> Call:
        readings = of_event(event, self.charger.latest(event.evse), self.measurands())
        value = _value(self.at(event.at), readings, "Sample.Periodic")
        payload = {"connectorId": event.evse, "transactionId": number, "meterValue": [value]}
        return Call("MeterValues", payload)

    def _stop(self, event: TransactionEvent, number: int) -> Call:
        reason = _REASONS[event.reason or StoppedReason.OTHER]
        if event.trigger is Trigger.RESET:
            reason = "SoftReset"
        return Call(
            "StopTransaction",
            told(
                transactionId=number,
                meterStop=event.meter_wh,
                timestamp=self.at(event.at),
                reason=reason,
                idTag=self._tag(event.id_token) if event.id_token else None,
                transactionData=[self._signed(event, one) for one in event.signatures] or None,
            ),
        )

    def _signed(self, event: TransactionEvent, one: SignedValue) -> dict[str, Any]:
        began = one.moment is SignedMoment.BEGIN
        sampled = {
            "value": signed_text(one.data),
            "context": one.moment.value,
            "format": "SignedData",
            "measurand": ENERGY,
        }
        at = self.at(event.started if began else event.at)
        return {"timestamp": at, "sampledValue": [sampled]}

    def security(self, event: SecurityEvent) -> Call:
        payload = {"type": event.type[:50], "timestamp": self.at(event.at)}
        return Call("SecurityEventNotification", {**payload, "techInfo": event.text[:255]})

    def taken(self, event: TransactionEvent, response: Any) -> Taken:
        if event.type is TransactionEventType.STARTED:
            return Taken(response.transactionId, _heard(response.idTagInfo))
        return Taken()

    def salvaged(self, event: TransactionEvent, answer: Mapping[str, Any]) -> Taken | None:
        if event.type is not TransactionEventType.STARTED:
            return Taken()
        number = answer.get("transactionId")
        return Taken(number) if isinstance(number, int) else None

    def transferred(self, event: Transferred) -> Call:
        self.transfer = event.status
        if event.request_id is not None:
            payload = {"status": event.status, "requestId": event.request_id}
            return Call("LogStatusNotification", payload)
        status = _UPLOADS.get(event.status, event.status)
        return Call("DiagnosticsStatusNotification", {"status": status})

    def aligned(self, at_ms: int) -> list[Call]:
        measurands = self.device.list("AlignedDataCtrlr", "Measurands")
        calls = (
            self._live(evse, measurands, "Sample.Clock", iso(at_ms)) for evse in self.evse_numbers()
        )
        return [call for call in calls if call is not None]

    def _live(self, evse: int, measurands: tuple[str, ...], context: str, at: str) -> Call | None:
        sample = self.charger.latest(evse)
        readings = [] if sample is None else of_sample(sample, measurands)
        if not readings:
            return None
        running = self.running(evse)
        number = None if running is None else self.numbers.get(running.id)
        value = _value(at, readings, context)
        payload = told(connectorId=evse, transactionId=number, meterValue=[value])
        return Call("MeterValues", payload)

    # ------------------------------------------------------------------ being asked

    def asked(self, action: str, request: Any) -> Reply:
        asker = self._askers.get(action)
        if asker is None:
            raise RefusedCallError("NotSupported", f"this station does not do {action}")
        return asker(request)

    def _remote_start(self, asked: Any) -> Reply:
        profile = None
        if asked.chargingProfile is not None:
            if asked.chargingProfile.chargingProfilePurpose != "TxProfile":
                return _rejected()
            profile = self._profile(asked.connectorId or 1, asked.chargingProfile)
        start = Start(
            id_token=IdToken(asked.idTag),
            evse=asked.connectorId or None,
            authorize=self.device.truth("AuthCtrlr", "AuthorizeRemoteStart"),
            profile=profile,
        )
        return self.deed(start, _STARTED)

    def _remote_stop(self, asked: Any) -> Reply:
        transaction = self.transaction_of(asked.transactionId)
        return _rejected() if transaction is None else self.deed(Stop(transaction), _STARTED)

    def _change_availability(self, asked: Any) -> Reply:
        if asked.connectorId != STATION and asked.connectorId not in self.evse_numbers():
            return _rejected()
        return self.deed(SetOperative(asked.connectorId, asked.type == "Operative"), _DONE)

    def _clear_cache(self, _asked: Any) -> Reply:
        self.charger.clear_cache()
        return _accepted()

    def _trigger(self, asked: Any) -> Reply:
        message, connector = asked.requestedMessage, asked.connectorId
        if connector is not None and connector not in {STATION, *self.evse_numbers()}:
            return _rejected()
        evses = self.evse_numbers() if not connector else [connector]
        match message:
            case "BootNotification":
                return Reply({"status": "Accepted"}, boot=True)
            case "Heartbeat":
                return Reply({"status": "Accepted"}, then=(Call("Heartbeat", {}),))
            case "StatusNotification":
                calls = tuple(
                    call
                    for evse, call in self.statuses(self.charger.statuses())
                    if connector is None or evse == connector
                )
                return Reply({"status": "Accepted"}, then=calls)
            case "MeterValues":
                measurands = self.device.list("SampledDataCtrlr", "TxUpdatedMeasurands")
                at = self.now()
                live = [self._live(evse, measurands, "Trigger", at) for evse in evses]
                return Reply({"status": "Accepted"}, then=tuple(one for one in live if one))
            case "FirmwareStatusNotification":
                return Reply({"status": "Accepted"}, then=(_firmware("Idle"),))
            case "DiagnosticsStatusNotification" | "LogStatusNotification":
                busy = "Uploading" if self.transfer == "Uploading" else "Idle"
                return Reply({"status": "Accepted"}, then=(Call(message, {"status": busy}),))
        return Reply({"status": "NotImplemented"})

    def _get_diagnostics(self, asked: Any) -> Reply:
        """5.9: an answer without a file name says that there is nothing to upload."""
        upload = Upload(
            kind=LogKind.DIAGNOSTICS,
            location=asked.location,
            since_ms=optional_ms(asked.startTime),
            until_ms=optional_ms(asked.stopTime),
            retries=asked.retries or 0,
            interval_s=asked.retryInterval or 60,
        )
        return Reply(deed=upload, worded=lambda done: told(fileName=done.text or None))

    # ------------------------------------------------------------------ configuration

    def _get_configuration(self, asked: Any) -> Reply:
        wanted = asked.key or [*KEYS]
        known, unknown = [], []
        for key in wanted:
            name = _BY_NAME.get(key.lower())
            variable = None if name is None else self._variable(name)
            if name is None or variable is None:
                unknown.append(key)
            else:
                known.append(self._shown(name, variable))
        return Reply(told(configurationKey=known or None, unknownKey=unknown or None))

    def _variable(self, key: str) -> Variable | None:
        component, name, instance = KEYS[key]
        found = self.device.find(component, name, instance)
        return None if isinstance(found, Result) else found

    def _shown(self, key: str, variable: Variable) -> dict[str, Any]:
        value = None if variable.access is Access.WRITE else self.device.value(variable)[:500]
        return told(key=key, readonly=variable.access is Access.READ, value=value)

    def _change_configuration(self, asked: Any) -> Reply:
        name = _BY_NAME.get(asked.key.lower())
        variable = None if name is None else self._variable(name)
        if variable is None:
            return Reply({"status": "NotSupported"})
        value = asked.value.strip()
        if variable.kind is Kind.BOOLEAN:
            value = value.lower()
        if name == "AuthorizationKey":
            value = _key_of(value)
        why = self.device.set(variable, value)
        return _rejected() if why else _accepted()

    # ------------------------------------------------------------------ the local list

    def _send_local_list(self, asked: Any) -> Reply:
        full = asked.updateType == "Full"
        entries = []
        for one in asked.localAuthorizationList or ():
            token, info = IdToken(one.idTag), one.idTagInfo
            if info is None and full:
                return Reply({"status": "Failed"})
            entry = (
                None
                if info is None
                else self.entry(
                    token,
                    accepted=info.status == "Accepted",
                    expires=info.expiryDate,
                    group=info.parentIdTag,
                )
            )
            entries.append((token, entry))
        refusal = self.update_list(asked.listVersion, entries, full=full)
        if refusal is None:
            return _accepted()
        mismatch = refusal.code == "VersionMismatch"
        return Reply({"status": "VersionMismatch" if mismatch else "Failed"})

    # ------------------------------------------------------------------ smart charging

    def _profile(self, evse: int, asked: Any) -> Profile:
        schedule = asked.chargingSchedule
        unit = _RATE[schedule.chargingRateUnit]
        kind = asked.chargingProfileKind
        pattern = Pattern(
            (asked.recurrencyKind or "Daily").lower() if kind == "Recurring" else kind.lower()
        )
        number = asked.transactionId
        return Profile(
            id=asked.chargingProfileId,
            evse=evse,
            stack=asked.stackLevel,
            purpose=_PURPOSES[asked.chargingProfilePurpose],
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
            transaction=None if number is None else self.transaction_of(number) or UUID(int=0),
        )

    def _set_charging_profile(self, asked: Any) -> Reply:
        profile = self._profile(asked.connectorId, asked.csChargingProfiles)
        return _accepted() if self.set_profile(profile) is None else _rejected()

    def _clear_charging_profile(self, asked: Any) -> Reply:
        purpose = asked.chargingProfilePurpose
        found = self.clear_profiles(
            asked.id,
            None if asked.id is not None else asked.connectorId,
            None if purpose is None else _PURPOSES[purpose],
            asked.stackLevel,
        )
        return Reply({"status": "Accepted" if found else "Unknown"})

    def _get_composite_schedule(self, asked: Any) -> Reply:
        evse = asked.connectorId
        if evse != STATION and evse not in self.evse_numbers():
            return _rejected()
        unit = _RATE[asked.chargingRateUnit or "A"]
        begins, steps = self.composite(evse, asked.duration)
        periods = [
            {"startPeriod": step.start_s, "limit": self.limit_of(step, evse, unit)}
            for step in steps
        ]
        schedule = {
            "duration": asked.duration,
            "startSchedule": iso(begins),
            "chargingRateUnit": unit.value,
            "chargingSchedulePeriod": periods,
        }
        return Reply(
            {
                "status": "Accepted",
                "connectorId": evse,
                "scheduleStart": iso(begins),
                "chargingSchedule": schedule,
            }
        )

    # ------------------------------------------------------------------ reservations

    def _reserve_now(self, asked: Any) -> Reply:
        if asked.connectorId == STATION or asked.connectorId not in self.evse_numbers():
            return _rejected()
        reserve = Reserve(
            evse=asked.connectorId,
            id=asked.reservationId,
            id_token=IdToken(asked.idTag),
            group=asked.parentIdTag,
            until_wall_ms=unix_ms(asked.expiryDate),
        )
        return self.deed(reserve, _RESERVED)

    def _cancel_reservation(self, asked: Any) -> Reply:
        return self.deed(CancelReservation(asked.reservationId), _STARTED)


def _firmware(status: str) -> Call:
    return Call("FirmwareStatusNotification", {"status": status})


def _heard(info: Any) -> Heard:
    return Heard(
        accepted=info.status == "Accepted",
        why=f"the backend says {info.status}",
        expires_ms=optional_ms(info.expiryDate),
        group=info.parentIdTag,
    )


def _value(at: str, readings: list[Reading], context: str) -> dict[str, Any]:
    sampled = [
        told(
            value=one.text,
            context=context,
            measurand=one.measurand,
            phase=one.phase or None,
            unit=one.unit,
        )
        for one in readings
    ]
    return {"timestamp": at, "sampledValue": sampled}


def _key_of(text: str) -> str:
    """The whitepaper writes the password in hex (A00.FR.205); some backends do not."""
    try:
        plain = bytes.fromhex(text)
    except ValueError:
        return text
    return plain.decode() if len(text) in range(32, 41) and plain.isascii() else text
