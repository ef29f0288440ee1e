"""The OCPP gateway: stations' WebSockets on one side, the commit path on the other.

What stations tell in one turn of the event loop is appended to the FactSink together and answered
when it is committed; heartbeats and id tokens at hand are answered without it. Each connection is
entered in the database first, which gives it its epoch and fences every earlier one of the station,
on whichever gateway (decision 0018).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import msgspec
import psycopg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from websockets.http11 import Request as HttpRequest

from cloud.communication import gateway_store as store
from cloud.communication import security_store
from cloud.communication.admission import (
    Admit,
    Reason,
    Refuse,
    Request,
    Session,
    Standing,
    identity_of,
)
from cloud.communication.api import TokenJudge
from cloud.communication.conversation import Asked, Call, Conversation, Party, Reply
from cloud.communication.door import Door, session_of
from cloud.communication.frame_log import Direction, FrameLog
from cloud.communication.gateway_store import Deviated
from cloud.communication.security_store import OcppStation
from cloud.communication.sockets import Socket, Verdict, header, subprotocols
from cloud.communication.throttle import Arrivals
from cloud.communication.tls import client_certificate
from cloud.kernel import events
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.facts import FactSink, Spoken
from cloud.kernel.limiter import Limiter
from protocols.agent_link import IdToken
from protocols.ocpp.dialect import dialect
from protocols.ocpp.messages import (
    Answer,
    Answered,
    Authorize,
    Connected,
    Disconnected,
    SignCertificate,
    TokenStatus,
    Told,
    Transaction,
)
from protocols.ocpp.schemas import codec
from protocols.ocpp.version import Version
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
BEAT_S: Final = 5.0
GOODBYE_S: Final = 0.5
TLS_HANDSHAKE_S: Final = 10.0
DEAD_AFTER: Final = timedelta(seconds=20)
"""A gateway that has not told for so long is dead; its stations are offline."""
SEEN_EVERY_S: Final = 10.0
PING_S: Final = 240
SILENCE: Final = 3.0
"""How many heartbeats, or pings, may go missing before a silent connection is cut."""
SETTLE_S: Final = 15.0
"""How long after its connection a station without a boot gets no call of ours (S7, S10)."""
PENDING_S: Final = 30
UNJUDGED: Final = 4000
"""Sockets whose upgrade request has not come yet; one address may hold half of them."""
GUESSES: Final = 30
"""Unknown id tokens that a station may ask about at once; beyond that one a second (A23)."""
MOST_TEXT: Final = 500
UNAVAILABLE: Final = "the database is out of reach; try again"


@dataclass(frozen=True)
class Serving:
    """Where and how a gateway listens, and what it tells stations."""

    host: str
    port: int | None
    tls_port: int | None
    tls: ssl.SSLContext | None
    heartbeat_s: int = 300


class Gateway:
    """One process's connections; a Host of its conversations."""

    def __init__(
        self,
        database: Database,
        sink: FactSink,
        judge: TokenJudge,
        door: Door,
        frame_log: FrameLog,
        serving: Serving,
        clock: Callable[[], datetime],
        registry: CollectorRegistry,
        on_reply: Callable[[Conversation, Reply], None],
        on_entered: Callable[[Conversation], None],
        on_priced: Callable[[Call], None],
        on_signing: Callable[[Call, SignCertificate], Coroutine[Any, Any, None]],
    ) -> None:
        self.id = uuid4()
        self._database = database
        self._sink = sink
        self._judge = judge
        self._door = door
        self._frames = frame_log
        self._serving = serving
        self._clock = clock
        self._on_reply = on_reply
        self._on_entered = on_entered
        self._on_priced = on_priced
        self._on_signing = on_signing
        self._arrivals = Arrivals(UNJUDGED)
        self._guesses = Limiter(GUESSES, timedelta(seconds=1))
        self._started_at = clock()
        self._live: dict[int, Conversation] = {}
        self._arriving: list[Conversation] = []
        self._leaving: list[tuple[Conversation, str]] = []
        self._heard = 0
        self._told: list[Call] = []
        self._unknown: list[Call] = []
        self._flush_due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadlines: list[tuple[float, int, Conversation]] = []
        self._number = 0
        self._metrics = _Metrics(registry, lambda: len(self._live))
        self.port: int | None = None
        self.tls_port: int | None = None

    # ------------------------------------------------------------------ the process

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Open the ports; at the end stations are told to come again."""
        await self._beat()
        servers = []
        if self._serving.port is not None:
            servers.append(await self._listen(self._serving.port, None))
            self.port = servers[-1].sockets[0].getsockname()[1]
        if self._serving.tls_port is not None and self._serving.tls is not None:
            servers.append(await self._listen(self._serving.tls_port, self._serving.tls))
            self.tls_port = servers[-1].sockets[0].getsockname()[1]
        try:
            yield
        finally:
            for server in servers:
                server.close()
            await self._dismiss()
            self._door.close()

    async def _listen(self, port: int, context: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: Socket(self._judged, self._arrivals),
            self._serving.host,
            port,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=TLS_HANDSHAKE_S if context else None,
        )

    async def _dismiss(self) -> None:
        for conversation in list(self._live.values()):
            conversation.socket.close(1012, "the gateway restarts; come again")
        if self._live:
            await asyncio.sleep(GOODBYE_S)
        for conversation in list(self._live.values()):
            conversation.socket.cut("the gateway restarts")
        await self._settle()
        try:
            async with self._database.commit_unit() as cursor:
                await store.forget_gateway(cursor, self.id)
                await _tell_gone(
                    cursor, await store.bury_gateways(cursor, self._long_ago(), self.now())
                )
        except Unavailable as error:
            logger.warning("the gateway's end could not be entered: %s", error)

    async def _settle(self) -> None:
        """Let what is under way come to its end."""
        await asyncio.sleep(0)
        self._flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _long_ago(self) -> datetime:
        return self.now() - DEAD_AFTER

    def works(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What must run beside it, by name, supervised."""
        return {
            "ocpp gateway's pulse": self._pulse,
            "ocpp gateway's clock": self._tick,
            "ocpp gateway's door": self._watch,
            "ocpp gateway's takeovers": self._hear_takeovers,
            "ocpp frame log": self._frames.run,
        }

    # ------------------------------------------------------------------ letting in

    async def _judged(self, socket: Socket, http: HttpRequest) -> Verdict:
        request = self._request(socket, http)
        decision = await self._door.admit(request)
        if isinstance(decision, Refuse):
            self._metrics.refused.labels(decision.reason).inc()
            return Verdict(decision.status, tuple(decision.headers()))
        conversation = self._converse(decision, request, socket)
        self._arriving.append(conversation)
        self._flush_soon()
        return Verdict(
            101,
            subprotocol=decision.protocol if decision.echoed else None,
            listener=conversation,
        )

    def _request(self, socket: Socket, http: HttpRequest) -> Request:
        tls = socket.tls
        return Request(
            identity=identity_of(http.path),
            source=socket.source,
            subprotocols=subprotocols(http),
            authorization=header(http, "Authorization"),
            tls=tls is not None,
            certificate=None if tls is None else client_certificate(tls),
        )

    def _converse(self, admitted: Admit, request: Request, socket: Socket) -> Conversation:
        assert admitted.station is not None
        version = Version(admitted.protocol)
        party = Party(
            station_id=admitted.station.id,
            tenant_id=TenantId(admitted.station.tenant_id),
            identity=admitted.identity,
            dialect=dialect(version),
            codec=codec(version),
            session=session_of(admitted, request),
        )
        pending = admitted.standing is Standing.PENDING
        return Conversation(
            party,
            socket,
            self,
            pending=pending,
            heartbeat_s=PENDING_S if pending else self._serving.heartbeat_s,
        )

    # ------------------------------------------------------------------ Host

    def now(self) -> datetime:
        return self._clock()

    def log_frame(
        self, who: Conversation, direction: Direction, action: bytes | None, frame: bytes
    ) -> None:
        party = who.party
        at_us = time.time_ns() // 1000
        self._frames.note(at_us, party.tenant_id, party.station_id, direction, action, frame)

    def heard_call(self, call: Call) -> None:
        self._heard += 1
        self._flush_soon()
        token = _token(call.told)
        if token is not None:
            if isinstance(call.told, Authorize) and not self._guesses.allow(
                _asker(call), self.now()
            ):
                call.conversation.refuse_guess(call)
                return
            call.answer.token = self._judge.at_hand(
                call.conversation.party.tenant_id, token, call.received_at
            )
            if call.answer.token is None:
                self._unknown.append(call)
                self._flush_soon()
                return
        self._take(call)

    def _take(self, call: Call) -> None:
        if call.conversation.pending:
            self._start(self._ask_the_door(call))
            return
        if isinstance(call.told, Authorize):
            if call.answer.token is not None and call.answer.token.status is not _UNKNOWN:
                self._guesses.give_back(_asker(call))
            call.conversation.reply(call)
            return
        if isinstance(call.told, SignCertificate):
            self._start(self._on_signing(call, call.told))
            return
        self._told.append(call)
        self._flush_soon()

    async def _ask_the_door(self, call: Call) -> None:
        """A station that waits for its approval boots again: perhaps it has it now."""
        who = call.conversation
        try:
            standing = await self._door.standing(who.party.session)
        except Unavailable:
            who.refuse(call, "InternalError", UNAVAILABLE)
            return
        if standing is None:
            who.socket.close(1008, "the station is not known here any more")
            return
        if standing is Standing.ACCEPTED:
            who.pending = False
            who.heartbeat_s = self._serving.heartbeat_s
        self._told.append(call)
        self._flush_soon()

    def replied(self, who: Conversation, reply: Reply) -> None:
        self._on_reply(who, reply)

    def ended(self, who: Conversation, reason: str) -> None:
        if self._live.get(who.party.station_id) is who:
            del self._live[who.party.station_id]
        if who in self._arriving:
            self._arriving.remove(who)
        if who.epoch:
            self._leaving.append((who, reason))
            self._flush_soon()

    def wait(self, who: Conversation) -> None:
        deadline = who.rpc.next_deadline
        if deadline is not None:
            self._number += 1
            heapq.heappush(self._deadlines, (deadline, self._number, who))

    # ------------------------------------------------------------------ the commit path

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._heard:  # a counter of prometheus takes a lock each time
            self._metrics.calls.inc(self._heard)
            self._heard = 0
        if self._told:
            told, self._told = self._told, []
            self._start(self._commit(told))
        if self._unknown:
            unknown, self._unknown = self._unknown, []
            self._start(self._look_up(unknown))
        if self._arriving:
            arriving, self._arriving = self._arriving, []
            self._start(self._enter(arriving))
        if self._leaving:
            leaving, self._leaving = self._leaving, []
            self._start(self._leave(leaving))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a part of the gateway's work failed", exc_info=error)

    async def _commit(self, told: Sequence[Call]) -> None:
        """Nothing that was not committed is answered as if it were."""
        spoken = [_spoken(call) for call in told]
        began = time.perf_counter()
        try:
            committed = {id(one) for one in await self._sink.append(spoken)}
        except Unavailable as error:
            logger.warning("%d calls are not committed: %s", len(told), error)
            for call in told:
                call.conversation.refuse(call, "InternalError", UNAVAILABLE)
            return
        self._metrics.commit.observe(time.perf_counter() - began)
        for call, one in zip(told, spoken, strict=True):
            if id(one) in committed:
                call.conversation.reply(call)
                if call.answer.total_cost is not None:
                    self._on_priced(call)
            else:
                call.conversation.socket.close(1008, "a newer connection has taken over")

    async def _look_up(self, calls: Sequence[Call]) -> None:
        """Several id tokens in one query; a call without a verdict is not guessed at."""
        asked = [(call.conversation.party.tenant_id, _token(call.told)) for call in calls]
        wanted = {(tenant, token) for tenant, token in asked if token is not None}
        try:
            await self._judge.look_up(wanted)
        except Unavailable as error:
            logger.warning("%d id tokens cannot be judged: %s", len(calls), error)
            for call in calls:
                call.conversation.refuse(call, "InternalError", UNAVAILABLE)
            return
        for call, (tenant, token) in zip(calls, asked, strict=True):
            if token is not None:
                call.answer.token = self._judge.at_hand(tenant, token, call.received_at)
            if call.answer.token is None:
                self._unknown.append(call)
                self._flush_soon()
            else:
                self._take(call)

    async def _enter(self, arriving: Sequence[Conversation]) -> None:
        """Each connection gets its epoch; the station's earlier socket here is closed."""
        arrived = [(c, self._connected(c)) for c in arriving if not c.closed]
        try:
            settings = await self._settings([c.party.station_id for c, _ in arrived])
            await self._sink.append([one for _, one in arrived])
        except Unavailable as error:
            for conversation, _ in arrived:
                conversation.socket.close(1013, UNAVAILABLE)
            logger.warning("%d connections could not be entered: %s", len(arrived), error)
            return
        for conversation, one in sorted(arrived, key=lambda pair: pair[1].answer.epoch):
            if one.answer.epoch:
                conversation.settings = settings.get(one.station_id, conversation.settings)
                self._entered(conversation, one.answer.epoch)
            else:  # another one of the same moment is newer
                conversation.socket.close(1008, "a newer connection has taken over")

    async def _settings(self, stations: Sequence[int]) -> dict[int, OcppStation]:
        async with self._database.glance() as cursor:
            return await security_store.ocpp_stations(cursor, stations)

    def _entered(self, conversation: Conversation, epoch: int) -> None:
        station = conversation.party.station_id
        held = self._live.get(station)
        if held is not None:
            held.socket.close(1008, "a newer connection has taken over")
        if conversation.closed:
            conversation.epoch = epoch
            self._leaving.append((conversation, "closed as soon as it was entered"))
            self._flush_soon()
            return
        self._live[station] = conversation
        conversation.entered(epoch, SETTLE_S)
        self._on_entered(conversation)

    def _connected(self, conversation: Conversation) -> Spoken:
        party = conversation.party
        now = self.now()
        told = Connected(
            gateway=self.id,
            version=party.dialect.version,
            security_profile=int(party.session.profile),
            address=conversation.socket.source,
        )
        return Spoken(party.station_id, party.tenant_id, 0, now, told, _blank(now))

    async def _leave(self, leaving: Sequence[tuple[Conversation, str]]) -> None:
        now = self.now()
        spoken = [
            Spoken(
                who.party.station_id,
                who.party.tenant_id,
                who.epoch,
                now,
                Disconnected(gateway=self.id, reason=_printable(reason[:200])),
                _blank(now),
            )
            for who, reason in leaving
        ]
        try:
            await self._sink.append(spoken)
        except Unavailable as error:  # the sweep of a later gateway finds them
            logger.warning("%d stations left unnoticed: %s", len(leaving), error)
        await self._write_deviations([who for who, _ in leaving])

    # ------------------------------------------------------------------ commands

    def live(self, station_id: int) -> Conversation | None:
        """The station's connection, if this gateway holds it."""
        return self._live.get(station_id)

    def stations(self) -> list[int]:
        """Those that this gateway holds."""
        return list(self._live)

    def ask(self, who: Conversation, asked: Asked, timeout_s: float) -> None:
        """A call to the station, as soon as it may be asked."""
        wait = who.quiet_until - time.monotonic()
        if wait > 0 and not who.closed:
            asyncio.get_running_loop().call_later(min(wait, 0.5), self.ask, who, asked, timeout_s)
            return
        if who.closed:
            self.replied(who, Reply(asked, None, None, "the connection was lost", sent=False))
            return
        who.ask(asked, timeout_s)

    def commit_soon(self, who: Conversation, told: Told) -> None:
        """Something of our own about the station, committed like what it says."""
        now = self.now()
        spoken = Spoken(
            who.party.station_id, who.party.tenant_id, who.epoch, now, told, _blank(now)
        )
        self._start(self._commit_own(spoken))

    async def _commit_own(self, spoken: Spoken) -> None:
        while True:
            try:
                await self._sink.append([spoken])
            except Unavailable as error:
                logger.warning("an answer waits for the database: %s", error)
                await asyncio.sleep(1)
            else:
                break
        if isinstance(spoken.told, Answered) and spoken.answer.unstored:
            await self._commit_without(spoken, spoken.told)

    async def _commit_without(self, spoken: Spoken, told: Answered) -> None:
        """An answer that cannot be stored ends its command all the same."""
        if told.response is None:
            return
        text = f"its answer cannot be stored and is a dead letter: {spoken.answer.unstored}"
        rest = msgspec.structs.replace(
            told, response=None, accepted=False, variables=(), text=_printable(text[:MOST_TEXT])
        )
        await self._commit_own(spoken._replace(told=rest, answer=_blank(spoken.received_at)))

    # ------------------------------------------------------------------ time

    async def _pulse(self) -> None:
        """Tell that this gateway lives, who was heard, who deviates; bury the dead; for ever."""
        seen_at = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            self._ping(now)
            try:
                await self._beat()
                if now - seen_at >= SEEN_EVERY_S:
                    await self._note_heard(seen_at)
                    seen_at = now
                    await self._write_deviations(list(self._live.values()))
            except Unavailable as error:
                logger.warning("the gateway's pulse waits: %s", error)

    async def _beat(self) -> None:
        async with self._database.commit_unit() as cursor:
            await store.beat(cursor, self.id, self._started_at, self.now())
            await _tell_gone(
                cursor, await store.bury_gateways(cursor, self._long_ago(), self.now())
            )

    def _ping(self, now: float) -> None:
        """Any frame is a sign of life (S23); one that was silent for long is cut (S22)."""
        for conversation in list(self._live.values()):
            every = conversation.settings.ping_s
            every = PING_S if every is None else every
            silent = now - conversation.heard_at
            patience = SILENCE * max(every or 0, conversation.heartbeat_s)
            if silent > patience:
                conversation.socket.cut(f"silent for {silent:.0f} s")
            elif every and silent > every - BEAT_S:
                conversation.socket.ping()

    async def _note_heard(self, since: float) -> None:
        now, wall = time.monotonic(), self.now()
        heard = [
            (c.party.station_id, c.epoch, wall - timedelta(seconds=now - c.heard_at))
            for c in self._live.values()
            if c.heard_at >= since
        ]
        if heard:
            async with self._database.commit_unit() as cursor:
                await store.heard(cursor, heard)

    async def _write_deviations(self, conversations: Sequence[Conversation]) -> None:
        told: dict[tuple[int, str], Deviated] = {}
        for conversation in conversations:
            found, conversation.deviations = (
                conversation.deviations,
                type(conversation.deviations)(),
            )
            party = conversation.party
            for (name, example), times in found.items():
                key = (party.station_id, name)
                before = told[key].times if key in told else 0
                told[key] = Deviated(*key, party.tenant_id, before + times, _printable(example))
        if told:
            async with self._database.commit_unit() as cursor:
                await store.note_deviations(cursor, list(told.values()), self.now())

    async def _tick(self) -> None:
        """Our calls that were not answered in time; for ever."""
        while True:
            await asyncio.sleep(0.2)
            now = time.monotonic()
            while self._deadlines and self._deadlines[0][0] <= now:
                _, _, conversation = heapq.heappop(self._deadlines)
                if not conversation.closed and conversation.tick(now) is not None:
                    self.wait(conversation)

    # ------------------------------------------------------------------ news

    async def _watch(self) -> None:
        """Cut off who may not stay; for ever."""
        await self._door.watch(self._sessions, self._cut_off)

    def _sessions(self) -> list[Session]:
        return [conversation.party.session for conversation in self._live.values()]

    async def _cut_off(self, session: Session, reason: Reason) -> None:
        held = self._live.get(session.station_id)
        if held is not None and held.party.session is session:
            held.socket.close(1008, f"it may not stay: {reason}")

    async def _hear_takeovers(self) -> None:
        """Older sockets of stations that connected to another gateway are closed; for ever."""
        while True:
            try:
                async with self._database.listener() as connection:
                    await connection.execute(f"LISTEN {store.LIVE_CHANNEL}")
                    async for note in connection.notifies():
                        self._taken_over(note.payload)
            except psycopg.Error as error:
                logger.warning("takeovers by other gateways are not heard: %s", error)
                await asyncio.sleep(1)

    def _taken_over(self, payload: str) -> None:
        station, _, epoch = payload.partition(":")
        held = self._live.get(int(station))
        if held is not None and held.epoch < int(epoch):
            held.socket.close(1008, "a newer connection has taken over")


