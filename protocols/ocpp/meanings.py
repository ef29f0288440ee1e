"""What stations' own words mean, and what stands for what they leave out.

Only where there is no doubt, and never energy, ids, tokens or states.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import cache
from typing import Any, Final

NEUTRAL: Final[dict[str, Any]] = {
    "errorCode": "NoError",
    "chargePointVendor": "unknown",
    "chargePointModel": "unknown",
    "chargingStation": {},
    "vendorName": "unknown",
    "model": "unknown",
    "vendorId": "unknown",
    "readonly": False,
    "reason": "Unknown",
}
"""What stands for a missing required field on which no answer depends."""
TIMES_OF_RECEIPT: Final = frozenset({"timestamp", "generatedAt"})
TELLING: Final = frozenset(
    {
        "StatusNotification",
        "MeterValues",
        "StartTransaction",
        "StopTransaction",
        "TransactionEvent",
        "NotifyEvent",
        "NotifyReport",
        "NotifyMonitoringReport",
        "NotifyDERAlarm",
        "NotifyDERStartStop",
        "SecurityEventNotification",
    }
)
"""Requests about what just happened, so that their receipt can stand for a time that is none."""
WHOLE_WATT_HOURS: Final = frozenset({"meterStart", "meterStop"})
NUMBER: Final = re.compile(r"-?\d{1,18}(\.\d{1,18})?([eE][+-]?\d{1,2})?", re.ASCII)
INTEGER: Final = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)
TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_REASONS: Final = frozenset({"errorCode", "reason", "stoppedReason"})
_OTHER: Final = ("Other", "OtherError", "Unknown")
_ALIASES: Final[dict[str, dict[str, str]]] = {
    "unit": {
        "celcius": "Celsius",
        "c": "Celsius",
        "degc": "Celsius",
        "hz": "Hertz",
        "%": "Percent",
        "pct": "Percent",
        "amp": "A",
        "amps": "A",
        "ampere": "A",
        "amperes": "A",
        "volt": "V",
        "volts": "V",
        "watt": "W",
        "watts": "W",
        "watthour": "Wh",
        "watthours": "Wh",
    },
    "measurand": {"stateofcharge": "SoC"},
    "reason": {"evdisconnect": "EVDisconnected", "deauthorised": "DeAuthorized"},
    "stoppedReason": {"evdisconnect": "EVDisconnected", "deauthorised": "DeAuthorized"},
    "connectorStatus": dict.fromkeys(
        ("preparing", "charging", "suspendedev", "suspendedevse", "finishing"), "Occupied"
    ),
}
"""By field, then by what is left of a value in small letters without separators."""


def bare(text: str) -> str:
    """A name without what its writers differ in: case and separators."""
    return re.sub(r"[\W_]+", "", text[:100]).lower()


@cache
def _alike(enum: tuple[str, ...]) -> dict[str, list[str]]:
    """An enumeration's values by their bare spelling."""
    found: dict[str, list[str]] = {}
    for one in enum:
        found.setdefault(bare(one), []).append(one)
    return found


def meant(value: str, key: str, enum: tuple[str, ...]) -> tuple[str, str]:
    """A deviation's name and the value that is meant; no name: it is not known."""
    plain = bare(value)
    alike = _alike(enum).get(plain, ())
    if len(alike) == 1:
        return "enum_case", alike[0]
    alias = _ALIASES.get(key, {}).get(plain or value.strip())
    if alias is not None and alias in enum:
        return "enum_alias", alias
    other = next((one for one in _OTHER if one in enum), None)
    if key in _REASONS and other is not None:
        return "unknown_reason", other
    return "", value


def written(value: float) -> str:
    """A number as JSON writes it, never with an exponent."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{Decimal(repr(value)):f}"
