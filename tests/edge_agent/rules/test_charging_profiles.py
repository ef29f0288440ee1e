from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.rules.charging_profiles import (
    DAY_MS,
    Pattern,
    Period,
    Profile,
    Profiles,
    Purpose,
    Running,
    Unit,
    amperes,
    watts,
    wrong,
)

NOW = 1_790_000_000_000
RUNNING = Running(id=UUID(int=1), started_ms=NOW - 600_000)


def profile(number: int = 1, *steps: tuple[int, int], **fields: Any) -> Profile:
    """By default one for EVSE 1's transactions, 16 A from now on."""
    plain = {
        "evse": 1,
        "stack": 0,
        "purpose": Purpose.DEFAULT,
        "pattern": Pattern.ABSOLUTE,
        "unit": Unit.AMPERE,
        "set_ms": NOW,
        "start_ms": NOW,
    }
    periods = tuple(Period(start, limit) for start, limit in steps or ((0, 16_000),))
    return Profile(id=number, periods=periods, **{**plain, **fields})


def at(
    profiles: Profiles, seconds: float, evse: int = 1, running: Running | None = RUNNING
) -> int | None:
    return profiles.limit(evse, running, NOW + round(seconds * 1000), 3)


def test_periods_follow_each_other_until_the_schedule_is_over() -> None:
    held = Profiles((profile(1, (0, 10_000), (60, 20_000), duration_s=120),))
    assert [at(held, s) for s in (-1, 0, 59, 60, 119, 120)] == [
        None,
        10_000,
        10_000,
        20_000,
        20_000,
        None,
    ]


def test_the_highest_level_leads_and_below_it_the_next_where_it_is_silent() -> None:
    high = profile(1, (0, 8_000), stack=5, duration_s=60)
    held = Profiles((profile(2, (0, 32_000), stack=1), high))
    assert [at(held, s) for s in (0, 60)] == [8_000, 32_000]


def test_a_transactions_own_profile_goes_before_defaults() -> None:
    own = profile(3, (0, 6_000), purpose=Purpose.TRANSACTION, transaction=RUNNING.id)
    held = Profiles((profile(1, (0, 20_000)), profile(2, (0, 12_000), evse=0), own))
    assert at(held, 1) == 6_000
    other = Running(id=UUID(int=2), started_ms=NOW)
    assert at(held, 1, running=other) == 20_000
    assert at(held, 1, evse=2, running=None) == 12_000


def test_what_is_relative_begins_with_the_transaction() -> None:
    held = Profiles(
        (profile(1, (0, 10_000), (900, 6_000), pattern=Pattern.RELATIVE, start_ms=None),)
    )
    assert at(held, 0) == 10_000  # the transaction is ten minutes old
    assert at(held, 300) == 6_000


def test_every_day_and_every_week() -> None:
    day = profile(1, (0, 10_000), (3600, 20_000), pattern=Pattern.DAILY, duration_s=7200)
    held = Profiles((day,))
    for days in (0, 1, 30):
        base = days * 86_400
        assert [at(held, base + s) for s in (0, 3600, 7200)] == [10_000, 20_000, None]
    week = Profiles((profile(1, (0, 10_000), pattern=Pattern.WEEKLY, duration_s=60),))
    assert [at(week, s) for s in (30, 86_430, 7 * 86_400 + 30)] == [10_000, None, 10_000]


def test_validity_bounds_it() -> None:
    held = Profiles((profile(1, valid_from_ms=NOW + 5_000, valid_to_ms=NOW + 9_000),))
    assert [at(held, s) for s in (4, 5, 8, 9)] == [None, 16_000, 16_000, None]
    assert held.current([], NOW + 9_000).held == ()


def test_the_station_bounds_all() -> None:
    most = profile(9, (0, 24_000), evse=0, purpose=Purpose.STATION_MAX)
    held = Profiles((profile(1, (0, 32_000)), most))
    assert held.station_limit(NOW, 3) == 24_000
    assert at(held, 0) == 32_000
    (step,) = held.composite(1, RUNNING, NOW, 60, 3)
    assert step.limit == 24_000


