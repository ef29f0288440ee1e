"""A transaction out of its events: a pure rule.

The row is a function of the set of events alone, so it does not matter in which order they came,
how often, or whether the first one is still missing:

- of several events with one number, the one with the most energy counts (then the highest id);
- the end is the lowest-numbered Ended event; what is numbered after it contradicts it;
- the measure is that of the highest number up to the end; the id token is the first one told;
- an end that we conclude counts only while the station has told none, and unless it is final, only
  while the station has told nothing of a later time.

An agent's event tells the energy so far. An OCPP station's tells a register, which
`cloud.transactions.register` makes energy of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import reduce
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from cloud.stations.api import Dated
from cloud.transactions.native import NativeEvent
from cloud.transactions.register import Review, measured
from protocols.agent_link import ChargingState, TransactionEvent, TransactionEventType


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


class Step(NamedTuple):
    """One event, its times in the cloud's time, its id token as a reference."""

    event: TransactionEvent | NativeEvent
    at: Dated
    started: Dated
    token: int | None = None
    fact: bytes | None = None
    """An OCPP station's event as it is kept, without what stands in columns beside it."""


class Projection(msgspec.Struct, frozen=True, gc=False):
    """A transaction as its events tell it; energy in Wh.

    A msgspec struct: one is made and replaced for every event of the commit path.
    """

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
    concluded: bool = False
    """The end is our conclusion; the station has told none."""
    review: str | None = None
    """Why a person should look at it before it is billed."""
    start_wh: int | None = None
    """The register at the start; None while no register was told."""
    start_told: bool = False
    """The start's register was told as such, and is not just the first one seen."""
    remote_start_id: int | None = None
    power_w: int | None = None
    power_wms: int = 0
    """Power times time between events, in watt-milliseconds: what the register should have done."""
    stated_ms: int | None = None
    """What an OCPP station's clock showed at the start, in Unix ms, while nobody had set it."""


@dataclass(frozen=True)
class Conflict:
    event: UUID
    kind: Contradiction


_TRUSTED: Final = frozenset({"cloud", "synced"})
_DATINGS: Final = ("unset", "estimated", "cloud", "synced")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_REVERSED: Final = timedelta(minutes=1)
"""An end may be told to be this much before the start; more is worth a look."""
_LONGEST_UNSET: Final = timedelta(days=8)
_UPDATED_RANK, _METERED_RANK, _STATED_RANK, _ENDED_RANK = 1, 2, 3, 4
_RANKS: Final = {
    TransactionEventType.STARTED: 0,
    TransactionEventType.UPDATED: _UPDATED_RANK,
    TransactionEventType.ENDED: _ENDED_RANK,
}
Number = tuple[int, int, datetime]


def _number(step: Step) -> Number:
    """Where a step stands.

    OCPP stations that give all events one number are known, so that the beginning and the end
    stand apart from the rest; what was told beside the numbered events stands by its time.
    """
    event = step.event
    if isinstance(event, TransactionEvent):
        return event.seq_no, 0, _EPOCH
    if event.metered:
        return event.seq_no, _METERED_RANK, step.at.at
    if event.stated:
        return event.seq_no, _STATED_RANK, step.at.at
    return event.seq_no, _RANKS[event.type], _EPOCH


def _rank(step: Step) -> tuple[int, int]:
    event = step.event
    if isinstance(event, TransactionEvent):
        return event.energy_wh, event.id.int
    return -1 if event.register_wh is None else event.register_wh, event.id.int


def _may_contradict(step: Step) -> bool:
    """Whether another event of its number is worth telling: not beside what says no measure."""
    event = step.event
    return isinstance(event, TransactionEvent) or (
        not event.metered and event.register_wh is not None
    )


def _sorted_out(steps: Iterable[Step]) -> tuple[list[Step], list[Conflict]]:
    """One step a number, up to the end, in order; and what contradicts them."""
    chosen: dict[Number, Step] = {}
    every = {step.event.id: step for step in steps}
    for step in every.values():
        number = _number(step)
        held = chosen.get(number)
        if held is None or _rank(step) > _rank(held):
            chosen[number] = step
    ordered = [chosen[number] for number in sorted(chosen)]
    ends = [_number(s) for s in ordered if s.event.type is TransactionEventType.ENDED]
    end = ends[0] if ends else None
    conflicts = []
    for step in every.values():
        number = _number(step)
        if end is not None and number > end:
            conflicts.append(Conflict(step.event.id, Contradiction.AFTER_END))
        elif chosen[number] is not step and _may_contradict(step):
            conflicts.append(Conflict(step.event.id, Contradiction.SAME_NUMBER))
    valid = [step for step in ordered if end is None or _number(step) <= end]
    return valid, sorted(conflicts, key=lambda conflict: conflict.event)


