"""What an OCPP station's local list needs next: pure, from how far it is and what it should hold.

A tenant's tokens have a log of changes: every change of a token, and every leaving of a group, has
a rising number, and only the last of each stays. A station's list follows that log. Sending it
whole is following the log from its start, the first message *Full* and the rest *Differential*;
what changes on the way is behind it in the log and comes in its turn. So nothing is kept per
station but the number it has come to.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

MOST_PER_MESSAGE: Final = 100
"""Entries in a message to a station that has not told how many it takes."""
LARGEST_NUMBER: Final = 2**31 - 1
"""OCPP's versions are 32-bit integers in many a station."""
ENTRY_BYTES: Final = 260
"""An entry of the longest token and group; for stations that count a message's bytes."""
WAITS: Final = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(days=1))
"""After so many failures in a row the list is tried again; daily in the end."""


class Status(StrEnum):
    OFF = "off"
    """No policy has this station keep a list, and it holds none of ours."""
    UNKNOWN = "unknown"
    """Which list it holds has to be asked."""
    BEHIND = "behind"
    IN_SYNC = "in_sync"
    FAILED = "failed"
    """It refused, or did not answer; tried again later."""
    UNSUPPORTED = "unsupported"
    """It has no local list; asked again when it runs another firmware, or on request."""
    TOO_LONG = "too_long"
    """It takes fewer entries than the policy names."""


@dataclass(frozen=True)
class Selection:
    """Which of the tenant's tokens a station keeps; `groups` None means all."""

    keeps: bool = False
    groups: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """As it is kept: empty for none, `*` for all, else the groups' numbers."""
        if not self.keeps:
            return ""
        return "*" if self.groups is None else "groups " + ",".join(map(str, self.groups))


@dataclass(frozen=True)
class Limits:
    """What a station says it takes; None where it has not said."""

    items: int | None = None
    """Entries in one message."""
    octets: int | None = None
    """Bytes in one message."""
    entries: int | None = None
    """Entries in the whole list."""

    @property
    def per_message(self) -> int:
        most = MOST_PER_MESSAGE if self.items is None else self.items
        if self.octets is not None:
            most = min(most, self.octets // ENTRY_BYTES)
        return max(most, 1)


@dataclass(frozen=True)
class Kept:
    """How a station's list stands."""

    station_id: int
    tenant_id: int
    selection: str
    """What the list that it accepted was made of."""
    held: int | None
    """The version it told or accepted; None: to be asked."""
    number: int
    """The version of the last list that it accepted from us; -1: what it holds cannot be known."""
    through: int
    """The number in the log of changes that its list has come to."""
    floor: int
    """What left before this number was never on this list."""
    status: str
    reason: str
    failures: int
    not_before: datetime | None
    command: object | None
    due_by: datetime | None
    checked_at: datetime | None
    since: datetime


@dataclass(frozen=True)
class Rest:
    """Nothing is to be done now."""

    status: Status | None = None
    """What is to be noted; None: what is."""


@dataclass(frozen=True)
class Lost:
    """The question under way was not answered."""


@dataclass(frozen=True)
class AskVersion:
    pass


@dataclass(frozen=True)
class Follow:
    """Send the next part of the log of changes."""

    full: bool
    number: int
    after: int
    floor: int


Step = Rest | Lost | AskVersion | Follow


def next_step(kept: Kept, wanted: Selection, head: int, now: datetime) -> Step:
    """`head` is the last number of the tenant's log of changes."""
    if kept.command is not None:
        waiting = kept.due_by is not None and now < kept.due_by
        return Rest() if waiting else Lost()
    if not wanted.keeps and not kept.selection and not kept.number:
        return Rest(Status.OFF)
    if kept.status == Status.UNSUPPORTED or (kept.not_before and now < kept.not_before):
        return Rest()
    if kept.held is None:
        return AskVersion()
    if kept.held != kept.number or kept.selection != wanted.text:
        return Follow(True, _number(kept, now), 0, head)
    if not wanted.keeps:
        return Rest(Status.OFF)
    if kept.through < head:
        return Follow(False, _number(kept, now), kept.through, kept.floor)
    return Rest(Status.IN_SYNC)


def _number(kept: Kept, now: datetime) -> int:
    """From the clock, so that a restored database gives none twice; above what is held."""
    held = max(kept.held or 0, kept.number)
    number = max(int(now.timestamp()), held + 1)
    return number if number <= LARGEST_NUMBER else int(now.timestamp())


def try_again(failures: int, now: datetime) -> datetime:
    """When, after so many failures in a row."""
    return now + WAITS[min(failures, len(WAITS)) - 1]
