"""OCPP 1.6 (edition 2) with the security whitepaper (edition 3): its words live only here.

A connector n is EVSE n with connector 1, connector 0 is the station. What 1.6 says shorter than 2.x
is said in 2.x's words: a status gives a charging state, a reason for a stop gives a trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

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
    Security,
    SignCertificate,
    Status,
    TokenInfo,
    TokenStatus,
    Told,
    Transaction,
    Variable,
)
from protocols.ocpp.sampling import Key, all_trusted, iso, readings, trusted, unix_ms
from protocols.ocpp.version import Version
from protocols.quantities import WattHours

_json = msgspec.json.Encoder().encode

# --------------------------------------------------------------------------- reading

_STATUSES: Final[dict[str, tuple[ConnectorStatus, ChargingState | None]]] = {
    "Available": (ConnectorStatus.AVAILABLE, ChargingState.IDLE),
    "Preparing": (ConnectorStatus.OCCUPIED, ChargingState.EV_CONNECTED),
    "Charging": (ConnectorStatus.OCCUPIED, ChargingState.CHARGING),
    "SuspendedEV": (ConnectorStatus.OCCUPIED, ChargingState.SUSPENDED_EV),
    "SuspendedEVSE": (ConnectorStatus.OCCUPIED, ChargingState.SUSPENDED_EVSE),
    "Finishing": (ConnectorStatus.OCCUPIED, ChargingState.EV_CONNECTED),
    "Reserved": (ConnectorStatus.RESERVED, ChargingState.IDLE),
    "Unavailable": (ConnectorStatus.UNAVAILABLE, None),
    "Faulted": (ConnectorStatus.FAULTED, None),
}
"""Section 7.7. Unavailable and Faulted say nothing of a vehicle (a fault may hold one)."""

_REASONS: Final = {
    "EmergencyStop": ("EmergencyStop", "AbnormalCondition"),
    "EVDisconnected": ("EVDisconnected", "EVCommunicationLost"),
    "HardReset": ("ImmediateReset", "ResetCommand"),
    "Local": ("Local", "StopAuthorized"),
    "Other": ("Other", "AbnormalCondition"),
    "PowerLoss": ("PowerLoss", "AbnormalCondition"),
    "Reboot": ("Reboot", "AbnormalCondition"),
    "Remote": ("Remote", "RemoteStop"),
    "SoftReset": ("Reboot", "ResetCommand"),
    "UnlockCommand": ("Remote", "UnlockCommand"),
    "DeAuthorized": ("DeAuthorized", "Deauthorized"),
}
"""Section 7.36 -> 2.x's reason and trigger. Without one it is Local (6.49)."""

_UPLOADS: Final = {"UploadFailed": "UploadFailure"}
"""DiagnosticsStatus (7.24) in UploadLogStatusEnumType's words; the others are the same."""

_MOST_WH: Final = 2**40


def _evse(connector: int) -> int:
    return max(connector, 0)


def _register(wh: int) -> WattHours:
    """What cannot be stays so: whoever makes energy of it has a person look (A22)."""
    return WattHours(min(max(wh, -1), _MOST_WH))


def _unpack(one: Any) -> tuple[Key, str | float, str]:
    if one.format == "SignedData":
        return (one.measurand, one.unit, one.phase, one.location, None), "", str(one.value)
    return (one.measurand, one.unit, one.phase, one.location, None), one.value, ""


def _authorize(request: Any, _now_ms: int) -> Told:
    return Authorize(id_token=IdToken(request.idTag))


def _heartbeat(_request: Any, _now_ms: int) -> Told:
    return HEARTBEAT


def _status(request: Any, _now_ms: int) -> Told:
    status, charging = _STATUSES[request.status]
    evse, at = request.connectorId, request.timestamp
    error = request.errorCode
    if error != "NoError" or status is ConnectorStatus.FAULTED:
        parts = ("" if error == "NoError" else error, request.vendorErrorCode, request.info)
        error = " ".join(part for part in parts if part)
    else:
        error = ""
    return Status(
        evse=max(0, evse),
        connector=1 if evse > 0 else 0,
        status=status,
        at_ms=None if at is None else unix_ms(at),
        charging_state=charging if evse > 0 else None,
        error=error,
    )


def _start(request: Any, now_ms: int) -> Told:
    at_ms = unix_ms(request.timestamp)
    return Transaction(
        event=TransactionEventType.STARTED,
        at_ms=at_ms,
        trigger="Authorized",
        evse=_evse(request.connectorId),
        id_token=IdToken(request.idTag),
        charging_state=ChargingState.EV_CONNECTED,
        register_wh=_register(request.meterStart),
        reservation=request.reservationId,
        clock_trusted=trusted(at_ms, now_ms),
    )


