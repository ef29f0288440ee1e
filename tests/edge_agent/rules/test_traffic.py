from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.traffic import KEPT_DAYS, Traffic, level_of

LTE = frozenset({"wwan0"})
DAY_MS = 86_400_000
MIB = 1024 * 1024


def at(day: int, month: int = 6, hour: int = 12) -> int:
    return int(datetime(2026, month, day, hour, tzinfo=UTC).timestamp() * 1000)


def test_what_was_carried_is_added_up_by_link_and_day() -> None:
    traffic = Traffic()
    traffic.observe({"eth0": 5_000, "wwan0": 100}, at(1))
    traffic.observe({"eth0": 7_000, "wwan0": 400}, at(1))
    traffic.observe({"eth0": 7_000, "wwan0": 900}, at(2))
    assert traffic.days == {
        "2026-06-01": {"eth0": 2_000, "wwan0": 300},
        "2026-06-02": {"eth0": 0, "wwan0": 500},
    }
    assert traffic.month(LTE, at(30)) == 800
    assert traffic.month(LTE, at(1, month=7)) == 0


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    traffic = Traffic()
    traffic.observe({"wwan0": 9_000}, at(1))
    traffic.observe({"wwan0": 70}, at(1))
    assert traffic.month(LTE, at(1)) == 70
    traffic.restarted()
    traffic.observe({"wwan0": 100}, at(1))
    assert traffic.month(LTE, at(1)) == 170


def test_what_was_carried_without_a_date_is_counted_once_the_date_is_known() -> None:
    traffic = Traffic()
    traffic.observe({"wwan0": 0}, None)
    traffic.observe({"wwan0": 500}, None)
    assert traffic.days == {}
    traffic.observe({"wwan0": 600}, at(3))
    assert traffic.days == {"2026-06-03": {"wwan0": 600}}


def test_old_days_are_forgotten() -> None:
    traffic = Traffic()
    for day in range(100):
        traffic.observe({"wwan0": day}, at(1) + day * DAY_MS)
    assert len(traffic.days) == KEPT_DAYS


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), max_size=30))
def test_nothing_carried_is_lost_or_counted_twice(steps: list[tuple[int, bool]]) -> None:
    traffic, counter, carried = Traffic(), 0, 0
    traffic.observe({"wwan0": 0}, at(1))
    for number, (gained, reboot) in enumerate(steps):
        if reboot:
            counter = 0
            traffic.restarted()
        counter += gained
        carried += gained
        traffic.observe({"wwan0": counter}, at(1 + number % 28))
    assert traffic.month(LTE, at(1)) == carried


def test_telemetry_thins_before_it_costs_money() -> None:
    budget = 300 * MIB
    levels = [
        (0, 1, 0),
        (39, 1, 0),
        (41, 1, 1),
        (120, 10, 0),
        (140, 10, 1),
        (271, 10, 2),
        (271, 30, 2),
        (300, 30, 3),
    ]
    for used, day, level in levels:
        assert level_of(used * MIB, budget, at(day)).number == level, (used, day)
    assert level_of(10**12, None, at(1)).number == 0


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 30))
def test_within_a_day_it_only_gets_stricter(one: int, more: int, day: int) -> None:
    budget = 300 * MIB
    before = level_of(one * MIB, budget, at(day, hour=0))
    after = level_of((one + more) * MIB, budget, at(day, hour=23))
    assert after.number >= before.number
