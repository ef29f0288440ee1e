"""One station's live connection: frames become messages, answers and commands become frames.

Nothing here waits: what needs the database is handed to the gateway, which comes back with the
answer. A station's faults are its own: they are answered, counted, and touch nobody else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import msgspec

from cloud.communication.admission import Session
from cloud.communication.frame_log import Direction
from cloud.communication.security_store import OcppStation
from cloud.communication.sockets import Socket
from cloud.kernel.database import TenantId
from protocols.ocpp import events as rpc
from protocols.ocpp.deviations import Deviation
from protocols.ocpp.dialect import Dialect, NotSupported
from protocols.ocpp.frames import MessageId
from protocols.ocpp.messages import (
    Answer,
    Boot,
    Heartbeat,
    Registration,
    Told,
)
from protocols.ocpp.rpc import Rpc
from protocols.ocpp.schemas import Codec, SchemaError
from protocols.ocpp.tolerance import read_request, read_response
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

CALLS_A_SECOND: Final = 500.0
BURST: Final = 2_000.0
"""Calls that a connection may make at once; beyond it is read more slowly (A18)."""
MOST_EARLY: Final = 64
"""Messages that wait for the connection to be entered."""
REPLAYED: Final = 3
"""How many of a connection's first messages may be repeats of what the one before said."""
MOST_EXAMPLE: Final = 200


@dataclass(frozen=True)
class Party:
    """Whom the gateway talks to."""

    station_id: int
    tenant_id: TenantId
    identity: str
    dialect: Dialect
    codec: Codec
    session: Session


@dataclass
class Call:
    """A station's call that waits for its answer."""

    conversation: Conversation
    id: MessageId
    action: str
    told: Told
    answer: Answer
    doubtful: bool
    received_at: datetime
    epoch: int
    silent: bool = False
    """A SEND (2.1), which gets no answer."""


@dataclass
class Asked:
    """A call of ours under way."""

    action: str
    request: dict[str, Any]
    token: object = None
    """Whatever who asks wants to know it by."""


@dataclass(frozen=True)
class Reply:
    """How a call of ours ended."""

    asked: Asked
    response: Any
    """Typed; None when there is none."""
    plain: dict[str, Any] | None
    text: str
    """Why there is no response."""
    sent: bool = True


class Host(Protocol):
    """The gateway, as its conversations need it."""

    def now(self) -> datetime: ...

    def log_frame(
        self, who: Conversation, direction: Direction, action: bytes | None, frame: bytes
    ) -> None: ...

    def heard_call(self, call: Call) -> None:
        """A message for the database, or an id token to look up: answered later."""
        ...

    def replied(self, who: Conversation, reply: Reply) -> None: ...

    def ended(self, who: Conversation, reason: str) -> None: ...

    def wait(self, who: Conversation) -> None:
        """A call of ours is under way: look at the clock for it."""
        ...