def _stop(request: Any, now_ms: int) -> Told:
    at_ms, tag = unix_ms(request.timestamp), request.idTag
    reason, trigger = _REASONS[request.reason or "Local"]
    return Transaction(
        event=TransactionEventType.ENDED,
        at_ms=at_ms,
        trigger=trigger,
        number=request.transactionId,
        id_token=IdToken(tag) if tag else None,
        stop_token=bool(tag),
        reason=reason,
        register_wh=_register(request.meterStop),
        readings=readings(request.transactionData, _unpack),
        clock_trusted=trusted(at_ms, now_ms),
    )


def _meter(request: Any, now_ms: int) -> Told:
    found = readings(request.meterValue, _unpack)
    return Meter(
        evse=_evse(request.connectorId),
        readings=found,
        number=request.transactionId,
        clock_trusted=all_trusted(found, now_ms),
    )


def _boot(request: Any, _now_ms: int) -> Told:
    return Boot(
        vendor=request.chargePointVendor,
        model=request.chargePointModel,
        serial=request.chargePointSerialNumber or request.chargeBoxSerialNumber or "",
        firmware=request.firmwareVersion or "",
        iccid=request.iccid or "",
        imsi=request.imsi or "",
        meter_type=request.meterType or "",
        meter_serial=request.meterSerialNumber or "",
    )


def _firmware(request: Any, _now_ms: int) -> Told:
    return Firmware(status=request.status)


def _signed_firmware(request: Any, _now_ms: int) -> Told:
    return Firmware(status=request.status, request_id=request.requestId)


def _diagnostics(request: Any, _now_ms: int) -> Told:
    return Log(status=_UPLOADS.get(request.status, request.status))


def _log(request: Any, _now_ms: int) -> Told:
    return Log(status=request.status, request_id=request.requestId)


def _security(request: Any, _now_ms: int) -> Told:
    at_ms = unix_ms(request.timestamp)
    return Security(type=request.type, at_ms=at_ms, text=request.techInfo or "")


def _sign_certificate(request: Any, _now_ms: int) -> Told:
    return SignCertificate(csr=request.csr)


def _data_transfer(request: Any, _now_ms: int) -> Told:
    return DataTransfer(vendor=request.vendorId, message=request.messageId or "", data=request.data)


_READERS: Final[Mapping[str, Callable[[Any, int], Told]]] = {
    "Authorize": _authorize,
    "BootNotification": _boot,
    "DataTransfer": _data_transfer,
    "DiagnosticsStatusNotification": _diagnostics,
    "FirmwareStatusNotification": _firmware,
    "Heartbeat": _heartbeat,
    "LogStatusNotification": _log,
    "MeterValues": _meter,
    "SecurityEventNotification": _security,
    "SignCertificate": _sign_certificate,
    "SignedFirmwareStatusNotification": _signed_firmware,
    "StartTransaction": _start,
    "StatusNotification": _status,
    "StopTransaction": _stop,
}

# --------------------------------------------------------------------------- answering

_TOKEN_STATUSES: Final = {
    TokenStatus.UNKNOWN: "Invalid",
    TokenStatus.NO_CREDIT: "Blocked",
    TokenStatus.NOT_ALLOWED: "Invalid",
}
"""Section 7.2 has no words for these; the others are the same."""
_PLAIN_TOKENS: Final = {
    status: b'{"idTagInfo":{"status":"%s"}}' % _TOKEN_STATUSES.get(status, status).encode()
    for status in TokenStatus
}
_LONGEST_TAG: Final = 20
_UNKNOWN: Final = TokenInfo(TokenStatus.UNKNOWN)


def _tag_info(token: TokenInfo) -> bytes:
    if token.expires_ms is None and token.group is None:
        return _PLAIN_TOKENS[token.status]
    return _json({"idTagInfo": _tag_fields(token)})


def _tag_fields(token: TokenInfo) -> dict[str, str]:
    """IdTagInfo (7.27); a group that is too long for a tag is left out: cut, it were another."""
    info: dict[str, str] = {"status": _TOKEN_STATUSES.get(token.status, token.status)}
    if token.expires_ms is not None:
        info["expiryDate"] = iso(token.expires_ms)
    if token.group is not None and len(token.group) <= _LONGEST_TAG:
        info["parentIdTag"] = token.group
    return info


def _answer_token(_told: Any, answer: Answer) -> bytes:
    return _tag_info(answer.token or _UNKNOWN)


def _answer_start(_told: Any, answer: Answer) -> bytes:
    return b'{"transactionId":%d,%b' % (answer.number or 0, _answer_token(_told, answer)[1:])


def _answer_stop(told: Any, answer: Answer) -> bytes:
    if answer.token is None or told.id_token is None:
        return b"{}"
    return _tag_info(answer.token)


