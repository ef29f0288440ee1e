"""How much current an EVSE may offer: the smallest of all limits that hold, with its name.

Lowering is immediate. Raising waits until the reason to lower has been gone for a while, so that
a noisy site does not make a vehicle start and stop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes

PAUSE: Final = MilliAmperes(0)
WORTH_A_WRITE: Final = MilliAmperes(500)


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit and who sets it: cable, board, site, surplus, command, profile, authorization or
    failsafe.
    """

    name: str
    limit: MilliAmperes


@dataclass(frozen=True, slots=True)
class Offer:
    """What an EVSE may offer per phase, and which limit makes it so; 0 is pause."""

    limit: MilliAmperes
    limited_by: str


def smallest(bounds: Iterable[Bound]) -> Offer:
    """The limit that holds; under 6 A no vehicle may charge, so that is a pause."""
    tightest = min(bounds, key=lambda bound: bound.limit)
    if tightest.limit < IEC_MIN_CURRENT:
        return Offer(PAUSE, tightest.name)
    return Offer(tightest.limit, tightest.name)


NOTHING: Final = Offer(PAUSE, "board")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLimit:
    """A commanded limit and when (monotonic) it expires."""

    limit: MilliAmperes
    until_ms: int

    def bound(self, now_ms: int, failsafe: MilliAmperes) -> Bound:
        """A limit that expired without a successor leaves the failsafe current, no more."""
        if now_ms < self.until_ms:
            return Bound("command", self.limit)
        return Bound("failsafe", failsafe)


SHARED: Final = frozenset({"site", "surplus"})
"""Limits that others share: they come and go with what others take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Keeps one EVSE's offer from flapping."""

    offer: Offer = NOTHING
    lowered_ms: int | None = None
    shed: bool = False
    """Paused for want of a share: a vehicle is not asked to start again at once."""
    hold_ms: int = 10_000
    resume_ms: int = 60_000
    deadband: MilliAmperes = WORTH_A_WRITE

    def follow(self, target: Offer, now_ms: int, ceiling: Offer | None = None) -> Ramp:
        """Down at once; up after the hold time, where it is worth a write, within the ceiling."""
        if target.limit < self.offer.limit:
            shed = target.limit == PAUSE and target.limited_by in SHARED
            return replace(self, offer=target, lowered_ms=now_ms, shed=shed)
        wanted = target if ceiling is None or target.limit <= ceiling.limit else ceiling
        if target.limit == self.offer.limit or wanted.limit <= self.offer.limit:
            return replace(self, offer=Offer(self.offer.limit, wanted.limited_by))
        patience = self.resume_ms if self.shed else self.hold_ms
        held = self.lowered_ms is not None and now_ms - self.lowered_ms < patience
        slight = self.offer.limit > PAUSE and wanted.limit - self.offer.limit < self.deadband
        if held or slight:
            return self
        return replace(self, offer=wanted, lowered_ms=None, shed=False)
