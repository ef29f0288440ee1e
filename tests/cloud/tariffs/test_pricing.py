"""What a measure costs: examples that a person can check, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.tariffs.amounts import (
    EXPONENTS,
    digits_shown,
    read_amount,
    read_price,
    shown,
    write_price,
)
from cloud.tariffs.pricing import Measure, Part, PartKind, Terms, price
from protocols.quantities import Milliseconds, Money, WattHours

MICRO = 10**6
MOST_WH = 10**12
MONTH_MS = 31 * 86_400_000
prices = st.integers(0, 10**9 * MICRO)
terms = st.builds(
    Terms,
    currency=st.sampled_from(["UZS", "EUR", "USD", "RUB"]),
    per_kwh=prices,
    per_minute=prices,
    per_session=prices,
    tax=st.integers(0, 9_999),
    tax_included=st.booleans(),
)
limits = st.one_of(st.none(), st.integers(0, 10**11))
limited = st.builds(
    lambda terms, least, most: replace(
        terms,
        min_total=least,
        max_total=most if least is None or most is None else max(least, most),
    ),
    terms,
    limits,
    limits,
)
energies = st.integers(0, MOST_WH)
durations = st.integers(0, MONTH_MS)


def measure(energy_wh: int, duration_ms: int, *, ended: bool = True) -> Measure:
    return Measure(WattHours(energy_wh), Milliseconds(duration_ms), ended)


measures = st.builds(measure, energies, durations, ended=st.booleans())


@pytest.mark.parametrize(
    ("given_terms", "energy_wh", "minutes", "total"),
    [
        ({"per_kwh": 1500_00 * MICRO}, 20_000, 45, 30_000_00),
        ({"per_kwh": 1500_00 * MICRO, "per_minute": 50_00 * MICRO}, 20_000, 45, 32_250_00),
        ({"per_kwh": 48_750_000}, 1_000, 0, 49),
        ({"per_kwh": 48_750_000}, 2_000, 0, 98),
        ({"per_kwh": 500_000}, 1_000, 0, 1),
        ({"per_kwh": 499_999}, 1_000, 0, 0),
        ({"per_session": 100 * MICRO}, 0, 0, 100),
        ({"per_session": 100 * MICRO, "min_total": 500}, 0, 9, 100),
        ({"per_session": 100 * MICRO, "min_total": 500}, 1, 0, 500),
        ({"per_kwh": 100 * MICRO, "max_total": 700}, 50_000, 0, 700),
        ({"per_kwh": 100 * MICRO, "tax": 1200, "tax_included": False}, 1_000, 0, 112),
        ({"per_kwh": 100 * MICRO, "tax": 1200}, 1_000, 0, 100),
    ],
)
def test_a_bill_that_can_be_reckoned_by_hand(
    given_terms: dict[str, Any], energy_wh: int, minutes: int, total: int
) -> None:
    cost = price(Terms(currency="UZS", **given_terms), measure(energy_wh, minutes * 60_000))
    assert cost.total == Money(total, "UZS")


def test_parts_say_what_the_total_is_made_of() -> None:
    given_terms = Terms(
        currency="EUR", per_kwh=49 * MICRO, per_minute=MICRO // 2, per_session=100 * MICRO,
        tax=1900, max_total=1000,
    )  # fmt: skip
    cost = price(given_terms, measure(20_000, 45 * 60_000))
    assert cost.parts == (
        Part(PartKind.SESSION, 100),
        Part(PartKind.ENERGY, 980),
        Part(PartKind.TIME, 23),
        Part(PartKind.MAXIMUM, -103),
    )
    assert (cost.total, cost.tax, cost.final) == (Money(1000, "EUR"), Money(160, "EUR"), True)


def test_the_minimum_is_due_at_the_end_and_only_for_energy() -> None:
    given_terms = Terms(currency="UZS", per_kwh=100 * MICRO, min_total=5_000)
    running = price(given_terms, measure(1_000, 0, ended=False))
    assert (running.total.minor, running.final) == (100, False)
    ended = price(given_terms, measure(1_000, 0))
    assert ended.parts[-1] == Part(PartKind.MINIMUM, 4_900)
    assert price(given_terms, measure(0, 60_000)).total.minor == 0


@given(limited, measures)
def test_parts_add_up_and_tax_is_within(given_terms: Terms, one: Measure) -> None:
    cost = price(given_terms, one)
    assert sum(part.minor for part in cost.parts) == cost.total.minor
    assert all(isinstance(part.minor, int) for part in cost.parts)
    assert 0 <= cost.tax.minor <= cost.total.minor
    assert cost.total.currency == cost.tax.currency == given_terms.currency


@given(limited, energies, energies, durations, durations, st.booleans())
def test_more_never_costs_less(
    given_terms: Terms, energy: int, more: int, duration: int, longer: int, ended: bool
) -> None:
    less = price(given_terms, measure(energy, duration, ended=ended))
    assert price(given_terms, measure(energy + more, duration, ended=ended)).total.minor >= (
        less.total.minor
    )
    assert price(given_terms, measure(energy, duration + longer, ended=ended)).total.minor >= (
        less.total.minor
    )
    assert price(given_terms, measure(energy, duration)).total.minor >= less.total.minor


@given(terms, measures)
def test_it_is_the_exact_sum_rounded_once(given_terms: Terms, one: Measure) -> None:
    factor = 1 if given_terms.tax_included else Fraction(10_000 + given_terms.tax, 10_000)
    exact = {
        PartKind.SESSION: Fraction(given_terms.per_session, MICRO) * factor,
        PartKind.ENERGY: Fraction(given_terms.per_kwh * one.energy_wh, 1000 * MICRO) * factor,
        PartKind.TIME: Fraction(given_terms.per_minute * one.duration_ms, 60_000 * MICRO) * factor,
    }
    cost = price(given_terms, one)
    assert cost.total.minor == (sum(exact.values()) + Fraction(1, 2)).__floor__()
    for part in cost.parts:
        assert abs(part.minor - exact[part.kind]) < 1


@given(terms, energies, energies, durations)
def test_two_bills_and_one_over_both_differ_by_rounding_alone(
    given_terms: Terms, first: int, second: int, duration: int
) -> None:
    fee = replace(given_terms, per_session=0)
    apart = (
        price(fee, measure(first, 0)).total.minor
        + price(fee, measure(second, duration)).total.minor
    )
    together = price(fee, measure(first + second, duration))
    assert abs(apart - together.total.minor) <= 1
    assert together == price(fee, measure(second + first, duration))


@given(limited)
def test_nothing_costs_the_sessions_own_price(given_terms: Terms) -> None:
    free = replace(given_terms, max_total=None)
    nothing = price(free, measure(0, 0))
    assert nothing.total == price(replace(free, per_kwh=0, per_minute=0), measure(0, 10**6)).total
    assert nothing.total.minor == sum(
        part.minor for part in nothing.parts if part.kind is PartKind.SESSION
    )
    assert nothing == price(free, measure(-5, -5)), "a broken meter takes nothing off"


@given(limited, st.integers(0, MONTH_MS))
def test_a_terawatt_hour_fits_a_bigint(given_terms: Terms, duration: int) -> None:
    cost = price(given_terms, measure(MOST_WH, duration))
    assert cost.total.minor < 2**63


# --------------------------------------------------------------------------- amounts as text


@pytest.mark.parametrize(
    ("minor", "currency", "digits", "text"),
    [
        (149_050, "UZS", 0, "1491"),
        (149_049, "UZS", 0, "1490"),
        (149_050, "UZS", 2, "1490.50"),
        (5, "EUR", 2, "0.05"),
        (-5, "EUR", 2, "-0.05"),
        (-4, "EUR", 1, "0.0"),
        (1234, "KWD", 3, "1.234"),
        (1500, "JPY", 0, "1500"),
    ],
)
def test_amounts_are_shown_as_asked(minor: int, currency: str, digits: int, text: str) -> None:
    assert shown(Money(minor, currency), digits) == text


def test_nobody_is_shown_a_tiyin() -> None:
    assert [digits_shown(code) for code in ("UZS", "EUR", "USD", "RUB", "JPY")] == [0, 2, 2, 2, 0]
    assert EXPONENTS["UZS"] == 2


@given(st.sampled_from(sorted(EXPONENTS)), st.integers(0, 10**13))
def test_prices_are_read_as_they_are_written(currency: str, millionths: int) -> None:
    text = f"{millionths // MICRO}.{millionths % MICRO:06}"
    read = read_price(text, currency)
    assert read_price(write_price(read, currency), currency) == read
    assert read == millionths * 10 ** EXPONENTS[currency]


def test_an_amount_is_whole_minor_units_or_none() -> None:
    assert read_amount("149.5", "EUR") == 149_50
    assert read_amount("149.500", "EUR") == 149_50
    assert read_amount("149.505", "EUR") is None
    assert read_amount("1.5", "JPY") is None