_TRANSFERS: Final = frozenset({"Accepted", "Rejected", "UnknownMessageId", "UnknownVendorId"})


def _answer_transfer(_told: Any, answer: Answer) -> bytes:
    """Data is text in 1.6 (6.16): anything else is given as its JSON."""
    payload = {"status": answer.status if answer.status in _TRANSFERS else "Rejected"}
    if answer.data is not None:
        data = answer.data
        payload["data"] = data if isinstance(data, str) else _json(data).decode()
    return _json(payload)


_ANSWERS: Final[Mapping[str, Callable[[Any, Answer], bytes]]] = {
    "Authorize": _answer_token,
    "BootNotification": answer_boot,
    "DataTransfer": _answer_transfer,
    "DiagnosticsStatusNotification": answer_empty,
    "FirmwareStatusNotification": answer_empty,
    "Heartbeat": answer_heartbeat,
    "LogStatusNotification": answer_empty,
    "MeterValues": answer_empty,
    "SecurityEventNotification": answer_empty,
    "SignCertificate": answer_sign,
    "SignedFirmwareStatusNotification": answer_empty,
    "StartTransaction": _answer_start,
    "StatusNotification": answer_empty,
    "StopTransaction": _answer_stop,
}


# --------------------------------------------------------------------------- asking


def _tag(token: IdToken) -> str:
    if not 0 < len(token.value) <= _LONGEST_TAG:
        raise NotExpressible(f"an idTag has 1 to {_LONGEST_TAG} characters: {token.value!r}")
    return token.value


def _remote_start(do: RemoteStart, _context: RequestContext) -> tuple[Request, ...]:
    payload: dict[str, Any] = {"idTag": _tag(do.id_token)}
    if do.evse > 0:
        payload["connectorId"] = do.evse
    return (Request("RemoteStartTransaction", payload),)


def _remote_stop(_do: RemoteStop, context: RequestContext) -> tuple[Request, ...]:
    if context.transaction_number is None:
        raise NotExpressible("1.6 stops a transaction by its number, and this one has none")
    payload = {"transactionId": context.transaction_number}
    return (Request("RemoteStopTransaction", payload),)


def _set_limit(do: SetLimit, context: RequestContext) -> tuple[Request, ...]:
    """Section 3.13: a default outlives transactions, so it is tried before the one of now."""
    if do.limit_ma is None:
        return (Request("ClearChargingProfile", {"id": context.profile_id}),)
    station, default = "ChargePointMaxProfile", "TxDefaultProfile"
    if do.evse <= 0:
        return _profile(do, context, station, 0), _profile(do, context, default, 0)
    ways = [_profile(do, context, default, do.evse)]
    if context.transaction_number is not None:
        ways.append(_profile(do, context, "TxProfile", do.evse))
    if context.evses == 1:
        ways.append(_profile(do, context, station, 0))
    return tuple(ways)


def _profile(do: SetLimit, context: RequestContext, purpose: str, connector: int) -> Request:
    profile: dict[str, Any] = {
        "chargingProfileId": context.profile_id,
        "stackLevel": context.stack_level,
        "chargingProfilePurpose": purpose,
        "chargingProfileKind": "Absolute",
        "chargingSchedule": schedule(do, context),
    }
    if purpose == "TxProfile":
        profile["transactionId"] = context.transaction_number
    payload = {"connectorId": connector, "csChargingProfiles": profile}
    return Request("SetChargingProfile", payload, purpose)


def _set_availability(do: SetAvailability, _context: RequestContext) -> tuple[Request, ...]:
    kind = "Operative" if do.operative else "Inoperative"
    return (Request("ChangeAvailability", {"connectorId": _evse(do.evse), "type": kind}),)


def _set_local_list(do: SetLocalList, _context: RequestContext) -> tuple[Request, ...]:
    """Tokens that are no idTag are left out: nobody can show them to this station."""
    entries = []
    for entry in do.entries:
        if not 0 < len(entry.id_token.value) <= _LONGEST_TAG:
            continue
        status = TokenStatus.BLOCKED if entry.blocked else TokenStatus.ACCEPTED
        info = _tag_fields(TokenInfo(status, entry.expires_ms, entry.group))
        entries.append({"idTag": entry.id_token.value, "idTagInfo": info})
    payload: dict[str, Any] = {"listVersion": do.version, "updateType": "Full"}
    if entries:
        payload["localAuthorizationList"] = entries
    return (Request("SendLocalList", payload),)


_WAYS: Final[Mapping[type, Callable[[Any, RequestContext], tuple[Request, ...]]]] = {
    RemoteStart: _remote_start,
    RemoteStop: _remote_stop,
    SetLimit: _set_limit,
    SetAvailability: _set_availability,
    SetLocalList: _set_local_list,
}

