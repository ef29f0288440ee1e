"""OCPP 2.0.1 (edition 3): the words are ours already, the payloads are nested.

A transaction's id token of type NoAuthorization with no value (C01, E02: nobody has to show one)
is no id token. `Answer.token` None says nothing: the answer then has no idTokenInfo, but for
Authorize, which must say something, and says Unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Final

import msgspec

from protocols.agent_link import (
    Action,
    ChargingState,
    ConnectorStatus,
    IdToken,
    RemoteStart,
    RemoteStop,
    SetAvailability,
    SetLimit,
    SetLocalList,
    TransactionEventType,
)
from protocols.ocpp import device_model
from protocols.ocpp.dialect import (
    NotExpressible,
    NotSupported,
    Outcome,
    Request,
    RequestContext,
    answer_boot,
    answer_empty,
    answer_heartbeat,
    answer_sign,
    choose,
    outcome,
    plain,
    schedule,
)
from protocols.ocpp.messages import (
    HEARTBEAT,
    Answer,
    Authorize,
    Boot,
    DataTransfer,
    Firmware,
    Log,
    Meter,
    Notice,
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
from protocols.ocpp.sampling import Unpacked, all_trusted, iso, readings, trusted, unix_ms
from protocols.ocpp.schemas import codec
from protocols.ocpp.version import Version

_json = msgspec.json.Encoder().encode

# --------------------------------------------------------------------------- reading

_EVENTS: Final[Mapping[str, TransactionEventType]] = {
    one.value: one for one in TransactionEventType
}
_CHARGING: Final[Mapping[str | None, ChargingState]] = {one.value: one for one in ChargingState}
_STATUSES: Final = {one.value: one for one in ConnectorStatus}


def _token(told: Any) -> IdToken | None:
    if told is None or (told.type == "NoAuthorization" and not told.idToken):
        return None
    return IdToken(told.idToken, told.type)


def _unpack(one: Any) -> Unpacked:
    unit, signed = one.unitOfMeasure, one.signedMeterValue
    if unit is None:
        key = (one.measurand, None, one.phase, one.location, None)
    else:
        key = (one.measurand, unit.unit, one.phase, one.location, unit.multiplier)
    return key, one.value, "" if signed is None else signed.signedMeterData


def _event(request: Any, now_ms: int) -> Told:
    at_ms, about, evse = unix_ms(request.timestamp), request.transactionInfo, request.evse
    event, trigger, token = _EVENTS[request.eventType], request.triggerReason, request.idToken
    if token is not None:
        token = _token(token)
    ended = event is TransactionEventType.ENDED
    return Transaction(
        event=event,
        at_ms=at_ms,
        trigger=trigger,
        key=about.transactionId,
        seq_no=request.seqNo,
        evse=0 if evse is None else evse.id,
        connector=1 if evse is None else evse.connectorId or 1,
        id_token=token,
        stop_token=token is not None and (ended or trigger == "StopAuthorized"),
        charging_state=_CHARGING.get(about.chargingState),
        reason=about.stoppedReason or ("Local" if ended else None),
        offline=request.offline or False,
        readings=readings(request.meterValue, _unpack),
        reservation=request.reservationId,
        remote_start_id=about.remoteStartId,
        time_spent_s=about.timeSpentCharging,
        clock_trusted=trusted(at_ms, now_ms),
    )


def _meter(request: Any, now_ms: int) -> Told:
    found = readings(request.meterValue, _unpack)
    return Meter(evse=request.evseId, readings=found, clock_trusted=all_trusted(found, now_ms))


def _status(request: Any, _now_ms: int) -> Told:
    return Status(
        evse=request.evseId,
        connector=request.connectorId,
        status=_STATUSES[request.connectorStatus],
        at_ms=unix_ms(request.timestamp),
    )


def _authorize(request: Any, _now_ms: int) -> Told:
    hashes = request.iso15118CertificateHashData
    return Authorize(
        id_token=IdToken(request.idToken.idToken, request.idToken.type),
        certificate=request.certificate or "",
        certificate_hashes=tuple(msgspec.to_builtins(hashes)) if hashes else (),
    )


def _heartbeat(_request: Any, _now_ms: int) -> Told:
    return HEARTBEAT


def _boot(request: Any, _now_ms: int) -> Told:
    station = request.chargingStation
    modem = station.modem
    return Boot(
        vendor=station.vendorName,
        model=station.model,
        reason=request.reason,
        serial=station.serialNumber or "",
        firmware=station.firmwareVersion or "",
        iccid=(modem and modem.iccid) or "",
        imsi=(modem and modem.imsi) or "",
    )


def _firmware(request: Any, _now_ms: int) -> Told:
    return Firmware(status=request.status, request_id=request.requestId)


def _published(request: Any, _now_ms: int) -> Told:
    return Firmware(
        status=request.status,
        request_id=request.requestId,
        location=tuple(request.location or ()),
        published=True,
    )


def _log(request: Any, _now_ms: int) -> Told:
    return Log(status=request.status, request_id=request.requestId)


def _security(request: Any, _now_ms: int) -> Told:
    at_ms = unix_ms(request.timestamp)
    return Security(type=request.type, at_ms=at_ms, text=request.techInfo or "")


def _sign_certificate(request: Any, _now_ms: int) -> Told:
    kind = request.certificateType or "ChargingStationCertificate"
    return SignCertificate(csr=request.csr, type=kind)


def _data_transfer(request: Any, _now_ms: int) -> Told:
    return DataTransfer(vendor=request.vendorId, message=request.messageId or "", data=request.data)


def _report(request: Any, _now_ms: int) -> Told:
    return Report(
        request_id=request.requestId,
        seq_no=request.seqNo,
        more=bool(request.tbc),
        at_ms=unix_ms(request.generatedAt),
        variables=tuple(device_model.reported(msgspec.to_builtins(request.reportData or []))),
    )


_READERS: Final[Mapping[str, Callable[[Any, int], Told]]] = {
    "Authorize": _authorize,
    "BootNotification": _boot,
    "DataTransfer": _data_transfer,
    "FirmwareStatusNotification": _firmware,
    "Heartbeat": _heartbeat,
    "LogStatusNotification": _log,
    "MeterValues": _meter,
    "NotifyReport": _report,
    "PublishFirmwareStatusNotification": _published,
    "SecurityEventNotification": _security,
    "SignCertificate": _sign_certificate,
    "StatusNotification": _status,
    "TransactionEvent": _event,
}

# --------------------------------------------------------------------------- answering

_PLAIN_TOKENS: Final = {s: b'{"idTokenInfo":{"status":"%b"}}' % s.encode() for s in TokenStatus}
_UNKNOWN: Final = TokenInfo(TokenStatus.UNKNOWN)
_LONGEST_MESSAGE: Final = 512
_LONGEST_LANGUAGE: Final = 8
_CERTIFICATE: Final = frozenset(
    {
        "Accepted",
        "SignatureError",
        "CertificateExpired",
        "CertificateRevoked",
        "NoCertificateAvailable",
        "CertChainError",
        "ContractCancelled",
    }
)
_TRANSFERS: Final = frozenset({"Accepted", "Rejected", "UnknownMessageId", "UnknownVendorId"})
_OF_THE_CLOUD: Final = "Central"


def _answer_transfer(_told: Any, answer: Answer) -> bytes:
    payload = {"status": answer.status if answer.status in _TRANSFERS else "Rejected"}
    if answer.data is not None:
        payload["data"] = answer.data
    return _json(payload)


def _cost(total: str) -> float | None:
    try:
        cost = Decimal(total)
    except InvalidOperation:
        return None
    return float(cost) if cost.is_finite() else None


class V201:
    """See `protocols.ocpp.dialect.Dialect`."""

    version: ClassVar[Version] = Version.V201
    not_supported: ClassVar[frozenset[str]] = frozenset()
    notices: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "ClearedChargingLimit": {},
        "Get15118EVCertificate": {"status": "Failed", "exiResponse": ""},
        "GetCertificateStatus": {"status": "Failed"},
        "NotifyChargingLimit": {},
        "NotifyCustomerInformation": {},
        "NotifyDisplayMessages": {},
        "NotifyEVChargingNeeds": {"status": "Rejected"},
        "NotifyEVChargingSchedule": {"status": "Accepted"},
        "NotifyEvent": {},
        "NotifyMonitoringReport": {},
        "ReportChargingProfiles": {},
        "ReservationStatusUpdate": {},
    }
    """What is read as a Notice, and what it is answered while `Answer.data` says nothing."""
    token_types: ClassVar[frozenset[str] | None] = frozenset(
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
    """None: any."""
    longest_token: ClassVar[int] = 36
    tells_running_cost: ClassVar[bool] = False

    def __init__(self) -> None:
        self._answers: dict[str, Callable[[Any, Answer], bytes]] = {
            "Authorize": self._answer_authorize,
            "BootNotification": answer_boot,
            "DataTransfer": _answer_transfer,
            "Heartbeat": answer_heartbeat,
            "SignCertificate": answer_sign,
            "TransactionEvent": self._answer_event,
        }
        self._ways: dict[type, Callable[[Any, RequestContext], tuple[Request, ...]]] = {
            RemoteStart: self._remote_start,
            RemoteStop: _remote_stop,
            SetLimit: _set_limit,
            SetAvailability: _set_availability,
            SetLocalList: self._set_local_list,
        }
        for action in _READERS:
            self._answers.setdefault(action, answer_empty)

    def read(self, action: str, request: Any, now_ms: int) -> Told:
        reader = _READERS.get(action)
        if reader is not None:
            return reader(request, now_ms)
        if action not in self.notices:
            raise NotSupported(action)
        return Notice(action=action, payload=msgspec.to_builtins(request))

    # ------------------------------------------------------------------- answers

    def answer(self, action: str, told: Told, answer: Answer) -> bytes:
        make = self._answers.get(action)
        if make is not None:
            return make(told, answer)
        if answer.data is None:
            return _json(self.notices[action])
        language = codec(self.version)
        return language.encode(language.make_response(action, answer.data))

    def _answer_authorize(self, _told: Any, answer: Answer) -> bytes:
        """`Answer.data` may be an AuthorizeCertificateStatusEnumType (C07)."""
        token = answer.token or _UNKNOWN
        if answer.data is None and _says_only_status(token):
            return _PLAIN_TOKENS[token.status]
        payload: dict[str, Any] = {"idTokenInfo": self._token_info(token)}
        if isinstance(answer.data, str) and answer.data in _CERTIFICATE:
            payload["certificateStatus"] = answer.data
        return _json(payload)

    def _answer_event(self, told: Any, answer: Answer) -> bytes:
        """E01 to E15, I03: the cost in the end, in 2.1 also while it grows."""
        token = answer.token
        if answer.total_cost is None:
            if token is None:
                return b"{}"
            if _says_only_status(token):
                return _PLAIN_TOKENS[token.status]
        payload: dict[str, Any] = {}
        if token is not None:
            payload["idTokenInfo"] = self._token_info(token)
        if answer.total_cost is not None and (
            self.tells_running_cost or told.event is TransactionEventType.ENDED
        ):
            cost = _cost(answer.total_cost)
            if cost is not None:
                payload["totalCost"] = cost
        return _json(payload)

    def _token_info(self, token: TokenInfo) -> dict[str, Any]:
        """IdTokenInfoType; a group that is too long is left out: cut, it were another."""
        info: dict[str, Any] = {"status": token.status}
        if token.expires_ms is not None:
            info["cacheExpiryDateTime"] = iso(token.expires_ms)
        if token.group is not None and len(token.group) <= self.longest_token:
            info["groupIdToken"] = {"idToken": token.group, "type": _OF_THE_CLOUD}
        language = token.language if len(token.language or "") <= _LONGEST_LANGUAGE else None
        if language:
            info["language1"] = language
        if token.personal_message is not None:
            message = {"format": "UTF8", "content": token.personal_message[:_LONGEST_MESSAGE]}
            if language:
                message["language"] = language
            info["personalMessage"] = message
        return info

    # ------------------------------------------------------------------- requests

    def request(self, do: Action, context: RequestContext) -> Request:
        return choose(self.ways(do, context), context)

    def ways(self, do: Action, context: RequestContext) -> tuple[Request, ...]:
        try:
            make = self._ways[type(do)]
        except KeyError:
            raise NotExpressible(f"2.x has no request for {type(do).__name__}") from None
        return make(do, context)

    def _fits(self, token: IdToken) -> bool:
        known = self.token_types is None or token.type in self.token_types
        return known and len(token.value) <= self.longest_token

    def _remote_start(self, do: RemoteStart, context: RequestContext) -> tuple[Request, ...]:
        if not self._fits(do.id_token):
            raise NotExpressible(f"{self.version} has no such id token: {do.id_token}")
        payload: dict[str, Any] = {
            "remoteStartId": context.remote_start_id,
            "idToken": {"idToken": do.id_token.value, "type": do.id_token.type},
        }
        if do.evse > 0:
            payload["evseId"] = do.evse
        return (Request("RequestStartTransaction", payload),)

    def _set_local_list(self, do: SetLocalList, _context: RequestContext) -> tuple[Request, ...]:
        """Tokens that the version cannot write are left out: nobody can show them there (D01)."""
        entries = []
        for entry in do.entries:
            if self._fits(entry.id_token):
                status = TokenStatus.BLOCKED if entry.blocked else TokenStatus.ACCEPTED
                info = self._token_info(TokenInfo(status, entry.expires_ms, entry.group))
                token = {"idToken": entry.id_token.value, "type": entry.id_token.type}
                entries.append({"idToken": token, "idTokenInfo": info})
        payload: dict[str, Any] = {"versionNumber": do.version, "updateType": "Full"}
        if entries:
            payload["localAuthorizationList"] = entries
        return (Request("SendLocalList", payload),)

    def reset(self, *, immediate: bool, evse: int = 0) -> Request:
        payload: dict[str, Any] = {"type": "Immediate" if immediate else "OnIdle"}
        if evse:
            payload["evseId"] = evse
        return Request("Reset", payload)

    def trigger(self, message: str, evse: int | None = None, connector: int = 1) -> Request:
        """F06; a status is always one connector's."""
        requested = _TRIGGERS.get(message)
        if requested is None:
            raise NotExpressible(f"2.x cannot be asked for {message}")
        payload: dict[str, Any] = {"requestedMessage": requested}
        if evse is not None and evse > 0:
            payload["evse"] = {"id": evse}
            if requested == "StatusNotification":
                payload["evse"]["connectorId"] = connector
        return Request("TriggerMessage", payload)

    def running_cost(self, told: Told, total: str) -> Request | None:
        """I02; 2.1 has it in the answers to its events."""
        cost = _cost(total)
        if self.tells_running_cost or cost is None or not isinstance(told, Transaction):
            return None
        if told.key is None or told.event is TransactionEventType.ENDED:
            return None
        return Request("CostUpdated", {"totalCost": cost, "transactionId": told.key})

    def ask(self, variables: tuple[Variable, ...], request_id: int = 0) -> Request:
        """B06 for some, B07 for all."""
        if not variables:
            full = {"requestId": request_id, "reportBase": "FullInventory"}
            return Request("GetBaseReport", full)
        return Request("GetVariables", device_model.asked(variables))

    def change(self, variables: tuple[Variable, ...]) -> tuple[Request, ...]:
        """B05."""
        if not variables:
            return ()
        return (Request("SetVariables", device_model.changed(variables)),)

    # ------------------------------------------------------------------- outcomes

    def outcome(self, action: str, request: Mapping[str, Any], response: Any) -> Outcome:
        told = plain(response)
        if action == "GetLocalListVersion":
            return Outcome(accepted=True, text=str(told["versionNumber"]))
        results = next((v for k, v in told.items() if k.endswith("Result") and v), None)
        if isinstance(results, list):
            return device_model.outcome(action, request, results)
        return outcome(action, told)


