"""Energy out of a meter's register that may stand still, run back, leap or be missing: pure rules.

What cannot be never counts: the energy stays at the last possible reading, is never negative, and
the transaction is marked for a person to look at. What is only too much for its duration counts as
the register says, marked too: clocks are wrong more often than meters are.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from cloud.transactions.native import NativeEvent
from protocols.agent_link import TransactionEventType

MOST_W: Final = 400_000
"""No outlet gives more for long; what does is looked at."""
MARGIN_WH: Final = 2000
"""Beside that power, for clocks and readings that are not quite of one moment."""
MOST_WH: Final = 1_000_000
"""No transaction has more, however long it lasts."""
JITTER_WH: Final = 10
"""A register may be rounded differently from one reading to the next."""
_HOUR_MS: Final = 3_600_000


class Review(StrEnum):
    """Why a person should look at a transaction."""

    BACK = "register_back"
    LEAP = "register_leap"
    NEGATIVE = "register_negative"
    POWER = "energy_against_power"
    TIMES = "times_reversed"
    UNMATCHED = "unmatched"
    """No start was told, so that energy before the first reading is not known."""


class Measure(NamedTuple):
    start_wh: int | None
    start_told: bool
    meter_wh: int
    energy_wh: int
    review: Review | None


def measured(
    start_wh: int | None,
    meter_wh: int,
    event: NativeEvent,
    *,
    start_told: bool,
    lasted_ms: int | None,
    later: bool,
) -> Measure:
    """The measure with one more event; `lasted_ms` is None when that is not known.

    `later`: nothing that came before is dated after it.
    """
    review: Review | None = None
    begin, register = event.begin_wh, event.register_wh
    if begin is not None and not start_told:
        if begin < 0:
            review = Review.NEGATIVE
        else:
            meter_wh = begin if start_wh is None else max(begin, meter_wh)
            start_wh, start_told = begin, True
    if register is not None:
        if register < 0:
            review = Review.NEGATIVE
        elif start_wh is None:
            start_wh = meter_wh = register
        elif register - start_wh > MOST_WH:
            review = Review.LEAP
        elif register >= meter_wh:
            meter_wh = register
            review = review or (Review.POWER if _too_much(register - start_wh, lasted_ms) else None)
        else:
            if later and register < meter_wh - JITTER_WH:
                review = Review.BACK
            if event.type is TransactionEventType.ENDED and register >= start_wh:
                meter_wh = register
    energy = 0 if start_wh is None else max(0, meter_wh - start_wh)
    return Measure(start_wh, start_told, meter_wh, energy, review)


def _too_much(energy_wh: int, lasted_ms: int | None) -> bool:
    return lasted_ms is not None and energy_wh > MARGIN_WH + MOST_W * lasted_ms // _HOUR_MS
