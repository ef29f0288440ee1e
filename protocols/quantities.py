"""Physical quantities and money: integers whose unit is in the type.

A reading becomes one of these where it enters the house and stays one to the invoice, so that no
float rounds a watt-hour away and no one adds volts to amperes.
"""

from __future__ import annotations

from typing import Final, NewType

import msgspec

WattHours = NewType("WattHours", int)
Watts = NewType("Watts", int)
MilliAmperes = NewType("MilliAmperes", int)
MilliVolts = NewType("MilliVolts", int)
Milliseconds = NewType("Milliseconds", int)

IEC_MIN_CURRENT: Final = MilliAmperes(6000)
"""Below 6 A a vehicle may not charge (IEC 61851-1 table A.8): a limit under it means pause."""


class Money(msgspec.Struct, frozen=True):
    """Minor units of an ISO 4217 currency, e.g. Money(150000, "UZS") is 1 500.00 UZS."""

    minor: int
    currency: str
