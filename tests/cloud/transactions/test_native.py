"""A transaction of an OCPP station is a function of the set of its events too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.stations.api import Dated, Dating
from cloud.transactions.history_store import Recorded
from cloud.transactions.native import NativeEvent, identified, of_transaction, transaction_id
from cloud.transactions.projection import State, Step, extend, follows, in_order, project
from cloud.transactions.rest import EventView
from protocols.agent_link import TransactionEventType
from protocols.ocpp.messages import Reading, Transaction
from protocols.quantities import Milliseconds, WattHours, Watts

START = datetime(2026, 5, 1, 8, tzinfo=UTC)
SESSION = transaction_id(1, "x")


def step(  # drawn
    kind: TransactionEventType,
    seq_no: int,
    minute: int,
    register: int | None,
    begin: int | None,
    metered: bool,
    concluded: bool,
    final: bool,
    dating: Dating,
    token: int | None,
) -> Step:
    concluded = concluded and kind is TransactionEventType.ENDED
    content = NativeEvent(
        type=TransactionEventType.UPDATED if metered else kind,
        seq_no=seq_no,
        at_ms=Milliseconds(minute),
        trigger="x",
        evse=1,
        begin_wh=None if begin is None else WattHours(begin),
        register_wh=None if register is None else WattHours(register),
        power_w=Watts(7000),
        metered=metered,
        concluded=concluded and not metered,
        final=final and concluded and not metered,
    )
    event, fact = identified(SESSION, content)
    at = Dated(START + timedelta(minutes=minute), dating)
    return Step(event, at, at, token, fact)


steps = st.builds(
    step,
    st.sampled_from(list(TransactionEventType)),
    st.integers(0, 5),
    st.integers(0, 20),
    st.none() | st.integers(-1, 9).map(lambda n: n * 1000),
    st.none() | st.integers(0, 3).map(lambda n: n * 1000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([Dating.CLOUD, Dating.ESTIMATED]),
    st.none() | st.integers(1, 3),
)


def told(several: list[Step]) -> list[Step]:
    """Each event once, and at least one that the station told."""
    every = list({one.event.id: one for one in several}.values())
    return every if any(_is_told(one) for one in every) else []


def _is_told(one: Step) -> bool:
    return isinstance(one.event, NativeEvent) and not one.event.concluded


sessions = st.lists(steps, min_size=1, max_size=10).map(told).filter(bool)


@given(sessions, st.data())
@settings(max_examples=150, derandomize=True)
def test_order_and_repetition_do_not_matter(several: list[Step], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(several))
    again = data.draw(st.lists(st.sampled_from(several), max_size=4))
    assert project([*shuffled, *again]) == project(several)


@given(sessions, st.integers(1, 9))
@settings(max_examples=150, derandomize=True)
def test_going_on_from_a_row_gives_what_the_whole_history_gives(
    several: list[Step], cut: int
) -> None:
    before, after = in_order(several)[:cut], in_order(several)[cut:]
    if after and any(map(_is_told, before)):
        held, _ = project(before)
        if follows(held, after):
            assert reduce(extend, after, held) == project(several)[0]


@given(sessions)
@settings(max_examples=150, derandomize=True)
def test_energy_is_never_negative_and_ends_are_never_before_starts(several: list[Step]) -> None:
    row, _ = project(several)
    assert row.energy_wh >= 0
    assert row.ended_at is None or row.ended_at >= row.started_at
    assert (row.state is State.ENDED) == (row.ended_at is not None)


def test_a_transaction_has_one_name_everywhere() -> None:
    assert transaction_id(7, "abc") == UUID("09f9c353-af70-51b1-b34b-aa104f143c8a")


def test_what_is_signed_is_kept_as_told_and_is_no_part_of_the_identity() -> None:
    plain = Transaction(
        event=TransactionEventType.ENDED,
        at_ms=Milliseconds(5),
        trigger="Local",
        number=7,
        register_wh=WattHours(900),
    )
    reading = Reading(at_ms=Milliseconds(5), signed=("OCMF|{}|{}", "x" * 8193))
    signing = msgspec.structs.replace(plain, readings=(reading,))
    kept = of_transaction(signing)
    assert kept.signed == ("OCMF|{}|{}",), "what no meter can have signed is left out"
    known, text = identified(UUID(int=1), kept)
    assert known.id == identified(UUID(int=1), of_transaction(plain))[0].id
    assert b"OCMF|{}|{}" in text


def test_what_is_signed_is_shown_as_the_station_told_it() -> None:
    event = NativeEvent(
        type=TransactionEventType.ENDED,
        seq_no=1,
        at_ms=Milliseconds(5),
        trigger="Local",
        signed=("OCMF|{}|{}", "T0NNRg=="),
    )
    at = Dated(START, Dating.SYNCED)
    shown = EventView.of(Recorded(Step(event, at, at), START))
    assert [one.text for one in shown.signed] == ["OCMF|{}|{}", "T0NNRg=="]
    assert [(one.data, one.encoding) for one in shown.signed][1] == ("T0NNRg==", None)
