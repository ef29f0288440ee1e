"""What neighbours may know of tariffs: prices, the version that a start gets, errors."""

from __future__ import annotations

from cloud.kernel.errors import KarvonError, Kind
from cloud.tariffs.amounts import EXPONENTS, shown
from cloud.tariffs.pinning import PriceBook, pin, pins
from cloud.tariffs.pricing import Cost, Measure, Part, PartKind, TariffVersion, Terms, price
from cloud.tariffs.store import Start

__all__ = [
    "EXPONENTS",
    "AssignmentNotFound",
    "Cost",
    "InThePast",
    "Measure",
    "NoPriceYet",
    "NoTariff",
    "Part",
    "PartKind",
    "PriceBook",
    "Start",
    "TariffExists",
    "TariffNotFound",
    "TariffVersion",
    "Terms",
    "TermsRefused",
    "VersionNotFound",
    "pin",
    "pins",
    "price",
    "shown",
]


class TariffNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "tariff.not_found"


class TariffExists(KarvonError):
    kind = Kind.CONFLICT
    code = "tariff.exists"


class VersionNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "tariff_version.not_found"


class TermsRefused(KarvonError):
    """Prices that contradict each other or their currency."""

    kind = Kind.INVALID
    code = "tariff.terms"


class InThePast(KarvonError):
    kind = Kind.CONFLICT
    code = "tariff.in_the_past"


class NoPriceYet(KarvonError):
    kind = Kind.CONFLICT
    code = "tariff.not_in_force"


class NoTariff(KarvonError):
    kind = Kind.NOT_FOUND
    code = "tariff.none_assigned"


class AssignmentNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "tariff_assignment.not_found"
