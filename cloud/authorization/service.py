"""Entering id tokens, deciding on them, and keeping every agent's list up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from cloud.authorization import store
from cloud.authorization.api import (
    GroupExists,
    GroupNotFound,
    IdTokenExists,
    IdTokenNotFound,
)
from cloud.authorization.decision import Decision, decide
from cloud.authorization.store import Group, Token
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.stations.api import to_ms
from protocols.agent_link import Action, Hello, IdToken, LocalListEntry, SetLocalList
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


@dataclass(frozen=True)
class Entry:
    """A token as it is entered."""

    value: str
    type: str
    group: str | None
    label: str
    blocked: bool
    expires_at: datetime | None


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

    async def list_tokens(
        self,
        caller: Caller,
        after: int,
        limit: int,
        *,
        group: int | None,
        blocked: bool | None,
        text: str | None,
    ) -> list[Token]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.tokens(cursor, after, limit, group=group, blocked=blocked, text=text)

    async def token(self, caller: Caller, value: str) -> Token:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._token(cursor, value)

    async def _token(self, cursor: Cursor, value: str) -> Token:
        token = await store.token(cursor, value)
        if token is None:
            raise IdTokenNotFound(f"there is no id token {value!r}; enter it first", id_token=value)
        return token

    async def add(self, caller: Caller, entry: Entry) -> Token:
        """Raises IdTokenExists and GroupNotFound."""
        async with self._database.unit(caller.tenant_id) as cursor:
            if await store.token(cursor, entry.value) is not None:
                raise IdTokenExists(
                    f"the id token {entry.value!r} exists; change it instead",
                    id_token=entry.value,
                )
            await self._put(cursor, caller, [entry], replace=False)
            token = await self._token(cursor, entry.value)
        self._push_soon(caller.tenant_id)
        return token

    async def put(self, caller: Caller, entries: Sequence[Entry]) -> int:
        """Enter or replace many at once; returns how many. Raises GroupNotFound."""
        async with self._database.unit(caller.tenant_id) as cursor:
            count = await self._put(cursor, caller, entries, replace=True)
        self._push_soon(caller.tenant_id)
        return count

    async def _put(
        self, cursor: Cursor, caller: Caller, entries: Sequence[Entry], *, replace: bool
    ) -> int:
        now = self._clock()
        await store.bump_version(cursor, caller.tenant_id, now)
        groups = await self._groups(cursor, {entry.group for entry in entries if entry.group})
        fields: list[dict[str, Any]] = [
            {
                "value": entry.value,
                "type": entry.type,
                "group_id": groups[entry.group.lower()] if entry.group else None,
                "label": entry.label,
                "blocked": entry.blocked,
                "expires_at": entry.expires_at,
            }
            for entry in entries
        ]
        return await store.put_tokens(cursor, caller.tenant_id, fields, now, replace=replace)

    async def _groups(self, cursor: Cursor, names: set[str]) -> dict[str, int]:
        known = await store.group_ids(cursor, names)
        for name in sorted(names):
            if name.lower() not in known:
                raise GroupNotFound(
                    f"there is no id token group {name!r}; create it first", group=name
                )
        return known

    async def change(self, caller: Caller, value: str, changes: dict[str, Any]) -> Token:
        """Change the given fields of a token (those of Entry, without its value)."""
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await self._token(cursor, value)
            fields = {
                "value": held.value,
                "type": held.type,
                "group": held.group_name,
                "label": held.label,
                "blocked": held.blocked,
                "expires_at": held.expires_at,
            }
            await self._put(cursor, caller, [Entry(**{**fields, **changes})], replace=True)
            token = await self._token(cursor, value)
        self._push_soon(caller.tenant_id)
        return token

    async def delete(self, caller: Caller, value: str) -> None:
        async with self._database.unit(caller.tenant_id) as cursor:
            token = await self._token(cursor, value)
            await store.bump_version(cursor, caller.tenant_id, self._clock())
            await store.delete_token(cursor, token.id)
        self._push_soon(caller.tenant_id)

    async def add_group(self, caller: Caller, name: str) -> Group:
        async with self._database.unit(caller.tenant_id) as cursor:
            group = await store.add_group(cursor, caller.tenant_id, name, self._clock())
        if group is None:
            raise GroupExists(f"an id token group {name!r} exists", group=name)
        return group

    async def list_groups(
        self, caller: Caller, after: int, limit: int, text: str | None
    ) -> list[Group]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.groups(cursor, after, limit, text)

    # ------------------------------------------------------------------ the offline list

    async def local_list(self, cursor: Cursor, tenant: TenantId) -> SetLocalList:
        """The tenant's list as it is now.

        The version is read first: should somebody change the list meanwhile, it is newer than its
        version says, and goes out again under the next one.
        """
        version = await store.version(cursor, tenant)
        entries = tuple(_entry(token) for token in await store.all_tokens(cursor, tenant))
        return SetLocalList(version, entries)

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


def _entry(token: Token) -> LocalListEntry:
    expires = Milliseconds(to_ms(token.expires_at)) if token.expires_at else None
    return LocalListEntry(
        IdToken(token.value, token.type), expires, token.group_name, token.blocked
    )
