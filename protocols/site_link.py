"""What controllers behind one fuse say to each other, and how a datagram proves its origin.

A follower reports once a second; the leader answers each report with a grant. Both travel as one
datagram: four bytes that name the format, an HMAC-SHA256 over everything else under the site's
key, and a JSON array. Nothing is secret in it; what counts is that nobody else can say it, and
that it cannot be said twice:

- a grant names the report that it answers (boot and number), and the follower counts its time
  from when it sent that report; a grant that comes again, or late, is worth nothing any more,
- a report names the newest grant that its sender has heard (boot and number); the leader believes
  only one that names a grant of its own of the last seconds, and each number only once.

So no clock has to agree with any other: each side measures durations on its own monotonic clock.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final
from uuid import UUID

import msgspec

MAGIC: Final = b"KSL1"
MAC_BYTES: Final = 32
MAX_BYTES: Final = 8192
MIN_KEY_BYTES: Final = 32
Lines = tuple[int, int, int]
"""mA on the site's lines L1, L2, L3."""


class SiteLinkError(Exception):
    """A datagram that is not to be believed; the text says why."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A message by its sender's boot and number."""

    boot: UUID
    number: int


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What one EVSE could use."""

    evse: int
    lines: tuple[int, ...]
    """The site's lines (0, 1, 2) that it loads."""
    most_ma: int
    uneven: bool
    """It counts towards the unbalance of these lines."""
    priority: int
    parked: bool = False
    """It takes nothing of what it may; others come first."""


class Report(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """A follower's state when it sent this."""

    station: str
    mark: Mark
    heard: Mark | None
    """The newest grant that it has heard; None: none in this boot."""
    share_ma: Lines
    """What it falls back to, as configured there."""
    own_ma: Lines
    """What it may take by itself when its lease is over."""
    leased_ma: Lines
    """What the lease it acts on allows; nothing where it has none."""
    held_ma: Lines
    """What its EVSEs may be taking, with the reaction time of vehicles."""
    ending_ma: Lines
    """The part of it that belongs to EVSEs which ask for nothing any more."""
    measured_ma: Lines
    idle: bool
    """No transaction: nothing flows even if its boards were left alone."""
    rise_ms: int
    """So long after its lease it stays at what was granted, before it takes its share."""
    dead_ms: int
    """So long after its death its vehicles have surely fallen to its share."""
    asked: tuple[Asked, ...]


class Grant(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """The leader's answer to one report."""

    leader: str
    mark: Mark
    answers: Mark
    lines_ma: Lines | None
    """What the station's EVSEs may take; None: nothing can be said yet."""
    uneven_ma: Lines | None
    """What those of them on one or two lines may take of each; None: no limit."""
    valid_ms: int
    """From when the answered report was sent."""
    why: str


Message = Report | Grant
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Report | Grant)


def seal(message: Message, key: bytes) -> bytes:
    body = _ENCODER.encode(message)
    return MAGIC + _mac(body, key) + body


def unseal(datagram: bytes, key: bytes) -> Message:
    """Raises SiteLinkError for anything that was not sealed with this key."""
    head = len(MAGIC) + MAC_BYTES
    if not datagram.startswith(MAGIC) or not head < len(datagram) <= MAX_BYTES:
        raise SiteLinkError("not a datagram of this protocol")
    body = datagram[head:]
    if not hmac.compare_digest(datagram[len(MAGIC) : head], _mac(body, key)):
        raise SiteLinkError("sealed with another key; all controllers need the same key file")
    try:
        message: Message = _DECODER.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise SiteLinkError(f"of another version: {error}") from error
    return message


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.new(key, MAGIC + body, hashlib.sha256).digest()
