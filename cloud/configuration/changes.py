"""What one commit's messages change of what stations hold: pure, in the order they were told.

Deletions are done before what is put in, so a deletion takes what was told before it out of what
will be put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from cloud.kernel.facts import Spoken
from protocols.ocpp.actions import is_secret
from protocols.ocpp.effects import (
    ListHeld,
    ProfilesCleared,
    ProfileSet,
    ReservationCancelled,
    Reserved,
    effect_of,
)
from protocols.ocpp.messages import Answered, Notice, Report, Transaction, Variable

OUR_SOURCE: Final = "CSO"
_NOTICES: Final = frozenset(
    {
        "ClearedChargingLimit",
        "NotifyChargingLimit",
        "ReportChargingProfiles",
        "ReservationStatusUpdate",
    }
)


class Whose(NamedTuple):
    station: int
    tenant: int


class VariableKey(NamedTuple):
    station: int
    component: str
    component_instance: str
    evse: int
    connector: int
    variable: str
    variable_instance: str
    attribute: str


class VariableRow(NamedTuple):
    tenant: int
    value: str | None
    mutability: str
    characteristics: dict[str, Any]
    described: bool
    """Its mutability and characteristics were told too."""
    at: datetime


class ProfileRow(NamedTuple):
    tenant: int
    evse: int
    purpose: str
    stack_level: int
    source: str
    profile: dict[str, Any]
    command: UUID | None
    at: datetime


class LimitRow(NamedTuple):
    tenant: int
    is_grid_critical: bool
    schedules: list[Any]
    at: datetime


class ReservationRow(NamedTuple):
    tenant: int
    evse: int
    connector_type: str
    expires_at: datetime
    command: UUID
    at: datetime


class Ended(NamedTuple):
    """How a reservation ended: cancelled, used, expired, removed, no_transaction."""

    status: str
    at: datetime


class ListRow(NamedTuple):
    tenant: int
    version: int
    command: UUID
    at: datetime


@dataclass
class Changes:
    """What is to be written; empty parts cost nothing."""

    variables: dict[VariableKey, VariableRow] = field(default_factory=dict)
    cleared: list[tuple[int, ProfilesCleared]] = field(default_factory=list)
    profiles: dict[tuple[int, int], ProfileRow] = field(default_factory=dict)
    """By station and id."""
    lifted: set[tuple[int, int | None, str]] = field(default_factory=set)
    limits: dict[tuple[int, int, str], LimitRow] = field(default_factory=dict)
    """By station, EVSE and source."""
    reservations: dict[tuple[int, int], ReservationRow] = field(default_factory=dict)
    reservation_ends: dict[tuple[int, int], Ended] = field(default_factory=dict)
    lists: dict[int, ListRow] = field(default_factory=dict)


def concerning(spoken: Iterable[Spoken]) -> list[Spoken]:
    """The few messages that change anything here."""
    return [one for one in spoken if isinstance(one.told, _KINDS) and _concerns(one.told)]


_KINDS: Final = (Answered, Notice, Report, Transaction)


def _concerns(told: Any) -> bool:
    if isinstance(told, Transaction):
        return told.reservation is not None
    return not isinstance(told, Notice) or told.action in _NOTICES


def changes_of(spoken: Iterable[Spoken]) -> Changes:
    """What these, in their order, come to."""
    changes = Changes()
    for one in spoken:
        told = one.told
        if isinstance(told, Report):
            _variables(changes, one, told.variables, described=True)
        elif isinstance(told, Answered):
            _variables(changes, one, filter(_has_place, told.variables), described=False)
            _effect(changes, one, told)
        elif isinstance(told, Notice):
            _notice(changes, one, told)
        elif isinstance(told, Transaction) and told.reservation is not None:
            key = (one.station_id, told.reservation)
            changes.reservation_ends[key] = Ended("used", one.received_at)
    return changes


def _has_place(variable: Variable) -> bool:
    """What an absurd answer names must not cost the answer itself."""
    return all((number or 0) in _NUMBERS for number in (variable.evse, variable.connector))


_NUMBERS: Final = range(2**31)


def _variables(changes: Changes, one: Spoken, told: Iterable[Variable], *, described: bool) -> None:
    for variable in told:
        key = VariableKey(
            one.station_id,
            variable.component,
            variable.component_instance,
            variable.evse or 0,
            variable.connector or 0,
            variable.variable,
            variable.variable_instance,
            variable.attribute,
        )
        changes.variables[key] = VariableRow(
            one.tenant_id,
            None if is_secret(variable.variable) else variable.value,
            variable.mutability,
            variable.characteristics,
            described or variable.mutability != "ReadWrite",
            one.received_at,
        )


def _effect(changes: Changes, one: Spoken, told: Answered) -> None:
    effect = effect_of(told)
    station = one.station_id
    if isinstance(effect, ProfileSet):
        _put_profile(changes, one, effect.evse, effect.profile, OUR_SOURCE, told.command)
    elif isinstance(effect, ProfilesCleared):
        _clear(changes, station, effect)
    elif isinstance(effect, Reserved):
        key = (station, effect.id)
        changes.reservation_ends.pop(key, None)
        changes.reservations[key] = ReservationRow(
            one.tenant_id,
            effect.evse,
            effect.connector_type,
            effect.expires_at,
            told.command,
            one.received_at,
        )
    elif isinstance(effect, ReservationCancelled):
        changes.reservation_ends[station, effect.id] = Ended("cancelled", one.received_at)
    elif isinstance(effect, ListHeld):
        changes.lists[station] = ListRow(
            one.tenant_id, effect.version, told.command, one.received_at
        )


def _put_profile(
    changes: Changes,
    one: Spoken,
    evse: int,
    profile: dict[str, Any],
    source: str,
    command: UUID | None,
) -> None:
    purpose, level = str(profile["chargingProfilePurpose"]), int(profile["stackLevel"])
    if command is not None:  # one of the same level and purpose makes room (2.0.1, K01.FR.05)
        _clear(changes, one.station_id, ProfilesCleared(None, evse, purpose, level))
    changes.profiles[one.station_id, int(profile["id"])] = ProfileRow(
        one.tenant_id, evse, purpose, level, source, profile, command, one.received_at
    )


def _clear(changes: Changes, station: int, criteria: ProfilesCleared) -> None:
    changes.cleared.append((station, criteria))
    for key, row in list(changes.profiles.items()):
        if key[0] == station and _fits(key[1], row, criteria):
            del changes.profiles[key]


def _fits(profile: int, row: ProfileRow, criteria: ProfilesCleared) -> bool:
    if criteria.id is not None:
        return profile == criteria.id
    return (
        row.source == OUR_SOURCE
        and criteria.evse in {None, row.evse}
        and criteria.purpose in {None, row.purpose}
        and criteria.stack_level in {None, row.stack_level}
    )


# --------------------------------------------------------------------------- notices

_UPDATES: Final = {
    "Expired": "expired",
    "Removed": "removed",
    "NoTransaction": "no_transaction",
}


def _notice(changes: Changes, one: Spoken, told: Notice) -> None:
    payload, station = told.payload, one.station_id
    if told.action == "ReportChargingProfiles":
        for profile in _objects(payload.get("chargingProfile")):
            source = str(payload.get("chargingLimitSource", OUR_SOURCE))
            _put_profile(changes, one, int(payload["evseId"]), profile, source, None)
    elif told.action == "NotifyChargingLimit":
        limit = payload["chargingLimit"]
        key = (station, int(payload.get("evseId") or 0), str(limit["chargingLimitSource"]))
        changes.limits[key] = LimitRow(
            one.tenant_id,
            bool(limit.get("isGridCritical", False)),
            list(_objects(payload.get("chargingSchedule"))),
            one.received_at,
        )
    elif told.action == "ClearedChargingLimit":
        evse, source = payload.get("evseId"), str(payload["chargingLimitSource"])
        changes.lifted.add((station, evse, source))
        for gone in [k for k in changes.limits if _lifts((station, evse, source), k)]:
            del changes.limits[gone]
    elif told.action == "ReservationStatusUpdate":
        status = str(payload["reservationUpdateStatus"])
        ended = Ended(_UPDATES.get(status, status.lower()), one.received_at)
        changes.reservation_ends[station, int(payload["reservationId"])] = ended


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """A list's objects; version 2.1's single ones as lists of one."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, Mapping):
            yield dict(one)


def _lifts(gone: tuple[int, int | None, str], key: tuple[int, int, str]) -> bool:
    station, evse, source = gone
    return key[0] == station and key[2] == source and evse in {None, key[1]}
