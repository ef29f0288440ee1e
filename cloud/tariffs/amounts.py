"""Currencies, and amounts as people write them: decimal text of the major unit, never a float.

Inside, amounts are integers of the currency's minor unit, and prices of millionths of it, so that
0.4875 EUR for a kWh is exact.
"""

from __future__ import annotations

from typing import Final

from protocols.quantities import Money

PRICE_DECIMALS: Final = 6
MICRO: Final = 10**PRICE_DECIMALS

_OTHERWISE: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
}
_TWO: Final = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD"
    " CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ"
    " GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL"
    " MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR"
    " PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT"
    " TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG"
)
EXPONENTS: Final = {
    **dict.fromkeys(_TWO.split(), 2),
    **{code: exponent for exponent, codes in _OTHERWISE.items() for code in codes.split()},
}
"""ISO 4217: how many decimals a currency's minor unit is."""

_SHOWN: Final = {"UZS": 0}
"""Minor units that exist on paper only: nobody has seen a tiyin for years."""


def digits_shown(currency: str) -> int:
    """How many decimals people expect of the currency."""
    return _SHOWN.get(currency, EXPONENTS[currency])


def read_price(text: str, currency: str) -> int:
    """`"0.4875"` as millionths of the minor unit; at most six decimals."""
    whole, _, decimals = text.partition(".")
    return int(whole + decimals.ljust(PRICE_DECIMALS, "0")) * _ten_to(EXPONENTS[currency])


def read_amount(text: str, currency: str) -> int | None:
    """`"149.50"` in minor units; None when it names less than one of them."""
    whole, rest = divmod(read_price(text, currency), MICRO)
    return None if rest else whole


def write_price(price: int, currency: str) -> str:
    """What `read_price` reads, without needless zeros."""
    return write_decimal(price, PRICE_DECIMALS + EXPONENTS[currency])


def write_decimal(value: int, decimals: int) -> str:
    """`12.5` for 1250 hundredths."""
    return _fixed(value, decimals).rstrip("0").rstrip(".") if decimals else str(value)


def shown(money: Money, digits: int) -> str:
    """The amount for people, rounded half away from zero to so many decimals."""
    rounded = half_up(abs(money.minor) * _ten_to(digits), _ten_to(EXPONENTS[money.currency]))
    sign = "-" if money.minor < 0 and rounded else ""
    return sign + _fixed(rounded, digits)


def half_up(dividend: int, divisor: int) -> int:
    """The quotient of natural numbers, rounded; a half goes up."""
    return (2 * dividend + divisor) // (2 * divisor)


def _fixed(value: int, decimals: int) -> str:
    if not decimals:
        return str(value)
    whole, rest = divmod(value, _ten_to(decimals))
    return f"{whole}.{rest:0{decimals}}"


def _ten_to(decimals: int) -> int:
    return int(10**decimals)