def _first(step: Step) -> Projection:
    event = step.event
    if isinstance(event, NativeEvent):
        return _native(None, step, event)
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
    event = step.event
    if isinstance(event, NativeEvent):
        return _native(held, step, event)
    new = _first(step)
    better_start = _DATINGS.index(new.started_dating) >= _DATINGS.index(held.started_dating)
    return msgspec.structs.replace(
        new,
        started_at=new.started_at if better_start else held.started_at,
        started_dating=new.started_dating if better_start else held.started_dating,
        token=held.token if held.token is not None else new.token,
        command=held.command or new.command,
        billing_grade=held.billing_grade and new.billing_grade,
        start_seen=held.start_seen or new.start_seen,
    )


def _native(held: Projection | None, step: Step, event: NativeEvent) -> Projection:
    """The projection with one more event of an OCPP station; None: with its first one."""
    if held is None:
        return _ended_natively(_begun_natively(step, event), step, event)
    tells_start = event.type is TransactionEventType.STARTED or event.begin_ms is not None
    if tells_start and not held.start_seen:
        begun = _begun_natively(step, event)
        held = msgspec.structs.replace(
            held,
            started_at=begun.started_at,
            started_dating=begun.started_dating,
            stated_ms=begun.stated_ms,
            start_seen=begun.start_seen,
            duration_ms=0 if begun.start_seen else held.duration_ms,
        )
    return _ended_natively(_gone_on(held, step, event), step, event)


def _begun_natively(step: Step, event: NativeEvent) -> Projection:
    """A transaction of which this event is the first that is known."""
    begins = event.type is TransactionEventType.STARTED
    knows = begins or event.begin_ms is not None
    stated = event.at_ms if event.begin_ms is None else event.begin_ms
    empty = Projection(
        evse=event.evse,
        connector=event.connector,
        state=State.OPEN,
        charging_state=str(event.charging_state or ChargingState.CHARGING),
        started_at=step.started.at,
        started_dating=str(step.started.quality),
        ended_at=None,
        ended_dating=None,
        reason=None,
        token=None,
        command=None,
        seq_no=event.seq_no,
        energy_wh=0,
        meter_wh=0,
        raw_wh=None,
        duration_ms=0,
        billing_grade=True,
        start_seen=begins,
        last_at=step.at.at,
        stated_ms=stated if knows and not step.started.quality.trusted else None,
    )
    return _gone_on(empty, step, event, knows_start=knows)


def _since_start(held: Projection, step: Step, event: NativeEvent) -> timedelta | None:
    """How long after the start an event was by the station's own clock, which nobody had set.

    None when that is not known, or the clock began anew in between (quirk S11).
    """
    if held.stated_ms is None or step.at.quality.trusted:
        return None
    passed = (event.at_ms - held.stated_ms) * _MS
    return passed if timedelta(0) <= passed <= _LONGEST_UNSET else None


def _happened(held: Projection, step: Step, event: NativeEvent) -> datetime:
    """When an event was; it was received after that."""
    passed = _since_start(held, step, event)
    return step.at.at if passed is None else min(step.at.at, held.started_at + passed)


