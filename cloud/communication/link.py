"""The agent link's cloud side: hello to welcome, batch to commit to ack, presence, commands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as Counted
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID, uuid4

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from cloud.communication import store
from cloud.communication.api import (
    Greeted,
    Known,
    ListVersion,
    StationDirectory,
    TransactionBook,
)
from cloud.communication.commands import Commands
from cloud.communication.greeting import judge
from cloud.communication.receiver import Received, Receiver
from cloud.kernel import events, faultpoints
from cloud.kernel.database import Database
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.facts import (
    NUMBERS,
    Delivery,
    FactSink,
    dead_letter,
    forget_refused,
    ranges_of,
)
from cloud.kernel.observability import log_context
from protocols.agent_link import (
    Ack,
    Batch,
    BillingBatch,
    Command,
    Down,
    Hello,
    LinkError,
    Presence,
    Stamp,
    StateBatch,
    Stream,
    TelemetryBatch,
    Up,
    Verdict,
    Welcome,
    decode_up,
    down_topic,
    encode,
    parse_up_topic,
)
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

DIRECTORY_TTL_S: Final = 30.0
SEEN_EVERY_S: Final = 5.0
RETRY_S: Final = 1.0
DEAD_LETTERS_A_MINUTE: Final = 60
LONGEST_DEAD_LETTER: Final = 64 * 1024
MOST_DEAD_LETTERS: Final = 10_000
MOST_AT_WORK: Final = 8192
"""Messages under way at once; a broker that redelivers while the database is away adds to them."""

T = TypeVar("T")
AckKey = tuple[str, UUID, Stream]
_STREAMS: Final = {Up(stream): stream for stream in Stream}
_BATCHES: Final = (BillingBatch, StateBatch, TelemetryBatch)
_parse_topic = lru_cache(maxsize=65_536)(parse_up_topic)


@lru_cache(maxsize=65_536)
def _ack_topic(identity: str) -> str:
    return down_topic(identity, Down.ACK)


class _Taken(NamedTuple):
    message: Received
    identity: str
    delivery: Delivery


class AgentLink:
    """Runs the link over a Receiver; `run` ends only by cancellation."""

    def __init__(
        self,
        database: Database,
        receiver: Receiver,
        sink: FactSink,
        commands: Commands,
        *,
        directory: StationDirectory,
        book: TransactionBook,
        lists: ListVersion,
        greeted: Sequence[Greeted],
        clock: Callable[[], datetime],
        registry: CollectorRegistry,
        retry_s: float = RETRY_S,
    ) -> None:
        self.cloud = uuid4()
        self._database = database
        self._receiver = receiver
        self._sink = sink
        self._commands = commands
        self._directory = directory
        self._book = book
        self._lists = lists
        self._greeted = greeted
        self._clock = clock
        self._known: dict[str, tuple[float, Known | None]] = {}
        self._seen: dict[int, datetime] = {}
        self._retry_s = retry_s
        self._greeting: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._newest: dict[str, Stamp] = {}
        """When each station's latest hello was sent."""
        self._acks: dict[AckKey, set[int]] = defaultdict(set)
        self._acked: list[Received] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work = 0
        self._buried = (0.0, 0)
        received = Counter(
            "karvon_link_received", "Messages from agents", ["channel"], registry=registry
        )
        self._counts: Counted[Up] = Counted()
        self._received = {channel: received.labels(channel) for channel in Up}
        self._refused = Counter(
            "karvon_link_refused", "Messages that could not be taken", registry=registry
        )
        self._lag = Gauge(
            "karvon_link_waiting", "Messages taken and not yet settled", registry=registry
        )

    async def run(self) -> None:
        """Take messages, deliver commands, note who was seen."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(), name="agent link: receive")
            group.create_task(
                self._commands.run(self._publish_command), name="agent link: commands"
            )
            group.create_task(self._note_seen(), name="agent link: seen")

    async def _receive(self) -> None:
        while True:
            messages = await self._receiver.inbox.get()
            while self._at_work >= MOST_AT_WORK:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            received_at = self._clock()
            self._counts.clear()
            batches = [
                self._at_once(message, received_at) or await self._take(message, received_at)
                for message in messages
            ]
            for channel, count in self._counts.items():
                self._received[channel].inc(count)
            if taken := [one for one in batches if one is not None]:
                self._start([one.message for one in taken], self._commit(taken))

    def _at_once(self, message: Received, received_at: datetime) -> _Taken | None:
        """A sound batch of a station known by now, which most are: a coroutine costs half of it."""
        try:
            identity, channel = _parse_topic(message.topic)
            stream, known = _STREAMS.get(channel), self._fresh(identity)
            if stream is None or known is None or message.retained:
                return None
            content = _checked(decode_up(channel, message.payload))
        except LinkError:
            return None
        assert isinstance(content, _BATCHES)
        self._counts[channel] += 1
        self._seen[known.id] = received_at
        delivery = Delivery(known.id, known.tenant_id, content.outbox, received_at, stream, content)
        return _Taken(message, identity, delivery)

    async def _take(self, message: Received, received_at: datetime) -> _Taken | None:
        """A batch, to be committed with its neighbours; anything else is begun at once."""
        try:
            return await self._read(message, received_at)
        except LinkError as error:
            self._refused.inc()
            self._start([message], self._bury(message, str(error)))
        except Exception:
            # one message must neither end the link nor keep its place in the broker's window
            logger.exception("a message on %s was dropped", message.topic)
            self._receiver.done([message])
        return None

    async def _read(self, message: Received, received_at: datetime) -> _Taken | None:
        identity, channel = _parse_topic(message.topic)
        self._counts[channel] += 1
        if channel is Up.PRESENCE and not message.payload:
            self._receiver.done([message])  # a cleared retained message
            return None
        content = _checked(decode_up(channel, message.payload))
        known = self._fresh(identity) or await self._resolve(identity)
        if known is None:
            raise LinkError(f"no station {identity!r} is known here")
        if isinstance(content, Presence) and not content.online:
            self._seen.pop(known.id, None)  # what came before its last will speaks for it no more
        elif not message.retained:
            self._seen[known.id] = received_at
        if isinstance(content, Hello):
            if not self._is_overtaken(identity, content):
                self._newest[identity] = content.sent
            self._start([message], self._greet(message, identity, known, content))
        elif isinstance(content, Presence):
            self._start([message], self._note_presence(message, known, content))
        elif isinstance(content, _BATCHES):
            delivery = Delivery(
                known.id, known.tenant_id, content.outbox, received_at, _STREAMS[channel], content
            )
            return _Taken(message, identity, delivery)
        return None

    def _start(self, messages: Sequence[Received], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self._at_work += len(messages)
        self._lag.set(self._at_work)
        task.add_done_callback(partial(self._finished, messages))

    def _finished(self, messages: Sequence[Received], task: asyncio.Task[None]) -> None:
        """What failed for good gives its place in the broker's window back; agents send again."""
        self._tasks.discard(task)
        self._at_work -= len(messages)
        self._lag.set(self._at_work)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a message could not be settled", exc_info=error)
            self._receiver.done(messages)

    def _fresh(self, identity: str) -> Known | None:
        at, known = self._known.get(identity, (0.0, None))
        return known if time.monotonic() - at < DIRECTORY_TTL_S else None

    async def _resolve(self, identity: str) -> Known | None:
        known = await self._again(lambda: self._look_up(identity))
        self._known[identity] = (time.monotonic(), known)
        return known

    async def _look_up(self, identity: str) -> Known | None:
        async with self._database.commit_unit() as cursor:
            return await self._directory.resolve(cursor, identity)

    async def _again(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until the database is back: unacknowledged messages are the back-pressure meanwhile."""
        while True:
            try:
                return await work()
            except Unavailable as error:
                logger.warning("the database is away, messages wait: %s", error)
                await asyncio.sleep(self._retry_s)

    # ------------------------------------------------------------------ batches

    async def _commit(self, taken: Sequence[_Taken]) -> None:
        committed = await self._again(lambda: self._sink.append([one.delivery for one in taken]))
        settled = {id(delivery) for delivery in committed}
        if not self._acked:
            asyncio.get_running_loop().call_soon(self._flush_acks)
        for one in taken:
            delivery = one.delivery
            numbers = self._acks[one.identity, delivery.outbox, delivery.stream]
            if id(delivery) in settled:
                numbers.add(delivery.batch.seq)
        self._acked += [one.message for one in taken]

    def _flush_acks(self) -> None:
        """One ack per stream for all that one commit settled; an empty one asks for a hello."""
        acks, self._acks = self._acks, defaultdict(set)
        messages, self._acked = self._acked, []
        faultpoints.reach(faultpoints.BEFORE_ACK)
        for (identity, outbox, stream), numbers in acks.items():
            ack = Ack(self.cloud, outbox, stream, ranges_of(numbers))
            self._receiver.publish(_ack_topic(identity), encode(ack), surely=False)
        self._receiver.done(messages)

    # ------------------------------------------------------------------ hello

    async def _greet(self, message: Received, identity: str, known: Known, hello: Hello) -> None:
        with log_context(station=identity):
            async with self._greeting[identity]:
                if self._is_overtaken(identity, hello):
                    self._receiver.done([message])
                    return
                welcome = await self._again(lambda: self._welcome(identity, hello))
            self._receiver.publish(down_topic(identity, Down.WELCOME), encode(welcome))
            self._receiver.done([message])
            if welcome.verdict is Verdict.GO_ON:
                await self._again(lambda: self._commands.deliver(self._publish_command, known.id))

    def _is_overtaken(self, identity: str, hello: Hello) -> bool:
        """Whether the same life of the agent has greeted again since.

        Hellos pile up while the database is away. Judged after the latest was welcomed and new
        batches came, an old one would look like a journal from yesterday.
        """
        newest = self._newest.get(identity)
        return (
            newest is not None
            and newest.boot == hello.sent.boot
            and hello.sent.mono_ms < newest.mono_ms
        )

    async def _welcome(self, identity: str, hello: Hello) -> Welcome:
        async with self._database.commit_unit() as cursor:
            now = self._clock()
            known = await self._directory.resolve(cursor, identity, hold=True)
            if known is None:
                raise LinkError(f"station {identity!r} is gone")
            outbox, elsewhere = await store.outbox(cursor, known.id, hello.outbox)
            verdict, reason = judge(hello, outbox, of_other_station=elsewhere)
            if verdict is Verdict.NEW_OUTBOX:
                logger.warning("the agent shall take a new outbox: %s", reason)
                await events.append(cursor, [_forked(known, hello, reason)])
                return self._reply(hello, verdict, now)
            await store.greet_outbox(cursor, known.tenant_id, known.id, hello)
            await store.connected(cursor, known.tenant_id, known.id, hello, now)
            for module in self._greeted:
                await module.hello(cursor, known.tenant_id, known.id, hello)
            still, over = await self._book.open_transactions(
                cursor, known.id, hello.open_transactions
            )
            return self._reply(
                hello,
                verdict,
                now,
                committed=await store.committed(cursor, known.id, hello.outbox),
                open_transactions=still,
                ended_transactions=over,
                local_list_version=await self._lists.list_version(cursor, known.tenant_id),
            )

    def _reply(self, hello: Hello, verdict: Verdict, now: datetime, **known: Any) -> Welcome:
        return Welcome(
            cloud=self.cloud,
            outbox=hello.outbox,
            verdict=verdict,
            now_ms=Milliseconds(round(now.timestamp() * 1000)),
            **{"committed": {}, **known},
        )

    async def _publish_command(self, identity: str, command: Command) -> None:
        self._receiver.publish(down_topic(identity, Down.COMMAND), encode(command))

    # ------------------------------------------------------------------ presence

    async def _note_presence(self, message: Received, known: Known, presence: Presence) -> None:
        await self._again(lambda: self._set_online(known, presence))
        self._receiver.done([message])

    async def _set_online(self, known: Known, presence: Presence) -> None:
        async with self._database.commit_unit() as cursor:
            owner = await store.set_online(
                cursor, known.id, online=presence.online, boot=presence.boot
            )
            if owner is not None:
                kind = "station.connected" if presence.online else "station.disconnected"
                await events.append(cursor, [Event(owner, kind, known.id, str(known.id), {})])

    async def _note_seen(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            seen, self._seen = self._seen, {}
            if seen:
                await self._again(partial(self._store_seen, seen))

    async def _store_seen(self, seen: dict[int, datetime]) -> None:
        async with self._database.commit_unit() as cursor:
            await store.seen(cursor, seen.items())

    # ------------------------------------------------------------------ poison

    async def _bury(self, message: Received, reason: str) -> None:
        """Keep what could not be read, but not more than a minute's ration: it may be an attack."""
        minute = time.monotonic() // 60
        count = self._buried[1] + 1 if self._buried[0] == minute else 1
        self._buried = (minute, count)
        logger.warning("refused a message on %s: %s", message.topic[:200], reason)
        if count <= DEAD_LETTERS_A_MINUTE:
            await self._again(lambda: self._store_dead(message, reason))
        self._receiver.done([message])

    async def _store_dead(self, message: Received, reason: str) -> None:
        async with self._database.commit_unit() as cursor:
            payload = message.payload[:LONGEST_DEAD_LETTER]
            await dead_letter(cursor, message.topic[:500], reason, payload, None, None)
            if self._buried[1] == 1:
                await forget_refused(cursor, MOST_DEAD_LETTERS)


def _checked(content: msgspec.Struct) -> msgspec.Struct:
    """What the types do not say. Raises LinkError."""
    if isinstance(content, Hello) and not content.boots:
        raise LinkError("a hello names at least its own boot")
    if isinstance(content, Batch):
        for what, number in (("number", content.seq), ("floor", content.floor)):
            if not 0 <= number < NUMBERS.stop or (what == "number" and number == 0):
                raise LinkError(f"a batch's {what} is out of bounds: {number}")
    return content


def _forked(known: Known, hello: Hello, reason: str) -> Event:
    data = {"reason": reason, "boots": [str(boot) for boot in hello.boots]}
    return Event(known.tenant_id, "outbox.forked", known.id, str(hello.outbox), data)
