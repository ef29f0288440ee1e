"""The vehicle against IEC 61851's times, stepped by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from karvon.simulator.vehicle import NANOJOULES_PER_WH, Vehicle

MAINS = 230_000


def run(vehicle: Vehicle, offered: int, seconds: float) -> int:
    return sum(vehicle.step(offered, MAINS, 100) for _ in range(round(seconds * 10)))


def test_it_ramps_to_the_offer_and_no_further() -> None:
    vehicle = Vehicle(reaction_ms=2_000, ramp_ma_per_s=4_000)
    run(vehicle, 16_000, 1.9)
    assert vehicle.current == 0
    run(vehicle, 16_000, 2.0)
    assert 6_000 < vehicle.current < 16_000
    run(vehicle, 16_000, 5.0)
    assert vehicle.current == 16_000


def test_a_lower_offer_is_obeyed_after_the_reaction_time() -> None:
    vehicle = Vehicle(reaction_ms=2_000)
    run(vehicle, 16_000, 10)
    run(vehicle, 8_000, 1.9)
    assert vehicle.current == 16_000
    run(vehicle, 8_000, 0.2)
    assert vehicle.current == 8_000


def test_below_six_amperes_it_takes_nothing() -> None:
    vehicle = Vehicle()
    run(vehicle, 5_999, 10)
    assert vehicle.current == 0


def test_energy_is_exact_current_times_voltage_times_time() -> None:
    vehicle = Vehicle(ramp_ma_per_s=1_000_000)
    run(vehicle, 16_000, 10)
    assert run(vehicle, 16_000, 3600) == 11_040 * NANOJOULES_PER_WH


def test_it_tapers_and_stops_at_exactly_what_it_wanted() -> None:
    vehicle = Vehicle(wants_wh=100)
    run(vehicle, 32_000, 20)
    assert vehicle.current == 32_000
    seen = set()
    for _ in range(6000):
        vehicle.step(32_000, MAINS, 100)
        seen.add(vehicle.current)
    assert vehicle.full
    assert vehicle.taken_nj == 100 * NANOJOULES_PER_WH
    assert vehicle.current == 0
    assert any(6_000 < current < 30_000 for current in seen)


def test_the_contactor_cuts_at_once() -> None:
    vehicle = Vehicle()
    run(vehicle, 16_000, 10)
    vehicle.cut()
    assert vehicle.current == 0
    assert vehicle.step(16_000, MAINS, 100) == 0


@given(st.lists(st.sampled_from([0, 6_000, 10_000, 16_000, 32_000]), min_size=1, max_size=60))
def test_it_never_takes_more_than_the_highest_recent_offer(offers: list[int]) -> None:
    vehicle = Vehicle(reaction_ms=2_000, ramp_ma_per_s=20_000)
    given_so_far: list[int] = []
    for offer in offers:
        for _ in range(5):
            given_so_far.append(offer)
            vehicle.step(offer, MAINS, 100)
            assert vehicle.current <= max(given_so_far[-22:])