class Conversation:
    """A Listener of its socket."""

    def __init__(
        self, party: Party, socket: Socket, host: Host, *, pending: bool, heartbeat_s: int
    ) -> None:
        self.party = party
        self.settings = OcppStation(party.station_id)
        self._zone: ZoneInfo | None = None
        self.socket = socket
        self.pending = pending
        self.heartbeat_s = heartbeat_s
        self.epoch = 0
        self.heard_at = time.monotonic()
        self.quiet_until = float("inf")
        """No call of ours goes out before: some stations lock up on one before their boot (S10)."""
        self.booted = False
        self.closed = False
        self.deviations: Counter[tuple[str, str]] = Counter()
        self.rpc = Rpc(party.dialect.version, f"k{time.monotonic_ns():x}-")
        self._host = host
        self._early: list[bytes] = []
        self._asked: dict[str, Asked] = {}
        self._answer_to: dict[MessageId, str] = {}
        self._said = 0
        self._last = 0
        self._tokens = BURST
        self._spoken_at = self.heard_at

    # ------------------------------------------------------------------ the socket's side

    def on_message(self, data: bytes) -> None:
        now = time.monotonic()
        self.heard_at = now
        if self.epoch == 0:
            self._wait_for_entry(data)
            return
        self._pay(now)
        self._hear(data, now)

    def on_heard(self) -> None:
        self.heard_at = time.monotonic()

    def on_closed(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        for output in self.rpc.lost():
            self._handle(output)
        self._host.ended(self, reason)

    def entered(self, epoch: int, settle_s: float) -> None:
        """The connection is the station's newest now: what it said meanwhile is heard."""
        self.epoch = epoch
        self._zone = ZoneInfo(self.settings.time_zone) if self.settings.time_zone else None
        now = time.monotonic()
        self.quiet_until = now + settle_s
        early, self._early = self._early, []
        for data in early:
            self._hear(data, now)

    def _wait_for_entry(self, data: bytes) -> None:
        if len(self._early) >= MOST_EARLY:
            self.socket.close(1008, "too many messages before the connection was entered")
            return
        self._early.append(data)

    def _pay(self, now: float) -> None:
        """Slow a flood down to what it may be, by not reading it."""
        self._tokens = min(BURST, self._tokens + (now - self._spoken_at) * CALLS_A_SECOND) - 1
        self._spoken_at = now
        if self._tokens < 0:
            self._deviate("flood", f"more than {CALLS_A_SECOND:g} messages a second")
            self.socket.hold(seconds=-self._tokens / CALLS_A_SECOND + 0.2)

    # ------------------------------------------------------------------ what comes in

    def _hear(self, data: bytes, now: float) -> None:
        outputs = self.rpc.receive(data, now)
        self._host.log_frame(self, Direction.IN, self._action_of(outputs), data)
        for output in outputs:
            self._handle(output)

    def _action_of(self, outputs: list[rpc.Output]) -> bytes | None:
        for output in outputs:
            if isinstance(output, rpc.CallReceived | rpc.SendReceived):
                return output.action.encode(errors="replace")
            if isinstance(output, rpc.Answered | rpc.Failed) and output.id in self._asked:
                return self._asked[output.id].action.encode()
        return None

    def _handle(self, output: rpc.Output) -> None:
        match output:
            case rpc.Send():
                self._send(output.frame, None)
            case rpc.CallReceived():
                self._call(output)
            case rpc.SendReceived():
                self._call(rpc.CallReceived(output.id, output.action, output.payload), silent=True)
            case rpc.AnswerRefused():
                self._deviate("answer_refused", f"{output.code}: {output.text}")
            case rpc.Note():
                self._note((output.deviation,))
            case rpc.Close():
                self.socket.close(output.status, output.reason)
            case _:
                self._concluded(output)

    def _concluded(self, output: rpc.Answered | rpc.Failed | rpc.TimedOut | rpc.Refused) -> None:
        match output:
            case rpc.Answered():
                self._answered(output)
            case rpc.Failed():
                self._note(output.deviations)
                self._over(output.id, f"{output.code}: {output.text}")
            case rpc.TimedOut():
                self._over(output.id, "the station did not answer in time", sent=output.sent)
            case rpc.Refused():
                self._over(output.id, output.text, sent=output.sent)

    def _call(self, call: rpc.CallReceived, *, silent: bool = False) -> None:
        self._note(call.deviations)
        received_at = self._host.now()
        now_ms = Milliseconds(int(received_at.timestamp() * 1000))
        try:
            request, deviations = read_request(
                self.party.codec, call.action, call.payload, zone=self._zone, now=received_at
            )
            told = self.party.dialect.read(call.action, request, now_ms)
        except NotSupported as error:
            self._fail(call, "NotSupported", str(error), silent=silent)
            return
        except SchemaError as error:
            self._deviate("refused", f"{call.action}: {error}")
            self._fail(call, error.code, str(error), silent=silent)
            return
        self._note(deviations)
        answer = Answer(now_ms=now_ms, interval_s=self.heartbeat_s)
        if isinstance(told, Heartbeat):
            if not silent:
                self._reply(call.id, call.action, told, answer)
            return
        if self.pending and not isinstance(told, Boot):
            self._fail(call, "SecurityError", "the station waits for its approval", silent=silent)
            return
        waiting = Call(
            self, call.id, call.action, told, answer, self._is_doubtful(call), received_at,
            self.epoch, silent,
        )  # fmt: skip
        self._host.heard_call(waiting)

    def _is_doubtful(self, call: rpc.CallReceived) -> bool:
        """Whether the same may have been committed before: early in a connection, or just said."""
        self._said += 1
        digest = hash((call.action, bytes(call.payload)))
        same, self._last = digest == self._last, digest
        return same or self._said <= REPLAYED

    def _fail(self, call: rpc.CallReceived, code: str, text: str, *, silent: bool) -> None:
        if silent:
            return
        for output in self.rpc.fail(call.id, code, text):
            self._answer_output(output, call.action)

    # ------------------------------------------------------------------ answering

    def reply(self, call: Call) -> None:
        """The call's answer is complete, and what it told is committed."""
        if self.closed:
            return
        if isinstance(call.told, Boot):
            self._greet(call.answer)
        if not call.silent:
            self._reply(call.id, call.action, call.told, call.answer)

    def refuse(self, call: Call, code: str, text: str) -> None:
        """The call cannot be served now: the station shall try again."""
        if call.silent:
            return
        for output in self.rpc.fail(call.id, code, text):
            self._answer_output(output, call.action)

    def refuse_guess(self, call: Call) -> None:
        """No verdict, not even on a right id token: the station has asked about too many (A23)."""
        self._deviate("guessing", call.action)
        self.refuse(call, "InternalError", "too many unknown id tokens; try again in a while")

    def _greet(self, answer: Answer) -> None:
        answer.registration = Registration.PENDING if self.pending else Registration.ACCEPTED
        answer.interval_s = self.heartbeat_s
        self.booted = True
        self.quiet_until = time.monotonic() + 1.0

    def _reply(self, message_id: MessageId, action: str, told: Told, answer: Answer) -> None:
        payload = self.party.dialect.answer(action, told, answer)
        for output in self.rpc.answer(message_id, payload):
            self._answer_output(output, action)

    def _answer_output(self, output: rpc.Output, action: str) -> None:
        if isinstance(output, rpc.Send):
            self._send(output.frame, action)
        else:
            self._handle(output)

    def _send(self, frame: bytes, action: str | None) -> None:
        self.socket.send(frame)
        name = None if action is None else action.encode(errors="replace")
        self._host.log_frame(self, Direction.OUT, name, frame)

    # ------------------------------------------------------------------ asking

    def ask(self, asked: Asked, timeout_s: float) -> None:
        """A call of ours; it ends with `Host.replied`."""
        now = time.monotonic()
        payload = msgspec.json.encode(asked.request)
        message_id, outputs = self.rpc.call(asked.action, payload, now, timeout_s)
        self._asked[message_id] = asked
        for output in outputs:
            self._answer_output(output, asked.action)
        self._host.wait(self)

    def tick(self, now: float) -> float | None:
        """What time brings; when to look again."""
        for output in self.rpc.tick(now):
            self._handle(output)
        return self.rpc.next_deadline

    def _answered(self, output: rpc.Answered) -> None:
        self._note(output.deviations)
        asked = self._asked.pop(output.id, None)
        if asked is None:
            return
        plain = msgspec.json.decode(output.payload)
        try:
            response, deviations = read_response(self.party.codec, asked.action, output.payload)
        except SchemaError as error:
            self._deviate("unreadable_answer", f"{asked.action}: {error}")
            self._host.replied(self, Reply(asked, None, plain, f"its answer is wrong: {error}"))
            return
        self._note(deviations)
        self._host.replied(self, Reply(asked, response, plain, ""))

    def _over(self, message_id: str, text: str, *, sent: bool = True) -> None:
        asked = self._asked.pop(message_id, None)
        if asked is not None:
            self._host.replied(self, Reply(asked, None, None, text, sent=sent))

    # ------------------------------------------------------------------ deviations

    def _note(self, deviations: tuple[Deviation, ...]) -> None:
        for deviation in deviations:
            self._deviate(deviation.name, f"{deviation.path} {deviation.text}".strip())

    def _deviate(self, name: str, example: str) -> None:
        self.deviations[name, example[:MOST_EXAMPLE]] += 1
