"""The commit path: facts of many stations, one database transaction, exactly once.

`FactSink.append` returns when what it was given is committed. The group committer gathers whatever
waits, drops the batches whose numbers are committed already, calls each owning module's writer in a
fixed order, writes the event log and the stream marks, and commits all of it together. A batch that
a writer cannot take is found by halving the group on savepoints and dead-lettered; its number
counts as committed, so that the rest goes on.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable
from uuid import UUID

import msgspec
import psycopg
from psycopg.types.multirange import Multirange

from cloud.kernel import events, faultpoints
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.fencing import lives, unfenced
from cloud.kernel.handover import rightly_owned
from cloud.kernel.rows import literal
from cloud.kernel.turns import Ask
from protocols.agent_link import (
    BillingBatch,
    Ranges,
    StateBatch,
    Stream,
    TelemetryBatch,
    encode,
)
from protocols.ocpp.messages import Answer, Told

logger = logging.getLogger(__name__)
COMMIT_DEADLINE_S: Final = 10.0
ATTEMPTS: Final = 3
NUMBERS: Final = range(1, 2**53)
"""Batch numbers that every JSON reader and int8multirange can hold."""
_UNFIT: Final = (psycopg.DataError, psycopg.IntegrityError)


class Delivery(NamedTuple):
    """One batch as it came from a station."""

    station_id: int
    tenant_id: TenantId
    outbox: UUID
    received_at: datetime
    stream: Stream
    batch: BillingBatch | StateBatch | TelemetryBatch

    @property
    def mark(self) -> Mark:
        return (self.station_id, self.outbox, self.stream)


class Spoken(NamedTuple):
    """One message of a station that speaks OCPP itself, over the connection with that epoch."""

    station_id: int
    tenant_id: TenantId
    epoch: int
    """0 for the connection's own beginning, which is what gives it its epoch."""
    received_at: datetime
    told: Told
    answer: Answer
    """Writers fill in what they know; it leaves after the commit."""
    doubtful: bool = False
    """It may have been committed before: a station repeats what it got no answer to."""


Fact = Delivery | Spoken


class FactWriter(Protocol):
    """A module's part of the commit path."""

    @property
    def name(self) -> str: ...

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        """Store those facts that this module owns; each delivery is new to this database.

        An exception makes the group be halved, and in the end one delivery be dead-lettered;
        but for a lost connection or a fault of our own (a missing table or grant), which are not
        the fact's: then nothing is committed and nothing acknowledged.
        """
        ...


class SpokenWriter(Protocol):
    """A module's part of the commit path for what OCPP stations say themselves."""

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        """Store those messages that this module owns, and fill in its part of their answers.

        The same message may come again, as stations repeat what was not answered: the effect is
        that of once, and so is the answer. Exceptions are as in `FactWriter.write_batch`.
        """
        ...


Appended = TypeVar("Appended", Delivery, Spoken)


class FactSink(Protocol):
    async def append(self, facts: Sequence[Appended]) -> list[Appended]:
        """Commit these; returns those that are now committed.

        Left out are deliveries whose outbox the database does not know, and what was spoken over
        a connection that a newer one has replaced. Raises Unavailable when the database is out of
        reach: nothing of it is acknowledged then, and the same again is safe.
        """
        ...


class _RefusedError(Exception):
    """A writer could not take something among what it was given."""


@runtime_checkable
class Foreseeing(Protocol):
    """A SpokenWriter that can tell beforehand what it will ask: that comes with the BEGIN."""

    def foresee(self, spoken: Sequence[Spoken]) -> Iterable[Ask]:
        """What `write_spoken` will `ask`, should all of these count and nobody else change it.

        Nothing that a writer before it writes in the same commit may be asked for here.
        """
        ...


_Write = Callable[[Cursor, Sequence[Fact]], Awaitable[list[Event]]]


class UnknownOutboxError(Exception):
    """The outbox has never greeted this database."""


