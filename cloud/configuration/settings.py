"""Agents' settings: desired here, tried there, reported back.

Each station has one desired document with a version that only grows. It is sent when it is set, and
again when the agent tells that it was never told of it; what the agent makes of it is told with its
status and compared here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from cloud.configuration import settings_store as store
from cloud.configuration.settings_store import Compared, Desired, Reported
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import KarvonError, Kind
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder
from protocols.agent_link import Configure, SettingsUse, StateBatch, StationStatus
from protocols.agent_settings import LARGEST_BYTES, SettingsError, plain, settings_of

VALID: Final = timedelta(days=7)
AGAIN_AFTER: Final = timedelta(minutes=10)
"""An agent that was never told is sent it again, but not with every status."""
_AUTHOR: Final = "configuration"
Send = Callable[[Cursor, TenantId, int, Configure, timedelta, str], Awaitable[Any]]
"""Queue a command for a station: tenant, station, what, how long it is good, who asked."""


class BadSettings(KarvonError):
    kind = Kind.INVALID
    code = "settings.bad"


@dataclass(frozen=True)
class Shown:
    """A station's settings with its identity."""

    station: str
    compared: Compared | None


class Settings:
    """Every method raises StationNotFound."""

    def __init__(
        self,
        database: Database,
        stations: StationFinder,
        send: Send,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._stations = stations
        self._send = send
        self._clock = clock

    async def read(self, caller: Caller, identity: str) -> Shown:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return Shown(identity, await store.compared(cursor, station.id))

    async def put(
        self, caller: Caller, identity: str, document: dict[str, Any], expected: Expected
    ) -> Shown:
        """Raises BadSettings, Stale."""
        checked = _checked(document)
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._stations.find(cursor, identity)
            held = await store.desired(cursor, station.id, lock=True)
            expected.check(etag_of(held))
            await self._set(cursor, caller, station.id, held, checked)
            return Shown(identity, await store.compared(cursor, station.id))

    async def put_many(
        self, caller: Caller, document: dict[str, Any], identities: Sequence[str], site: int | None
    ) -> list[Shown]:
        """The same document for several, all of them or none. Raises BadSettings, SiteNotFound."""
        checked = _checked(document)
        async with self._database.unit(caller.tenant_id) as cursor:
            keys = [(await self._stations.find(cursor, one)).id for one in identities]
            if site is not None:
                keys += await self._stations.at_site(cursor, site)
            for key in sorted(set(keys)):
                held = await store.desired(cursor, key, lock=True)
                await self._set(cursor, caller, key, held, checked)
            named = await self._stations.identities(cursor, keys)
            return [
                Shown(named[key], await store.compared(cursor, key)) for key in sorted(set(keys))
            ]

    async def _set(
        self,
        cursor: Cursor,
        caller: Caller,
        station_id: int,
        held: Desired | None,
        document: dict[str, Any],
    ) -> None:
        """Above every number that the agent was ever told: a restored cloud begins no lower."""
        reported = (await store.reported(cursor, [station_id])).get(station_id)
        before = max(held.version if held else 0, reported.told if reported else 0)
        now = self._clock()
        made = Desired(station_id, caller.tenant_id, before + 1, document, caller.subject, now, now)
        await store.put_desired(cursor, made)
        do = Configure(made.version, document)
        await self._send(cursor, caller.tenant_id, station_id, do, VALID, caller.subject)

    async def list_all(
        self, caller: Caller, part: Part, site: int | None, *, in_sync: bool | None
    ) -> Cut[Shown]:
        """Raises SiteNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            there = None if site is None else await self._stations.at_site(cursor, site)
            cut = await store.all_compared(cursor, part, there, in_sync=in_sync)
            named = await self._stations.identities(cursor, [one.station_id for one in cut.rows])
            return Cut([Shown(named.get(one.station_id, ""), one) for one in cut.rows], cut.next)


def etag_of(held: Desired | Compared | None) -> str:
    return version_of(held.version if held is not None else None)


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """Raises BadSettings; what an agent alone can know is refused by it."""
    if len(msgspec.json.encode(document)) > LARGEST_BYTES:
        raise BadSettings(f"the document is larger than {LARGEST_BYTES} bytes")
    try:
        return plain(settings_of(document))
    except SettingsError as error:
        raise BadSettings(f"{error}; see docs/configuration.md for what may be set") from None


class SettingsWriter:
    """A FactWriter: what agents tell of their settings."""

    name = "configuration"

    def __init__(self, send: Send) -> None:
        self._send = send

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        told = _latest(deliveries)
        if not told:
            return []
        held = await store.reported(cursor, told)
        put: list[tuple[TenantId, Reported]] = []
        events: list[Event] = []
        for station, (delivery, use) in told.items():
            before = held.get(station)
            if before is not None and _is_older(before, delivery):
                continue
            new = _reported(delivery, use, before)
            put.append((delivery.tenant_id, new))
            if use.told and (before is None or _said(before) != _said(new)):
                events.append(_event(delivery, use))
        if put:
            await store.put_reported(cursor, put)
        await self._push(cursor, {one.station_id: one for _, one in put}, deliveries[-1])
        return events

    async def _push(self, cursor: Cursor, told: dict[int, Reported], last: Delivery) -> None:
        now = last.received_at
        late = [
            one
            for one in await store.desired_of(cursor, told)
            if told[one.station_id].told < one.version and now - one.pushed_at > AGAIN_AFTER
        ]
        for one in late:
            do = Configure(one.version, one.document)
            await self._send(cursor, one.tenant_id, one.station_id, do, VALID, _AUTHOR)
        if late:
            await store.note_pushed(cursor, [one.station_id for one in late], now)


def _latest(deliveries: Sequence[Delivery]) -> dict[int, tuple[Delivery, SettingsUse]]:
    """The highest number of each station's: a later one replaces an earlier."""
    found: dict[int, tuple[Delivery, SettingsUse]] = {}
    for one in deliveries:
        if not isinstance(one.batch, StateBatch):
            continue
        for fact in one.batch.facts:
            if isinstance(fact, StationStatus) and isinstance(fact.settings, SettingsUse):
                held = found.get(one.station_id)
                if held is None or held[0].batch.seq < one.batch.seq:
                    found[one.station_id] = (one, fact.settings)
    return found


def _is_older(before: Reported, delivery: Delivery) -> bool:
    return before.outbox == delivery.outbox and before.seq >= delivery.batch.seq


def _said(one: Reported) -> tuple[int, int, str, str]:
    return one.version, one.told, one.state, one.reason


def _reported(delivery: Delivery, use: SettingsUse, before: Reported | None) -> Reported:
    made = Reported(
        delivery.station_id,
        use.version,
        use.told,
        str(use.state),
        use.reason,
        delivery.received_at,
        delivery.outbox,
        delivery.batch.seq,
    )
    same = before is not None and _said(before) == _said(made)
    return replace(made, since=before.since) if same and before is not None else made


def _event(delivery: Delivery, use: SettingsUse) -> Event:
    return Event(
        tenant_id=delivery.tenant_id,
        kind=f"settings.{use.state}",
        station_id=delivery.station_id,
        subject=f"station:{delivery.station_id}",
        data={"version": use.version, "told": use.told, "reason": use.reason},
    )