def _says_only_status(token: TokenInfo) -> bool:
    return (
        token.expires_ms is None
        and token.group is None
        and token.personal_message is None
        and token.language is None
    )


def _remote_stop(_do: RemoteStop, context: RequestContext) -> tuple[Request, ...]:
    if context.transaction_key is None:
        raise NotExpressible("2.x stops a transaction by its own id, and this one has none")
    return (Request("RequestStopTransaction", {"transactionId": context.transaction_key}),)


def _set_limit(do: SetLimit, context: RequestContext) -> tuple[Request, ...]:
    """K01: a default outlives transactions, so it is tried before the one of now."""
    if do.limit_ma is None:
        payload = {"chargingProfileId": context.profile_id}
        return (Request("ClearChargingProfile", payload),)
    station, default = "ChargingStationMaxProfile", "TxDefaultProfile"
    if do.evse <= 0:
        return _profile(do, context, station, 0), _profile(do, context, default, 0)
    ways = [_profile(do, context, default, do.evse)]
    if context.transaction_key is not None:
        ways.append(_profile(do, context, "TxProfile", do.evse))
    if context.evses == 1:
        ways.append(_profile(do, context, station, 0))
    return tuple(ways)


def _profile(do: SetLimit, context: RequestContext, purpose: str, evse: int) -> Request:
    profile: dict[str, Any] = {
        "id": context.profile_id,
        "stackLevel": context.stack_level,
        "chargingProfilePurpose": purpose,
        "chargingProfileKind": "Absolute",
        "chargingSchedule": [{"id": context.profile_id} | schedule(do, context)],
    }
    if purpose == "TxProfile":
        profile["transactionId"] = context.transaction_key
    payload = {"evseId": evse, "chargingProfile": profile}
    return Request("SetChargingProfile", payload, purpose)


def _set_availability(do: SetAvailability, _context: RequestContext) -> tuple[Request, ...]:
    status = "Operative" if do.operative else "Inoperative"
    payload: dict[str, Any] = {"operationalStatus": status}
    if do.evse > 0:
        payload["evse"] = {"id": do.evse}
    return (Request("ChangeAvailability", payload),)


_TRIGGERS: Final = {
    name: name
    for name in (
        "BootNotification",
        "FirmwareStatusNotification",
        "Heartbeat",
        "LogStatusNotification",
        "MeterValues",
        "PublishFirmwareStatusNotification",
        "SignChargingStationCertificate",
        "SignCombinedCertificate",
        "SignV2GCertificate",
        "StatusNotification",
        "TransactionEvent",
    )
} | {"SignCertificate": "SignChargingStationCertificate"}
