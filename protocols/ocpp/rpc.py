"""One connection's calls in both directions, sans-IO (OCPP-J 1.6, 4; 2.0.1 and 2.1 Part 4, 4).

Rules, in the order in which they are judged:

- Each side has one CALL under way. Ours wait in a bounded queue. A station's next CALL is kept
  while one is open, a few of them, since some stations do not wait; it comes out after the answer.
- A CALL with the id and text of one that was answered gets the same answer, from a small cache.
  With those of one that is still open it is dropped: the answer to come serves both.
- A known id with another text is a new CALL: counters that restart are commoner than changed
  repeats, and to answer a StopTransaction with what was said to a Heartbeat loses it.
- A CALL gets one answer at most. Whoever owns `Rpc` answers each CallReceived once.
- What cannot be read is answered where something can be matched to it, and never closes a
  connection by itself; only too long frames and long runs of nonsense do.

Nothing that arrives raises; nothing grows with time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from protocols.ocpp import frames
from protocols.ocpp.deviations import Deviation
from protocols.ocpp.events import (
    Answered,
    AnswerRefused,
    CallReceived,
    Close,
    Failed,
    Note,
    Output,
    Refused,
    Send,
    SendReceived,
    TimedOut,
)
from protocols.ocpp.frames import (
    CALL,
    CALLERROR,
    CALLRESULT,
    CALLRESULTERROR,
    LONGEST_ID,
    SEND,
    Fault,
    Frame,
    MessageId,
)
from protocols.ocpp.version import Version


@dataclass(frozen=True)
class Limits:
    """What one connection may hold; in memory at most about twice `frame` times `pipelined`."""

    frame: int = 512 * 1024
    """Bytes; a station's largest report pages are a tenth of it."""
    waiting: int = 32
    """Our calls that wait for their turn."""
    pipelined: int = 8
    """The station's calls that wait while one is open."""
    answers: int = 16
    """Answers that are kept for repeated calls."""
    answer_bytes: int = 32 * 1024
    """All kept answers together."""
    strikes: int = 32
    """Unreadable messages and surplus calls in a row until the connection is closed."""


_TOO_BIG: Final = 1009
_POLICY: Final = 1008
_BRACE: Final = ord("{")
_read_head: Final = msgspec.json.Decoder(tuple[int, str, str, Raw]).decode


class _Asked(Struct, gc=False):
    """A call of ours."""

    id: str
    frame: bytes
    timeout: float
    deadline: float


