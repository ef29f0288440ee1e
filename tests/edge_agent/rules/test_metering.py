from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hardware.board import EnergyKind
from edge_agent.records import Register
from edge_agent.rules.metering import CONFIRM_JUMP, Meter, Rating, Step, count, expect_reset
from protocols.quantities import WattHours

SESSION = Rating(max_power_w=22_000, kind=EnergyKind.SESSION, step=WattHours(1), modulus=None)
LIFETIME = replace(SESSION, kind=EnergyKind.LIFETIME)
NARROW = replace(SESSION, modulus=65_536)


def meter(raw: int | None = None, *, total: int = 0, at_ms: int | None = 0) -> Meter:
    known = None if raw is None else WattHours(raw)
    register = Register(evse=1, meter_wh=WattHours(total), raw_wh=known)
    return Meter(register=register, at_ms=at_ms)


def feed(start: Meter, readings: list[int], rating: Rating) -> tuple[Meter, list[Step]]:
    steps, now = [], start.at_ms or 0
    for raw in readings:
        now += 1000
        start, step = count(start, WattHours(raw), now, rating)
        steps.append(step)
    return start, steps


def test_the_first_reading_ever_is_the_base_line() -> None:
    after, _ = count(meter(None, at_ms=None), WattHours(7_000), 0, LIFETIME)
    assert (after.register.meter_wh, after.register.raw_wh) == (0, 7_000)


def test_a_spike_is_never_counted_and_loses_nothing() -> None:
    after, steps = feed(meter(180_000), [180_006, 5_000_000, 180_018, 180_024], LIFETIME)
    assert steps == [Step.COUNTED, Step.DOUBTED, Step.COUNTED, Step.COUNTED]
    assert after.register.meter_wh == 24


def test_a_drop_to_zero_for_one_reading_is_no_reset() -> None:
    after, _ = feed(meter(5_000), [0, 5_006], SESSION)
    assert after.register.meter_wh == 6


def test_a_session_register_starts_over_after_a_second_look() -> None:
    after, steps = feed(meter(5_000, total=9_000), [0, 5, 11], SESSION)
    assert steps == [Step.DOUBTED, Step.RESET, Step.COUNTED]
    assert after.register.meter_wh == 9_011


def test_an_expected_reset_is_taken_at_once() -> None:
    after, steps = feed(expect_reset(meter(3, total=3)), [0, 6], SESSION)
    assert steps == [Step.RESET, Step.COUNTED]
    assert after.register.meter_wh == 9


def test_a_lifetime_register_that_falls_for_good_is_flagged_and_not_counted() -> None:
    readings = [10 + n for n in range(CONFIRM_JUMP + 1)]
    after, steps = feed(meter(8_000, total=500), readings, LIFETIME)
    assert steps.count(Step.JUMPED) == 1
    assert after.register.meter_wh == 500 + CONFIRM_JUMP


def test_a_jump_forward_for_good_counts_only_what_flows_after_it() -> None:
    readings = [900_000 + 6 * n for n in range(CONFIRM_JUMP + 1)]
    after, steps = feed(meter(100, total=100), readings, LIFETIME)
    assert steps.count(Step.JUMPED) == 1
    assert after.register.meter_wh == 100 + 6 * CONFIRM_JUMP


def test_a_narrow_counter_wraps() -> None:
    after, steps = feed(meter(65_533), [3], NARROW)
    assert steps == [Step.COUNTED]
    assert after.register.meter_wh == 6


def test_energy_that_flowed_while_the_agent_was_dead_is_counted_after_a_second_look() -> None:
    after, steps = feed(meter(1_000, total=50_000, at_ms=None), [41_000, 41_006], SESSION)
    assert steps == [Step.DOUBTED, Step.COUNTED]
    assert after.register.meter_wh == 90_006


def test_no_reading_changes_nothing() -> None:
    before = meter(77, total=5)
    assert count(before, None, 1000, SESSION) == (before, Step.COUNTED)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["good", "spike", "none", "zero"]))),
    st.sampled_from([SESSION, LIFETIME, NARROW]),
)
def test_single_wrong_readings_never_cost_a_watt_hour(
    steps: list[tuple[int, str]], rating: Rating
) -> None:
    """Every wrong value is followed by a right one; the integral ends exact and never runs back."""
    true, state, now = 10_000, meter(10_000), 0
    totals = [0]
    for gain, kind in steps:
        for wrong in (True, False):
            true, now = true + gain, now + 1000
            raw: int | None = true
            if wrong and kind != "good":
                raw = {"spike": true + 3_000_000, "zero": 0, "none": None}[kind]
            state, _ = count(state, None if raw is None else WattHours(raw), now, rating)
            totals.append(state.register.meter_wh)
    assert totals == sorted(totals)
    assert totals[-1] == true - 10_000


@given(st.lists(st.integers(0, 1_000_000), max_size=60), st.sampled_from([SESSION, LIFETIME]))
def test_no_sequence_of_readings_makes_the_integral_run_back_or_exceed_the_rating(
    readings: list[int], rating: Rating
) -> None:
    state, now = meter(0), 0
    for raw in readings:
        before = state.register.meter_wh
        now += 1000
        state, _ = count(state, WattHours(raw), now, rating)
        assert before <= state.register.meter_wh
    assert state.register.meter_wh <= rating.allowance(now) + rating.allowance(1000) * len(readings)
