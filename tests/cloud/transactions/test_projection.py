"""A transaction's row is a function of the set of its events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.stations.api import Dated, Dating
from cloud.transactions.projection import (
    Contradiction,
    State,
    Step,
    extend,
    follows,
    project,
)
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    Stamp,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

START = datetime(2026, 5, 1, 8, tzinfo=UTC)
BOOT = UUID(int=9)
TYPES = TransactionEventType


def step(
    seq_no: int,
    energy: int = 0,
    kind: TransactionEventType = TYPES.UPDATED,
    *,
    number: int | None = None,
    token: int | None = None,
    dating: Dating = Dating.SYNCED,
) -> Step:
    stamp = Stamp(Milliseconds(0), Milliseconds(seq_no * 1000), BOOT, ClockQuality.SYNCED)
    event = TransactionEvent(
        id=UUID(int=seq_no + 1000 if number is None else number),
        transaction=UUID(int=1),
        type=kind,
        seq_no=seq_no,
        at=stamp,
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=stamp,
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(energy),
        meter_wh=WattHours(50_000 + energy),
        duration_ms=Milliseconds(seq_no * 1000),
        reason=StoppedReason.LOCAL if kind is TYPES.ENDED else None,
    )
    return Step(event, Dated(START + timedelta(seconds=seq_no), Dating.SYNCED),
                Dated(START, dating), token)  # fmt: skip


SESSION = [
    step(0, 0, TYPES.STARTED, token=7),
    *(step(n, n * 100) for n in range(1, 6)),
    step(6, 600, TYPES.ENDED),
]

steps = st.builds(
    step,
    seq_no=st.integers(0, 6),
    energy=st.integers(0, 3).map(lambda n: n * 100),
    kind=st.sampled_from(list(TYPES)),
    number=st.integers(0, 30),
    token=st.none() | st.integers(1, 3),
    dating=st.sampled_from(list(Dating)),
)


def one_each(several: list[Step]) -> list[Step]:
    """Event ids are unique: the same id is the same event."""
    return list({one.event.id: one for one in several}.values())


@given(st.lists(steps, min_size=1, max_size=12).map(one_each), st.data())
@settings(max_examples=300, derandomize=True)
def test_order_and_repetition_do_not_matter(several: list[Step], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(several))
    again = data.draw(st.lists(st.sampled_from(several), max_size=5))
    assert project([*shuffled, *again]) == project(several)


@given(st.lists(steps, min_size=2, max_size=12).map(one_each), st.integers(1, 11))
@settings(max_examples=300, derandomize=True)
def test_going_on_from_a_row_gives_what_the_whole_history_gives(
    several: list[Step], cut: int
) -> None:
    ordered = sorted(several, key=lambda one: one.event.seq_no)
    before, after = ordered[:cut], ordered[cut:]
    held, _ = project(before)
    if after and follows(held, after):
        assert reduce(extend, after, held) == project(several)[0]


def test_the_whole_session_is_told() -> None:
    row, conflicts = project(reversed(SESSION))
    assert (row.state, row.energy_wh, row.meter_wh) == (State.ENDED, 600, 50_600)
    assert row.ended_at == START + timedelta(seconds=6)
    assert row.reason == "Local"
    assert row.token == 7
    assert row.start_seen
    assert conflicts == []


def test_a_missing_start_is_said_and_does_not_hide_the_energy() -> None:
    row, _ = project(SESSION[3:5])
    assert (row.state, row.energy_wh, row.start_seen) == (State.OPEN, 400, False)


def test_what_is_numbered_after_the_end_contradicts_and_changes_nothing() -> None:
    late = step(9, 999)
    row, conflicts = project([*SESSION, late])
    assert row.energy_wh == 600
    assert [(one.event, one.kind) for one in conflicts] == [
        (late.event.id, Contradiction.AFTER_END)
    ]


def test_of_two_ends_the_lower_numbered_wins() -> None:
    row, conflicts = project([step(8, 800, TYPES.ENDED), *SESSION])
    assert (row.energy_wh, row.seq_no) == (600, 6)
    assert [one.kind for one in conflicts] == [Contradiction.AFTER_END]


def test_two_events_of_one_number_contradict_and_the_larger_energy_counts() -> None:
    twin = step(3, 350, number=5)
    row, conflicts = project([*SESSION[:4], twin])
    assert row.energy_wh == 350
    assert [one.kind for one in conflicts] == [Contradiction.SAME_NUMBER]
    assert conflicts[0].event == SESSION[3].event.id


def test_the_best_dated_start_counts() -> None:
    undated = msgspec.structs.replace(SESSION[0].event, id=UUID(int=77))
    unset = Step(undated, SESSION[0].at, Dated(datetime(1970, 1, 1, tzinfo=UTC), Dating.UNSET))
    row, _ = project([unset, step(1, 100), step(2, 200, dating=Dating.ESTIMATED)])
    assert (row.started_at, row.started_dating) == (START, "synced")
