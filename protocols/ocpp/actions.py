"""Which actions go down to a station, and what is to be known of them (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

_FROM_STATION: Final = frozenset(
    {
        "Authorize",
        "BatterySwap",
        "BootNotification",
        "ClearedChargingLimit",
        "ClosePeriodicEventStream",
        "DiagnosticsStatusNotification",
        "FirmwareStatusNotification",
        "Get15118EVCertificate",
        "GetCertificateChainStatus",
        "GetCertificateStatus",
        "Heartbeat",
        "LogStatusNotification",
        "MeterValues",
        "NotifyChargingLimit",
        "NotifyCustomerInformation",
        "NotifyDERAlarm",
        "NotifyDERStartStop",
        "NotifyDisplayMessages",
        "NotifyEVChargingNeeds",
        "NotifyEVChargingSchedule",
        "NotifyEvent",
        "NotifyMonitoringReport",
        "NotifyPeriodicEventStream",
        "NotifyPriorityCharging",
        "NotifyReport",
        "NotifySettlement",
        "OpenPeriodicEventStream",
        "PublishFirmwareStatusNotification",
        "PullDynamicScheduleUpdate",
        "ReportChargingProfiles",
        "ReportDERControl",
        "ReservationStatusUpdate",
        "SecurityEventNotification",
        "SignCertificate",
        "SignedFirmwareStatusNotification",
        "StartTransaction",
        "StatusNotification",
        "StopTransaction",
        "TransactionEvent",
        "VatNumberValidation",
    }
)

NEVER_TWICE: Final = frozenset(
    {
        "AFRRSignal",
        "CertificateSigned",
        "DataTransfer",
        "RemoteStartTransaction",
        "RequestBatterySwap",
        "RequestStartTransaction",
        "Reset",
        "SignedUpdateFirmware",
        "UnlockConnector",
        "UpdateFirmware",
    }
)
"""What another time might do another thing; all else only states how something shall be."""


def goes_down(action: str) -> bool:
    """Whether a station is asked this; DataTransfer goes both ways."""
    return action not in _FROM_STATION


# --------------------------------------------------------------------------- secrets

HIDDEN: Final = "***"
_SECRET_FIELDS: Final = frozenset({"basicAuthPassword", "apnPassword", "password"})
_SECRET_VARIABLES: Final = frozenset({"authorizationkey", "basicauthpassword"})


def is_secret(variable: str) -> bool:
    """Whether the value of a variable, or of one of 1.6's keys, must not be kept or shown."""
    return variable.lower() in _SECRET_VARIABLES


def without_secrets(payload: Any) -> Any:
    """A payload as it may be kept and shown: passwords, and those within URLs, are hidden."""
    if isinstance(payload, Mapping):
        hidden = {*_SECRET_FIELDS, *_value_names(payload)}
        if "server" in payload:
            hidden.add("key")  # a VPN's; elsewhere it is the name of a setting
        return {
            name: HIDDEN if name in hidden and isinstance(value, str) else without_secrets(value)
            for name, value in payload.items()
        }
    if isinstance(payload, list | tuple):
        return [without_secrets(one) for one in payload]
    return _without_login(payload) if isinstance(payload, str) and "://" in payload else payload


def _value_names(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that hold a secret variable's value."""
    name, variable = payload.get("key"), payload.get("variable")
    if isinstance(variable, Mapping):
        name = variable.get("name")
    return ("value", "attributeValue") if isinstance(name, str) and is_secret(name) else ()


def _without_login(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if "@" not in parts.netloc:
        return url
    user, _, host = parts.netloc.rpartition("@")
    hidden = f"{user.partition(':')[0]}:{HIDDEN}" if ":" in user else user
    return urlunsplit(parts._replace(netloc=f"{hidden}@{host}"))
