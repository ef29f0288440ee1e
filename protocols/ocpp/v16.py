"""OCPP 1.6 (edition 2) with the security whitepaper (edition 3): its words live only here.

A connector n is EVSE n with connector 1, connector 0 is the station. What 1.6 says shorter than 2.x
is said in 2.x's words: a status gives a charging state, a reason for a stop gives a trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from protocols.agent_link import (
    ChargingState,
    ConnectorStatus,
    IdToken,
    TransactionEventType,
)
from protocols.ocpp.dialect import NotSupported
from protocols.ocpp.messages import (
    HEARTBEAT,
    Answer,
    Authorize,
    Boot,
    DataTransfer,
    Firmware,
    Log,
    Meter,
    Reading,
    Security,
    SignCertificate,
    Status,
    TokenInfo,
    TokenStatus,
    Told,
    Transaction,
)
from protocols.ocpp.sampling import Key, iso, readings, trusted, unix_ms
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
"""Section 7.36 -> 2.x's reason and trigger. Without one it is Local (6.21)."""

_UPLOADS: Final = {"UploadFailed": "UploadFailure"}
"""DiagnosticsStatus (7.24) in UploadLogStatusEnumType's words; the others are the same."""

_MOST_WH: Final = 2**40


def _evse(connector: int) -> int:
    return max(connector, 0)


def _register(wh: int) -> WattHours | None:
    return WattHours(wh) if 0 <= wh <= _MOST_WH else None


def _unpack(one: Any) -> tuple[Key, str | float, str]:
    if one.format == "SignedData":
        return (one.measurand, one.unit, one.phase, one.location, None), "", str(one.value)
    return (one.measurand, one.unit, one.phase, one.location, None), one.value, ""


def _trusted(found: tuple[Reading, ...], now_ms: int) -> bool:
    """By the first and the last: they are in order."""
    return not found or (trusted(found[0].at_ms, now_ms) and trusted(found[-1].at_ms, now_ms))


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
        clock_trusted=_trusted(found, now_ms),
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
    """`{"idTagInfo":...}`; a group that is too long for a tag is left out, never cut."""
    if token.expires_ms is None and token.group is None:
        return _PLAIN_TOKENS[token.status]
    info: dict[str, str] = {"status": _TOKEN_STATUSES.get(token.status, token.status)}
    if token.expires_ms is not None:
        info["expiryDate"] = iso(token.expires_ms)
    if token.group is not None and len(token.group) <= _LONGEST_TAG:
        info["parentIdTag"] = token.group
    return _json({"idTagInfo": info})


def _answer_token(_told: Any, answer: Answer) -> bytes:
    return _tag_info(answer.token or _UNKNOWN)


def _answer_start(_told: Any, answer: Answer) -> bytes:
    return b'{"transactionId":%d,%b' % (answer.number or 0, _answer_token(_told, answer)[1:])


def _answer_stop(told: Any, answer: Answer) -> bytes:
    if answer.token is None or told.id_token is None:
        return b"{}"
    return _tag_info(answer.token)


def _answer_heartbeat(_told: Any, answer: Answer) -> bytes:
    return b'{"currentTime":"%b"}' % iso(answer.now_ms).encode()


def _answer_boot(_told: Any, answer: Answer) -> bytes:
    return b'{"status":"%b","currentTime":"%b","interval":%d}' % (
        answer.registration.encode(),
        iso(answer.now_ms).encode(),
        answer.interval_s,
    )


def _answer_empty(_told: Any, _answer: Answer) -> bytes:
    return b"{}"


def _answer_sign(_told: Any, answer: Answer) -> bytes:
    return b'{"status":"Accepted"}' if answer.status == "Accepted" else b'{"status":"Rejected"}'


_TRANSFERS: Final = frozenset({"Accepted", "Rejected", "UnknownMessageId", "UnknownVendorId"})


def _answer_transfer(_told: Any, answer: Answer) -> bytes:
    """Data is text in 1.6 (6.10): anything else is given as its JSON."""
    payload = {"status": answer.status if answer.status in _TRANSFERS else "Rejected"}
    if answer.data is not None:
        data = answer.data
        payload["data"] = data if isinstance(data, str) else _json(data).decode()
    return _json(payload)


_ANSWERS: Final[Mapping[str, Callable[[Any, Answer], bytes]]] = {
    "Authorize": _answer_token,
    "BootNotification": _answer_boot,
    "DataTransfer": _answer_transfer,
    "DiagnosticsStatusNotification": _answer_empty,
    "FirmwareStatusNotification": _answer_empty,
    "Heartbeat": _answer_heartbeat,
    "LogStatusNotification": _answer_empty,
    "MeterValues": _answer_empty,
    "SecurityEventNotification": _answer_empty,
    "SignCertificate": _answer_sign,
    "SignedFirmwareStatusNotification": _answer_empty,
    "StartTransaction": _answer_start,
    "StatusNotification": _answer_empty,
    "StopTransaction": _answer_stop,
}


class V16:
    """See `protocols.ocpp.dialect.Dialect`."""

    version: Final = Version.V16
    not_supported: Final[frozenset[str]] = frozenset()

    def read(self, action: str, request: Any, now_ms: int) -> Told:
        try:
            reader = _READERS[action]
        except KeyError:
            raise NotSupported(action) from None
        return reader(request, now_ms)

    def answer(self, action: str, told: Told, answer: Answer) -> bytes:
        return _ANSWERS[action](told, answer)
