"""What people and programs ask of stations that speak OCPP: everyday asks, and calls as they are.

An ask is put into the station's words when it goes out, so that it may wait for a station that is
away. A call is in those words already, checked by the schema of the version that the station spoke
last, and its answer can be waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

import msgspec

from cloud.communication import ocpp_store, store
from cloud.communication.answers import Answers
from cloud.communication.api import (
    BadPayload,
    CommandNotSupported,
    LocalLists,
    StationDirectory,
    StationNotConnected,
    TransferRefused,
    Unanswered,
    UnknownAction,
)
from cloud.communication.ocpp_store import OcppLink
from cloud.communication.store import CommandRow
from cloud.communication.transfers import Allowed, addresses, refusal
from cloud.kernel.database import Cursor, Database
from cloud.kernel.http import Caller
from cloud.kernel.idempotency import KeyReused
from protocols.ocpp.actions import goes_down, is_secret, without_secrets
from protocols.ocpp.asking import Numbers
from protocols.ocpp.asks import AnyAsk, SetVariables, one_by_one, words
from protocols.ocpp.dialect import NotExpressible
from protocols.ocpp.schemas import SchemaError, codec
from protocols.ocpp.version import Version

VALID: Final = timedelta(minutes=2)
OPEN: Final = frozenset({"requested", "sent", "accepted"})
_NAMESPACE: Final = UUID("2f0d4a3e-3c55-4a0e-9d0b-0f3a53f0c7b1")
_LOOK_AGAIN_S: Final = 5.0
"""Should a notification be lost."""


@dataclass(frozen=True)
class Wish:
    """How a call's answer is to be had."""

    wait_s: float | None
    """None: not at all, the command's id will do."""
    valid: timedelta = VALID
    key: str | None = None
    """The same key again is the same call, and waits for the same answer."""


class Calls:
    def __init__(
        self,
        database: Database,
        directory: StationDirectory,
        lists: LocalLists,
        answers: Answers,
        clock: Callable[[], datetime],
        allowed: Allowed,
    ) -> None:
        self._database = database
        self._directory = directory
        self._lists = lists
        self._answers = answers
        self._clock = clock
        self._allowed = allowed

    # ------------------------------------------------------------------ asks

    async def ask(
        self, caller: Caller, station: str, ask: AnyAsk, valid: timedelta = VALID
    ) -> list[UUID]:
        """Queue what is asked; several commands where the version takes one thing at a time.

        Raises the directory's not-found error, CommandNotSupported, BadPayload, TransferRefused.
        """
        async with self._database.unit(caller.tenant_id) as cursor:
            station_id = await self._directory.key_of(cursor, station)
            link = await self._ocpp(cursor, station_id, station)
            asked = (ask,) if link is None else one_by_one(Version(link.version), ask)
            self._check_addresses(msgspec.to_builtins(ask))
            for one in asked:
                _demand_words(link, one)
            return [await self._store(cursor, caller, station_id, one, valid) for one in asked]

    async def next_number(self, caller: Caller) -> int:
        """A number for what the station will know by one: a reservation, a charging profile."""
        async with self._database.unit(caller.tenant_id) as cursor:
            return await ocpp_store.next_number(cursor)

    async def send_list(self, caller: Caller, station: str, valid: timedelta) -> UUID:
        """Queue the tenant's whole local list, for whichever link. Raises not-found."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station_id = await self._directory.key_of(cursor, station)
            held = await self._lists.local_list(cursor, caller.tenant_id)
            return await self._store(cursor, caller, station_id, held, valid)

    async def _ocpp(self, cursor: Cursor, station_id: int, station: str) -> OcppLink | None:
        """How it speaks OCPP, None for a station that has not connected yet.

        Raises CommandNotSupported for one that an agent speaks for.
        """
        link = await ocpp_store.link(cursor, station_id)
        if (link is None or not link.live) and await ocpp_store.is_agent(cursor, station_id):
            raise CommandNotSupported(
                f"station {station!r} is connected by an agent, whose link has no such command",
                station=station,
            )
        return link

    def _check_addresses(self, payload: Any) -> None:
        for url in addresses(payload):
            reason = refusal(url, self._allowed)
            if reason is not None:
                raise TransferRefused(f"a station must not be sent there: {reason}", reason=reason)

    async def _store(
        self, cursor: Cursor, caller: Caller, station_id: int, do: Any, valid: timedelta
    ) -> UUID:
        command, now = uuid4(), self._clock()
        await store.add_command(
            cursor, command, caller.tenant_id, station_id, do, caller.subject, now, now + valid
        )
        return command

    # ------------------------------------------------------------------ calls

    async def call(
        self, caller: Caller, station: str, action: str, payload: dict[str, Any], wish: Wish
    ) -> CommandRow:
        """Queue the call, and wait for its end if that is wished.

        Raises the directory's not-found error, UnknownAction, BadPayload, TransferRefused,
        CommandNotSupported, StationNotConnected, KeyReused, Unanswered, TooManyWaiting.
        """
        command = uuid4() if wish.key is None else _named(caller, wish.key)
        if wish.wait_s is None:
            return await self._enter(caller, command, station, action, payload, wish)
        with self._answers.expecting(command) as ended:
            row = await self._enter(caller, command, station, action, payload, wish)
            return await self._ended(caller, row, ended, wish.wait_s)

    async def _enter(
        self,
        caller: Caller,
        command: UUID,
        station: str,
        action: str,
        payload: dict[str, Any],
        wish: Wish,
    ) -> CommandRow:
        async with self._database.unit(caller.tenant_id) as cursor:
            station_id = await self._directory.key_of(cursor, station)
            link = await self._ocpp(cursor, station_id, station)
            if link is None:
                raise StationNotConnected(
                    f"station {station!r} has not connected yet, so its OCPP version is not known",
                    station=station,
                )
            request = _checked(Version(link.version), action, payload)
            self._check_addresses(request)
            if wish.key is not None:
                held = await store.command(cursor, command)
                if held is not None:
                    _demand_same(held, station_id, action, request)
                    return held
            if not link.live and wish.wait_s is not None:
                raise StationNotConnected(
                    f"station {station!r} is not connected; with `Prefer: respond-async` the call"
                    " waits for it",
                    station=station,
                )
            now = self._clock()
            valid = wish.valid if wish.wait_s is None else timedelta(seconds=wish.wait_s)
            await ocpp_store.add_call(
                cursor, command, caller, station_id, action, request, now, now + valid
            )
            return await self._row(cursor, command)

    async def _ended(
        self, caller: Caller, row: CommandRow, ended: asyncio.Event, wait_s: float
    ) -> CommandRow:
        deadline = asyncio.get_running_loop().time() + wait_s
        while row.status in OPEN:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise Unanswered(
                    f"the station did not answer within {wait_s:g} s; command {row.id} tells what"
                    " becomes of it",
                    command=str(row.id),
                    status=row.status,
                )
            try:
                async with asyncio.timeout(min(left, _LOOK_AGAIN_S)):
                    await ended.wait()
            except TimeoutError:
                pass
            ended.clear()
            async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
                row = await self._row(cursor, row.id)
        return row

    async def _row(self, cursor: Cursor, command: UUID) -> CommandRow:
        found = await store.command(cursor, command)
        assert found is not None
        return found


def _named(caller: Caller, key: str) -> UUID:
    """The command of a caller's key: known again when the request is sent again."""
    return uuid5(_NAMESPACE, f"{caller.tenant_id} {caller.subject} {key}")