def test_profiles_take_each_others_place() -> None:
    held = Profiles((profile(1),)).put(profile(1, (0, 7_000)))
    assert [one.periods[0].limit for one in held.held] == [7_000]
    same_place = held.put(profile(2, (0, 8_000)))
    assert [one.id for one in same_place.held] == [2]
    assert [one.id for one in same_place.put(profile(3, stack=1)).held] == [2, 3]
    own = profile(4, purpose=Purpose.TRANSACTION, transaction=UUID(int=7))
    assert same_place.put(own).current([UUID(int=8)], NOW).held == same_place.held


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (profile(1, (5, 6_000)), "start at 0"),
        (profile(1, (0, 6_000), (0, 7_000)), "one after the other"),
        (profile(1, (0, -1)), "not below 0"),
        (profile(1, purpose=Purpose.STATION_MAX), "belongs to the station"),
        (profile(1, purpose=Purpose.TRANSACTION, evse=0), "needs its EVSE"),
        (profile(1, pattern=Pattern.DAILY, start_ms=None), "needs a start"),
        (
            profile(1, purpose=Purpose.STATION_MAX, evse=0, pattern=Pattern.RELATIVE),
            "relative",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(bad: Profile, why: str) -> None:
    assert why in wrong(bad)
    assert wrong(profile()) == ""


@settings(deadline=None)
@given(limit=st.integers(0, 200_000), phases=st.integers(1, 3))
def test_power_and_current_agree_and_are_never_more_than_was_meant(limit: int, phases: int) -> None:
    assert amperes(limit, Unit.AMPERE, phases) == limit
    current = amperes(limit, Unit.WATT, phases)
    assert watts(current, phases) <= limit
    assert watts(current + 1, phases) >= limit - 1


# --------------------------------------------------------------------------- any profiles

PERIODS = st.lists(
    st.tuples(st.integers(1, 7200), st.integers(0, 32_000)),
    max_size=4,
    unique_by=lambda one: one[0],
).map(lambda more: ((0, 10_000), *sorted(more)))
PROFILES = st.builds(
    lambda number, steps, **fields: profile(number, *steps, **fields),
    st.integers(1, 6),
    PERIODS,
    stack=st.integers(0, 3),
    evse=st.sampled_from([0, 1]),
    purpose=st.just(Purpose.DEFAULT),
    pattern=st.sampled_from(Pattern),
    start_ms=st.integers(NOW - DAY_MS, NOW + 3_600_000),
    duration_s=st.none() | st.integers(1, 7200),
    valid_from_ms=st.none() | st.integers(NOW - 3_600_000, NOW + 3_600_000),
    valid_to_ms=st.none() | st.integers(NOW, NOW + 7_200_000),
) | st.builds(
    lambda number, steps, stack: profile(
        number, *steps, stack=stack, evse=0, purpose=Purpose.STATION_MAX
    ),
    st.integers(7, 9),
    PERIODS,
    st.integers(0, 3),
)


def held_of(many: list[Profile]) -> Profiles:
    held = Profiles()
    for one in many:
        held = held.put(one)
    return held


@settings(deadline=None)
@given(many=st.lists(PROFILES, max_size=6), offset=st.integers(0, 3599), own=st.booleans())
def test_the_composite_schedule_is_what_holds_at_each_moment(
    many: list[Profile], offset: int, own: bool
) -> None:
    held, running = held_of(many), RUNNING if own else None
    steps = held.composite(1, running, NOW, 3600, 3)
    assert steps[0].start_s == 0
    assert [one.start_s for one in steps] == sorted({one.start_s for one in steps})
    told = [one for one in steps if one.start_s <= offset][-1]
    moment = NOW + offset * 1000
    known = [held.limit(1, running, moment, 3), held.station_limit(moment, 3)]
    assert told.limit == min((one for one in known if one is not None), default=None)


@settings(deadline=None)
@given(many=st.lists(PROFILES, max_size=8))
def test_each_place_is_held_once(many: list[Profile]) -> None:
    held = held_of(many).held
    assert len({one.id for one in held}) == len(held)
    places = {(one.evse, one.purpose, one.stack, one.transaction) for one in held}
    assert len(places) == len(held)
    assert many == [] or held[-1] == many[-1]