def _gone_on(
    held: Projection, step: Step, event: NativeEvent, *, knows_start: bool = False
) -> Projection:
    """What any event adds: its measure, and what was not known before."""
    at = step.at.at
    passed = _since_start(held, step, event)
    if passed is not None and event.offline:  # the start may have been received late as well
        held = msgspec.structs.replace(held, started_at=min(held.started_at, at - passed))
    trusted = step.at.quality.trusted and held.started_dating in _TRUSTED
    lasted_ms = max((_happened(held, step, event) - held.started_at) // _MS, 0)
    knows_start = knows_start or held.start_seen or event.begin_ms is not None
    later = at >= held.last_at
    start_wh, start_told, meter_wh, energy_wh, review = measured(
        held.start_wh,
        held.meter_wh,
        event,
        start_told=held.start_told,
        lasted_ms=lasted_ms if trusted and knows_start else None,
        later=later,
    )
    stranger = event.stop_token and held.start_seen
    return msgspec.structs.replace(
        held,
        evse=held.evse or event.evse,
        connector=held.connector if held.evse else event.connector,
        charging_state=str(event.charging_state) if event.charging_state else held.charging_state,
        token=_told(held.token, None if stranger else step.token),
        seq_no=event.seq_no,
        energy_wh=energy_wh,
        meter_wh=meter_wh,
        raw_wh=_told(event.register_wh, held.raw_wh),
        duration_ms=max(lasted_ms, held.duration_ms),
        last_at=at if later else held.last_at,
        review=held.review or review,
        start_wh=start_wh,
        start_told=start_told,
        remote_start_id=_told(held.remote_start_id, event.remote_start_id),
        power_w=None if event.stated else _told(event.power_w, held.power_w),
        power_wms=_powered(held, at, event) if trusted and later else held.power_wms,
    )


def _ended_natively(held: Projection, step: Step, event: NativeEvent) -> Projection:
    if event.type is not TransactionEventType.ENDED:
        return held
    at = _happened(held, step, event)
    return msgspec.structs.replace(
        held,
        state=State.ENDED,
        charging_state=str(ChargingState.IDLE),
        ended_at=max(at, held.started_at),
        ended_dating=str(step.at.quality),
        duration_ms=max((at - held.started_at) // _MS, 0),
        reason=event.reason,
        review=held.review or _end_review(held, at),
    )


def _told(value: int | None, otherwise: int | None) -> int | None:
    return otherwise if value is None else value


_LONGEST_HELD_MS: Final = 30 * 60_000
"""For so long one reading of the power is taken to stand."""
_TOO_LITTLE: Final = 20
_WMS_PER_WH: Final = 3_600_000
_LEAST_JUDGED_WH: Final = 2000


def _powered(held: Projection, at: datetime, event: NativeEvent) -> int:
    """Power times time, by the smaller of the readings on both sides: never too much.

    Where a status stands between them, charging was begun or paused, and neither reading holds.
    """
    after = held.power_w if event.power_w is None else event.power_w
    if held.power_w is None or after is None or event.stated:
        return held.power_wms
    span_ms = min((at - held.last_at) // _MS, _LONGEST_HELD_MS)
    return held.power_wms + max(0, min(held.power_w, after)) * span_ms


def _too_little(energy_wh: int, power_wms: int) -> bool:
    """The register moved far less than the power says: kWh that are called Wh (quirk S16)."""
    expected = power_wms // _WMS_PER_WH
    return expected >= _LEAST_JUDGED_WH and energy_wh * _TOO_LITTLE < expected


def _end_review(held: Projection, ended_at: datetime) -> str | None:
    if held.started_at - ended_at > _REVERSED:
        return Review.TIMES
    if not held.start_seen and not held.start_told:
        return Review.UNMATCHED
    return Review.POWER if _too_little(held.energy_wh, held.power_wms) else None


def project(steps: Iterable[Step]) -> tuple[Projection, list[Conflict]]:
    """The transaction and what contradicts it; of its `steps`, at least one was told."""
    told: list[Step] = []
    conclusions: list[Step] = []
    for step in steps:
        concluded = isinstance(step.event, NativeEvent) and step.event.concluded
        (conclusions if concluded else told).append(step)
    valid, conflicts = _sorted_out(told)
    projection = reduce(extend, valid[1:], _first(valid[0]))
    return _concluded(projection, conclusions), conflicts


def _concluded(told: Projection, conclusions: Sequence[Step]) -> Projection:
    """The transaction with the earliest conclusion that still holds."""
    holding = [
        (step.at.at, step.event.id, step, step.event)
        for step in conclusions
        if isinstance(step.event, NativeEvent) and (step.event.final or step.at.at >= told.last_at)
    ]
    if told.state is State.ENDED or not holding:
        return told
    at, _, step, event = min(holding)
    meter = measured(
        told.start_wh, told.meter_wh, event, start_told=told.start_told,
        lasted_ms=max((at - told.started_at) // _MS, 0), later=True,
    )  # fmt: skip
    natively = told.start_wh is not None or meter.start_wh is not None
    return msgspec.structs.replace(
        told,
        state=State.ENDED,
        charging_state=str(ChargingState.IDLE),
        ended_at=max(at, told.started_at),
        ended_dating=str(step.at.quality),
        reason=event.reason,
        concluded=True,
        energy_wh=meter.energy_wh if natively else told.energy_wh,
        meter_wh=meter.meter_wh if natively else told.meter_wh,
        start_wh=meter.start_wh,
        start_told=meter.start_told,
    )


def follows(held: Projection, steps: Sequence[Step]) -> bool:
    """Whether steps in order of their numbers only continue an open transaction."""
    if held.state is not State.OPEN:
        return False
    before = _behind(held, steps[0]) if steps else None
    for step in steps:
        if isinstance(step.event, NativeEvent) and step.event.concluded:
            return False
        number = _number(step)
        if before is None or before >= number:
            return False
        before = None if step.event.type is TransactionEventType.ENDED else number
    return True


def _behind(held: Projection, step: Step) -> Number:
    """A number that the held projection's last step does not exceed."""
    if isinstance(step.event, TransactionEvent):
        return held.seq_no, 0, _EPOCH
    return held.seq_no, _METERED_RANK, held.last_at


def in_order(steps: list[Step]) -> list[Step]:
    return sorted(steps, key=_number) if len(steps) > 1 else steps