def _demand_same(held: CommandRow, station_id: int, action: str, request: dict[str, Any]) -> None:
    same = (
        held.station_id == station_id
        and held.ocpp_action == action
        and without_secrets(held.request) == without_secrets(request)
    )
    if not same:
        raise KeyReused(
            "this key was used for another request; take a fresh key for each new request"
        )


def _demand_words(link: OcppLink | None, ask: AnyAsk) -> None:
    """Raises what would else come back long after the request was answered."""
    if isinstance(ask, SetVariables) and any(is_secret(one.variable) for one in ask.variables):
        raise BadPayload("passwords are not changed here; they would be kept in the clear")
    if link is None:
        return
    unnamed = Numbers(1, "unknown", 1)
    try:
        action, payload = words(Version(link.version), ask, unnamed)
    except NotExpressible as error:
        raise CommandNotSupported(str(error), version=link.version) from None
    _checked(Version(link.version), action, payload)


def _checked(version: Version, action: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The request as it goes out, judged as its reader will. Raises UnknownAction, BadPayload.

    In the asker's own spelling: a time that was read and written again has six decimals.
    """
    known = codec(version)
    if action not in known.actions or not goes_down(action):
        raise UnknownAction(
            f"{version} has no action {action!r} that a station could be asked",
            action=action,
            version=version,
        )
    try:
        written = msgspec.json.encode(payload)
        known.decode_request(action, written)
    except SchemaError as error:
        raise BadPayload(
            f"{version} refuses this {action}: {error}",
            path=error.path,
            reason=error.text,
            code=error.code,
        ) from None
    except (ValueError, OverflowError) as error:
        reason = f"it cannot be written as JSON: {error}"
        raise BadPayload(f"this {action} is refused: {reason}", path="", reason=reason) from None
    return dict(msgspec.json.decode(written))
