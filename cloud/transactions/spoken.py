"""Transactions' part of the commit path for what OCPP stations say themselves.

However many messages a commit holds, it takes a fixed number of statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from cloud.authorization.api import refer, refer_ask
from cloud.communication.api import Begun, RemoteStarts
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from cloud.kernel.turns import Ask
from cloud.stations.api import date_told, former_owners, former_owners_ask, to_ms
from cloud.tariffs.api import Cost, PriceBook
from cloud.transactions import costs
from cloud.transactions import history_store as history
from cloud.transactions.history_store import Held, Native, Sought
from cloud.transactions.native import (
    NativeEvent,
    fingerprint,
    of_meter,
    of_status,
    of_transaction,
    stop_fingerprint,
)
from cloud.transactions.projection import State, Step
from cloud.transactions.sessions import Routed, Session, Sessions, Stranger, Told, long_over
from cloud.transactions.writing import Arrived, record
from protocols.agent_link import IdToken, TransactionEventType
from protocols.ocpp.messages import Answer, Meter, Status, Transaction
from protocols.quantities import Milliseconds

_STARTED = TransactionEventType.STARTED
_FOLLOWED_WITHIN: Final = timedelta(days=8)
"""Between a command and the transaction that it began."""


@dataclass(slots=True)
class _Heard:
    """A message that may be about a transaction."""

    spoken: Spoken
    message: Transaction | Meter | Status
    told: Told

    @property
    def starts(self) -> bool:
        return isinstance(self.message, Transaction) and self.message.event is _STARTED

    @property
    def starts_16(self) -> bool:
        return self.starts and isinstance(self.message, Transaction) and self.message.key is None

    def begun(self, row: Held | None) -> Begun | None:
        """What may show which command began it; None when that is known, or was none."""
        message, told = self.message, self.told
        if not isinstance(message, Transaction):
            return None
        token = message.id_token.value if message.id_token else ""
        number = told.content.remote_start_id
        if message.key is None:
            known = row is not None and row.projection.start_seen
            asks = self.starts and bool(token) and not known
        else:
            known = row is not None and row.projection.remote_start_id is not None
            asks = number is not None and not known
        return Begun(told.station, number, message.evse, token, told.at.at) if asks else None

    @property
    def tells_cost(self) -> bool:
        """Whether the answer has a place for what the transaction costs: 2.x's, but the first."""
        message = self.message
        return isinstance(message, Transaction) and message.key is not None and not self.starts

    @property
    def number(self) -> int | None:
        """1.6's number, when it can be one of ours."""
        number = None if isinstance(self.message, Status) else self.message.number
        return number if number is not None and 0 < number < 2**31 else None


def foresee(spoken: Sequence[Spoken]) -> Iterator[Ask]:
    """What `write` will ask in any case."""
    heard = list(_heard(spoken))
    asked = history.find_ask(_sought(heard))
    if asked is not None:
        yield asked
    transactions = [one for one in heard if isinstance(one.message, Transaction)]
    if transactions:
        yield former_owners_ask({one.told.station for one in transactions})
    if tokens := _tokens(transactions):
        yield refer_ask(tokens)
    if starts := sum(one.starts_16 for one in transactions):
        yield history.numbers_ask(starts)


async def write(
    cursor: Cursor,
    spoken: Sequence[Spoken],
    book: PriceBook,
    remote_starts: RemoteStarts | None = None,
) -> list[Event]:
    """Store what these messages tell of transactions; numbers and costs go into their answers."""
    heard = list(_heard(spoken))
    if not heard:
        return []
    transactions = [one for one in heard if isinstance(one.message, Transaction)]
    if transactions:
        await _of_their_time(cursor, transactions)
        await _know_tokens(cursor, transactions)
    held = await history.find(cursor, _sought(heard))
    unknown = _unknown(heard, held.values())
    foreign: set[int] = set()
    if unknown:
        held |= await history.find(cursor, _sought_without_number(unknown))
        foreign = await history.given(cursor, {one.number for one in unknown if one.number})
    starts = sum(one.starts_16 for one in transactions)
    numbers = await history.draw_numbers(cursor, starts) if starts else []
    sessions = Sessions(map(_session, held.values()), iter(numbers))
    return await _record(cursor, heard, held, sessions, foreign, book, remote_starts)


