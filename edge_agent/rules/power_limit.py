"""How much current an EVSE may offer: the smallest of all limits that hold, with its name.

Lowering is immediate. Raising waits until the reason to lower has been gone for a while, so that
a noisy site does not make a vehicle start and stop. Together the EVSEs of a controller never get
more than the site has, not even while one is being lowered and another raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes

PAUSE: Final = MilliAmperes(0)
WORTH_A_WRITE: Final = MilliAmperes(500)


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit and who sets it: cable, board, site, command, profile, authorization, failsafe."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLoad:
    """What the site meter says: the largest phase current of the whole site, and how fresh."""

    current: MilliAmperes
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRules:
    """What the site allows to the EVSEs of this controller (mA per phase)."""

    limit: MilliAmperes
    metered: bool = False
    """The limit is the whole site's fuse and a meter shows what others take of it."""
    safe_share: MilliAmperes = IEC_MIN_CURRENT
    """Each EVSE's share while the meter is silent."""
    stale_after_ms: int = 5000


def site_budget(
    site: SiteRules, load: SiteLoad | None, own: MilliAmperes, evses: int, now_ms: int
) -> MilliAmperes:
    """All that the EVSEs may take together; `own` is what they take of the measured load."""
    if not site.metered:
        return site.limit
    if load is None or now_ms - load.at_ms > site.stale_after_ms:
        return MilliAmperes(min(site.limit, site.safe_share * evses))
    others = max(0, load.current - own)
    return MilliAmperes(max(0, site.limit - others))


def fair_split(total: MilliAmperes, most: Mapping[int, MilliAmperes]) -> dict[int, MilliAmperes]:
    """Split a budget among the active EVSEs, each up to what it can use.

    Who needs less leaves the rest to others. Where 6 A for everyone is too much, the EVSEs that
    come first in `most` get 6 A and the rest pause: half of 6 A charges nobody.
    """
    served = list(most)[: max(0, total) // IEC_MIN_CURRENT]
    shares = dict.fromkeys(most, PAUSE)
    left, waiting = total, len(served)
    for evse in sorted(served, key=lambda each: most[each]):
        share = MilliAmperes(min(most[evse], left // waiting))
        shares[evse] = share
        left = MilliAmperes(left - share)
        waiting -= 1
    return shares


def headroom(
    total: MilliAmperes, evse: int, outstanding: Mapping[int, MilliAmperes]
) -> MilliAmperes:
    """What the others' limits, as last confirmed, leave to this EVSE."""
    others = sum(limit for each, limit in outstanding.items() if each != evse)
    return MilliAmperes(max(0, total - others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Keeps one EVSE's offer from flapping."""

    offer: Offer = NOTHING
    lowered_ms: int | None = None
    hold_ms: int = 10_000
    deadband: MilliAmperes = WORTH_A_WRITE

    def follow(self, target: Offer, now_ms: int) -> Ramp:
        """Down at once; up after the hold time, and only where it is worth a write."""
        if target.limit < self.offer.limit:
            return replace(self, offer=target, lowered_ms=now_ms)
        if target.limit == self.offer.limit:
            return replace(self, offer=target)
        held = self.lowered_ms is not None and now_ms - self.lowered_ms < self.hold_ms
        slight = self.offer.limit > PAUSE and target.limit - self.offer.limit < self.deadband
        if held or slight:
            return self
        return replace(self, offer=target, lowered_ms=None)