@dataclass
class _Waiting:
    facts: Sequence[Fact]
    done: asyncio.Future[list[Fact]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class GroupCommitter:
    """A FactSink that commits in this process. Use as an async context manager.

    Lingers for company as long as `linger_s`, or until `max_deliveries` wait. While one group is in
    the database, `workers` lets the next be sent after it, once `company` wait: two small commits
    at a time only get in each other's way. `append` blocks when twice `max_deliveries` wait: that
    is the back-pressure.
    """

    def __init__(
        self,
        database: Database,
        writers: Sequence[FactWriter],
        spoken_writers: Sequence[SpokenWriter] = (),
        *,
        linger_s: float = 0.02,
        max_deliveries: int = 1500,
        workers: int = 2,
        company: int = 50,
    ) -> None:
        self._database = database
        self._writers = writers
        self._spoken_writers = spoken_writers
        self._foreseeing = [one for one in spoken_writers if isinstance(one, Foreseeing)]
        self._linger_s = linger_s
        self._max = max_deliveries
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(max_deliveries * 2)
        self._workers = workers
        self._company = company
        self._count = 0
        self._committing = 0
        self._gathering = asyncio.Lock()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._run(), name=f"group committer {number}")
            for number in range(self._workers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().done.cancel()

    async def append(self, facts: Sequence[Appended]) -> list[Appended]:
        waiting = _Waiting(facts)
        await self._queue.put(waiting)
        self._count += len(facts)
        if self._count >= self._company:
            self._changed.set()
        return cast("list[Appended]", await waiting.done)

    async def _run(self) -> None:
        while True:
            group: list[_Waiting] = []
            try:
                async with self._gathering:
                    await self._gather(group)
                    self._committing += 1
                try:
                    committed = await self._commit([d for w in group for d in w.facts])
                finally:
                    self._committing -= 1
                    self._changed.set()
            except asyncio.CancelledError:
                for waiting in group:
                    waiting.done.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # the loop's root: every waiter gets its answer
                _fail(group, error)
            else:
                _answer(group, committed)

    async def _gather(self, group: list[_Waiting]) -> None:
        group.append(await self._queue.get())
        self._count -= len(group[0].facts)
        await self._linger(group[0])
        count = len(group[0].facts)
        while count < self._max and not self._queue.empty():
            group.append(self._queue.get_nowait())
            count += len(group[-1].facts)
            self._count -= len(group[-1].facts)

    async def _linger(self, first: _Waiting) -> None:
        deadline = first.since + self._linger_s  # the commit before may have used it up
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._until(lambda: self._count >= self._max)
        await self._until(lambda: not self._committing or self._count >= self._company)

    async def _until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            self._changed.clear()
            await self._changed.wait()

    async def _commit(self, facts: Sequence[Fact]) -> set[int]:
        """Commit; returns the ids() of what is committed.

        What only the event log or the marks refuse is found by halving too.
        """
        try:
            return await self._persistently(facts)
        except _UNFIT as error:
            if len(facts) == 1:
                return await self._persistently(facts, error)
        middle = len(facts) // 2
        first = await self._commit(facts[:middle])
        return first | await self._commit(facts[middle:])

    async def _persistently(
        self, facts: Sequence[Fact], unfit: Exception | None = None
    ) -> set[int]:
        """Again after a lost race or connection."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._commit_once(facts, unfit)
            except Unavailable:
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(0.05 * attempt)
        raise AssertionError

    async def _commit_once(self, facts: Sequence[Fact], unfit: Exception | None) -> set[int]:
        """Without savepoints at first, and with the last statements in the turn of the COMMIT."""
        lanes = _by_mark(fact for fact in facts if isinstance(fact, Delivery))
        said = [fact for fact in facts if isinstance(fact, Spoken)]
        asks = self._foreseen(said) if not lanes and unfit is None else ()
        async with self._database.commit_unit(COMMIT_DEADLINE_S, asks) as cursor:
            try:
                committed = await self._take(cursor, lanes, said, self._boldly(unfit))
                faultpoints.reach(faultpoints.BEFORE_COMMIT)
                await _close(cursor)
            except _RefusedError:
                cursor.let_go()
                await cursor.execute(b"ROLLBACK")
                await cursor.execute(b"BEGIN")
                committed = await self._take(cursor, lanes, said, self._carefully)
                faultpoints.reach(faultpoints.BEFORE_COMMIT)
        faultpoints.reach(faultpoints.AFTER_COMMIT)
        return committed

    def _foreseen(self, said: Sequence[Spoken]) -> list[Ask]:
        asked = lives(said)
        return [
            *((asked,) if asked else ()),
            *(ask for one in self._foreseeing for ask in one.foresee(said)),
        ]

    async def _take(
        self, cursor: Cursor, lanes: Lanes, said: Sequence[Spoken], write: _Write
    ) -> set[int]:
        """Returns the ids() of what is committed if the transaction is."""
        spoken = await unfenced(cursor, said) if said else {}
        fresh: list[Fact] = [*spoken.values()]
        happened: list[Event] = []
        if lanes:
            lanes, new, happened = await _unseen_of(cursor, lanes)
            fresh = [*new, *fresh]
        if fresh:
            happened += await write(cursor, fresh)
        if lanes:
            await _store_marks(cursor, lanes)
        await events.append(cursor, happened)
        return {id(d) for lane in lanes.values() for d in lane} | spoken.keys()

    def _boldly(self, unfit: Exception | None) -> _Write:
        """All of it or a refusal; or all of it buried, when it is known to be unfit."""

        async def write(cursor: Cursor, fresh: Sequence[Fact]) -> list[Event]:
            if unfit is not None:
                return [await _bury(cursor, fact, unfit) for fact in fresh]
            try:
                return await self._write_all(cursor, fresh, hold_back=True)
            except Exception as error:  # whatever a writer trips over must not stop the stream
                if _is_ours(error):
                    raise
                raise _RefusedError from error

        return write

    async def _carefully(self, cursor: Cursor, fresh: Sequence[Fact]) -> list[Event]:
        """Find by halving what a writer refuses, and bury it."""
        try:
            async with cursor.connection.transaction():
                return await self._write_all(cursor, fresh)
        except Exception as error:
            if _is_ours(error):
                raise
            if len(fresh) == 1:
                return [await _bury(cursor, fresh[0], error)]
        middle = len(fresh) // 2
        return [
            *await self._carefully(cursor, fresh[:middle]),
            *await self._carefully(cursor, fresh[middle:]),
        ]

    async def _write_all(
        self, cursor: Cursor, fresh: Sequence[Fact], *, hold_back: bool = False
    ) -> list[Event]:
        happened: list[Event] = []
        if deliveries := [fact for fact in fresh if isinstance(fact, Delivery)]:
            for writer in self._writers:
                happened += await writer.write_batch(cursor, deliveries)
        if hold_back:
            cursor.hold_back()
        if spoken := [fact for fact in fresh if isinstance(fact, Spoken)]:
            for listener in self._spoken_writers:
                happened += await listener.write_spoken(cursor, spoken)
        return happened


async def _close(cursor: Cursor) -> None:
    """Commit with what was held back. Raises _RefusedError when some of it is not accepted."""
    try:
        await cursor.commit()
    except psycopg.Error as error:
        if _is_ours(error):
            raise
        raise _RefusedError from error


def _answer(group: Iterable[_Waiting], committed: set[int]) -> None:
    for waiting in group:
        if not waiting.done.done():
            waiting.done.set_result([d for d in waiting.facts if id(d) in committed])


def _is_ours(error: Exception) -> bool:
    """Whether the database or this software is to blame and not the fact: then nothing is lost.

    A ProgrammingError without a code is the driver's, about a value that it cannot write.
    """
    if isinstance(error, psycopg.ProgrammingError):
        return error.sqlstate is not None
    return isinstance(
        error,
        Unavailable
        | psycopg.OperationalError
        | psycopg.InterfaceError
        | psycopg.InternalError
        | psycopg.NotSupportedError,
    )


def _fail(group: Iterable[_Waiting], error: Exception) -> None:
    logger.error("commit failed: %s", error)
    if not isinstance(error, Unavailable):
        cause, error = error, Unavailable(f"the commit path failed, nothing is committed: {error}")
        error.__cause__ = cause
    for waiting in group:
        if not waiting.done.done():
            waiting.done.set_exception(error)


# --------------------------------------------------------------------------- marks

Mark = tuple[int, UUID, str]
"""Which stream of which outbox of which station."""
Lanes = dict[Mark, list[Delivery]]


def _by_mark(deliveries: Iterable[Delivery]) -> Lanes:
    lanes: Lanes = {}
    for delivery in deliveries:
        lanes.setdefault(delivery.mark, []).append(delivery)
    return lanes


async def _unseen_of(cursor: Cursor, lanes: Lanes) -> tuple[Lanes, list[Delivery], list[Event]]:
    """The lanes of known outboxes, locked; what is new in them; and what was buried at once."""
    marks = await _lock_marks(cursor, lanes)
    lanes = {mark: lane for mark, lane in lanes.items() if mark in marks}
    happened, fresh = [], []
    for mark, lane in lanes.items():
        numbered = [d for d in lane if _is_numbered(d)]
        fresh += _unseen(numbered, marks[mark])
        happened += [
            await _bury(cursor, d, ValueError("a number out of bounds"))
            for d in lane
            if not _is_numbered(d)
        ]
    return lanes, await rightly_owned(cursor, fresh), happened


async def _lock_marks(cursor: Cursor, marks: Iterable[Mark]) -> dict[Mark, Ranges]:
    """The committed ranges of each known outbox concerned, locked in one order for everybody."""
    wanted = sorted(marks, key=lambda mark: (mark[0], str(mark[1]), mark[2]))
    await cursor.execute(
        "SELECT m.station_id, m.outbox, m.stream, m.committed FROM kernel.outbox_mark m"
        " JOIN unnest(%s::int[], %s::uuid[], %s::text[]) AS k(station_id, outbox, stream)"
        " USING (station_id, outbox, stream)"
        " ORDER BY m.station_id, m.outbox, m.stream FOR UPDATE OF m",
        _columns(wanted),
    )
    return {(row[0], row[1], row[2]): to_ranges(row[3]) for row in await cursor.fetchall()}


def _is_numbered(delivery: Delivery) -> bool:
    batch = delivery.batch
    return 0 < batch.seq < NUMBERS.stop and 0 <= batch.floor < NUMBERS.stop


def _unseen(lane: Iterable[Delivery], committed: Ranges) -> list[Delivery]:
    """Those of one stream whose numbers are new, each number once."""
    found: dict[int, Delivery] = {}
    for delivery in lane:
        number = delivery.batch.seq
        if number not in found and not _contains(committed, number):
            found[number] = delivery
    return list(found.values())


def _contains(ranges: Ranges, number: int) -> bool:
    at = bisect_right(ranges, number, key=itemgetter(0)) - 1
    return at >= 0 and number <= ranges[at][1]


async def _store_marks(cursor: Cursor, lanes: Lanes) -> None:
    added = [_settled(lane) for lane in lanes.values()]
    await cursor.at_last(
        "UPDATE kernel.outbox_mark m SET committed = m.committed + k.added::int8multirange"
        " FROM unnest(%s::int[], %s::uuid[], %s::text[], %s::text[])"
        " AS k(station_id, outbox, stream, added) WHERE m.station_id = k.station_id"
        " AND m.outbox = k.outbox AND m.stream = k.stream",
        (*_columns(lanes), literal(f'"{ranges}"' for ranges in added)),
    )


def _columns(marks: Iterable[Mark]) -> tuple[str, str, str]:
    keys = list(marks)
    stations, outboxes, streams = ([key[at] for key in keys] for at in range(3))
    return literal(stations), literal(outboxes), literal(streams)


def _settled(lane: Iterable[Delivery]) -> str:
    """What these batches of one stream settle, as a multirange: their numbers, and below floors."""
    numbered = [d for d in lane if _is_numbered(d)]
    ranges = list(ranges_of({d.batch.seq for d in numbered}))
    floors = [d.batch.floor for d in numbered if d.stream is not Stream.BILLING]
    if floors and max(floors) > 1:
        ranges.append((1, max(floors) - 1))
    return "{" + ",".join(f"[{first},{last}]" for first, last in ranges) + "}"


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Numbers as ascending inclusive pairs."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def to_ranges(committed: Multirange[int]) -> Ranges:
    """A multirange as the agent link writes it: ascending inclusive pairs."""
    return tuple((int(r.lower or 0), int(r.upper or 0) - 1) for r in committed)


# --------------------------------------------------------------------------- dead letters


LONGEST_PAYLOAD: Final = 8 * 1024 * 1024


async def _bury(cursor: Cursor, fact: Fact, error: Exception) -> Event:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(fact, Delivery):
        topic = f"{fact.stream} {fact.outbox} {fact.batch.seq}"
        payload = encode(fact.batch)
    else:
        topic = f"ocpp {type(fact.told).__name__}"
        payload = msgspec.json.encode(fact.told)
        fact.answer.unstored = reason
    logger.error("dead letter: station %s, %s: %s", fact.station_id, topic, reason)
    await dead_letter(cursor, topic, reason, payload, fact.tenant_id, fact.station_id)
    return Event(
        tenant_id=fact.tenant_id,
        kind="fact.dead_lettered",
        station_id=fact.station_id,
        subject=topic.replace(" ", ":"),
        data={"reason": _text(reason)},
    )


async def dead_letter(
    cursor: Cursor,
    topic: str,
    reason: str,
    payload: bytes,
    tenant: TenantId | None,
    station_id: int | None,
) -> None:
    """Keep what could not be taken, with the reason, both cut to what a table should hold."""
    await cursor.execute(
        "INSERT INTO kernel.dead_letter (tenant_id, station_id, topic, reason, payload)"
        " VALUES (%s, %s, %s, %s, %s)",
        (tenant, station_id, _text(topic), _text(reason), payload[:LONGEST_PAYLOAD]),
    )


async def forget_refused(cursor: Cursor, keep: int) -> None:
    """Forget the oldest messages that belonged to no station; facts are never forgotten here."""
    await cursor.execute(
        "DELETE FROM kernel.dead_letter WHERE station_id IS NULL AND id <= ("
        " SELECT id FROM kernel.dead_letter WHERE station_id IS NULL"
        " ORDER BY id DESC OFFSET %s LIMIT 1)",
        (keep,),
    )


def _text(anything: str) -> str:
    """Text that PostgreSQL can hold: no NUL, no lone surrogate."""
    return (
        anything.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:2000]
    )
