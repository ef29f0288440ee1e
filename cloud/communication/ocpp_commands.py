"""Commands to stations that speak OCPP: claimed by the gateway that holds one, answered by facts.

A row of `communication.command` is all that the asker and the gateway share, so they may be two
processes. NOTIFY wakes the gateway; the answer comes up the commit path as `Answered`, and the same
commit's NOTIFY wakes who waits for it (`answers.py`).

A command is put on the wire once. When its connection is lost first, what only states how
something shall be is asked again over the next one; what another time might do another thing
(`NEVER_TWICE`) has failed, since whether it was done is not known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from cloud.communication import endings
from cloud.communication import ocpp_store as store
from cloud.communication.api import ListPortion, LocalLists, NativeTransactions
from cloud.communication.commands import LATE_ANSWERS, SWEEP_S
from cloud.communication.ocpp_store import Result, Sent, Waiting
from cloud.communication.store import COMMAND_CHANNEL, SET_LOCAL_LIST
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from protocols.agent_link import Action, SetLocalList
from protocols.ocpp.actions import NEVER_TWICE, without_secrets
from protocols.ocpp.asking import Numbers
from protocols.ocpp.asks import AnyAsk, ListEntry, SendLocalList, words, writable
from protocols.ocpp.dialect import NotExpressible, Outcome, Request, RequestContext, dialect
from protocols.ocpp.messages import Answered, Boot, Connected
from protocols.ocpp.version import Version
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)
AT_ONCE: Final = 500


class Speaker(Protocol):
    """The part of a `protocols.ocpp.dialect.Dialect` that asks."""

    def ways(self, do: Action, context: RequestContext) -> tuple[Request, ...]: ...

    def outcome(self, action: str, request: Mapping[str, Any], response: Any) -> Outcome: ...


def speaker(version: str) -> Speaker:
    """By the name of the WebSocket subprotocol."""
    return dialect(Version(version))


@dataclass(frozen=True)
class Due:
    """A command, ready to go out over the connection with that epoch."""

    command: UUID
    tenant_id: TenantId
    station_id: int
    epoch: int
    action: str
    payload: dict[str, Any]
    expires_at: datetime
    kind: str = ""
    """What it is about, where it can be said in several ways."""
    way: str = ""
    known_way: str = field(default="", repr=False)
    other_ways: tuple[Request, ...] = field(default=(), repr=False)
    names_a_list: bool = False
    """Its entries are the tenant's: they are not kept with the command."""

    @property
    def kept(self) -> dict[str, Any]:
        """The request as it is stored."""
        if not self.names_a_list:
            return self.payload
        kept = {name: value for name, value in self.payload.items() if name != _LIST}
        return {**kept, "entries": len(self.payload.get(_LIST, ()))}

    @property
    def may_be_asked_again(self) -> bool:
        return self.action not in NEVER_TWICE

    def answered(self, outcome: Outcome, response: dict[str, Any]) -> Answered:
        """The fact of an answer, to be committed as `Spoken` of this station and epoch."""
        return Answered(
            command=self.command,
            action=self.action,
            request=self.kept,
            response=response,
            accepted=outcome.accepted,
            text=outcome.text,
            variables=outcome.variables,
        )

    def failed(self, text: str) -> Answered:
        """The fact that it was refused with CALLERROR, or not answered."""
        return Answered(
            command=self.command,
            action=self.action,
            request=self.kept,
            response=None,
            text=text,
        )


