"""When a stamp was, in the cloud's time: pure rules.

A trusted stamp tells by itself. An untrusted one is read with its boot's clock: exact when the
agent has said so since (ClockCorrected), or estimated from when a batch of the same boot came in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from protocols.agent_link import ClockQuality, Stamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OLDEST = datetime(2020, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)


class Dating(StrEnum):
    """How a time in the cloud came about, worst first."""

    UNSET = "unset"
    """As the agent wrote it, untrusted; nothing better is known."""
    ESTIMATED = "estimated"
    """From the moment of receipt: late by the way's delay, never early."""
    CLOUD = "cloud"
    SYNCED = "synced"

    @property
    def trusted(self) -> bool:
        return self in {Dating.CLOUD, Dating.SYNCED}


@dataclass(frozen=True)
class BootClock:
    """Wall time minus monotonic time of one boot."""

    offset_ms: int
    quality: Dating


@dataclass(frozen=True)
class Dated:
    at: datetime
    quality: Dating


def from_ms(ms: int) -> datetime:
    """A time from milliseconds since 1970 UTC; times that no calendar holds become the epoch."""
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return _EPOCH


def to_ms(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


def plausible(at: datetime, received_at: datetime) -> bool:
    """Whether something received then may have happened at that time."""
    return _OLDEST <= at <= received_at + _AHEAD


def trusted_at(wall_ms: int, quality: ClockQuality, received_at: datetime) -> datetime | None:
    """The wall time, where it stands by itself."""
    at = from_ms(wall_ms)
    trusted = quality is not ClockQuality.UNSET and plausible(at, received_at)
    return at if trusted else None


def trusts(stamp: Stamp, received_at: datetime) -> bool:
    """Whether the stamp's wall time stands by itself."""
    return trusted_at(stamp.wall_ms, stamp.quality, received_at) is not None


def sent_clock(sent: Stamp, received_at: datetime) -> BootClock:
    """What a batch says of its boot's clock: exact when the sender's clock is trusted."""
    if trusts(sent, received_at):
        return BootClock(sent.wall_ms - sent.mono_ms, Dating(sent.quality))
    return BootClock(to_ms(received_at) - sent.mono_ms, Dating.ESTIMATED)


def date(stamp: Stamp, received_at: datetime, sent: Stamp, known: BootClock | None = None) -> Dated:
    """The stamp's time: its own, by its boot's known clock, or by the batch that brought it."""
    if trusts(stamp, received_at):
        return Dated(from_ms(stamp.wall_ms), Dating(stamp.quality))
    if known is not None:
        return Dated(from_ms(stamp.mono_ms + known.offset_ms), known.quality)
    if sent.boot == stamp.boot:
        clock = sent_clock(sent, received_at)
        return Dated(from_ms(stamp.mono_ms + clock.offset_ms), clock.quality)
    return Dated(from_ms(stamp.wall_ms), Dating.UNSET)


def date_told(ms: int, received_at: datetime, *, trusted: bool = True) -> Dated:
    """A time that an OCPP station told: its clock is set from our answers, if it is set at all."""
    at = from_ms(ms)
    if trusted and plausible(at, received_at):
        return Dated(at, Dating.CLOUD)
    return Dated(received_at, Dating.ESTIMATED)
