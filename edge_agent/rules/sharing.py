"""Who gets how much of what is not enough for all.

Whatever is scarce is a resource with a room: a line of the main fuse, the unbalance of a line, the
sun. A claim takes some of several resources at once, as many times its current as it says. The
room is filled evenly: everyone rises together until a resource that he needs is used up. Under the
least current nobody can charge, so where there is not enough for all some wait, and they take
turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from protocols.quantities import IEC_MIN_CURRENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What somebody could use, at most, and what each mA of it takes of which resource."""

    key: Hashable
    most: int
    takes: Mapping[str, int]
    least: int = IEC_MIN_CURRENT
    priority: int = 0
    """Higher ones are filled first; equal ones evenly."""


def share(room: Mapping[str, int], claims: Sequence[Claim]) -> dict[Hashable, int]:
    """Split the room; the claims come in the order in which they are let in.

    A resource without a room is not limited. Each claim gets 0, or from its least to its most.
    """
    left = dict(room)
    shares: dict[Hashable, int] = {claim.key: 0 for claim in claims}
    served = [claim for claim in claims if _let_in(claim, left)]
    for claim in served:
        shares[claim.key] = claim.least
    ranked = sorted(served, key=lambda claim: -claim.priority)
    for _, equals in groupby(ranked, key=lambda claim: claim.priority):
        _fill(left, list(equals), shares)
    return shares


def _let_in(claim: Claim, left: dict[str, int]) -> bool:
    """Take the least current of every resource, or nothing of any."""
    wanted = {name: times * claim.least for name, times in claim.takes.items() if name in left}
    if claim.most < claim.least or any(left[name] < amount for name, amount in wanted.items()):
        return False
    for name, amount in wanted.items():
        left[name] -= amount
    return True


def _fill(left: dict[str, int], rising: list[Claim], shares: dict[Hashable, int]) -> None:
    while rising:
        used = _used_by(rising, left)
        steps = [claim.most - shares[claim.key] for claim in rising]
        steps += [left[name] // times for name, times in used.items()]
        step = min(steps)
        for claim in rising:
            shares[claim.key] += step
        for name, times in used.items():
            left[name] -= step * times
        full = {name for name, times in used.items() if left[name] < times}
        rising = [
            claim
            for claim in rising
            if shares[claim.key] < claim.most and full.isdisjoint(claim.takes)
        ]


def _used_by(rising: Iterable[Claim], left: Mapping[str, int]) -> dict[str, int]:
    used: dict[str, int] = {}
    for claim in rising:
        for name, times in claim.takes.items():
            if name in left and times:
                used[name] = used.get(name, 0) + times
    return used


@dataclass(slots=True)
class _Turn:
    """Since when somebody is served, or waits."""

    served: bool
    since_ms: int


@dataclass(slots=True)
class Turns:
    """The order in which claims are let in, so that who waits is served next.

    Who is served keeps his place for a turn, then goes behind those who wait; of these the longest
    waiting comes first. So among n of one priority with room for one nobody waits longer than
    n - 1 turns.
    """

    turn_ms: int = 900_000
    _turns: dict[Hashable, _Turn] = field(default_factory=dict)

    def order(self, claims: Sequence[Claim], now_ms: int) -> list[Claim]:
        """Newcomers wait from now on; who makes no claim any more is forgotten."""
        here = {claim.key for claim in claims}
        for gone in self._turns.keys() - here:
            del self._turns[gone]
        for claim in claims:
            self._turns.setdefault(claim.key, _Turn(False, now_ms))
        return sorted(claims, key=lambda claim: (-claim.priority, *self._place(claim, now_ms)))

    def _place(self, claim: Claim, now_ms: int) -> tuple[int, int]:
        turn = self._turns[claim.key]
        if not turn.served:
            return (1, turn.since_ms)
        return (0 if now_ms - turn.since_ms < self.turn_ms else 2, turn.since_ms)

    def note(self, shares: Mapping[Hashable, int], now_ms: int) -> None:
        """What came of it."""
        for key, turn in self._turns.items():
            served = shares.get(key, 0) > 0
            if served is not turn.served:
                turn.served, turn.since_ms = served, now_ms
            elif served and now_ms - turn.since_ms >= self.turn_ms:
                turn.since_ms = now_ms  # nobody else could be served: another turn
