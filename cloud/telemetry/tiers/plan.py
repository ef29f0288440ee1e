"""Which tier answers which stretch of a question: pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MOST_PIECES: Final = 12
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


class Tier(StrEnum):
    RAW = "raw"
    MINUTE = "minute"
    HOUR = "hour"

    @property
    def step(self) -> timedelta:
        return {Tier.RAW: timedelta(0), Tier.MINUTE: MINUTE, Tier.HOUR: HOUR}[self]


@dataclass(frozen=True)
class Marks:
    """How far each tier goes: roll-ups up to `until`, and what retention has left of each."""

    fence: datetime = EPOCH
    until: datetime = EPOCH
    raw_from: datetime = EPOCH
    minute_from: datetime = EPOCH
    hour_from: datetime = EPOCH

    def begins(self, tier: Tier) -> datetime:
        return {
            Tier.RAW: self.raw_from,
            Tier.MINUTE: self.minute_from,
            Tier.HOUR: self.hour_from,
        }[tier]


@dataclass(frozen=True)
class Piece:
    """A stretch of time that one tier answers; `coarse` when the question was finer than it."""

    tier: Tier
    start: datetime
    end: datetime
    coarse: bool = False


def floor(at: datetime, step: timedelta) -> datetime:
    """The last whole step since 1970 UTC that is not later."""
    return at - (at - EPOCH) % step


def ceil(at: datetime, step: timedelta) -> datetime:
    return at + (EPOCH - at) % step


def plan(
    start: datetime, end: datetime, cuts: timedelta, marks: Marks, late: Collection[datetime] = ()
) -> list[Piece]:
    """Pieces that cover start to end without overlap, as far as anything is left.

    `cuts` is the largest step on which all boundaries of the question's buckets lie (see
    `common_step`); `late` are hours that the roll-ups do not hold completely.
    """
    edges = {start, end}
    for edge in (marks.until, marks.raw_from, marks.minute_from, marks.hour_from):
        edges |= {edge, ceil(edge, HOUR), floor(edge, HOUR)}
    for hour in (floor(start, HOUR), floor(end, HOUR), *late):
        edges |= {hour, hour + HOUR}
    edges |= {ceil(start, MINUTE), floor(end, MINUTE)}
    inside = sorted(edge for edge in edges if start <= edge <= end)
    dirty = frozenset(late)
    pieces = [_piece(a, b, cuts, marks, dirty) for a, b in pairwise(inside)]
    return _few(_joined([piece for piece in pieces if piece is not None]))


def _piece(
    start: datetime, end: datetime, cuts: timedelta, marks: Marks, late: frozenset[datetime]
) -> Piece | None:
    has_raw = start >= marks.raw_from
    rolled = end <= marks.until and not (has_raw and floor(start, HOUR) in late)
    if not rolled:
        return Piece(Tier.RAW, start, end) if has_raw else None
    left = [
        tier
        for tier in (Tier.HOUR, Tier.MINUTE, Tier.RAW)
        if start >= marks.begins(tier) and _whole(tier, start, end, marks.until)
    ]
    for tier in left:
        if tier is Tier.RAW or cuts % tier.step == timedelta(0):
            return Piece(tier, start, end)
    coarse = [tier for tier in (Tier.MINUTE, Tier.HOUR) if start >= marks.begins(tier)]
    return Piece(coarse[0], start, end, coarse=True) if coarse else None


def _whole(tier: Tier, start: datetime, end: datetime, until: datetime) -> bool:
    """Whether the stretch is made of whole steps, all of them rolled up."""
    if tier is Tier.RAW:
        return True
    return floor(start, tier.step) == start and floor(end, tier.step) == end <= until


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last
            and last.end == piece.start
            and (last.tier, last.coarse)
            == (
                piece.tier,
                piece.coarse,
            )
        ):
            joined[-1] = Piece(last.tier, last.start, piece.end, last.coarse)
        else:
            joined.append(piece)
    return joined


def _few(pieces: list[Piece]) -> list[Piece]:
    """With many late hours apart: samples all the way from the first to the last of them."""
    raw = [number for number, piece in enumerate(pieces) if piece.tier is Tier.RAW]
    if len(pieces) <= MOST_PIECES or not raw:
        return pieces
    first, last = raw[0], raw[-1]
    hull = Piece(Tier.RAW, pieces[first].start, pieces[last].end)
    return [*pieces[:first], hull, *pieces[last + 1 :]]


def common_step(boundaries: Sequence[datetime], every: timedelta | None = None) -> timedelta:
    """The coarsest of hour, minute, nothing on which all these boundaries lie."""
    for step in (HOUR, MINUTE):
        if every is not None and every % step:
            continue
        if all(floor(boundary, step) == boundary for boundary in boundaries):
            return step
    return timedelta(microseconds=1)