class _Answers(OrderedDict[MessageId, tuple[int, bytes]]):
    """The last answers, by message id, with the fingerprint of what they answer."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._bytes = 0

    def find(self, message_id: MessageId, frame: str | bytes) -> bytes | None:
        kept = self.get(message_id)
        return kept[1] if kept is not None and kept[0] == hash(frame) else None

    def keep(self, message_id: MessageId, frame: str | bytes, answer: bytes) -> None:
        """Of the call a hash is kept: seeded per process, so that none can be made to match."""
        replaced = self.pop(message_id, None)
        self._bytes += len(answer) - (len(replaced[1]) if replaced else 0)
        self[message_id] = (hash(frame), answer)
        while len(self) > self._limits.answers or self._bytes > self._limits.answer_bytes:
            _, (_, dropped) = self.popitem(last=False)
            self._bytes -= len(dropped)


def _note(name: str, text: str) -> Note:
    return Note(Deviation(name, "", text))


class Rpc:
    """One connection's protocol state; `prefix` makes our message ids its own."""

    def __init__(self, version: Version, prefix: str, limits: Limits = Limits()) -> None:
        self.version = version
        self._prefix, self._limits = prefix, limits
        self._number = 0
        self._asked: _Asked | None = None
        self._waiting: deque[_Asked] = deque()
        self._late: deque[str] = deque(maxlen=8)
        self._longest = limits.frame
        self._open: CallReceived | None = None
        self._open_frame: str | bytes = b""
        self._next: deque[tuple[CallReceived, str | bytes]] = deque()
        self._kept = _Answers(limits)
        self._strikes = 0
        self._closed = False

    # ----- the station's side

    def receive(self, frame: str | bytes, now: float) -> list[Output]:
        """What a text message brings."""
        if len(frame) > self._longest:
            return self._too_long(len(frame))
        plain = frames.without_zeros(frame)
        if plain is not None:
            return [_note("zero_in_text", "U+0000 taken as U+FFFD"), *self._receive(plain, now)]
        return self._receive(frame, now)

    def _receive(self, frame: str | bytes, now: float) -> list[Output]:
        try:
            kind, message_id, action, payload = _read_head(frame)
        except (ValueError, RecursionError):
            return self._receive_other(frame, now)
        if kind != CALL or len(message_id) > LONGEST_ID or memoryview(payload)[0] != _BRACE:
            return self._receive_other(frame, now)
        call = CallReceived(message_id, action, payload)
        if self._open is not None or message_id in self._kept or self._closed:
            return self._receive_call(call, frame)
        self._strikes = 0
        self._open, self._open_frame = call, frame
        return [call]

    def answer(self, message_id: MessageId, payload: bytes) -> list[Output]:
        """Answer the open call with a JSON object."""
        return self._conclude(message_id, frames.result(message_id, payload))

    def fail(
        self, message_id: MessageId, code: str, text: str, details: Mapping[str, Any] | None = None
    ) -> list[Output]:
        """Answer the open call with an error."""
        answer = frames.error(CALLERROR, message_id, code, text, dict(details or {}))
        return self._conclude(message_id, answer)

    # ----- our side

    def call(
        self, action: str, payload: bytes, now: float, timeout: float
    ) -> tuple[str, list[Output]]:
        """Ask the station; the time runs anew when the call gets its turn."""
        asked = self._new(action, payload, now, timeout)
        outputs: list[Output] = []
        if len(self._waiting) >= self._limits.waiting:
            text = f"{len(self._waiting)} calls waited for this station already"
            outputs.append(Refused(self._waiting.popleft().id, text))
        self._waiting.append(asked)
        return asked.id, outputs + self._send_next(now)

    def send(self, action: str, payload: bytes) -> list[Output]:
        """Tell without asking (2.1 SEND); raises ValueError in versions that cannot."""
        if self.version is not Version.V21:
            raise ValueError(f"{self.version} has no SEND")
        self._number += 1
        return [Send(frames.send(f"{self._prefix}{self._number}", action, payload))]

    def refuse_answer(self, message_id: str, code: str, text: str) -> list[Output]:
        """Tell the station that its answer could not be read: a CALLRESULTERROR in 2.1."""
        if self.version is not Version.V21:
            return []
        return [Send(frames.error(CALLRESULTERROR, message_id, code, text))]

    def tick(self, now: float) -> list[Output]:
        """What the passing of time brings; due at `next_deadline`."""
        outputs: list[Output] = []
        if self._asked is not None and self._asked.deadline <= now:
            self._late.append(self._asked.id)
            outputs.append(TimedOut(self._asked.id, sent=True))
            self._asked = None
        for asked in [asked for asked in self._waiting if asked.deadline <= now]:
            self._waiting.remove(asked)
            outputs.append(TimedOut(asked.id, sent=False))
        return outputs + self._send_next(now)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        asked = [self._asked] if self._asked is not None else []
        return min((one.deadline for one in [*asked, *self._waiting]), default=None)

    def lost(self) -> list[Output]:
        """The connection is gone: all our calls end."""
        text = "the connection was lost"
        ended: list[Output] = []
        if self._asked is not None:
            ended.append(Refused(self._asked.id, text, sent=True))
        ended += [Refused(asked.id, text) for asked in self._waiting]
        self._asked, self._closed = None, True
        self._waiting.clear()
        return ended

    # ----- the station's calls

    def _receive_call(self, call: CallReceived, frame: str | bytes) -> list[Output]:
        if self._closed:
            return []
        if answer := self._kept.find(call.id, frame):
            return [Send(answer), _note("repeated_call", "answered as before")]
        if frame in self._open_frames(call.id):
            return [_note("repeated_call", "its answer is still to come")]
        return self._take(call, frame)

    def _take(self, call: CallReceived, frame: str | bytes) -> list[Output]:
        if self._open is not None and len(self._next) >= self._limits.pipelined:
            text = f"{len(self._next) + 1} calls are waiting already; wait for their answers"
            answer = frames.error(CALLERROR, call.id, "GenericError", text)
            return [Send(answer), *self._strike("pipelined_call", text)]
        self._strikes = 0
        if self._open is None:
            self._open, self._open_frame = call, frame
            return [call]
        self._next.append((call, frame))
        return [_note("pipelined_call", f"{len(self._next)} wait behind the open one")]

    def _conclude(self, message_id: MessageId, answer: bytes) -> list[Output]:
        if self._open is None or self._open.id != message_id or self._closed:
            return [_note("repeated_call", "answered already, or the connection is closed")]
        self._kept.keep(message_id, self._open_frame, answer)
        self._open, self._open_frame = self._next.popleft() if self._next else (None, b"")
        return [Send(answer)] if self._open is None else [Send(answer), self._open]

    def _open_frames(self, message_id: MessageId | None) -> list[str | bytes]:
        """The texts of what has this id and no answer yet."""
        first = [(self._open, self._open_frame)] if self._open is not None else []
        return [frame for call, frame in [*first, *self._next] if call.id == message_id]

    # ----- everything else that arrives

    def _receive_other(self, frame: str | bytes, now: float) -> list[Output]:
        if self._closed:
            return []
        read = frames.read(frame, self.version)
        if isinstance(read, Fault):
            return self._fault(read, now)
        if read.type == CALL:
            call = CallReceived(read.id, read.name, read.payload, read.deviations)
            return self._receive_call(call, frame)
        self._strikes = 0
        if read.type == SEND:
            return [SendReceived(read.id, read.name, read.payload, read.deviations)]
        if read.type == CALLRESULTERROR:
            return self._answer_refused(read)
        return self._answered(read, now)

    def _answered(self, read: Frame, now: float) -> list[Output]:
        asked = self._asked
        if asked is None or asked.id != read.id:
            return [self._unasked(read.id)]
        self._asked = None
        if read.type == CALLRESULT:
            end: Output = Answered(asked.id, read.payload, read.deviations)
        else:
            end = Failed(asked.id, read.name, read.text, read.payload, read.deviations)
        return [end, *self._send_next(now)]

    def _unasked(self, message_id: MessageId) -> Note:
        name = "late_answer" if message_id in self._late else "unasked_answer"
        return _note(name, f"message id {str(message_id)[:LONGEST_ID]!r}")

    def _answer_refused(self, read: Frame) -> list[Output]:
        if read.id not in self._kept:
            return [self._unasked(read.id)]
        return [AnswerRefused(read.id, read.name, read.text)]

    def _fault(self, fault: Fault, now: float) -> list[Output]:
        asked = self._asked
        if asked and fault.id == asked.id and fault.type in {CALLRESULT, CALLERROR}:
            self._asked = None
            failed: list[Output] = [Failed(asked.id, fault.code, fault.text)]
            if fault.type == CALLRESULT:
                failed += self.refuse_answer(asked.id, fault.code, fault.text)
            return failed + self._send_next(now)
        unknown = fault.code == "MessageTypeNotSupported"
        notes = self._strike("unknown_message_type" if unknown else "unreadable_frame", fault.text)
        if fault.type != CALL or not fault.code or self._open_frames(fault.id):
            return notes  # what is under way gets its own answer, and only that
        message_id = frames.NO_ID if fault.id is None else fault.id
        return [Send(frames.error(CALLERROR, message_id, fault.code, fault.text)), *notes]

    def _strike(self, name: str, text: str) -> list[Output]:
        self._strikes += 1
        notes: list[Output] = [_note(name, text)]
        if self._strikes < self._limits.strikes:
            return notes
        return [
            *notes,
            self._close(_POLICY, f"{self._strikes} messages in a row that break OCPP-J"),
        ]

    def _too_long(self, length: int) -> list[Output]:
        if self._closed:
            return []
        return [self._close(_TOO_BIG, f"{length} bytes; at most {self._limits.frame} are taken")]

    def _close(self, status: int, reason: str) -> Close:
        self._closed = True
        return Close(status, reason)

    # ----- our calls

    def _new(self, action: str, payload: bytes, now: float, timeout: float) -> _Asked:
        self._number += 1
        message_id = f"{self._prefix}{self._number}"
        return _Asked(message_id, frames.call(message_id, action, payload), timeout, now + timeout)

    def _send_next(self, now: float) -> list[Output]:
        if self._asked is not None or not self._waiting or self._closed:
            return []
        self._asked = self._waiting.popleft()
        self._asked.deadline = now + self._asked.timeout
        return [Send(self._asked.frame)]
