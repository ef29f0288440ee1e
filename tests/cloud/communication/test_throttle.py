"""Bounds on handshakes and guesses hold for every order of events."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cloud.communication.throttle import (
    LATEST_S,
    SOONEST_S,
    Arrivals,
    Guesses,
    Handshakes,
    network_of,
    retry_after,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(-2000, 3000)), max_size=200
    )
)
def test_never_more_are_inside_or_begun_than_allowed(steps: list[tuple[str, bool, int]]) -> None:
    door = Handshakes(places=4, per_second=5)
    inside: Counter[str] = Counter()
    begun: list[datetime] = []
    now = NOW
    for source, comes, ms in steps:
        now += timedelta(milliseconds=ms)
        if comes:
            refused = door.enter(source, "CP-1", now)
            if refused is None:
                inside[source] += 1
                begun.append(now)
            else:
                assert refused.status == 503
                assert SOONEST_S <= (refused.retry_after or 0) <= LATEST_S
        elif inside[source]:
            door.leave(source)
            inside[source] -= 1
        assert door.inside == inside.total() <= 4
        assert max(inside.values(), default=0) <= 2


def test_a_storm_is_let_in_at_the_rate_that_can_be_served() -> None:
    door = Handshakes(places=1000, per_second=200)
    for second in range(3):
        let_in = 0
        for number in range(1000):
            source = str(number % 10)
            moment = NOW + timedelta(seconds=second, milliseconds=number / 2)
            if door.enter(source, f"CP-{number}", moment) is None:
                let_in += 1
                door.leave(source)
        assert let_in == 200


def test_those_turned_away_come_back_spread_over_the_time_that_they_need() -> None:
    door = Handshakes(places=1000, per_second=200)
    told = []
    for number in range(5000):
        refused = door.enter("a", f"CP-{number}", NOW)
        if refused is None:
            door.leave("a")
        else:
            told.append(refused.retry_after or 0)
    assert max(told) > 30
    assert max(Counter(told[-1000:]).values()) < 60


def test_retry_times_differ_by_station() -> None:
    times = Counter(retry_after(f"CP-{number}") for number in range(1000))
    assert len(times) == 11
    assert max(times.values()) < 200


def test_idlers_leave_room_for_others() -> None:
    here = Arrivals(places=10)
    assert [here.arrive(f"2001:db8::{number}") for number in range(10)].count(True) == 5
    assert here.arrive("192.0.2.1")
    here.leave("2001:db8::99")
    assert here.arrive("2001:db8::1")
    assert sum(here.arrive(f"198.51.100.{number}") for number in range(10)) == 4


def test_a_thousand_guesses_leave_the_genuine_station_alone() -> None:
    guesses = Guesses()
    allowed = sum(guesses.may_guess("CP-1", "192.0.2.66", NOW) for _ in range(1000))
    assert allowed == 10
    assert guesses.may_guess("CP-1", "192.0.2.1", NOW)
    assert guesses.may_guess("CP-2", "192.0.2.66", NOW)
    assert guesses.may_guess("CP-1", "192.0.2.66", NOW + timedelta(seconds=31))


def test_being_right_costs_nothing() -> None:
    guesses = Guesses()
    for _ in range(100):
        assert guesses.may_guess("CP-1", "192.0.2.1", NOW)
        guesses.right("CP-1", "192.0.2.1")
    guesses.right("CP-9", "192.0.2.1")


def test_unknown_identities_are_counted_by_source() -> None:
    guesses = Guesses()
    assert sum(guesses.may_be_unknown("192.0.2.66", NOW) for _ in range(200)) == 60
    assert guesses.may_be_unknown("192.0.2.1", NOW)


def test_a_network_is_what_one_customer_has() -> None:
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::1%eth0")
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("unix") == "unix"
