"""What comes out of a connection's protocol: what to send, what arrived, how our calls ended."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Raw, Struct

from protocols.ocpp.deviations import Deviation
from protocols.ocpp.frames import MessageId


class Send(Struct, frozen=True, gc=False):
    """Send this as a text message."""

    frame: bytes


class CallReceived(Struct, frozen=True, gc=False):
    """The station asks: `answer` or `fail` it once."""

    id: MessageId
    action: str
    payload: Raw
    """A JSON object, not yet looked into."""
    deviations: tuple[Deviation, ...] = ()


class SendReceived(Struct, frozen=True, gc=False):
    """The station tells, and wants no answer (2.1)."""

    id: MessageId
    action: str
    payload: Raw
    deviations: tuple[Deviation, ...] = ()


class Answered(Struct, frozen=True, gc=False):
    """Our call was answered."""

    id: str
    payload: Raw
    deviations: tuple[Deviation, ...] = ()


class Failed(Struct, frozen=True, gc=False):
    """Our call was answered with an error, or with what cannot be read."""

    id: str
    code: str
    text: str
    details: Raw = Raw(b"{}")
    deviations: tuple[Deviation, ...] = ()


class TimedOut(Struct, frozen=True, gc=False):
    """Our call was not answered in time, or (`sent` false) did not get its turn in time."""

    id: str
    sent: bool


class Refused(Struct, frozen=True, gc=False):
    """Our call ends without an answer: the queue was full, or the connection is lost."""

    id: str
    text: str
    sent: bool = False


class AnswerRefused(Struct, frozen=True, gc=False):
    """The station could not read our answer (2.1 CALLRESULTERROR)."""

    id: MessageId
    code: str
    text: str


class Note(Struct, frozen=True, gc=False):
    """Something for the log and the counters; it has been dealt with."""

    deviation: Deviation


class Close(Struct, frozen=True, gc=False):
    """Close the connection with this WebSocket status (RFC 6455, 7.4.1); nothing more is taken."""

    status: int
    reason: str


Output: TypeAlias = (
    Send
    | CallReceived
    | SendReceived
    | Answered
    | Failed
    | TimedOut
    | Refused
    | AnswerRefused
    | Note
    | Close
)