_TRIGGERS: Final = {
    "BootNotification": ("TriggerMessage", "BootNotification"),
    "DiagnosticsStatusNotification": ("TriggerMessage", "DiagnosticsStatusNotification"),
    "FirmwareStatusNotification": ("TriggerMessage", "FirmwareStatusNotification"),
    "Heartbeat": ("TriggerMessage", "Heartbeat"),
    "MeterValues": ("TriggerMessage", "MeterValues"),
    "StatusNotification": ("TriggerMessage", "StatusNotification"),
    "LogStatusNotification": ("ExtendedTriggerMessage", "LogStatusNotification"),
    "SignChargingStationCertificate": ("ExtendedTriggerMessage", "SignChargePointCertificate"),
    "SignCertificate": ("ExtendedTriggerMessage", "SignChargePointCertificate"),
}
"""5.17; the whitepaper's own trigger only where the old one has no word."""

# --------------------------------------------------------------------------- being answered

_COMPONENT: Final = "ChargingStation"
_WRITE_ONLY: Final = "authorizationkey"


def _variable(key: str, value: object, *, read_only: bool = False) -> Variable:
    """S25: a value is text, whatever JSON it came as; a key that is a secret is not kept."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    mutability = "ReadOnly" if read_only else "ReadWrite"
    if key.lower() == _WRITE_ONLY:
        value, mutability = None, "WriteOnly"
    return Variable(
        component=_COMPONENT,
        variable=key,
        value=None if value is None else str(value),
        mutability=mutability,
    )


def _configuration(response: dict[str, Any]) -> Outcome:
    known = tuple(
        _variable(one["key"], one.get("value"), read_only=bool(one.get("readonly")))
        for one in response.get("configurationKey") or ()
    )
    unknown = response.get("unknownKey") or ()
    text = f"unknown: {', '.join(unknown)}" if unknown else ""
    return Outcome(accepted=bool(known) or not unknown, text=text, variables=known)


class V16:
    """See `protocols.ocpp.dialect.Dialect`."""

    version: Final = Version.V16
    longest_token: Final[int] = _LONGEST_TAG
    token_types: Final[frozenset[str] | None] = None
    not_supported: Final[frozenset[str]] = frozenset()

    def read(self, action: str, request: Any, now_ms: int) -> Told:
        try:
            reader = _READERS[action]
        except KeyError:
            raise NotSupported(action) from None
        return reader(request, now_ms)

    def answer(self, action: str, told: Told, answer: Answer) -> bytes:
        return _ANSWERS[action](told, answer)

    def request(self, do: Action, context: RequestContext) -> Request:
        return choose(self.ways(do, context), context)

    def ways(self, do: Action, context: RequestContext) -> tuple[Request, ...]:
        try:
            make = _WAYS[type(do)]
        except KeyError:
            raise NotExpressible(f"1.6 has no request for {type(do).__name__}") from None
        return make(do, context)

    def reset(self, *, immediate: bool, evse: int = 0) -> Request:
        if evse:
            raise NotExpressible("1.6 resets the whole station only")
        return Request("Reset", {"type": "Hard" if immediate else "Soft"})

    def trigger(self, message: str, evse: int | None = None, connector: int = 1) -> Request:
        del connector
        if message not in _TRIGGERS:
            raise NotExpressible(f"1.6 cannot be asked for {message}")
        action, requested = _TRIGGERS[message]
        payload: dict[str, Any] = {"requestedMessage": requested}
        if evse is not None and evse > 0:
            payload["connectorId"] = evse
        return Request(action, payload)

    def running_cost(self, told: Told, total: str) -> Request | None:
        """1.6 has no words for it."""
        del told, total
        return None

    def ask(self, variables: tuple[Variable, ...], request_id: int = 0) -> Request:
        del request_id
        keys = [one.variable for one in variables]
        return Request("GetConfiguration", {"key": keys} if keys else {})

    def change(self, variables: tuple[Variable, ...]) -> tuple[Request, ...]:
        return tuple(
            Request("ChangeConfiguration", {"key": one.variable, "value": one.value or ""})
            for one in variables
        )

    def outcome(self, action: str, request: Mapping[str, Any], response: Any) -> Outcome:
        told = plain(response)
        match action:
            case "GetConfiguration":
                return _configuration(told)
            case "GetLocalListVersion":
                version = told["listVersion"]
                return Outcome(accepted=version >= 0, text=str(version))
            case "GetDiagnostics":
                return Outcome(accepted=True, text=told.get("fileName") or "")
        found = outcome(action, told)
        if action == "ChangeConfiguration" and found.accepted:
            changed = _variable(request["key"], request["value"])
            return msgspec.structs.replace(found, variables=(changed,))
        return found
