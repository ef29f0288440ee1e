"""Entering id tokens, deciding on them, and keeping every agent's list up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from cloud.authorization import list_store, store
from cloud.authorization.api import (
    GroupExists,
    GroupInUse,
    GroupNotFound,
    IdTokenExists,
    IdTokenNotFound,
)
from cloud.authorization.decision import Decision, decide
from cloud.authorization.store import Group, Token, TokenFilters
from cloud.communication.api import ListPortion
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.imports import (
    Importing,
    ImportReport,
    Line,
    Outcome,
    Read,
    RowReport,
    failure,
)
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import to_ms
from protocols.agent_link import Action, Hello, IdToken, LocalListEntry, SetLocalList
from protocols.ocpp.asks import ListEntry
from protocols.quantities import Milliseconds

LIST_VALID = timedelta(minutes=10)
_AGAIN_AFTER = timedelta(seconds=30)
"""A list that is under way gets this long before it is sent again."""
_SETTLE_S = 1.0
"""Changes that follow each other within this time travel as one list."""


class ListLink(Protocol):
    """The agent link, as far as lists need it."""

    async def online(self, cursor: Cursor, tenant: TenantId) -> list[int]:
        """Stations of the tenant that are connected now."""
        ...

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID: ...


_UNSAID: dict[str, Any] = {
    "type": "ISO14443",
    "group": None,
    "label": "",
    "blocked": False,
    "expires_at": None,
}
"""What a token is where its entry does not say."""


class Authorization:
    """Implements Authorizer and communication's question for the list's version."""

    def __init__(self, database: Database, link: ListLink, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._link = link
        self._clock = clock
        self._changed: set[TenantId] = set()
        self._wake = asyncio.Event()

    # ------------------------------------------------------------------ deciding

    async def decide(self, cursor: Cursor, value: str) -> Decision:
        return decide(await store.rules(cursor, value), self._clock())

    # ------------------------------------------------------------------ entering

    async def list_tokens(self, caller: Caller, part: Part, **filters: Any) -> Cut[Token]:
        """Filters are those of TokenFilters."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.tokens(cursor, part, TokenFilters(self._clock(), **filters))

    async def token(self, caller: Caller, value: str) -> Token:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._token(cursor, value)

    async def _token(self, cursor: Cursor, value: str, *, lock: bool = False) -> Token:
        token = await store.token(cursor, value, lock=lock)
        if token is None:
            raise IdTokenNotFound(f"there is no id token {value!r}; enter it first", id_token=value)
        return token

    async def add(self, caller: Caller, value: str, given: dict[str, Any]) -> Token:
        """Enter a token; `given` is what is said of it. Raises IdTokenExists and GroupNotFound."""
        async with self._database.unit(caller.tenant_id) as cursor:
            now = self._clock()
            await store.bump_version(cursor, caller.tenant_id, now)
            fields = {**await self._columns(cursor, {**_UNSAID, **given}), "value": value}
            if not await store.add_token(cursor, caller.tenant_id, fields, now):
                raise IdTokenExists(
                    f"the id token {value!r} exists; change it instead", id_token=value
                )
            token = await self._token(cursor, value)
        self._push_soon(caller.tenant_id)
        return token

    async def _columns(self, cursor: Cursor, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with their group's number instead of its name."""
        name = fields.pop("group")
        found = await store.group_ids(cursor, [name]) if name is not None else {}
        if name is not None and name not in found:
            raise GroupNotFound(f"there is no id token group {name!r}; create it first", group=name)
        return {**fields, "group_id": found.get(name)}

    async def change(
        self, caller: Caller, value: str, changes: dict[str, Any], expected: Expected
    ) -> Token:
        """Change the given fields of a token. Raises IdTokenNotFound, GroupNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            await store.bump_version(cursor, caller.tenant_id, self._clock())
            held = await self._token(cursor, value, lock=True)
            expected.check(version_of(held))
            fields = await self._columns(cursor, {**_said(held), **changes})
            await store.change_token(cursor, held.id, fields)
            token = await self._token(cursor, value)
        self._push_soon(caller.tenant_id)
        return token

    async def delete(self, caller: Caller, value: str, expected: Expected) -> None:
        """Raises IdTokenNotFound and Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            await store.bump_version(cursor, caller.tenant_id, self._clock())
            token = await self._token(cursor, value, lock=True)
            expected.check(version_of(token))
            await store.delete_token(cursor, token.id)
        self._push_soon(caller.tenant_id)

    # ------------------------------------------------------------------ entering many

    async def import_tokens(
        self, caller: Caller, importing: Importing, read: Read[Any]
    ) -> ImportReport[RowReport]:
        """Enter or change tokens; what a row leaves out stays as it is. Raises ImportRefused."""

        async def apply(cursor: Cursor, lines: Sequence[Line[Any]]) -> list[RowReport]:
            return await self._import(cursor, caller.tenant_id, lines)

        report = await importing.run(self._database, caller.tenant_id, read, apply, RowReport)
        if report.committed and (report.created or report.updated):
            self._push_soon(caller.tenant_id)
        return report

    async def _import(
        self, cursor: Cursor, tenant: TenantId, lines: Sequence[Line[Any]]
    ) -> list[RowReport]:
        now = self._clock()
        given = [(line.line, line.row.model_dump(exclude_unset=True)) for line in lines]
        names = {fields["group"] for _, fields in given if fields.get("group") is not None}
        groups = await store.group_ids(cursor, sorted(names))
        held = await store.find_tokens(cursor, [fields["value"] for _, fields in given])
        reports, changed = [], []
        for number, fields in given:
            value, name = fields.pop("value"), fields.get("group")
            if name is not None and name not in groups:
                reason = f"there is no id token group {name!r}; create it first"
                reports.append(failure(number, value, reason))
                continue
            before = held.get(value)
            said = {**(_said(before) if before else _UNSAID), **fields}
            outcome = _outcome(before, said, groups)
            reports.append(RowReport(line=number, key=value, outcome=outcome))
            if outcome is not Outcome.UNCHANGED:
                changed.append(_entered(value, said, before, groups))
        if changed:
            await store.bump_version(cursor, tenant, now)
            await store.put_tokens(cursor, tenant, changed, now)
        return reports

    # ------------------------------------------------------------------ groups

    async def add_group(self, caller: Caller, name: str) -> Group:
        async with self._database.unit(caller.tenant_id) as cursor:
            group = await store.add_group(cursor, caller.tenant_id, name, self._clock())
        if group is None:
            raise _group_exists(name)
        return group

    async def list_groups(self, caller: Caller, part: Part, text: str | None) -> Cut[Group]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.groups(cursor, part, text)

    async def group(self, caller: Caller, group_id: int) -> Group:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._group(cursor, group_id)

    async def _group(self, cursor: Cursor, group_id: int, *, lock: bool = False) -> Group:
        group = await store.group(cursor, group_id, lock=lock)
        if group is None:
            raise GroupNotFound(
                f"there is no id token group {group_id}; list the groups first", group=group_id
            )
        return group

    async def rename_group(
        self, caller: Caller, group_id: int, name: str, expected: Expected
    ) -> Group:
        """Raises GroupNotFound, GroupExists, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            await store.bump_version(cursor, caller.tenant_id, self._clock())
            expected.check(version_of(await self._group(cursor, group_id, lock=True)))
            renamed = await store.rename_group(cursor, group_id, name)
            if renamed is None:
                raise _group_exists(name)
        self._push_soon(caller.tenant_id)  # agents hold tokens with their group's name
        return renamed

    async def delete_group(self, caller: Caller, group_id: int, expected: Expected) -> None:
        """Raises GroupNotFound, GroupInUse, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._group(cursor, group_id, lock=True)))
            if not await store.delete_group(cursor, group_id):
                raise GroupInUse(
                    f"id tokens belong to group {group_id}; take them out of it first",
                    group=group_id,
                )

    # ------------------------------------------------------------------ the offline list

    async def local_list(self, cursor: Cursor, tenant: TenantId) -> SetLocalList:
        """The tenant's list as it is now.

        The version is read first: should somebody change the list meanwhile, it is newer than its
        version says, and goes out again under the next one.
        """
        version = await store.version(cursor, tenant)
        entries = tuple(_entry(token) for token in await store.all_tokens(cursor, tenant))
        return SetLocalList(version, entries)

    async def portion(
        self, cursor: Cursor, tenant: TenantId, portion: ListPortion
    ) -> tuple[ListEntry, ...]:
        """What changed of the tokens in these groups, each as it is now."""
        span = (portion.after, portion.through)
        found = await list_store.changes(
            cursor, tenant, portion.groups, span, portion.floor, portion.limit
        )
        return tuple(entry for _, entry in found)

    async def list_version(self, cursor: Cursor, tenant: TenantId) -> int:
        """The version that the tenant's agents should hold; 0 while nothing was entered."""
        return await store.version(cursor, tenant)

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        """Send the new owner's list, also an empty one, under a number the old one never had."""
        held = {
            0,
            await store.version(cursor, move.old),
            await store.forget_push(cursor, move.station_id),
        }
        version = await store.version(cursor, move.new)
        while version in held:
            version = await store.bump_version(cursor, move.new, self._clock())
        await self._push(cursor, move.new, [move.station_id], version)

    async def hello(self, cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello) -> None:
        """Send the list to an agent that greets with another one."""
        version = await store.version(cursor, tenant)
        if version and version != hello.local_list_version:
            await self._push(cursor, tenant, [station_id], version)

    def _push_soon(self, tenant: TenantId) -> None:
        self._changed.add(tenant)
        self._wake.set()

    async def run(self) -> None:
        """Push lists that changed to the agents that are connected; for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_SETTLE_S)
            self._wake.clear()
            await self.push_changed()

    async def push_changed(self) -> None:
        """Push what changed since the last call."""
        while self._changed:
            tenant = self._changed.pop()
            try:
                await self._push_tenant(tenant)
            except BaseException:
                self._push_soon(tenant)
                raise

    async def _push_tenant(self, tenant: TenantId) -> None:
        async with self._database.commit_unit() as cursor:
            version = await store.version(cursor, tenant)
            await self._push(cursor, tenant, await self._link.online(cursor, tenant), version)

    async def _push(
        self, cursor: Cursor, tenant: TenantId, stations: Sequence[int], version: int
    ) -> None:
        now = self._clock()
        pushed = await store.pushed(cursor, tenant)
        stale = [
            station
            for station in stations
            if station not in pushed
            or pushed[station][0] != version
            or now - pushed[station][1] > _AGAIN_AFTER
        ]
        if not stale:
            return
        for station in stale:  # the entries are put in when it goes out
            command = await self._link.send(
                cursor, tenant, station, SetLocalList(version, ()), LIST_VALID, "authorization"
            )
            await store.note_push(cursor, tenant, station, version, command, now)


def _said(token: Token) -> dict[str, Any]:
    """A token's fields as an entry says them."""
    said = {name: getattr(token, name) for name in _UNSAID if name != "group"}
    return {**said, "group": token.group_name}


def _outcome(before: Token | None, said: dict[str, Any], groups: Mapping[str, int]) -> Outcome:
    if before is None:
        return Outcome.CREATED
    after = _entered(before.value, said, before, groups)
    same = all(getattr(before, name) == value for name, value in after.items())
    return Outcome.UNCHANGED if same else Outcome.UPDATED


def _entered(
    value: str, said: dict[str, Any], before: Token | None, groups: Mapping[str, int]
) -> dict[str, Any]:
    """The row's columns; an existing token's spelling and unnamed group stay."""
    fields = {name: said[name] for name in said if name != "group"}
    same = before is not None and said["group"] == before.group_name
    number = before.group_id if before and same else groups.get(said["group"])
    return {**fields, "value": before.value if before else value, "group_id": number}


def _group_exists(name: str) -> GroupExists:
    return GroupExists(f"an id token group {name!r} exists; choose another name", name=name)


def _entry(token: Token) -> LocalListEntry:
    expires = Milliseconds(to_ms(token.expires_at)) if token.expires_at else None
    return LocalListEntry(
        IdToken(token.value, token.type), expires, token.group_name, token.blocked
    )
