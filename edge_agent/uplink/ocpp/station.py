"""One charging station's dialogue with an OCPP backend over any number of connections, sans-IO.

`handle(event, now)` takes what happened and the monotonic time in ms, and returns what to do.
A connection begins with BootNotification; until the backend accepts, nothing else is said. We
have one call under way at a time; what goes next is chosen in this order:

| 1 | what a person waits for: authorizations                             |
| 2 | what the backend asked for: triggered messages, reports             |
| 3 | statuses that changed                                               |
| 4 | facts of transactions that came up while connected                  |
| 5 | heartbeat, clock-aligned values                                     |
| 6 | facts that waited for the connection, paced, oldest first           |
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from edge_agent.journal import JournalError, PendingFact
from edge_agent.rules.authorization import Heard
from edge_agent.uplink.ocpp.delivery import Delivery
from edge_agent.uplink.ocpp.device import DeviceModel
from edge_agent.uplink.ocpp.port import Charger, Deed, Done, Outcome, Start, Stop
from protocols.agent_link import EvseStatus, IdToken, SecurityEvent, TransactionEvent
from protocols.ocpp import events as rpc_events
from protocols.ocpp.rpc import Limits, Rpc
from protocols.ocpp.schemas import SchemaError, codec
from protocols.ocpp.tolerance import read_request, read_response, resolve_action
from protocols.ocpp.version import Version

log = logging.getLogger(__name__)
SILENT_AFTER: Final = 3
"""So many calls in a row without an answer, and the connection is made anew."""
FIRST_BOOT_RETRY_S: Final = 30
LEAST_BOOT_RETRY_S: Final = 5
RETRY_AFTER_DISK_MS: Final = 5_000
MOST_NEWS: Final = 20
LONGEST_SHOWN: Final = 255
MOST_AT_ONCE: Final = 50
_ENCODE: Final = msgspec.json.Encoder().encode
_LIMITS: Final = Limits(pipelined=16)
NOT_YET: Final = "the backend has not accepted the station yet"


@dataclass(frozen=True, kw_only=True)
class StationSettings:
    """Intervals of the dialogue, and what this uplink carries."""

    timeout_ms: int = 30_000
    """For the answer to a call of ours."""
    per_second: int = 50
    """Facts of the backlog."""
    carries: frozenset[str] = frozenset({"transactions", "status", "telemetry"})
    prefix: str = ""
    """Makes message ids those of this process."""


# --------------------------------------------------------------------------- events and actions


@dataclass(frozen=True)
class Connected:
    """The WebSocket is open, with our version as its subprotocol."""


@dataclass(frozen=True)
class Disconnected:
    reason: str


@dataclass(frozen=True)
class Received:
    """A text message."""

    frame: str | bytes


@dataclass(frozen=True)
class Tick:
    """Time has passed, or there may be something new to say."""


@dataclass(frozen=True)
class Asked:
    """Somebody wants to know of a token; answered with Judged, of the same ticket."""

    ticket: int
    id_token: IdToken


@dataclass(frozen=True)
class Performed:
    """A deed was done, or not."""

    message_id: str | int
    done: Done


@dataclass(frozen=True)
class Transferred:
    """How an upload goes (2.x's UploadLogStatusEnumType); told now, or once connected."""

    request_id: int | None
    status: str


Event = Connected | Disconnected | Received | Tick | Asked | Performed | Transferred


@dataclass(frozen=True)
class Send:
    frame: bytes


@dataclass(frozen=True)
class Perform:
    """The backend asks for it; the outcome comes back as Performed of the same message id."""

    message_id: str | int
    deed: Deed


@dataclass(frozen=True)
class Judged:
    """What the backend says of a token; None where it could not be asked."""

    ticket: int
    heard: Heard | None


@dataclass(frozen=True)
class Deauthorized:
    """The backend does not want this transaction to go on."""

    transaction: UUID
    why: str


@dataclass(frozen=True)
class CloudTime:
    """What time it is, as the backend has it (ms since 1970)."""

    now_ms: int


@dataclass(frozen=True)
class LinkChanged:
    up: bool
    reason: str


@dataclass(frozen=True)
class Close:
    reason: str


Action = Send | Perform | Judged | Deauthorized | CloudTime | LinkChanged | Close

# --------------------------------------------------------------------------- a version's words


class Call(NamedTuple):
    """What to say: an action and its payload as plain data."""

    action: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Registered:
    """What a BootNotification was answered with."""

    status: str
    now_ms: int
    interval_s: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a backend answered to a transaction's fact."""

    number: int | None = None
    heard: Heard | None = None


class UndeliverableError(Exception):
    """A fact that cannot be said to this backend at all; the text says why."""


class RefusedCallError(Exception):
    """A request of the backend ends with a CALLERROR."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Reply:
    """The answer to a request: at once, or after a deed; `then` is said afterwards."""

    payload: Mapping[str, Any] = field(default_factory=dict)
    deed: Deed | None = None
    worded: Any = None
    """Makes the payload of a deed's Done."""
    then: tuple[Call, ...] = ()
    boot: bool = False
    """Say BootNotification again."""


class Dialect(Protocol):
    """A version's words, station's side."""

    lean: bool
    """Whether only the register is said of a transaction that goes on."""

    @property
    def version(self) -> Version: ...

    def boot(self, reason: str) -> Call: ...

    def registered(self, response: Any) -> Registered: ...

    def time(self, response: Any) -> int:
        """A Heartbeat's answer, ms since 1970."""

    def statuses(self, known: Mapping[int, EvseStatus]) -> list[tuple[int, Call]]:
        """What to say of the station (0) and each EVSE; equal calls mean that nothing changed."""

    def authorize(self, id_token: IdToken) -> Call | None:
        """None for a token that this version cannot say."""

    def authorized(self, response: Any) -> Heard: ...

    def fact(self, event: TransactionEvent, number: int | None, *, offline: bool) -> Call | None:
        """None: nothing is said of it. Raises UndeliverableError."""

    def security(self, event: SecurityEvent) -> Call: ...

    def taken(self, event: TransactionEvent, response: Any) -> Taken: ...

    def transferred(self, event: Transferred) -> Call:
        """How an upload goes."""

    def salvaged(self, event: TransactionEvent, answer: Mapping[str, Any]) -> Taken | None:
        """What an answer says that breaks its schema; None: nothing that can be gone on with."""

    def aligned(self, at_ms: int) -> list[Call]:
        """Clock-aligned values of all EVSEs, for that time (ms since 1970)."""

    def asked(self, action: str, request: Any) -> Reply:
        """Raises RefusedCallError, JournalError."""


# --------------------------------------------------------------------------- calls under way


@dataclass(frozen=True, slots=True)
class _Boot:
    pass


@dataclass(frozen=True, slots=True)
class _Heartbeat:
    pass


@dataclass(frozen=True, slots=True)
class _Plain:
    """Nothing hangs on its answer."""


@dataclass(frozen=True, slots=True)
class _Status:
    evse: int
    call: Call


@dataclass(frozen=True, slots=True)
class _Authorize:
    ticket: int


@dataclass(frozen=True, slots=True)
class _Fact:
    pending: PendingFact


Purpose = _Boot | _Heartbeat | _Plain | _Status | _Authorize | _Fact


@dataclass(frozen=True, slots=True)
class _Flight:
    id: str
    action: str
    purpose: Purpose


class Station:
    """See the module."""

    def __init__(
        self,
        settings: StationSettings,
        dialect: Dialect,
        device: DeviceModel,
        charger: Charger,
        delivery: Delivery,
        numbers: dict[UUID, int],
        *,
        boot_reason: str = "PowerUp",
    ) -> None:
        self.settings = settings
        self.numbers = numbers
        """The backend's numbers of transactions, where its version has such."""
        self._dialect = dialect
        self._codec = codec(dialect.version)
        self._device = device
        self._charger = charger
        self._delivery = delivery
        self._boot_reason = boot_reason
        self._lives = 0
        self._rpc: Rpc | None = None
        self._registration = ""
        self._up = False
        self._boot_at = 0
        self._heartbeat_at = 0
        self._aligned_ms: int | None = None
        self._thinned: int | None = 1
        self._disk_at = 0
        self._unanswered = 0
        self._flight: _Flight | None = None
        self._tickets: deque[Asked] = deque()
        self._wanted: deque[Call] = deque()
        self._news: deque[Call] = deque(maxlen=MOST_NEWS)
        """Told even if the connection was lost meanwhile."""
        self._told: dict[int, Call] = {}
        self._doing: dict[str | int, Reply] = {}

    def thin(self, times: int | None) -> None:
        """Clock-aligned values so many times as seldom, None: none; of transactions the register.

        For a link that costs money; transactions themselves are never held back.
        """
        self._thinned = times
        self._dialect.lean = times != 1

    @property
    def accepted(self) -> bool:
        """Whether the backend hears us now."""
        return self._rpc is not None and self._registration == "Accepted"

    def handle(self, event: Event, now: int) -> list[Action]:
        """What to do about an event at monotonic time `now`, in order. Never raises."""
        if isinstance(event, Connected):
            return self._connected(now)
        if isinstance(event, Disconnected):
            return self._disconnected(event, now)
        if isinstance(event, Asked):
            return self._ask(event, now)
        if isinstance(event, Transferred):
            self._news.append(self._dialect.transferred(event))
        if self._rpc is None:
            return []
        if isinstance(event, Performed):
            return [*self._performed(event, now), *self._drain(now)]
        if isinstance(event, Received):
            outputs = self._rpc.receive(event.frame, now / 1000)
        else:
            outputs = self._rpc.tick(now / 1000)
        return [*self._outputs(outputs, now), *self._drain(now)]

    # ------------------------------------------------------------------ the connection

    def _connected(self, now: int) -> list[Action]:
        self._lives += 1
        prefix = f"{self.settings.prefix}{self._lives}-"
        self._rpc = Rpc(self._dialect.version, prefix, _LIMITS)
        self._flight = None
        self._registration = ""
        self._unanswered = 0
        self._boot_at = now
        self._told.clear()
        self._wanted.clear()
        self._doing.clear()
        return self._drain(now)

    def _disconnected(self, event: Disconnected, now: int) -> list[Action]:
        del now
        waiting = [Judged(one.ticket, None) for one in self._tickets]
        if self._flight is not None and isinstance(self._flight.purpose, _Authorize):
            waiting.append(Judged(self._flight.purpose.ticket, None))
        self._rpc, self._flight, self._registration = None, None, ""
        self._tickets.clear()
        return [*waiting, *self._changed(up=False, reason=event.reason)]

    def _changed(self, *, up: bool, reason: str) -> list[Action]:
        if up == self._up:
            return []
        self._up = up
        return [LinkChanged(up, reason)]

    def _ask(self, event: Asked, now: int) -> list[Action]:
        if not self.accepted:
            return [Judged(event.ticket, None)]
        self._tickets.append(event)
        return self._drain(now)

    # ------------------------------------------------------------------ what arrives

    def _outputs(self, outputs: list[rpc_events.Output], now: int) -> list[Action]:
        actions: list[Action] = []
        for output in outputs:
            if isinstance(output, rpc_events.Send):
                actions.append(Send(output.frame))
            elif isinstance(output, rpc_events.CallReceived):
                actions += self._request(output, now)
            elif isinstance(output, rpc_events.Answered):
                actions += self._answered(output, now)
            elif isinstance(output, rpc_events.Failed):
                actions += self._failed(output, now)
            elif isinstance(output, rpc_events.TimedOut):
                actions += self._late(output, now)
            elif isinstance(output, rpc_events.Close):
                actions.append(Close(output.reason))
            elif isinstance(output, rpc_events.Note):
                log.info("backend: %s", output.deviation)
        return actions

    def _request(self, call: rpc_events.CallReceived, now: int) -> list[Action]:
        try:
            action, reply = self._answer_to(call)
        except RefusedCallError as error:
            return self._fail(call.id, error.code, str(error), now)
        except SchemaError as error:
            return self._fail(call.id, error.code, str(error), now)
        except JournalError as error:
            log.error("%s is refused: %s", call.action, error)  # noqa: TRY400  # no fault of ours
            return self._fail(call.id, "InternalError", str(error), now)
        if isinstance(reply.deed, Start | Stop) and not self.accepted:
            rejected = reply.worded(Done(Outcome.REJECTED, NOT_YET))
            return self._reply(call.id, action, Reply(rejected), now)
        if reply.deed is not None:
            self._doing[call.id] = reply
            return [Perform(call.id, reply.deed)]
        return self._reply(call.id, action, reply, now)

    def _answer_to(self, call: rpc_events.CallReceived) -> tuple[str, Reply]:
        request, deviations = read_request(self._codec, call.action, call.payload)
        for one in deviations:
            log.info("backend's %s: %s", call.action, one)
        if self._registration == "Rejected":
            raise RefusedCallError("SecurityError", NOT_YET)
        action, _ = resolve_action(self._codec, call.action)
        return action, self._dialect.asked(action, request)

    def _reply(self, message_id: str | int, action: str, reply: Reply, now: int) -> list[Action]:
        self._codec.make_response(action, reply.payload)
        assert self._rpc is not None
        outputs = self._rpc.answer(message_id, _ENCODE(reply.payload))
        self._wanted += reply.then
        if reply.boot:
            self._boot_at, self._registration = now, ""
        return self._outputs(outputs, now)

    def _fail(self, message_id: str | int, code: str, text: str, now: int) -> list[Action]:
        assert self._rpc is not None
        return self._outputs(self._rpc.fail(message_id, code, text), now)

    def _performed(self, event: Performed, now: int) -> list[Action]:
        reply = self._doing.pop(event.message_id, None)
        if reply is None or self._rpc is None:
            return []  # asked over a connection that is gone
        payload = _ENCODE(reply.worded(event.done))
        self._wanted += reply.then
        return self._outputs(self._rpc.answer(event.message_id, payload), now)

    # ------------------------------------------------------------------ what we are answered

    def _landed(self, message_id: str) -> _Flight | None:
        flight = self._flight
        if flight is None or flight.id != message_id:
            return None
        self._flight = None
        return flight

    def _answered(self, answered: rpc_events.Answered, now: int) -> list[Action]:
        flight = self._landed(answered.id)
        if flight is None:
            return []
        self._unanswered = 0
        return self._kept(lambda: self._read_answer(flight, answered.payload, now), now)

    def _kept(self, deed: Callable[[], list[Action]], now: int) -> list[Action]:
        """What follows from an answer; where the disk refuses it is asked for once more, later."""
        try:
            return deed()
        except JournalError as error:
            log.error("an answer is not kept: %s", error)  # noqa: TRY400  # no fault of ours
            self._disk_at = now + RETRY_AFTER_DISK_MS
            return []

    def _read_answer(self, flight: _Flight, payload: msgspec.Raw, now: int) -> list[Action]:
        try:
            response, _ = read_response(self._codec, flight.action, payload)
        except SchemaError as error:
            return self._unreadable(flight, payload, str(error), now)
        return self._understood(flight.purpose, response, now)

    def _understood(self, purpose: Purpose, response: Any, now: int) -> list[Action]:
        if isinstance(purpose, _Boot):
            return self._registered(self._dialect.registered(response), now)
        if isinstance(purpose, _Heartbeat):
            return [CloudTime(self._dialect.time(response))]
        if isinstance(purpose, _Authorize):
            heard = self._dialect.authorized(response)
            return [Judged(purpose.ticket, heard)]
        if isinstance(purpose, _Fact):
            return self._fact_taken(purpose.pending, response)
        return []

    def _unreadable(
        self, flight: _Flight, payload: msgspec.Raw, text: str, now: int
    ) -> list[Action]:
        """An answer that breaks its schema is an answer: the fact was taken, where we can go on."""
        log.warning("the backend's answer to %s does not read: %s", flight.action, text)
        if isinstance(flight.purpose, _Fact) and isinstance(
            flight.purpose.pending.fact, TransactionEvent
        ):
            answer = msgspec.json.decode(payload, type=dict[str, Any])
            taken = self._dialect.salvaged(flight.purpose.pending.fact, answer)
            if taken is not None:
                return self._settle(flight.purpose.pending, flight.purpose.pending.fact, taken)
        return self._refused(flight.purpose, "FormatViolation", text, now)

    def _failed(self, failed: rpc_events.Failed, now: int) -> list[Action]:
        flight = self._landed(failed.id)
        if flight is None:
            return []
        self._unanswered = 0
        code, text = _shown(failed.code), _shown(failed.text)
        log.warning("the backend refuses %s: %s %s", flight.action, code, text)
        return self._kept(lambda: self._refused(flight.purpose, code, text, now), now)

    def _refused(self, purpose: Purpose, code: str, text: str, now: int) -> list[Action]:
        if isinstance(purpose, _Boot):
            self._boot_at = now + FIRST_BOOT_RETRY_S * 1000
            return self._changed(up=False, reason=f"the backend refuses to register us: {text}")
        if isinstance(purpose, _Authorize):
            return [Judged(purpose.ticket, None)]
        if isinstance(purpose, _Fact):
            self._fact_refused(purpose.pending, code, text, now)
        return []

    def _late(self, late: rpc_events.TimedOut, now: int) -> list[Action]:
        flight = self._landed(late.id)
        if flight is None:
            return []
        self._unanswered += 1
        log.warning("the backend does not answer %s", flight.action)
        actions: list[Action] = []
        if isinstance(flight.purpose, _Authorize):
            actions.append(Judged(flight.purpose.ticket, None))
        elif isinstance(flight.purpose, _Boot):
            self._boot_at = now
        elif isinstance(flight.purpose, _Fact):
            self._delivery.late(flight.purpose.pending, now, self._retry_ms)
        if self._unanswered >= SILENT_AFTER:
            text = f"{SILENT_AFTER} calls in a row were not answered"
            actions += [*self._changed(up=False, reason=text), Close(text)]
        return actions

    def _registered(self, told: Registered, now: int) -> list[Action]:
        self._registration = told.status
        actions: list[Action] = [CloudTime(told.now_ms)]
        if told.status != "Accepted":
            wait = max(told.interval_s, LEAST_BOOT_RETRY_S) if told.interval_s else 60
            self._boot_at = now + wait * 1000
            text = f"{NOT_YET} ({told.status}); asking again in {wait} s"
            return [*actions, *self._changed(up=False, reason=text)]
        if told.interval_s > 0:
            self._set_heartbeat(told.interval_s)
        self._heartbeat_at = now + self._heartbeat_ms
        self._delivery.connected()
        self._told.clear()
        return [*actions, *self._changed(up=True, reason="registered with the backend")]

    def _set_heartbeat(self, seconds: int) -> None:
        variable = self._device.find("OCPPCommCtrlr", "HeartbeatInterval")
        seconds = min(max(seconds, 1), 86_400)
        if isinstance(variable, str) or self._device.value(variable) == str(seconds):
            return
        self._device.set(variable, str(seconds))

    @property
    def _heartbeat_ms(self) -> int:
        return self._device.number("OCPPCommCtrlr", "HeartbeatInterval") * 1000

    # ------------------------------------------------------------------ facts

    @property
    def _attempts(self) -> int:
        return self._device.number("OCPPCommCtrlr", "MessageAttempts", "TransactionEvent")

    @property
    def _retry_ms(self) -> int:
        name = "MessageAttemptInterval"
        return self._device.number("OCPPCommCtrlr", name, "TransactionEvent") * 1000

    def _fact_taken(self, pending: PendingFact, response: Any) -> list[Action]:
        fact = pending.fact
        if not isinstance(fact, TransactionEvent):
            self._delivery.delivered(pending)
            return []
        return self._settle(pending, fact, self._dialect.taken(fact, response))

    def _settle(self, pending: PendingFact, fact: TransactionEvent, taken: Taken) -> list[Action]:
        self._delivery.delivered(pending, taken.number)
        if taken.number is not None:
            self.numbers[fact.transaction] = taken.number
        elif fact.type == "Ended":
            self.numbers.pop(fact.transaction, None)
        if taken.heard is None or fact.id_token is None:
            return []
        self._charger.remember(fact.id_token, taken.heard)
        if taken.heard.accepted or not self._device.truth("TxCtrlr", "StopTxOnInvalidId"):
            return []
        return [Deauthorized(fact.transaction, taken.heard.why)]

    def _fact_refused(self, pending: PendingFact, code: str, text: str, now: int) -> None:
        often_enough = self._delivery.failed(
            pending, code, now, attempts=self._attempts, interval_ms=self._retry_ms
        )
        if often_enough:
            self._put_apart(pending, f"{code}: {text}" if text else code)

    def _put_apart(self, pending: PendingFact, why: str) -> None:
        log.error("put apart, see `karvon agent queue`: %s", why)
        self._delivery.put_apart(pending, why, self._charger.now().wall_ms)

    # ------------------------------------------------------------------ what leaves

    def _drain(self, now: int) -> list[Action]:
        actions: list[Action] = []
        for _ in range(MOST_AT_ONCE):  # much may have to be passed over: not all in one turn
            if self._flight is not None or self._rpc is None:
                break
            try:
                sent = self._next(now)
            except JournalError as error:
                log.error("the OCPP uplink waits for the journal: %s", error)  # noqa: TRY400  # no fault of ours
                self._disk_at = now + RETRY_AFTER_DISK_MS
                break
            except SchemaError:
                log.exception("left out: OCPP %s cannot say it", self._dialect.version)
                continue
            if sent is None:
                break
            actions += sent
        return actions

    def _next(self, now: int) -> list[Action] | None:
        """The next call, or None when there is nothing to say now."""
        if self._registration != "Accepted":
            if now < self._boot_at:
                return None
            self._boot_at = now + FIRST_BOOT_RETRY_S * 1000
            return self._call(self._dialect.boot(self._boot_reason), _Boot(), now)
        if self._tickets:
            return self._authorize(self._tickets.popleft(), now)
        for calls in (self._wanted, self._news):
            if calls:
                return self._call(calls.popleft(), _Plain(), now)
        for choose in (self._status, self._live, self._regular, self._waited):
            sent = choose(now)
            if sent is not None:
                return sent
        return None

    def _call(self, call: Call, purpose: Purpose, now: int) -> list[Action]:
        """Raises SchemaError for what the version cannot say."""
        assert self._rpc is not None
        self._codec.make_request(call.action, call.payload)
        message_id, outputs = self._rpc.call(
            call.action, _ENCODE(call.payload), now / 1000, self.settings.timeout_ms / 1000
        )
        self._flight = _Flight(message_id, call.action, purpose)
        return self._outputs(outputs, now)

    def _authorize(self, asked: Asked, now: int) -> list[Action]:
        call = self._dialect.authorize(asked.id_token)
        if call is None:
            why = f"OCPP {self._dialect.version} has no words for the token {asked.id_token.value}"
            return [Judged(asked.ticket, Heard(accepted=False, why=why))]
        return self._call(call, _Authorize(asked.ticket), now)

    def _status(self, now: int) -> list[Action] | None:
        if "status" not in self.settings.carries:
            return None
        for evse, call in self._dialect.statuses(self._charger.statuses()):
            told = self._told.get(evse)
            if told is None or _changed(told, call):
                self._told[evse] = call
                return self._call(call, _Status(evse, call), now)
        return None

    def _live(self, now: int) -> list[Action] | None:
        if now < self._disk_at:
            return None
        return self._deliver(self._delivery.live(now), now)

    def _waited(self, now: int) -> list[Action] | None:
        if now < self._disk_at:
            return None
        return self._deliver(self._delivery.backlog(now), now)

    def _deliver(self, pending: PendingFact | None, now: int) -> list[Action] | None:
        if pending is None:
            return None
        try:
            call = self._worded(pending)
            if call is None:
                self._delivery.skip(pending)
                return []
            sent = self._call(call, _Fact(pending), now)
        except (UndeliverableError, SchemaError) as error:
            self._put_apart(pending, str(error))
            return []
        self._delivery.sent(pending)
        return sent

    def _worded(self, pending: PendingFact) -> Call | None:
        fact = pending.fact
        if isinstance(fact, TransactionEvent):
            number = self.numbers.get(fact.transaction)
            return self._dialect.fact(fact, number, offline=self._delivery.waited(pending))
        if isinstance(fact, SecurityEvent):
            return self._dialect.security(fact)
        return None

    def _regular(self, now: int) -> list[Action] | None:
        self._align()
        if self._wanted:
            return self._call(self._wanted.popleft(), _Plain(), now)
        if now < self._heartbeat_at:
            self._heartbeat_at = min(self._heartbeat_at, now + self._heartbeat_ms)
            return None
        self._heartbeat_at = now + self._heartbeat_ms
        return self._call(Call("Heartbeat", {}), _Heartbeat(), now)

    def _align(self) -> None:
        """At each whole interval of the day, as the wall clock has it."""
        every = self._device.number("AlignedDataCtrlr", "Interval") * 1000 * (self._thinned or 0)
        now_ms = self._charger.when(self._charger.now())
        if every == 0 or "telemetry" not in self.settings.carries:
            self._aligned_ms = None
            return
        due = now_ms - now_ms % every
        if self._aligned_ms is not None and due > self._aligned_ms:
            self._wanted += self._dialect.aligned(due)
        self._aligned_ms = due


def _shown(text: str) -> str:
    """Somebody else's text as it may stand in a log or on a terminal."""
    return "".join(one if one.isprintable() else " " for one in text[:LONGEST_SHOWN])


def _changed(told: Call, call: Call) -> bool:
    """Whether more than the time is different."""
    return {**told.payload, "timestamp": ""} != {**call.payload, "timestamp": ""}
