"""A transaction out of its events: a pure rule.

The row is a function of the set of events alone, so it does not matter in which order they came,
how often, or whether the first one is still missing:

- of several events with one number, the one with the most energy counts (then the highest id);
- the end is the lowest-numbered Ended event; what is numbered after it contradicts it;
- the measure is that of the highest number up to the end; the id token is the first one told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import reduce
from itertools import pairwise
from uuid import UUID

from cloud.stations.api import Dated
from protocols.agent_link import TransactionEvent, TransactionEventType


class State(StrEnum):
    OPEN = "open"
    ENDED = "ended"


class Contradiction(StrEnum):
    SAME_NUMBER = "same_number"
    """Two different events with one sequence number."""
    AFTER_END = "after_end"
    """Numbered after the event that ended the transaction."""
    OTHER_STATION = "other_station"
    """Another station tells of a transaction that is not its own."""


@dataclass(frozen=True)
class Step:
    """One event, its times in the cloud's time, its id token as a reference."""

    event: TransactionEvent
    at: Dated
    started: Dated
    token: int | None = None


@dataclass(frozen=True)
class Projection:
    """A transaction as its events tell it; energy in Wh."""

    evse: int
    connector: int
    state: State
    charging_state: str
    started_at: datetime
    started_dating: str
    ended_at: datetime | None
    ended_dating: str | None
    reason: str | None
    token: int | None
    command: UUID | None
    seq_no: int
    energy_wh: int
    meter_wh: int
    raw_wh: int | None
    duration_ms: int
    billing_grade: bool
    start_seen: bool
    last_at: datetime


@dataclass(frozen=True)
class Conflict:
    event: UUID
    kind: Contradiction


_DATINGS = ("unset", "estimated", "cloud", "synced")


def _rank(step: Step) -> tuple[int, int]:
    return step.event.energy_wh, step.event.id.int


def _sorted_out(steps: Iterable[Step]) -> tuple[list[Step], list[Conflict]]:
    """One step a number, up to the end, in order; and what contradicts them."""
    chosen: dict[int, Step] = {}
    every = {step.event.id: step for step in steps}
    for step in every.values():
        held = chosen.get(step.event.seq_no)
        if held is None or _rank(step) > _rank(held):
            chosen[step.event.seq_no] = step
    ordered = [chosen[number] for number in sorted(chosen)]
    ends = [s.event.seq_no for s in ordered if s.event.type is TransactionEventType.ENDED]
    end = ends[0] if ends else None
    conflicts = []
    for step in every.values():
        if end is not None and step.event.seq_no > end:
            conflicts.append(Conflict(step.event.id, Contradiction.AFTER_END))
        elif chosen[step.event.seq_no] is not step:
            conflicts.append(Conflict(step.event.id, Contradiction.SAME_NUMBER))
    valid = [step for step in ordered if end is None or step.event.seq_no <= end]
    return valid, sorted(conflicts, key=lambda conflict: conflict.event)


def _first(step: Step) -> Projection:
    event = step.event
    ended = event.type is TransactionEventType.ENDED
    return Projection(
        evse=event.evse,
        connector=event.connector,
        state=State.ENDED if ended else State.OPEN,
        charging_state=str(event.charging_state),
        started_at=step.started.at,
        started_dating=str(step.started.quality),
        ended_at=step.at.at if ended else None,
        ended_dating=str(step.at.quality) if ended else None,
        reason=str(event.reason) if ended and event.reason else None,
        token=step.token,
        command=event.command,
        seq_no=event.seq_no,
        energy_wh=event.energy_wh,
        meter_wh=event.meter_wh,
        raw_wh=event.raw_wh,
        duration_ms=event.duration_ms,
        billing_grade=event.billing_grade,
        start_seen=event.type is TransactionEventType.STARTED,
        last_at=step.at.at,
    )


def extend(held: Projection, step: Step) -> Projection:
    """The projection with one more step; the step's number is above all that are in it."""
    new = _first(step)
    better_start = _DATINGS.index(new.started_dating) >= _DATINGS.index(held.started_dating)
    return replace(
        new,
        started_at=new.started_at if better_start else held.started_at,
        started_dating=new.started_dating if better_start else held.started_dating,
        token=held.token if held.token is not None else new.token,
        command=held.command or new.command,
        billing_grade=held.billing_grade and new.billing_grade,
        start_seen=held.start_seen or new.start_seen,
    )


def project(steps: Iterable[Step]) -> tuple[Projection, list[Conflict]]:
    """The transaction and what contradicts it; `steps` are of one transaction, at least one."""
    valid, conflicts = _sorted_out(steps)
    return reduce(extend, valid[1:], _first(valid[0])), conflicts


def follows(held: Projection, steps: Sequence[Step]) -> bool:
    """Whether steps in order of their numbers only continue an open transaction."""
    numbers = [held.seq_no, *(step.event.seq_no for step in steps)]
    rising = all(before < after for before, after in pairwise(numbers))
    inner_end = any(step.event.type is TransactionEventType.ENDED for step in steps[:-1])
    return held.state is State.OPEN and rising and not inner_end
