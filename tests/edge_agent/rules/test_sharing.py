from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.sharing import Claim, Turns, share
from protocols.quantities import IEC_MIN_CURRENT

THREE = {"L1": 1, "L2": 1, "L3": 1}


def even(room: int) -> dict[str, int]:
    return dict.fromkeys(THREE, room)


def claim(key: int, most: int = 32_000, takes: dict[str, int] | None = None, **more: Any) -> Claim:
    return Claim(key=key, most=most, takes=takes or THREE, **more)


def test_who_needs_less_leaves_the_rest_to_others() -> None:
    claims = [claim(1), claim(2, most=8_000), claim(3)]
    assert share(even(40_000), claims) == {1: 16_000, 2: 8_000, 3: 16_000}


def test_a_room_too_small_for_all_serves_the_first() -> None:
    assert share(even(13_000), [claim(1), claim(2), claim(3)]) == {1: 6_500, 2: 6_500, 3: 0}


def test_a_vehicle_on_one_line_leaves_the_other_lines_to_others() -> None:
    claims = [claim(1, takes={"L1": 1}), claim(2, takes={"L2": 1}), claim(3)]
    assert share(even(40_000), claims) == {1: 20_000, 2: 20_000, 3: 20_000}
    assert share(even(40_000), claims[:2]) == {1: 32_000, 2: 32_000}


def test_a_small_claim_behind_one_that_does_not_fit_is_let_in() -> None:
    room = {"L1": 20_000, "L2": 5_000, "L3": 20_000}
    assert share(room, [claim(1), claim(2, takes={"L1": 1})]) == {1: 0, 2: 20_000}


def test_higher_priority_is_filled_first_and_the_others_keep_the_least() -> None:
    claims = [claim(1, priority=1), claim(2)]
    assert share(even(40_000), claims) == {1: 32_000, 2: 8_000}
    assert share(even(20_000), claims) == {1: 14_000, 2: 6_000}


def test_a_resource_that_is_taken_several_times_counts_so_often() -> None:
    claims = [claim(1, takes={"sun": 3}), claim(2, takes={"sun": 1})]
    assert share({"sun": 30_000}, claims) == {1: 7_500, 2: 7_500}


def test_a_reserve_is_for_its_pool_alone_and_used_first() -> None:
    claims = [claim(1), claim(2), claim(3, pool="B")]
    assert share(even(7_000), claims, {"B": even(6_000)}) == {1: 6_500, 2: 0, 3: 6_500}
    assert share(even(5_000), claims, {"B": even(6_000)}) == {1: 0, 2: 0, 3: 11_000}
    two = [claim(1), claim(2, pool="B")]
    assert share(even(20_000), two, {"B": even(10_000)}) == {1: 15_000, 2: 15_000}
    assert share(even(20_000), [claim(1, pool="A")], {"B": even(10_000)}) == {1: 20_000}
    assert share(even(4_000), [claim(1, pool="B")], {"B": even(3_000)}) == {1: 7_000}


CLAIMS = st.lists(
    st.tuples(
        st.integers(0, 80_000),
        st.sets(st.sampled_from(["L1", "L2", "L3"]), min_size=1),
        st.integers(0, 2),
    ),
    max_size=8,
)


@given(st.tuples(*[st.integers(0, 150_000)] * 3), CLAIMS)
def test_no_line_is_given_twice_and_nobody_could_have_more(
    room: tuple[int, int, int], wanted: list[tuple[int, set[str], int]]
) -> None:
    rooms = dict(zip(THREE, room, strict=True))
    claims = [
        claim(key, most, dict.fromkeys(takes, 1), priority=priority)
        for key, (most, takes, priority) in enumerate(wanted)
    ]
    shares = share(rooms, claims)
    used = {line: sum(shares[one.key] for one in claims if line in one.takes) for line in rooms}
    assert all(used[line] <= rooms[line] for line in rooms)
    for one in claims:
        given_ = shares[one.key]
        assert given_ == 0 or IEC_MIN_CURRENT <= given_ <= one.most
        free = min(rooms[line] - used[line] for line in one.takes)
        users = max(
            sum(line in other.takes and shares[other.key] > 0 for other in claims)
            for line in one.takes
        )
        if given_ == 0:
            assert one.most < IEC_MIN_CURRENT or free < IEC_MIN_CURRENT
        else:
            assert given_ == one.most or free < users


@given(st.integers(1, 4), st.integers(5, 7))
def test_nobody_waits_longer_than_the_turns_of_the_others(places: int, many: int) -> None:
    turns = Turns(turn_ms=60_000)
    claims = [claim(key) for key in range(many)]
    served = dict.fromkeys(range(many), 0)
    longest = 0
    for now in range(0, 4 * many * 60_000, 10_000):
        shares = share(even(places * IEC_MIN_CURRENT), turns.order(claims, now))
        turns.note(shares, now)
        assert sum(given_ > 0 for given_ in shares.values()) == places
        for key, given_ in shares.items():
            if given_:
                longest = max(longest, now - served[key])
                served[key] = now
    assert all(served.values())
    assert longest <= 60_000 * many + 10_000


def test_who_is_served_keeps_its_place_for_a_turn() -> None:
    turns = Turns(turn_ms=60_000)
    claims = [claim(1), claim(2)]
    changes, last = 0, None
    for now in range(0, 600_000, 1_000):
        shares = share(even(6_000), turns.order(claims, now))
        turns.note(shares, now)
        current = [key for key, given_ in shares.items() if given_]
        changes += current != last
        last = current
    assert changes == 10
