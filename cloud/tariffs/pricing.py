"""What a measure costs under a version of a tariff: a pure rule in whole numbers.

Everything is summed up exactly and rounded once, at the total: half a minor unit goes up. A part is
what the total gained by it, so parts always add up, and each is less than one minor unit away from
its own exact value.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from cloud.tariffs.amounts import MICRO, half_up
from protocols.quantities import Milliseconds, Money, WattHours

_WH: Final = 1000
_MS: Final = 60_000
_HUNDRED_PERCENT: Final = 10_000
"""Taxes are in hundredths of a percent."""
_UNIT: Final = MICRO * _MS * _HUNDRED_PERCENT
"""A minor unit, in the fractions that sums are kept in."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Prices in millionths of the currency's minor unit; limits of the total in minor units."""

    currency: str
    per_kwh: int = 0
    per_minute: int = 0
    per_session: int = 0
    tax: int = 0
    """In hundredths of a percent."""
    tax_included: bool = True
    """Whether the prices have the tax in them; limits of the total always do."""
    min_total: int | None = None
    max_total: int | None = None
    shown_digits: int = 2
    """Decimals for people; nothing is reckoned with them."""


@dataclass(frozen=True, kw_only=True)
class TariffVersion(Terms):
    """Terms as they were given; they never change."""

    id: int
    tariff_id: int
    number: int
    valid_from: datetime
    created_by: str
    created_at: datetime


@dataclass(frozen=True)
class Measure:
    """What is paid for; `ended` is false while more may come."""

    energy_wh: WattHours
    duration_ms: Milliseconds
    ended: bool = True


class PartKind(StrEnum):
    SESSION = "session"
    ENERGY = "energy"
    TIME = "time"
    MINIMUM = "minimum"
    """What is missing to the least that a transaction with energy costs."""
    MAXIMUM = "maximum"
    """What is let off beyond the most that one costs: negative."""


@dataclass(frozen=True)
class Part:
    kind: PartKind
    minor: int


@dataclass(frozen=True)
class Cost:
    """`parts` add up to the total, `tax` is contained in it; not `final` while charging goes on."""

    total: Money
    tax: Money
    parts: tuple[Part, ...]
    final: bool


def price(terms: Terms, measure: Measure) -> Cost:
    """What the measure costs, or has cost so far.

    The minimum is due at the end, and only where energy was delivered: a failed attempt costs no
    more than the session's own price. A measure below nothing, as a broken meter may tell it,
    counts as nothing.
    """
    energy_wh, duration_ms = max(0, measure.energy_wh), max(0, measure.duration_ms)
    factor = _HUNDRED_PERCENT + (0 if terms.tax_included else terms.tax)
    exact = (
        (PartKind.SESSION, terms.per_session, terms.per_session * _MS),
        (PartKind.ENERGY, terms.per_kwh, terms.per_kwh * energy_wh * (_MS // _WH)),
        (PartKind.TIME, terms.per_minute, terms.per_minute * duration_ms),
    )
    parts, summed, total = [], 0, 0
    for kind, asked, amount in exact:
        if asked:
            summed += amount * factor
            before, total = total, half_up(summed, _UNIT)
            parts.append(Part(kind, total - before))
    limit = _limit(terms, total, due=measure.ended and energy_wh > 0)
    if limit is not None:
        parts.append(limit)
        total += limit.minor
    tax = half_up(total * terms.tax, _HUNDRED_PERCENT + terms.tax)
    return Cost(
        Money(total, terms.currency), Money(tax, terms.currency), tuple(parts), measure.ended
    )


def _limit(terms: Terms, total: int, *, due: bool) -> Part | None:
    if due and terms.min_total is not None and total < terms.min_total:
        return Part(PartKind.MINIMUM, terms.min_total - total)
    if terms.max_total is not None and total > terms.max_total:
        return Part(PartKind.MAXIMUM, terms.max_total - total)
    return None
