"""What chargers say in these tests, as it goes over the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
ENERGY = "Energy.Active.Import.Register"
POWER = "Power.Active.Import"
Payload = dict[str, Any]


def at(minutes: float) -> str:
    """That long after the tests' beginning of time, an hour ago."""
    return (BEGAN + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def sample(value: Any, measurand: str | None = None, **more: Any) -> Payload:
    """One sampledValue."""
    named = {} if measurand is None else {"measurand": measurand}
    return {"value": value, **named, **more}


def moment(when: float | str, *samples: Payload) -> Payload:
    """One meterValue."""
    return {"timestamp": when if isinstance(when, str) else at(when), "sampledValue": [*samples]}


def start_16(token: str, minutes: float = 1, register: Any = 1_000, **more: Any) -> Payload:
    """StartTransaction."""
    return {"connectorId": 1, "idTag": token, "meterStart": register, "timestamp": at(minutes),
            **more}  # fmt: skip


def stop_16(number: int, minutes: float = 41, register: Any = 8_400, **more: Any) -> Payload:
    """StopTransaction."""
    return {"transactionId": number, "meterStop": register, "timestamp": at(minutes),
            "reason": "Local", **more}  # fmt: skip


def meter_16(*moments: Payload, number: int | None = None, connector: int = 1) -> Payload:
    """MeterValues."""
    known = {} if number is None else {"transactionId": number}
    return {"connectorId": connector, "meterValue": [*moments], **known}


def event_201(
    kind: str, seq: int, minutes: float, transaction: str, token: str | None, wh: Any, **more: Any
) -> Payload:
    """TransactionEvent, of EVSE 1 if not said otherwise."""
    info = {"transactionId": transaction, "chargingState": "Charging", **more.pop("info", {})}
    fields = {
        "eventType": kind,
        "timestamp": at(minutes),
        "triggerReason": "Authorized" if kind == "Started" else "MeterValuePeriodic",
        "seqNo": seq,
        "transactionInfo": info,
        "evse": {"id": 1, "connectorId": 1},
        "meterValue": [moment(minutes, sample(wh, ENERGY))],
        **more,
    }
    if token is not None:
        fields["idToken"] = {"idToken": token, "type": "ISO14443"}
    return fields


def status_16(connector: int, status: str, minutes: float = 0, **more: Any) -> Payload:
    """StatusNotification."""
    return {"connectorId": connector, "status": status, "errorCode": "NoError",
            "timestamp": at(minutes), **more}  # fmt: skip


def status_201(evse: int, connector: int, status: str, minutes: float = 0) -> Payload:
    """StatusNotification."""
    return {"timestamp": at(minutes), "connectorStatus": status, "evseId": evse,
            "connectorId": connector}  # fmt: skip
