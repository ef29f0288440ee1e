"""What a station's local list needs next, against a station that loses, forgets and refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cloud.authorization.keeping import (
    LARGEST_NUMBER,
    WAITS,
    AskVersion,
    Follow,
    Kept,
    Limits,
    Lost,
    Rest,
    Selection,
    Status,
    next_step,
    try_again,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ALL = Selection(keeps=True)
FRESH = Kept(1, 1, "", None, 0, 0, 0, "unknown", "", 0, None, None, None, None, NOW)
IN_SYNC = replace(FRESH, selection="*", held=7, number=7, through=20, status="in_sync")


def test_without_a_policy_and_a_list_nothing_is_asked() -> None:
    assert next_step(FRESH, Selection(), 9, NOW) == Rest(Status.OFF)


def test_the_version_is_asked_before_anything_is_sent() -> None:
    assert next_step(FRESH, ALL, 9, NOW) == AskVersion()


def test_a_list_follows_the_log_from_where_it_is() -> None:
    assert next_step(IN_SYNC, ALL, 20, NOW) == Rest(Status.IN_SYNC)
    step = next_step(replace(IN_SYNC, floor=3), ALL, 21, NOW)
    assert isinstance(step, Follow)
    assert (step.full, step.after, step.floor) == (False, 20, 3)


def test_another_selection_or_version_is_sent_whole() -> None:
    for kept, wanted in (
        (IN_SYNC, Selection(keeps=True, groups=(1, 2))),
        (replace(IN_SYNC, held=6), ALL),
        (replace(IN_SYNC, number=-1), ALL),
        (IN_SYNC, Selection()),
    ):
        step = next_step(kept, wanted, 30, NOW)
        assert isinstance(step, Follow)
        assert (step.full, step.after, step.floor) == (True, 0, 30)


def test_what_is_under_way_is_waited_for_and_then_lost() -> None:
    asked = replace(IN_SYNC, command=object(), due_by=NOW)
    assert next_step(asked, ALL, 30, NOW - timedelta(seconds=1)) == Rest()
    assert next_step(asked, ALL, 30, NOW) == Lost()


def test_what_was_refused_rests() -> None:
    later = NOW + timedelta(seconds=1)
    assert next_step(replace(IN_SYNC, not_before=later), ALL, 30, NOW) == Rest()
    assert isinstance(next_step(replace(IN_SYNC, not_before=NOW), ALL, 30, NOW), Follow)
    assert next_step(replace(FRESH, status="unsupported"), ALL, 30, NOW) == Rest()


@given(st.integers(1, 100))
def test_tries_become_rare_and_never_end(failures: int) -> None:
    wait = try_again(failures, NOW) - NOW
    assert WAITS[0] <= wait <= WAITS[-1]
    assert try_again(failures + 1, NOW) - NOW >= wait


@given(
    held=st.integers(0, LARGEST_NUMBER), number=st.integers(-1, LARGEST_NUMBER), full=st.booleans()
)
def test_numbers_rise_while_they_can(held: int, number: int, *, full: bool) -> None:
    kept = replace(IN_SYNC, held=held, number=held if not full else number)
    step = next_step(kept, ALL, 30, NOW)
    assert isinstance(step, Follow)
    assert 0 < step.number <= LARGEST_NUMBER
    before = max(kept.held or 0, kept.number)
    assert step.number > before or before == LARGEST_NUMBER


@given(
    st.none() | st.integers(0, 10_000),
    st.none() | st.integers(0, 10**6),
)
def test_a_message_has_at_least_one_entry(items: int | None, octets: int | None) -> None:
    most = Limits(items, octets).per_message
    assert most >= 1
    assert items is None or most <= max(items, 1)


@given(st.lists(st.integers(1, 10**6), unique=True, max_size=5))
def test_selections_differ_by_their_text(groups: list[int]) -> None:
    chosen = Selection(keeps=True, groups=tuple(sorted(groups)))
    assert len({chosen.text, ALL.text, Selection().text}) == 3