def _heard(spoken: Iterable[Spoken]) -> Iterator[_Heard]:
    for one in spoken:
        message = one.told
        if not isinstance(message, Transaction | Meter | Status):
            continue
        content = _content(message, one.received_at)
        if content is None:
            continue
        trusted, received = isinstance(message, Status) or message.clock_trusted, one.received_at
        begin = content.begin_ms
        told = Told(
            one.station_id,
            one.tenant_id,
            date_told(content.at_ms, received, trusted=trusted),
            None if begin is None else date_told(begin, received, trusted=trusted),
            content,
        )
        yield _Heard(one, message, told)


def _content(message: Transaction | Meter | Status, received_at: datetime) -> NativeEvent | None:
    """What it says of a transaction, if it does."""
    if isinstance(message, Transaction):
        return of_transaction(message)
    if isinstance(message, Status):
        return of_status(message, Milliseconds(to_ms(received_at)))
    return of_meter(message) if message.number is not None or message.evse > 0 else None


async def _of_their_time(cursor: Cursor, heard: Sequence[_Heard]) -> None:
    """A transaction belongs to the tenant that owned the station when it began."""
    owners = await former_owners(cursor, {one.told.station for one in heard})
    if not owners:
        return
    for one in heard:
        at = one.told.at.at
        earlier = (f.tenant_id for f in owners.get(one.told.station, ()) if at < f.until)
        one.told = one.told._replace(tenant=next(earlier, one.told.tenant))


async def _know_tokens(cursor: Cursor, heard: Sequence[_Heard]) -> None:
    refs = await refer(cursor, _tokens(heard))
    for one in heard:
        if isinstance(one.message, Transaction) and one.message.id_token:
            token = refs[one.told.tenant, one.message.id_token]
            one.told = one.told._replace(token=token)


def _tokens(heard: Iterable[_Heard]) -> set[tuple[TenantId, IdToken]]:
    return {
        (one.told.tenant, one.message.id_token)
        for one in heard
        if isinstance(one.message, Transaction) and one.message.id_token
    }


def _sought(heard: Iterable[_Heard]) -> Sought:
    """Which transactions the messages may be about, as far as they tell at once."""
    sought = Sought()
    for one in heard:
        message, station = one.message, one.told.station
        if one.number is not None:
            sought.numbers.append((station, one.number))
        elif isinstance(message, Status):
            sought.open.add(station)
        elif isinstance(message, Meter):
            sought.covering.append((station, message.evse, one.told.at.at))
        elif message.key is not None:
            sought.keys.append((station, message.key))
        elif one.starts:
            sought.keys.append((station, fingerprint(message)))
            sought.stopped.append((station, one.told.at.at))
        else:
            _seek_stopped(sought, one, message)
        if one.starts:
            sought.open.add(station)
    return sought


def _seek_stopped(sought: Sought, one: _Heard, message: Transaction) -> None:
    sought.keys.append((one.told.station, stop_fingerprint(message)))
    sought.recent.append((one.told.station, one.told.at.at))


def _unknown(heard: Iterable[_Heard], held: Iterable[Held]) -> list[_Heard]:
    """Messages with a number that this station was not given, or of what is over long since."""
    known = {
        (one.station_id, one.native.number): _session(one)
        for one in held
        if one.native.number is not None
    }
    found = []
    for one in heard:
        if one.number is None:
            continue
        session = known.get((one.told.station, one.number))
        if session is None or long_over(session, one.told):
            found.append(one)
    return found


def _sought_without_number(unknown: Iterable[_Heard]) -> Sought:
    sought = Sought()
    for one in unknown:
        if isinstance(one.message, Transaction):
            _seek_stopped(sought, one, one.message)
        elif one.message.evse > 0:
            sought.covering.append((one.told.station, one.message.evse, one.told.at.at))
    return sought


