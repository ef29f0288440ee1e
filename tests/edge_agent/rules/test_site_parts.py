"""What the plan of a site is made of: reserves, what vehicles show, the sun, the fuse's curve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hardware.board import EvseReading, IecState
from edge_agent.rules.fuse import Strain, bearable_ms
from edge_agent.rules.phases import placed, wired
from edge_agent.rules.reserve import REACTION_MS, Reserve
from edge_agent.rules.surplus import Gate, SurplusRules
from edge_agent.rules.vehicle import EASY_AFTER_MS, PARKED_AFTER_MS, SURE_AFTER_MS, Shown
from karvon.simulator.vehicle import Vehicle
from protocols.quantities import MilliAmperes

SUN = SurplusRules()
LEAST_W = 4_140


def test_rotation_says_which_line_is_behind_which_pin() -> None:
    assert wired("RST", 3) == (0, 1, 2)
    assert wired("STR", 3) == (1, 2, 0)
    assert wired("TRS", 1) == (2,)
    assert placed((16_000, None, 3_000), wired("STR", 3)) == (3_000, 16_000, 0)


# -- reserves -------------------------------------------------------------------------------------


@given(
    st.integers(0, 5_000),
    st.lists(st.tuples(st.integers(0, 32), st.integers(1, 8)), min_size=1, max_size=12),
)
def test_a_vehicle_in_order_never_takes_more_than_is_reserved(
    reaction_ms: int, limits: list[tuple[int, int]]
) -> None:
    vehicle = Vehicle(reaction_ms=reaction_ms)
    reserve = Reserve(limit=0)
    now = 0
    for amperes, seconds in limits:
        reserve = reserve.told(amperes * 1000, now)
        for _ in range(seconds * 10):
            now += 100
            vehicle.step(amperes * 1000, 230_000, 100)
            assert vehicle.current <= reserve.ceiling(now)
            assert not reserve.disobeyed(vehicle.current, now)


def test_who_takes_more_after_the_time_to_follow_is_seen() -> None:
    reserve = Reserve(limit=32_000).told(6_000, 0)
    assert not reserve.disobeyed(32_000, REACTION_MS - 1)
    assert reserve.disobeyed(32_000, REACTION_MS)
    assert not reserve.disobeyed(6_900, REACTION_MS)


# -- what a vehicle shows -------------------------------------------------------------------------


def reading(*currents: int | None, state: IecState = IecState.CHARGING) -> EvseReading:
    pins = tuple(None if one is None else MilliAmperes(one) for one in currents)
    return EvseReading(evse=1, taken_at=0, state=state, current=pins)  # type: ignore[arg-type]


def watched(*currents: int | None, limit: int = 32_000, ms: int = EASY_AFTER_MS + 1) -> Shown:
    shown = Shown()
    for now in (0, SURE_AFTER_MS, ms):
        shown = shown.read(reading(*currents), limit, now)
    return shown


def test_a_vehicle_on_one_pin_is_known_after_a_while() -> None:
    shown = Shown().read(reading(16_000, 0, 0), 16_000, 0)
    assert shown.pins is None
    shown = shown.read(reading(16_000, 0, 0), 16_000, SURE_AFTER_MS)
    assert shown.pins == {0}
    assert shown.read(reading(0, 0, 0), 16_000, SURE_AFTER_MS + 1).pins == {0}
    assert shown.read(reading(16_000, 9_000, 0), 16_000, SURE_AFTER_MS + 1).pins is None
    assert shown.read(reading(0, 0, 0, state=IecState.NO_VEHICLE), 16_000, 99_999) == Shown()


def test_what_is_not_measured_shows_nothing() -> None:
    assert watched(None, None, None) == Shown()


def test_a_vehicle_that_takes_less_than_it_may_needs_no_more() -> None:
    assert watched(10_200, 10_200, 10_200).need == 13_000
    assert watched(0, 0, 0).need == 6_000
    assert watched(31_000, 31_000, 31_000).need is None
    assert watched(0, 0, 0, limit=0).need is None
    assert watched(10_200, ms=EASY_AFTER_MS - 1).need is None


def test_a_full_vehicle_is_parked_until_it_draws_again() -> None:
    shown = watched(0, 0, 0, ms=PARKED_AFTER_MS - 1)
    assert not shown.parked
    shown = shown.read(reading(0, 0, 0), 32_000, PARKED_AFTER_MS)
    assert shown.parked
    assert not shown.read(reading(8_000, 0, 0), 32_000, PARKED_AFTER_MS + 1).parked
    assert not shown.read(reading(0, 0, 0), 0, PARKED_AFTER_MS + 1).parked


# -- the sun --------------------------------------------------------------------------------------


def gate_after(powers: list[tuple[int, int]]) -> tuple[Gate, int]:
    """(W, seconds) after each other; how often it was switched."""
    gate, now, switched = Gate(), 0, 0
    for watts, seconds in powers:
        for _ in range(seconds):
            now += 1000
            before, gate = gate, gate.follow(watts, LEAST_W, SUN, now)
            switched += gate.on is not before.on
    return gate, switched


def test_the_sun_must_last_to_start_and_be_gone_to_stop() -> None:
    assert not gate_after([(5_000, 59)])[0].on
    assert gate_after([(5_000, 62)])[0].on
    assert not gate_after([(4_300, 3_600)])[0].on
    assert gate_after([(5_000, 62), (3_700, 3_600)])[0].on
    assert gate_after([(5_000, 400), (0, 179)])[0].on
    assert not gate_after([(5_000, 400), (0, 182)])[0].on
    assert gate_after([(5_000, 62), (0, 298)])[0].on, "it stays on for its least time"


@given(st.lists(st.tuples(st.integers(-3_000, 12_000), st.integers(1, 400)), max_size=40))
def test_clouds_never_make_it_flap(powers: list[tuple[int, int]]) -> None:
    _, switched = gate_after(powers)
    seconds = sum(seconds for _, seconds in powers)
    assert switched <= 1 + seconds * 1000 // SUN.min_on_ms


# -- the fuse -------------------------------------------------------------------------------------


def test_the_curve_of_the_fuse() -> None:
    assert bearable_ms(63_000, 63_000) is None
    assert bearable_ms(78_750, 63_000) == 3_600_000
    assert bearable_ms(126_000, 63_000) == 10_000
    assert bearable_ms(126_001, 63_000) == 0
    assert bearable_ms(18_000, 10_000) == 10_000
    assert bearable_ms(18_001, 10_000) == 0, "a small fuse promises less"


GATES = {
    16: (33, 85),
    20: (42, 110),
    25: (52, 150),
    32: (75, 200),
    40: (95, 260),
    50: (125, 350),
    63: (160, 450),
    80: (215, 610),
    100: (290, 820),
    125: (355, 1100),
    160: (460, 1450),
    200: (610, 1910),
    250: (750, 2590),
    315: (1050, 3420),
    400: (1420, 4500),
    500: (1780, 6000),
    630: (2200, 8060),
}
"""Rating -> Imin(10 s), Imin(0.1 s), all in A: IEC 60269-1, Table 3."""


@given(st.sampled_from(sorted(GATES)), st.integers(1, 12_000_000))
def test_no_fuse_is_asked_for_more_than_its_standard_promises(rating: int, current: int) -> None:
    ten_seconds, _ = GATES[rating]
    bearable = bearable_ms(current, rating * 1000)
    if current <= rating * 1000:
        assert bearable is None
    elif current <= rating * 1250:
        assert bearable == 3_600_000, "the shortest conventional time"
    elif current > ten_seconds * 1000:
        assert bearable == 0
    else:
        assert bearable in {0, 10_000}


@given(st.integers(1_000, 700_000), st.integers(0, 2_000_000), st.integers(0, 2_000_000))
def test_more_current_is_never_bearable_for_longer(rating: int, one: int, other: int) -> None:
    less, more = sorted((one, other))
    longest = 10**9
    of_less, of_more = (bearable_ms(each, rating) for each in (less, more))
    assert (longest if of_more is None else of_more) <= (longest if of_less is None else of_less)


@given(st.lists(st.tuples(st.integers(0, 150_000), st.integers(1, 4_000_000)), max_size=30))
def test_the_watcher_agrees_with_the_curve(steps: list[tuple[int, int]]) -> None:
    """Told of when the current has stayed above some step for longer than what is above may."""
    strain, now, since = Strain((63_000,) * 3), 0, dict.fromkeys((1000, 1250, 2000), -1)
    for current, passed in steps:
        now += passed
        for step in since:
            above = current * 1000 > 63_000 * step
            since[step] = (now if since[step] < 0 else since[step]) if above else -1
        allowed = {1000: 3_600_000, 1250: 10_000, 2000: -1}
        expected = any(at >= 0 and now - at > allowed[step] for step, at in since.items())
        assert strain.take((current, 0, 0), now) == ([0] if expected else [])


def test_strain_is_seen_per_line_and_forgotten_when_it_is_over() -> None:
    strain = Strain((10_000, 10_000, 10_000))
    assert strain.take((9_000, 15_000, 0), 0) == []
    assert strain.take((9_000, 15_000, 0), 10_000) == []
    assert strain.over_ms(10_000) == 10_000
    assert strain.take((9_000, 15_000, 0), 10_001) == [1]
    assert strain.take((9_000, 10_000, 0), 11_000) == []
    assert strain.over_ms(11_000) == 0
    assert strain.take((21_000, 0, 0), 12_000) == [0]
