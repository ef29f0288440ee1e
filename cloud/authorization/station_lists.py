"""Keeping the local lists of stations that speak OCPP as their policy says.

One process at a time plans (an advisory lock), a limited number of stations has a question of ours
at once, and each is told only what changed since what it has: so a storm of reconnections, or an
import of thousands of tokens, becomes a steady stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

from cloud.authorization import keeping, list_store, store
from cloud.authorization.api import GroupNotFound
from cloud.authorization.keeping import (
    AskVersion,
    Follow,
    Kept,
    Limits,
    Lost,
    Rest,
    Selection,
    Status,
)
from cloud.authorization.list_store import Asked, Policy, Standing
from cloud.communication.api import ListPortion, Speaking
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder, sites_of
from protocols.ocpp.asks import AnyAsk, GetLocalListVersion, GetVariables
from protocols.ocpp.messages import Variable
from protocols.ocpp.version import Version

logger = logging.getLogger(__name__)

ACTOR: Final = "authorization"
AT_ONCE: Final = 100
"""Stations of all tenants that have a question of ours at the same time."""
EVERY_S: Final = 15.0
SETTLE_S: Final = 0.3
"""Changes and answers that follow each other within this time are looked at as one."""
VALID: Final = timedelta(minutes=2)
GRACE: Final = timedelta(seconds=40)
"""A command that has ended may still be answered."""
_V2: Final = tuple(
    Variable(component="LocalAuthListCtrlr", variable=name)
    for name in ("ItemsPerMessage", "BytesPerMessage", "Entries")
)
_V16: Final = tuple(
    Variable(component="ChargingStation", variable=name)
    for name in ("SendLocalListMaxLength", "LocalAuthListMaxLength")
)


class ListLink(Protocol):
    """The way to stations that speak OCPP, as far as their lists need it."""

    async def speaking(
        self, cursor: Cursor, tenants: Collection[int], stations: Collection[int]
    ) -> list[Speaking]:
        """Those that are connected now, of these tenants and of these stations."""
        ...

    async def put(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        do: AnyAsk | ListPortion,
        valid_for: timedelta,
        actor: str,
    ) -> UUID: ...

    async def limits(self, cursor: Cursor, stations: Collection[int]) -> dict[int, Limits]:
        """What stations have told of their limits; those that have told nothing are left out."""
        ...


@dataclass(frozen=True)
class Stand:
    """How a station's list stands, for people."""

    station: str
    policy: Policy | None
    scope: str | None
    groups: dict[int, str]
    kept: Kept | None
    status: Status
    behind: int | None
    """Changes of tokens that it has not taken over yet, at least; None: not known."""


@dataclass
class _Round:
    """What one look at the fleet has found out."""

    now: datetime
    heads: dict[int, int]
    limits: dict[int, Limits]
    asked: list[Asked] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)
    through: dict[int, int] = field(default_factory=dict)
    parts: dict[tuple[object, ...], tuple[int, int]] = field(default_factory=dict)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)


