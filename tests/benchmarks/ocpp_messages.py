"""One charging session as stations tell it in OCPP 1.6 and 2.0.1: whole CALL frames."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
TAG = "04A2B1C2D3E480"
PHASES = ("L1", "L2", "L3")
Call = tuple[str, dict[str, Any]]


def cycle_16() -> list[bytes]:
    """18 calls: states, a card, a transaction with ten readings of eight values, a heartbeat."""
    calls: list[Call] = [
        ("StatusNotification", _status_16("Available", 0)),
        ("StatusNotification", _status_16("Preparing", 5)),
        ("Authorize", {"idTag": TAG}),
        ("StartTransaction", _start_16()),
        ("StatusNotification", _status_16("Charging", 12)),
    ]
    calls += [("MeterValues", _reading_16(number)) for number in range(1, 11)]
    calls += [("Heartbeat", {}), ("StopTransaction", _stop_16())]
    calls.append(("StatusNotification", _status_16("Finishing", 620)))
    return _frames(calls)


def cycle_201() -> list[bytes]:
    """16 calls: states, a card, twelve transaction events of eight values, a heartbeat."""
    calls: list[Call] = [
        ("StatusNotification", _status_201("Occupied", 5)),
        ("Authorize", {"idToken": {"idToken": TAG, "type": "ISO14443"}}),
        ("TransactionEvent", _event_201(0, "Started", "Authorized")),
    ]
    periodic = ("Updated", "MeterValuePeriodic")
    calls += [("TransactionEvent", _event_201(n, *periodic)) for n in range(1, 11)]
    calls.append(("Heartbeat", {}))
    calls.append(("TransactionEvent", _event_201(11, "Ended", "EVDeparted")))
    calls.append(("StatusNotification", _status_201("Available", 640)))
    return _frames(calls)


def _frames(calls: list[Call]) -> list[bytes]:
    return [
        json.dumps([2, f"7c9e6679-7425-40de-944b-{n:012d}", *call], separators=(",", ":")).encode()
        for n, call in enumerate(calls)
    ]


def _at(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")[:-6] + "Z"


def _status_16(status: str, at: int) -> dict[str, Any]:
    return {
        "connectorId": 1,
        "errorCode": "NoError",
        "status": status,
        "timestamp": _at(at),
        "info": "",
        "vendorId": "Karvon",
    }


def _start_16() -> dict[str, Any]:
    return {"connectorId": 1, "idTag": TAG, "meterStart": 1204331, "timestamp": _at(10)}


def _stop_16() -> dict[str, Any]:
    return {
        "transactionId": 90214,
        "idTag": TAG,
        "meterStop": 1211022,
        "timestamp": _at(615),
        "reason": "EVDisconnected",
    }


def _reading_16(number: int) -> dict[str, Any]:
    values = [
        _value_16(str(1204331 + 660 * number), "Energy.Active.Import.Register", "Wh"),
        _value_16(str(11040 - number), "Power.Active.Import", "W"),
        *(_value_16(f"16.{number:02d}", "Current.Import", "A", phase) for phase in PHASES),
        *(_value_16(f"230.{number}", "Voltage", "V", f"{phase}-N") for phase in PHASES),
    ]
    reading = {"timestamp": _at(12 + 60 * number), "sampledValue": values}
    return {"connectorId": 1, "transactionId": 90214, "meterValue": [reading]}


def _value_16(value: str, measurand: str, unit: str, phase: str | None = None) -> dict[str, Any]:
    told = {"value": value, "context": "Sample.Periodic", "measurand": measurand, "unit": unit}
    return {**told, "phase": phase} if phase else {**told, "location": "Outlet"}


def _status_201(status: str, at: int) -> dict[str, Any]:
    return {"timestamp": _at(at), "connectorStatus": status, "evseId": 1, "connectorId": 1}


def _event_201(number: int, kind: str, trigger: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "eventType": kind,
        "timestamp": _at(12 + 55 * number),
        "triggerReason": trigger,
        "seqNo": number,
        "transactionInfo": {
            "transactionId": "f1f0c2d4-5b8e-4a51-9c6c",
            "chargingState": "Charging",
        },
        "evse": {"id": 1, "connectorId": 1},
        "meterValue": [{"timestamp": _at(12 + 55 * number), "sampledValue": _values_201(number)}],
    }
    if kind == "Started":
        event["idToken"] = {"idToken": TAG, "type": "ISO14443"}
    return event


def _values_201(number: int) -> list[dict[str, Any]]:
    return [
        _value_201(1204331.0 + 660.5 * number, "Energy.Active.Import.Register", "Wh"),
        _value_201(11040.25 - number, "Power.Active.Import", "W"),
        *(_value_201(16.02, "Current.Import", "A", phase) for phase in PHASES),
        *(_value_201(230.4, "Voltage", "V", f"{phase}-N") for phase in PHASES),
    ]


def _value_201(value: float, measurand: str, unit: str, phase: str | None = None) -> dict[str, Any]:
    told = {
        "value": value,
        "context": "Sample.Periodic",
        "measurand": measurand,
        "unitOfMeasure": {"unit": unit, "multiplier": 0},
    }
    return {**told, "phase": phase} if phase else {**told, "location": "Outlet"}
