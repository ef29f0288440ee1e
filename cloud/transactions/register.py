"""Energy out of a meter's register that may stand still, run back, leap or be missing: pure rules.

What is not plausible never counts: the energy stays at the last plausible reading, is never
negative, and the transaction is marked for a person to look at.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from cloud.transactions.native import NativeEvent
from protocols.agent_link import TransactionEventType

MOST_W: Final = 400_000
"""No single outlet gives more for long."""
MARGIN_WH: Final = 2000
"""Beside that power, for clocks and readings that are not quite of one moment."""
MOST_WH: Final = 1_000_000
"""Of one transaction, when its duration is not known."""
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
        elif register - start_wh > _limit(lasted_ms):
            review = Review.LEAP
        elif register >= meter_wh:
            meter_wh = register
        else:
            if later and register < meter_wh - JITTER_WH:
                review = Review.BACK
            if event.type is TransactionEventType.ENDED and register >= start_wh:
                meter_wh = register
    energy = 0 if start_wh is None else max(0, meter_wh - start_wh)
    return Measure(start_wh, start_told, meter_wh, energy, review)


def _limit(lasted_ms: int | None) -> int:
    return MOST_WH if lasted_ms is None else MARGIN_WH + MOST_W * lasted_ms // _HOUR_MS