class _Metrics:
    def __init__(self, registry: CollectorRegistry, live: Callable[[], int]) -> None:
        connections = Gauge(
            "karvon_ocpp_connections", "Stations connected over OCPP", registry=registry
        )
        connections.set_function(live)
        self.calls = Counter("karvon_ocpp_calls", "Calls of stations", registry=registry)
        self.refused = Counter(
            "karvon_ocpp_refused", "Upgrade requests that were refused", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.commit = Histogram(
            "karvon_ocpp_commit_seconds", "From a turn's calls to their commit", registry=registry
        )


_UNKNOWN: Final = TokenStatus.UNKNOWN


def _asker(call: Call) -> str:
    return str(call.conversation.party.station_id)


def _token(told: Told) -> IdToken | None:
    return told.id_token if isinstance(told, Authorize | Transaction) else None


def _spoken(call: Call) -> Spoken:
    party = call.conversation.party
    return Spoken(
        party.station_id,
        party.tenant_id,
        call.epoch,
        call.received_at,
        call.told,
        call.answer,
        call.doubtful,
    )


def _blank(now: datetime) -> Answer:
    return Answer(now_ms=Milliseconds(int(now.timestamp() * 1000)))


def _printable(text: str) -> str:
    """What a station sent may hold what no column and no log line can (A25)."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


async def _tell_gone(cursor: Cursor, stations: Sequence[tuple[int, TenantId]]) -> None:
    await events.append(
        cursor,
        [
            Event(tenant, "station.disconnected", station, str(station), {})
            for station, tenant in stations
        ],
    )
