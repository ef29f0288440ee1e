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
    parked: bool = False
    """It takes nothing of what it gets: let in last."""
    pool: str = ""
    """Whose reserve it uses before it takes of what is there for all; "" has none."""


Room = dict[tuple[str, str], int]
"""(pool, resource) -> what is left of it; pool "" is there for all."""


def share(
    room: Mapping[str, int],
    claims: Sequence[Claim],
    reserves: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[Hashable, int]:
    """Split the room; the claims come in the order in which they are let in.

    A resource without a room is not limited. Each claim gets 0, or from its least to its most.
    `reserves` are for the claims of one pool alone, beside the room.
    """
    left: Room = {("", name): amount for name, amount in room.items()}
    for pool, kept in (reserves or {}).items():
        left |= {(pool, name): amount for name, amount in kept.items()}
    shares: dict[Hashable, int] = {claim.key: 0 for claim in claims}
    served = [claim for claim in claims if _let_in(claim, left)]
    for claim in served:
        shares[claim.key] = claim.least
    ranked = sorted(served, key=lambda claim: -claim.priority)
    for _, equals in groupby(ranked, key=lambda claim: claim.priority):
        _fill(left, list(equals), shares)
    return shares


def _limited(claim: Claim, left: Room) -> list[tuple[str, int]]:
    """The resources it takes that are limited, and how many times."""
    return [(name, times) for name, times in claim.takes.items() if times and ("", name) in left]


def _let_in(claim: Claim, left: Room) -> bool:
    """Take the least current of every resource, or nothing of any."""
    wanted = [(name, times * claim.least) for name, times in _limited(claim, left)]
    enough = all(
        left[("", name)] + left.get((claim.pool, name), 0) * bool(claim.pool) >= amount
        for name, amount in wanted
    )
    if claim.most < claim.least or not enough:
        return False
    for name, amount in wanted:
        own = min(amount, left.get((claim.pool, name), 0)) if claim.pool else 0
        if claim.pool and own:
            left[(claim.pool, name)] -= own
        left[("", name)] -= amount - own
    return True


def _fill(left: Room, rising: list[Claim], shares: dict[Hashable, int]) -> None:
    while rising:
        pooled = any(pool for pool, _ in left)
        sources = {
            claim.key: _sources(claim, rising, left)
            if pooled
            else [("", name) for name, _ in _limited(claim, left)]
            for claim in rising
        }
        used: Room = {}
        for claim in rising:
            for source in sources[claim.key]:
                used[source] = used.get(source, 0) + claim.takes[source[1]]
        steps = [claim.most - shares[claim.key] for claim in rising]
        step = min(steps + [left[source] // times for source, times in used.items()])
        for claim in rising:
            shares[claim.key] += step
        for source, times in used.items():
            left[source] -= step * times
        full = {source for source, times in used.items() if left[source] < times}
        full = {source for source in full if not source[0]}
        rising = [
            claim
            for claim in rising
            if shares[claim.key] < claim.most and full.isdisjoint(sources[claim.key])
        ]


def _sources(claim: Claim, rising: Iterable[Claim], left: Room) -> list[tuple[str, str]]:
    """Where it takes from while all rise: its pool's reserve as long as that lasts."""
    found = []
    for name, _ in _limited(claim, left):
        equals = sum(other.takes.get(name, 0) for other in rising if other.pool == claim.pool)
        reserved = claim.pool and left.get((claim.pool, name), 0) >= equals
        found.append((claim.pool if reserved else "", name))
    return found


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
    n - 1 turns. A parked vehicle comes last; when it is paused for others, it is one of those who
    wait, and may show in its turn that it wants to charge again.
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
        return sorted(
            claims,
            key=lambda claim: (claim.parked, -claim.priority, *self._place(claim, now_ms)),
        )

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
