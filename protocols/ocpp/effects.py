"""What a station's answer means for what it holds from then on, whichever version it speaks (pure).

An `Answered` carries request and response as they went over the wire; this is where the versions'
names in them are read, so that no module above has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from protocols.ocpp.messages import Answered


class ProfileSet(NamedTuple):
    """A charging profile, in 2.x's words."""

    evse: int
    profile: dict[str, Any]


class ProfilesCleared(NamedTuple):
    """Those that fit all that is named; None fits any."""

    id: int | None = None
    evse: int | None = None
    purpose: str | None = None
    stack_level: int | None = None


class Reserved(NamedTuple):
    id: int
    evse: int
    connector_type: str
    expires_at: datetime


class ReservationCancelled(NamedTuple):
    id: int


class ListHeld(NamedTuple):
    """The local list's version; 0 is none, below that lists are not supported."""

    version: int


class TransferAsked(NamedTuple):
    """The station will fetch firmware, or bring a log."""

    kind: Literal["firmware", "log"]
    request_id: int | None
    location: str
    filename: str


class MonitorsSet(NamedTuple):
    monitors: tuple[dict[str, Any], ...]
    """2.x's SetMonitoringData, each with the id that the station gave."""


class MonitorsCleared(NamedTuple):
    ids: tuple[int, ...]


class MessageSet(NamedTuple):
    message: dict[str, Any]


class MessageCleared(NamedTuple):
    id: int


Effect = (
    ProfileSet
    | ProfilesCleared
    | Reserved
    | ReservationCancelled
    | ListHeld
    | TransferAsked
    | MonitorsSet
    | MonitorsCleared
    | MessageSet
    | MessageCleared
)
Payload = Mapping[str, Any]

_PURPOSES: Final = {"ChargePointMaxProfile": "ChargingStationMaxProfile"}


def effect_of(told: Answered) -> Effect | None:
    """None for what changes nothing that is kept, was refused, or makes no sense."""
    read = _READERS.get(told.action)
    if read is None or told.response is None:
        return None
    if not told.accepted and told.action not in _SPEAKS_FOR_ITSELF:
        return None
    try:
        return read(told.request, told.response)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # what somebody asked in the version's words is as odd as they made it


_COUNTS: Final = range(-(2**31), 2**31)


def _count(value: Any) -> int:
    """Of EVSEs, levels, severities. Raises ValueError for what can be none."""
    number = int(value)
    if number not in _COUNTS:
        raise ValueError(number)
    return number


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _set_profile(request: Payload, _: Payload) -> Effect:
    if "csChargingProfiles" not in request:
        profile = dict(request["chargingProfile"])
        _count(profile["stackLevel"])
        return ProfileSet(_count(request["evseId"]), profile)
    old = dict(request["csChargingProfiles"])
    _count(old["stackLevel"])
    purpose = old["chargingProfilePurpose"]
    profile = {
        **{name: value for name, value in old.items() if name != "chargingProfileId"},
        "id": old["chargingProfileId"],
        "chargingProfilePurpose": _PURPOSES.get(purpose, purpose),
        "chargingSchedule": [old["chargingSchedule"]],
    }
    if "transactionId" in old:
        profile["transactionId"] = str(old["transactionId"])
    return ProfileSet(_count(request["connectorId"]), profile)


def _clear_profile(request: Payload, _: Payload) -> Effect:
    criteria = request.get("chargingProfileCriteria") or request
    purpose = criteria.get("chargingProfilePurpose")
    return ProfilesCleared(
        id=request.get("chargingProfileId", request.get("id")),
        evse=_count_or_none(criteria.get("evseId", request.get("connectorId"))),
        purpose=_PURPOSES.get(purpose, purpose) if purpose else None,
        stack_level=_count_or_none(criteria.get("stackLevel")),
    )


def _reserve(request: Payload, _: Payload) -> Effect:
    until = request.get("expiryDateTime") or request["expiryDate"]
    return Reserved(
        id=int(request.get("id", request.get("reservationId"))),
        evse=_count(request.get("evseId", request.get("connectorId", 0)) or 0),
        connector_type=str(request.get("connectorType", "")),
        expires_at=datetime.fromisoformat(until).astimezone(UTC),
    )


def _cancel(request: Payload, _: Payload) -> Effect:
    return ReservationCancelled(int(request["reservationId"]))


def _send_list(request: Payload, _: Payload) -> Effect:
    return ListHeld(int(request.get("versionNumber", request.get("listVersion"))))


def _list_version(_: Payload, response: Payload) -> Effect:
    return ListHeld(int(response.get("versionNumber", response.get("listVersion"))))


def _firmware(request: Payload, _: Payload) -> Effect:
    firmware = request.get("firmware") or request
    return TransferAsked("firmware", request.get("requestId"), str(firmware["location"]), "")


def _log(request: Payload, response: Payload) -> Effect:
    log = request.get("log") or {"remoteLocation": request.get("location", "")}
    filename = response.get("filename", response.get("fileName")) or ""
    return TransferAsked("log", request.get("requestId"), str(log["remoteLocation"]), str(filename))


def _set_monitors(request: Payload, response: Payload) -> Effect:
    asked = {_monitor_key(one): one for one in request["setMonitoringData"]}
    return MonitorsSet(
        tuple(
            {**asked.get(_monitor_key(one), {}), **one}
            for one in response["setMonitoringResult"]
            if one.get("status") == "Accepted" and "id" in one and one["severity"] in _COUNTS
        )
    )


def _monitor_key(one: Payload) -> tuple[bytes, ...]:
    """Whatever order the fields are in: a request that was kept has another than its answer."""
    names = ("component", "variable", "type", "severity")
    return tuple(msgspec.json.encode(one.get(name), order="sorted") for name in names)


def _clear_monitors(_: Payload, response: Payload) -> Effect:
    gone = ("Accepted", "NotFound")
    return MonitorsCleared(
        tuple(int(o["id"]) for o in response["clearMonitoringResult"] if o["status"] in gone)
    )


def _set_message(request: Payload, _: Payload) -> Effect:
    return MessageSet(dict(request["message"]))


def _clear_message(request: Payload, _: Payload) -> Effect:
    return MessageCleared(int(request["id"]))


_READERS: Final[Mapping[str, Callable[[Payload, Payload], Effect]]] = {
    "SetChargingProfile": _set_profile,
    "ClearChargingProfile": _clear_profile,
    "ReserveNow": _reserve,
    "CancelReservation": _cancel,
    "SendLocalList": _send_list,
    "GetLocalListVersion": _list_version,
    "UpdateFirmware": _firmware,
    "SignedUpdateFirmware": _firmware,
    "PublishFirmware": _firmware,
    "GetDiagnostics": _log,
    "GetLog": _log,
    "SetVariableMonitoring": _set_monitors,
    "ClearVariableMonitoring": _clear_monitors,
    "SetDisplayMessage": _set_message,
    "ClearDisplayMessage": _clear_message,
}
_SPEAKS_FOR_ITSELF: Final = frozenset(
    {"GetLocalListVersion", "SetVariableMonitoring", "ClearVariableMonitoring"}
)
"""Their answers say of each thing what became of it."""
