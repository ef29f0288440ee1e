"""What a station that speaks OCPP can be asked beside what agents are told, in 2.0.1's words.

`words` puts an ask into the words of a version; `asks_v16` and `asks_v2` have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from protocols.agent_link import IdToken
from protocols.ocpp.asking import Numbers
from protocols.ocpp.dialect import dialect
from protocols.ocpp.messages import Variable
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Watts

Purpose = Literal[
    "ChargingStationExternalConstraints",
    "ChargingStationMaxProfile",
    "TxDefaultProfile",
    "TxProfile",
]
Unit = Literal["A", "W"]


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="action"):
    """What all of them share."""


class UnlockConnector(Ask, frozen=True, kw_only=True, tag="unlock_connector"):
    evse: int
    connector: int = 1


class Reset(Ask, frozen=True, kw_only=True, tag="reset"):
    kind: Literal["soft", "hard", "on_idle"]
    """Transactions end in order, end at once, or are waited for."""
    evse: int | None = None


class TriggerMessage(Ask, frozen=True, kw_only=True, tag="trigger_message"):
    message: str
    evse: int | None = None
    connector: int | None = None


class ClearCache(Ask, frozen=True, kw_only=True, tag="clear_cache"):
    pass


class GetVariables(Ask, frozen=True, kw_only=True, tag="get_variables"):
    variables: tuple[Variable, ...] = ()
    """None of them: all."""


class SetVariables(Ask, frozen=True, kw_only=True, tag="set_variables"):
    """Each to its value; without one to the empty text."""

    variables: tuple[Variable, ...]


class ReserveNow(Ask, frozen=True, kw_only=True, tag="reserve_now"):
    id: int
    id_token: IdToken
    expires_at: datetime
    evse: int | None = None
    group: str | None = None
    connector_type: str | None = None


class CancelReservation(Ask, frozen=True, kw_only=True, tag="cancel_reservation"):
    id: int


class Period(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From then on, until the next one; the schedule's unit says which limit counts."""

    start_s: int
    limit_ma: MilliAmperes | None = None
    limit_w: Watts | None = None
    phases: int | None = None


class SetChargingProfile(Ask, frozen=True, kw_only=True, tag="set_charging_profile"):
    evse: int
    id: int
    purpose: Purpose
    kind: Literal["Absolute", "Recurring", "Relative"]
    unit: Unit
    periods: tuple[Period, ...]
    stack_level: int = 0
    recurrency: Literal["Daily", "Weekly"] | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    start_at: datetime | None = None
    duration_s: int | None = None
    transaction: UUID | None = None


class ClearChargingProfile(Ask, frozen=True, kw_only=True, tag="clear_charging_profile"):
    id: int | None = None
    evse: int | None = None
    purpose: Purpose | None = None
    stack_level: int | None = None


class GetChargingProfiles(Ask, frozen=True, kw_only=True, tag="get_charging_profiles"):
    evse: int | None = None
    purpose: Purpose | None = None


class GetCompositeSchedule(Ask, frozen=True, kw_only=True, tag="get_composite_schedule"):
    evse: int
    duration_s: int
    unit: Unit | None = None


class UpdateFirmware(Ask, frozen=True, kw_only=True, tag="update_firmware"):
    location: str
    retrieve_at: datetime
    install_at: datetime | None = None
    retries: int | None = None
    retry_interval_s: int | None = None
    signing_certificate: str | None = None
    signature: str | None = None
    expected_version: str = ""
    """What the station will say it runs: its word for it may be all that ever comes (S30)."""


class GetLog(Ask, frozen=True, kw_only=True, tag="get_log"):
    kind: Literal["diagnostics", "security"]
    location: str
    since: datetime | None = None
    until: datetime | None = None
    retries: int | None = None
    retry_interval_s: int | None = None


class ListEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id_token: IdToken
    blocked: bool = False
    expires_at: datetime | None = None
    group: str | None = None
    removed: bool = False
    """To be taken off the list; only in a differential one."""


class SendLocalList(Ask, frozen=True, kw_only=True, tag="send_local_list"):
    version: int
    differential: bool
    entries: tuple[ListEntry, ...] = ()


class GetLocalListVersion(Ask, frozen=True, kw_only=True, tag="get_local_list_version"):
    pass


class DataTransfer(Ask, frozen=True, kw_only=True, tag="data_transfer"):
    vendor: str
    message: str | None = None
    data: Any = None


AnyAsk = (
    UnlockConnector
    | Reset
    | TriggerMessage
    | ClearCache
    | GetVariables
    | SetVariables
    | ReserveNow
    | CancelReservation
    | SetChargingProfile
    | ClearChargingProfile
    | GetChargingProfiles
    | GetCompositeSchedule
    | UpdateFirmware
    | GetLog
    | SendLocalList
    | GetLocalListVersion
    | DataTransfer
)

Worded = tuple[str, dict[str, Any]]
Words = Mapping[type[Any], Callable[[Any, Numbers], Worded]]


def words(version: Version, ask: AnyAsk, numbers: Numbers) -> Worded:
    """The action and its payload, as plain data. Raises NotExpressible."""
    from protocols.ocpp.asks_v2 import V2
    from protocols.ocpp.asks_v16 import V16

    if isinstance(ask, TriggerMessage):
        request = dialect(version).trigger(ask.message, ask.evse, ask.connector or 1)
        return request.action, request.payload
    if isinstance(ask, GetVariables):
        request = dialect(version).ask(ask.variables, numbers.own)
        return request.action, request.payload
    if isinstance(ask, SetVariables):
        (request,) = dialect(version).change(ask.variables)
        return request.action, request.payload
    known: Words = V16 if version is Version.V16 else V2
    return known[type(ask)](ask, numbers)


def one_by_one(version: Version, ask: AnyAsk) -> tuple[AnyAsk, ...]:
    """What takes one request each: 1.6 changes one key at a time."""
    if version is Version.V16 and isinstance(ask, SetVariables):
        return tuple(SetVariables(variables=(one,)) for one in ask.variables)
    return (ask,)


def writable(version: Version, entries: Iterable[ListEntry]) -> tuple[ListEntry, ...]:
    """Those that the version can write, each id token once, as it was told last.

    Nobody can show the others to such a station. A group that is too long is left out: cut, it
    were another.
    """
    spoken = dialect(version)
    longest, types = spoken.longest_token, spoken.token_types
    found: dict[object, ListEntry] = {}
    for entry in entries:
        token, group = entry.id_token, entry.group
        if not 0 < len(token.value) <= longest or (types is not None and token.type not in types):
            continue
        value = token.value.lower()
        key: object = value if version is Version.V16 else (value, token.type)
        found.pop(key, None)
        cut = group is not None and len(group) > longest
        found[key] = msgspec.structs.replace(entry, group=None) if cut else entry
    return tuple(found.values())


NAMES: Final = tuple(str(kind.__struct_config__.tag) for kind in AnyAsk.__args__)