class OcppCommands:
    """What a gateway has to send; `run` hands it over for ever."""

    def __init__(
        self,
        database: Database,
        lists: LocalLists,
        transactions: NativeTransactions,
        clock: Callable[[], datetime],
        speaker_of: Callable[[str], Speaker] = speaker,
    ) -> None:
        self._database = database
        self._speaker_of = speaker_of
        self._lists = lists
        self._transactions = transactions
        self._clock = clock
        self._claiming = asyncio.Lock()
        self._woken = asyncio.Event()
        self._learned: dict[int, dict[str, str]] = {}

    def wake(self) -> None:
        """Look again: a station connected, or has answered and may be asked the next thing."""
        self._woken.set()

    async def run(self, gateway: UUID, hand_over: Callable[[Sequence[Due]], None]) -> None:
        """Hand over what is due, for ever; NOTIFY and `wake` wake it, and time does."""
        listening = asyncio.create_task(
            self._database.wake_on(COMMAND_CHANNEL, self._woken), name="listen for OCPP commands"
        )
        try:
            while True:
                self._woken.clear()
                try:
                    if due := await self.due(gateway):
                        hand_over(due)
                    await self.expire()
                except Unavailable as error:
                    logger.warning("OCPP commands wait: %s", error)
                try:
                    async with asyncio.timeout(SWEEP_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    # ------------------------------------------------------------------ claiming

    async def due(self, gateway: UUID) -> list[Due]:
        """Claim the next command of each station that this gateway holds; they count as sent.

        At most one per station, and none while another is with it.
        """
        async with self._claiming, self._database.commit_unit() as cursor:
            now = self._clock()
            learned, self._learned = self._learned, {}
            if learned:
                await store.note_learned(cursor, learned)
            ended = await store.give_up_lost(cursor, gateway, NEVER_TWICE, now)
            waiting = await store.claim(cursor, gateway, now, AT_ONCE)
            found, unfit = await self._worded(cursor, waiting, now)
            if found:
                sent = [Sent(one.command, one.epoch, one.action, one.kept) for one in found]
                await store.note_sent(cursor, sent, now)
            if unfit:
                ended += await store.fail(cursor, unfit, now)
            await endings.tell(cursor, ended)
        return found

    async def _worded(
        self, cursor: Cursor, waiting: Sequence[Waiting], now: datetime
    ) -> tuple[list[Due], dict[UUID, str]]:
        """What can go out, and why the rest cannot."""
        lists = {
            tenant: await self._lists.local_list(cursor, tenant)
            for tenant in {TenantId(one.tenant_id) for one in waiting if _names_a_list(one)}
        }
        portions = await self._portions(cursor, waiting)
        stops = {one.id: UUID(one.action["transaction"]) for one in waiting if _names_one(one)}
        names = await self._transactions.native(cursor, set(stops.values())) if stops else {}
        found, unfit = [], {}
        for one in waiting:
            try:
                native = names.get(stops[one.id]) if one.id in stops else None
                if one.id in portions:
                    found.append(_portion(one, portions[one.id]))
                else:
                    found.append(self._word(one, lists, native, now))
            except (NotExpressible, msgspec.ValidationError) as error:
                unfit[one.id] = str(error)
        return found, unfit

    async def _portions(
        self, cursor: Cursor, waiting: Sequence[Waiting]
    ) -> dict[UUID, SendLocalList]:
        """What goes out for parts of local lists; stations at the same point take the same."""
        made: dict[tuple[int, ListPortion], tuple[ListEntry, ...]] = {}
        found = {}
        for one in waiting:
            if one.action.get("action") != _PORTION:
                continue
            portion = msgspec.convert(one.action, ListPortion)
            same = (one.tenant_id, msgspec.structs.replace(portion, number=0))
            if same not in made:
                tenant = TenantId(one.tenant_id)
                made[same] = await self._lists.portion(cursor, tenant, portion)
            found[one.id] = SendLocalList(
                version=portion.number, differential=not portion.full, entries=made[same]
            )
        return found

    def _word(
        self,
        one: Waiting,
        lists: Mapping[TenantId, SetLocalList],
        native: tuple[str | None, int | None] | None,
        now: datetime,
    ) -> Due:
        due = _due(one)
        if one.action["action"] == store.OCPP_CALL:
            return due
        do = lists[due.tenant_id] if _names_a_list(one) else as_deed(one.action)
        if _names_one(one) and native is None:
            raise NotExpressible("the station has not told its own name of this transaction")
        key, number = native or (None, None)
        if isinstance(do, AnyAsk):
            action, payload = words(Version(one.version), do, Numbers(one.number, key, number))
            return replace(due, action=action, payload=_plain(payload))
        kind = _kind(one.action)
        context = RequestContext(
            now_ms=Milliseconds(round(now.timestamp() * 1000)),
            remote_start_id=one.number,
            transaction_key=key,
            transaction_number=number,
            way=one.learned.get(kind, ""),
        )
        ways = self._speaker_of(one.version).ways(do, context)
        first, *others = sorted(ways, key=lambda way: way.way != context.way)
        due = replace(
            due,
            kind=kind,
            known_way=context.way,
            other_ways=tuple(others),
            names_a_list=_names_a_list(one),
        )
        return _asking(due, first)

    async def give_back(self, due: Collection[Due]) -> None:
        """These were claimed and never put on the wire: they wait again."""
        async with self._database.commit_unit() as cursor:
            await store.give_back(cursor, [one.command for one in due])

    # ------------------------------------------------------------------ answers

    def next_request(self, due: Due, outcome: Outcome) -> Due | None:
        """The same command put another way, after the station refused this one; None: no other.

        The way that it took is remembered for as long as it runs the same firmware.
        """
        if outcome.accepted:
            if due.way != due.known_way:
                self._learned.setdefault(due.station_id, {})[due.kind] = due.way
            return None
        if not due.other_ways:
            return None
        first, *others = due.other_ways
        return replace(_asking(due, first), other_ways=tuple(others))

    async def expire(self) -> None:
        """Give up what nobody answered."""
        now = self._clock()
        async with self._database.commit_unit() as cursor:
            await endings.expire(cursor, now - LATE_ANSWERS, now)


_LIST: Final = "localAuthorizationList"
_PORTION: Final[str] = ListPortion.__struct_config__.tag  # type: ignore[assignment]


def _due(one: Waiting) -> Due:
    return Due(
        one.id,
        TenantId(one.tenant_id),
        one.station_id,
        one.epoch,
        one.ocpp_action or "",
        one.request or {},
        one.expires_at,
    )


def _portion(one: Waiting, ask: SendLocalList) -> Due:
    """In the station's words, without what these cannot write: nobody can show that there."""
    version = Version(one.version)
    sent = msgspec.structs.replace(ask, entries=writable(version, ask.entries))
    action, payload = words(version, sent, Numbers(one.number))
    return replace(_due(one), action=action, payload=_plain(payload), names_a_list=True)


def as_deed(action: dict[str, Any]) -> Action | AnyAsk:
    """A command's action as it is kept, typed. Raises msgspec.ValidationError."""
    deed: Action | AnyAsk = msgspec.convert(action, _DEED)
    return deed


_DEED: Final[Any] = Action | AnyAsk


def _plain(payload: dict[str, Any]) -> dict[str, Any]:
    """As it goes over the wire: times as text."""
    return dict(msgspec.json.decode(msgspec.json.encode(payload)))


def _asking(due: Due, request: Request) -> Due:
    return replace(due, action=request.action, payload=request.payload, way=request.way)


def _kind(action: dict[str, Any]) -> str:
    """What ways are remembered for: a station may take another one for itself than for an EVSE."""
    return f"{action['action']} {'evse' if action.get('evse') else 'station'}"


def _names_a_list(one: Waiting) -> bool:
    return one.action.get("action") == SET_LOCAL_LIST


def _names_one(one: Waiting) -> bool:
    return one.action.get("transaction") is not None


class OcppAnswers:
    """The commit path's part: what stations answered, and what else commands depend on."""

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        told = [one for one in spoken if isinstance(one.told, Answered | Connected | Boot)]
        if not told:
            return []
        await _note_links(cursor, told)
        results = {
            one.told.command: _result(one, one.told)
            for one in told
            if isinstance(one.told, Answered)
        }
        if not results:
            return []
        ended = await store.settle(cursor, list(results.values()))
        await store.wake_next(cursor, {one.station_id for one in results.values()})
        return await endings.settled(cursor, ended)


async def _note_links(cursor: Cursor, told: Sequence[Spoken]) -> None:
    versions = {
        one.station_id: (one.tenant_id, one.told.version, one.received_at)
        for one in told
        if isinstance(one.told, Connected)
    }
    if versions:
        await store.note_versions(cursor, versions)
    booted = {one.station_id: one.told.firmware for one in told if isinstance(one.told, Boot)}
    if booted:
        await store.note_firmwares(cursor, booted)


def _result(one: Spoken, told: Answered) -> Result:
    status = "failed" if told.response is None else "executed" if told.accepted else "rejected"
    return Result(
        id=told.command,
        station_id=one.station_id,
        status=status,
        text=told.text,
        action=told.action,
        request=without_secrets(told.request),
        response=None if told.response is None else without_secrets(told.response),
        at=one.received_at,
    )


@asynccontextmanager
async def running(
    commands: OcppCommands, gateway: UUID, hand_over: Callable[[Sequence[Due]], None]
) -> AsyncIterator[None]:
    """`run` as long as the block."""
    task = asyncio.create_task(commands.run(gateway, hand_over), name="OCPP commands")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
