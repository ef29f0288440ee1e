"""Who is meant by a cohort, and in which wave a device comes: pure rules.

Shares are taken by a hash of the station's identity, so that the same stations are in a cohort of
ten percent today and tomorrow, and all of them are in one of twenty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

HUNDREDTHS: Final = 10_000


@dataclass(frozen=True)
class Candidate:
    """A station, as far as cohorts ask."""

    station_id: int
    identity: str
    site_id: int | None
    models: tuple[str, ...]
    """What it, or its power boards, say they are."""
    version: str
    """Of the agent, or of an OCPP station's firmware; empty: not told yet."""
    tags: frozenset[str] = frozenset()
    hardware: frozenset[str] = frozenset()
    """Hardware ids that its agent has told."""


@dataclass(frozen=True)
class Cohort:
    """What narrows it; empty does not. Within one field any will do, all fields must."""

    sites: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    """Parts of what a station says it is, whatever the case."""
    versions: tuple[str, ...] = ()
    """Beginnings of the version that it runs."""
    tags: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    percent: int = 100
    """Of those that the rest leaves."""

    def holds(self, one: Candidate) -> bool:
        return (
            (not self.sites or one.site_id in self.sites)
            and (not self.models or _any_in(self.models, one.models))
            and (not self.versions or one.version.startswith(self.versions))
            and (not self.tags or not one.tags.isdisjoint(self.tags))
            and (not self.hardware or not one.hardware.isdisjoint(self.hardware))
            and place("cohort", one.identity) < self.percent * HUNDREDTHS // 100
        )


def _any_in(parts: Collection[str], told: Collection[str]) -> bool:
    return any(part.lower() in one.lower() for part in parts for one in told)


def place(salt: str, identity: str) -> int:
    """Where a station stands among all, 0 to 9999: the same in every process, for ever."""
    digest = hashlib.sha256(f"{salt}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HUNDREDTHS


def waves(
    salt: str, members: Iterable[Candidate], percents: Sequence[int]
) -> list[tuple[Candidate, int]]:
    """The members in the order of their waves, each with its wave's number.

    `percents` are cumulative and end with 100; every wave but an empty last one has a member.
    """
    ordered = sorted(members, key=lambda one: (place(salt, one.identity), one.identity))
    ends = [-(-percent * len(ordered) // 100) for percent in percents]
    return [
        (one, next(wave for wave, end in enumerate(ends) if at < end))
        for at, one in enumerate(ordered)
    ]