class StationLists:
    def __init__(
        self,
        database: Database,
        link: ListLink,
        stations: StationFinder,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._link = link
        self._stations = stations
        self._clock = clock
        self.settle_s = SETTLE_S
        self._woken = asyncio.Event()

    # ------------------------------------------------------------------ policies

    async def policy(self, caller: Caller, site: int | None, station: str | None) -> Policy | None:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await list_store.policy(cursor, *await self._scope(cursor, site, station))

    async def names(self, caller: Caller, groups: Collection[int]) -> dict[int, str]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await list_store.group_names(cursor, groups)

    async def set_policy(
        self,
        caller: Caller,
        site: int | None,
        station: str | None,
        keep: str,
        groups: Sequence[str],
    ) -> Policy:
        """Raises GroupNotFound, and the not-found errors of stations and sites."""
        async with self._database.unit(caller.tenant_id) as cursor:
            scope = await self._scope(cursor, site, station)
            numbers = await store.group_ids(cursor, groups)
            for name in groups:
                if name not in numbers:
                    raise GroupNotFound(
                        f"there is no id token group {name!r}; create it first", group=name
                    )
            now, chosen = self._clock(), sorted(set(numbers.values()))
            await list_store.put_policy(cursor, caller.tenant_id, scope, keep, chosen, now)
            await list_store.wake(cursor)
            return Policy(caller.tenant_id, *scope, keep, chosen, now)

    async def drop_policy(self, caller: Caller, site: int | None, station: str | None) -> None:
        async with self._database.unit(caller.tenant_id) as cursor:
            await list_store.delete_policy(cursor, *await self._scope(cursor, site, station))
            await list_store.wake(cursor)

    async def _scope(
        self, cursor: Cursor, site: int | None, station: str | None
    ) -> tuple[int | None, int | None]:
        if site is not None:
            await self._stations.at_site(cursor, site)
        found = None if station is None else await self._stations.find(cursor, station)
        return site, None if found is None else found.id

    # ------------------------------------------------------------------ reading

    async def stand(self, caller: Caller, station: str) -> Stand:
        """Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            found = await self._stations.find(cursor, station)
            return (await self._stands(cursor, caller, {found.id: found.identity}))[0]

    async def stands(self, caller: Caller, part: Part, status: str | None) -> Cut[Stand]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            cut = await list_store.list_kept(cursor, part, status)
            ids = [one.station_id for one in cut.rows]
            names = await self._stations.identities(cursor, ids)
            there = {station: names[station] for station in ids if station in names}
            return Cut(await self._stands(cursor, caller, there), cut.next)

    async def _stands(
        self, cursor: Cursor, caller: Caller, stations: Mapping[int, str]
    ) -> list[Stand]:
        chosen = await self._chosen(cursor, dict.fromkeys(stations, caller.tenant_id))
        kept = await list_store.kept(cursor, stations)
        heads = await list_store.heads(cursor, [caller.tenant_id])
        groups = {number for one in chosen.values() if one is not None for number in one.groups}
        names = await list_store.group_names(cursor, groups)
        stands = []
        for station, identity in stations.items():
            policy, one = chosen[station], kept.get(station)
            selection = policy.selection if policy is not None else Selection()
            status, behind = Status.OFF if not selection.keeps else Status.UNKNOWN, None
            if one is not None:
                status = Status(one.status)
                behind = await self._behind(cursor, one, selection, heads[caller.tenant_id])
                if status is Status.IN_SYNC and behind:
                    status = Status.BEHIND
            mine = {} if policy is None else {n: names[n] for n in policy.groups if n in names}
            scope = None if policy is None else _scope_name(policy)
            stands.append(Stand(identity, policy, scope, mine, one, status, behind))
        return stands

    async def _behind(
        self, cursor: Cursor, kept: Kept, selection: Selection, head: int
    ) -> int | None:
        """Counted up to a thousand."""
        if kept.selection != selection.text or kept.number < 0:
            return None
        if not selection.keeps or kept.through >= head:
            return 0
        span, tenant = (kept.through, head), TenantId(kept.tenant_id)
        found = await list_store.changes(cursor, tenant, selection.groups, span, kept.floor, 1000)
        return len(found)

    async def sync(self, caller: Caller, station: str) -> None:
        """Ask the station again, whatever it has refused before. Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id) as cursor:
            found = await self._stations.find(cursor, station)
            await list_store.begin(cursor, {found.id: caller.tenant_id}, self._clock())
            await list_store.try_now(cursor, found.id)
            await list_store.wake(cursor)

    # ------------------------------------------------------------------ planning

    async def run(self) -> None:
        """Keep lists, for ever."""
        listening = asyncio.create_task(
            self._database.wake_on(list_store.CHANNEL, self._woken), name="listen for lists"
        )
        try:
            while True:
                self._woken.clear()
                try:
                    await self.plan()
                except Unavailable as error:
                    logger.warning("local lists wait: %s", error)
                try:
                    async with asyncio.timeout(EVERY_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(self.settle_s)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def plan(self) -> int:
        """Look at every station once; returns how many were asked or told something."""
        async with self._database.commit_unit() as cursor:
            if not await list_store.plan_alone(cursor):
                return 0
            speaking = await self._concerned(cursor)
            if not speaking:
                return 0
            now = self._clock()
            owners = {one.station_id: one.tenant_id for one in speaking}
            kept = await list_store.kept(cursor, owners)
            if missing := owners.keys() - kept.keys():
                await list_store.begin(cursor, {one: owners[one] for one in missing}, now)
                kept |= await list_store.kept(cursor, missing)
            chosen = await self._chosen(cursor, owners)
            heads = await list_store.heads(cursor, set(owners.values()))
            around = _Round(now, heads, await self._link.limits(cursor, list(owners)))
            room = AT_ONCE - await list_store.under_way(cursor, now)
            for one in sorted(speaking, key=lambda one: kept[one.station_id].since):
                policy = chosen[one.station_id]
                selection = Selection() if policy is None else policy.selection
                if len(around.asked) >= room:
                    break
                await self._step(cursor, around, one, kept[one.station_id], selection)
            if around.through:
                await list_store.note_through(cursor, around.through)
            if around.asked:
                await list_store.note_asked(cursor, around.asked, now)
            if around.standing:
                await list_store.note_standing(cursor, around.standing, now)
            return len(around.asked)

    async def _concerned(self, cursor: Cursor) -> list[Speaking]:
        tenants = {one.tenant_id for one in await list_store.every_policy(cursor)}
        holding = await list_store.with_lists(cursor)
        if not tenants and not holding:
            return []
        return await self._link.speaking(cursor, tenants, holding)

    async def _chosen(
        self, cursor: Cursor, stations: Mapping[int, TenantId]
    ) -> dict[int, Policy | None]:
        """The policy that holds for each: its own, its site's, its tenant's."""
        policies = {
            (one.tenant_id, one.site_id, one.station_id): one
            for one in await list_store.every_policy(cursor)
        }
        sites = await sites_of(cursor, stations) if policies else {}
        return {
            station: policies.get((tenant, None, station))
            or (policies.get((tenant, sites[station], None)) if station in sites else None)
            or policies.get((tenant, None, None))
            for station, tenant in stations.items()
        }

    async def _step(
        self, cursor: Cursor, around: _Round, one: Speaking, kept: Kept, wanted: Selection
    ) -> None:
        head = around.heads[one.tenant_id]
        step = keeping.next_step(kept, wanted, head, around.now)
        if isinstance(step, Rest):
            if step.status is not None and step.status != kept.status:
                around.standing.append(Standing(one.station_id, step.status))
        elif isinstance(step, Lost):
            around.standing.append(_lost(kept, around.now))
        elif isinstance(step, AskVersion):
            await self._ask_version(cursor, around, one)
        else:
            await self._follow(cursor, around, one, kept, wanted, step)

    async def _ask_version(self, cursor: Cursor, around: _Round, one: Speaking) -> None:
        if one.station_id not in around.limits:
            names = _V16 if one.version == Version.V16 else _V2
            await self._put(cursor, one, GetVariables(variables=names))
        command = await self._put(cursor, one, GetLocalListVersion())
        due_by = around.now + VALID + GRACE
        around.asked.append(Asked(one.station_id, command, "version", due_by))

    async def _follow(
        self,
        cursor: Cursor,
        around: _Round,
        one: Speaking,
        kept: Kept,
        wanted: Selection,
        step: Follow,
    ) -> None:
        limits = around.limits.get(one.station_id, Limits())
        if limits.entries is not None and wanted.keeps:
            many = await self._count(cursor, around, one.tenant_id, wanted)
            if many > limits.entries:
                reason = (
                    f"the policy names {many} id tokens and the station takes {limits.entries};"
                    " name groups, or fewer"
                )
                if (kept.status, kept.reason) != (Status.TOO_LONG, reason):
                    around.standing.append(Standing(one.station_id, Status.TOO_LONG, reason))
                return
        head, limit = around.heads[one.tenant_id], limits.per_message
        through, found = await self._part(cursor, around, one.tenant_id, wanted, step, limit)
        if not found and not step.full:
            around.through[one.station_id] = head
            around.standing.append(Standing(one.station_id, Status.IN_SYNC))
            return
        groups = wanted.groups if wanted.keeps else ()
        portion = ListPortion(
            number=step.number,
            full=step.full,
            groups=groups,
            after=step.after,
            through=through,
            floor=step.floor,
            limit=limit,
        )
        command = await self._put(cursor, one, portion)
        around.asked.append(
            Asked(
                one.station_id,
                command,
                "full" if step.full else "differential",
                around.now + VALID + GRACE,
                wanted.text,
                step.number,
                through,
                step.floor,
            )
        )

    async def _part(
        self,
        cursor: Cursor,
        around: _Round,
        tenant: TenantId,
        wanted: Selection,
        step: Follow,
        limit: int,
    ) -> tuple[int, int]:
        """Where the next message's changes end, and how many they are; shared by a fleet."""
        head = around.heads[tenant]
        if not wanted.keeps:
            return head, 0
        key = (tenant, wanted.text, step.after, step.floor, limit)
        if key not in around.parts:
            span = (step.after, head)
            found = await list_store.changes(cursor, tenant, wanted.groups, span, step.floor, limit)
            around.parts[key] = (found[-1][0] if len(found) == limit else head, len(found))
        return around.parts[key]

    async def _count(
        self, cursor: Cursor, around: _Round, tenant: TenantId, wanted: Selection
    ) -> int:
        key = (tenant, wanted.text)
        if key not in around.counts:
            around.counts[key] = await list_store.count(cursor, tenant, wanted.groups)
        return around.counts[key]

    async def _put(self, cursor: Cursor, one: Speaking, do: AnyAsk | ListPortion) -> UUID:
        return await self._link.put(cursor, one.tenant_id, one.station_id, do, VALID, ACTOR)


class ListHandover:
    """A station's list goes along with it: the old tenant's has to go, the new one's to come."""

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        await list_store.hand_over(cursor, move.station_id, move.new)
        await list_store.wake(cursor)


def _lost(kept: Kept, now: datetime) -> Standing:
    failures = kept.failures + 1
    return Standing(
        kept.station_id,
        Status.FAILED,
        "the station did not answer in time",
        failures=failures,
        not_before=keeping.try_again(failures, now),
        settled=True,
        unsure=True,
    )


def _scope_name(policy: Policy) -> str:
    if policy.station_id is not None:
        return "station"
    return "tenant" if policy.site_id is None else "site"