async def _record(
    cursor: Cursor,
    heard: Sequence[_Heard],
    held: Mapping[UUID, Held],
    sessions: Sessions,
    foreign: set[int],
    book: PriceBook,
    remote_starts: RemoteStarts | None,
) -> list[Event]:
    arrived: dict[tuple[UUID, UUID], Arrived] = {}
    alerts: list[Event] = []
    costing: list[tuple[UUID, Answer]] = []
    beginnings: dict[UUID, Begun] = {}
    for one in heard:
        try:
            routed = _routed(sessions, one, foreign)
        except Stranger:
            alerts.append(_alert(one))
            continue
        begun = one.begun(held.get(routed[0].session.id)) if routed else None
        if begun is not None:
            beginnings.setdefault(routed[0].session.id, begun)
        if one.tells_cost:
            costing.append((routed[0].session.id, one.spoken.answer))
        for session, event, at, started, token, fact in routed:
            arrived[event.transaction, event.id] = Arrived(
                session.tenant,
                session.station,
                one.spoken.received_at,
                Step(event, at, started, token, fact),
                Native(session.origin, session.key, session.incarnation, session.number),
            )
    commands = await _commands(cursor, beginnings, remote_starts)
    received = heard[-1].spoken.received_at
    surely_new = not any(one.spoken.doubtful for one in heard)
    written = await record(cursor, arrived, held, received, book, commands, surely_new=surely_new)
    await _tell_costs(cursor, costing, held, written.costs, book)
    return alerts + written.events


async def _commands(
    cursor: Cursor, beginnings: Mapping[UUID, Begun], remote_starts: RemoteStarts | None
) -> dict[UUID, UUID]:
    """By which command each was begun; a command begins one transaction."""
    if not beginnings or remote_starts is None:
        return {}
    fitting = await remote_starts(cursor, list(beginnings.values()))
    candidates = {command for several in fitting for command in several}
    if not candidates:
        return {}
    stations = {begun.station_id for begun in beginnings.values()}
    since = min(begun.at for begun in beginnings.values()) - _FOLLOWED_WITHIN
    taken = await history.followed(cursor, candidates, stations, since)
    found = {}
    for transaction, several in zip(beginnings, fitting, strict=True):
        command = next((one for one in several if one not in taken), None)
        if command is not None:
            found[transaction] = command
            taken.add(command)
    return found


async def _tell_costs(
    cursor: Cursor,
    costing: Sequence[tuple[UUID, Answer]],
    held: Mapping[UUID, Held],
    written: Mapping[UUID, Cost],
    book: PriceBook,
) -> None:
    """Put what each transaction costs into the answers; a repeat is told what its row says."""
    if not costing:
        return
    untouched = {one for one, _ in costing if one in held and one not in written}
    totals = {**await costs.totals(cursor, book, [held[one] for one in untouched]), **written}
    for transaction, answer in costing:
        if transaction in totals:
            answer.total_cost = costs.in_major_units(totals[transaction])


def _routed(sessions: Sessions, one: _Heard, foreign: set[int]) -> Sequence[Routed]:
    if isinstance(one.message, Meter):
        found = sessions.meter(one.told, one.message)
        return [] if found is None else [found]
    if isinstance(one.message, Status):
        found = sessions.status(one.told, one.message)
        return [] if found is None else [found]
    routed = sessions.transaction(one.told, one.message, foreign=one.number in foreign)
    if one.starts:
        one.spoken.answer.number = routed[0].session.number
    return routed


def _session(held: Held) -> Session:
    row, native = held.projection, held.native
    return Session(
        id=held.id,
        tenant=held.tenant_id,
        station=held.station_id,
        origin=native.origin,
        key=native.key or "",
        incarnation=native.incarnation,
        number=native.number,
        evse=row.evse,
        connector=row.connector,
        started_at=row.started_at,
        ended_at=row.ended_at if row.state is State.ENDED else None,
        concluded=row.concluded,
        start_seen=row.start_seen,
        start_wh=row.start_wh,
        meter_wh=row.meter_wh,
        seq_no=row.seq_no,
        last_at=row.last_at,
        token=row.token,
    )


def _alert(one: _Heard) -> Event:
    """A station names a transaction of another one: it has no effect there (attack A21)."""
    number = one.number
    return Event(
        tenant_id=one.spoken.tenant_id,
        kind="transaction.foreign_number",
        station_id=one.told.station,
        subject=f"number:{number}",
        data={"number": number},
    )
