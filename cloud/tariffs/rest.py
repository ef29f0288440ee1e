"""/api/v1/tariffs, /tariff-assignments, /stations/{station}/tariff."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends, Path, Query
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema, model_validator

from cloud.kernel.etags import ETAG_RESPONSES, IfMatch, IfNoneMatch, state_of, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, Flag, Moment, example
from cloud.tariffs import store
from cloud.tariffs.amounts import EXPONENTS, shown, write_decimal, write_price
from cloud.tariffs.pricing import Measure, PartKind, TariffVersion
from cloud.tariffs.service import Draft, Place, Placed, Priced, Quote, Tariffs
from protocols.agent_link import MAX_STATION_LENGTH
from protocols.quantities import Milliseconds, Money, WattHours

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
MOST: Final = 10**12
"""Watt-hours or milliseconds of a quote."""
TAX_DECIMALS: Final = 2


def _known_currency(code: str) -> str:
    if code not in EXPONENTS:
        raise ValueError("no currency of ISO 4217, such as UZS or EUR")
    return code


Number = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Currency = Annotated[
    str,
    AfterValidator(_known_currency),
    WithJsonSchema({"type": "string", "enum": sorted(EXPONENTS), "description": "ISO 4217"}),
]
Price = Annotated[
    str,
    Field(
        pattern=r"^(0|[1-9][0-9]{0,6})(\.[0-9]{1,6})?$",
        description="of the currency's major unit, as text: 1500 UZS, 0.4875 EUR",
    ),
]
Amount = Annotated[
    str,
    Field(
        pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,3})?$",
        description="of the currency's major unit, as text, tax included",
    ),
]
Percent = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]?)(\.[0-9]{1,2})?$")]
TariffPath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
AssignmentPath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
StationPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Text = Annotated[str | None, Query(max_length=100, description="part of its name")]


class VersionRequest(Body):
    model_config = example(per_kwh="1500", per_minute="50", tax_percent="12")

    per_kwh: Price = "0"
    per_minute: Price = "0"
    per_session: Price = "0"
    tax_percent: Percent = "0"
    tax_included: Flag = Field(True, description="whether the prices have the tax in them")
    min_total: Amount | None = None
    max_total: Amount | None = None
    shown_digits: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="decimals for people; by default the currency's, none for UZS"
    )
    valid_from: Moment | None = Field(None, description="by default now; never in the past")

    def draft(self) -> Draft:
        whole, _, decimals = self.tax_percent.partition(".")
        given = self.model_dump(include=set(VersionRequest.model_fields) - {"tax_percent"})
        return Draft(**given, tax=int(whole + decimals.ljust(TAX_DECIMALS, "0")))


class TariffRequest(VersionRequest):
    model_config = example(name="Day", currency="UZS", per_kwh="1500", tax_percent="12")

    name: Name
    currency: Currency


class TariffChange(Body):
    """Prices are changed by a new version."""

    model_config = example(name="Day 2027")

    name: Name = ""


class VersionView(BaseModel):
    version: int
    currency: str
    per_kwh: str
    per_minute: str
    per_session: str
    tax_percent: str
    tax_included: bool
    min_total: str | None
    max_total: str | None
    shown_digits: int
    valid_from: datetime
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, version: TariffVersion) -> VersionView:
        def written(minor: int | None) -> str | None:
            exponent = EXPONENTS[version.currency]
            return None if minor is None else shown(Money(minor, version.currency), exponent)

        same = ("currency", "tax_included", "shown_digits", "valid_from", "created_by")
        return cls(
            **{name: getattr(version, name) for name in (*same, "created_at")},
            version=version.number,
            per_kwh=write_price(version.per_kwh, version.currency),
            per_minute=write_price(version.per_minute, version.currency),
            per_session=write_price(version.per_session, version.currency),
            tax_percent=write_decimal(version.tax, TAX_DECIMALS),
            min_total=written(version.min_total),
            max_total=written(version.max_total),
        )


class TariffView(BaseModel):
    id: int
    name: str
    currency: str
    versions: int = Field(description="how many there are, with those that have not begun")
    created_at: datetime
    current: VersionView | None = Field(description="in force now; null: its first is yet to begin")

    @classmethod
    def of(cls, priced: Priced) -> TariffView:
        tariff = priced.tariff
        return cls(
            id=tariff.id,
            name=tariff.name,
            currency=tariff.currency,
            versions=tariff.latest,
            created_at=tariff.created_at,
            current=VersionView.of(priced.current) if priced.current else None,
        )


class QuoteRequest(Body):
    model_config = example(energy_wh=20000, duration_ms=2700000)

    energy_wh: int = Field(ge=0, le=MOST)
    duration_ms: int = Field(0, ge=0, le=MOST)
    ended: Flag = Field(True, description="false: what it costs so far, without min_total")
    version: Number | None = Field(None, description="by default the one in force")
    at: Moment | None = Field(None, description="in force then, instead of now")


class PartView(BaseModel):
    kind: PartKind
    amount_minor: int


class QuoteView(BaseModel):
    version: int
    currency: str
    total_minor: int = Field(description="in the currency's minor unit")
    total: str = Field(description="for people, with the version's shown_digits")
    tax_minor: int = Field(description="contained in the total")
    parts: list[PartView] = Field(description="they add up to the total")

    @classmethod
    def of(cls, quote: Quote) -> QuoteView:
        version, cost = quote.version, quote.cost
        return cls(
            version=version.number,
            currency=version.currency,
            total_minor=cost.total.minor,
            total=shown(cost.total, version.shown_digits),
            tax_minor=cost.tax.minor,
            parts=[PartView(kind=part.kind, amount_minor=part.minor) for part in cost.parts],
        )


class AssignmentRequest(Body):
    """Where a tariff is to hold: a site, a station, an EVSE of it, or without them everywhere."""

    model_config = example(tariff=1, station="SAM-0001")

    tariff: Number
    site: Number | None = None
    station: Annotated[str, Field(min_length=1, max_length=MAX_STATION_LENGTH)] | None = None
    evse: Number | None = Field(None, description="of the station")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.site is not None and self.station is not None:
            raise ValueError("name a site or a station, not both")
        if self.evse is not None and self.station is None:
            raise ValueError("an EVSE is named with its station")
        return self


class AssignmentView(BaseModel):
    id: int
    tariff: int
    name: str = Field(description="the tariff's")
    site: int | None
    station: str | None
    evse: int | None
    since: datetime
    until: datetime | None
    created_by: str

    @classmethod
    def of(cls, placed: Placed) -> AssignmentView:
        row = placed.row
        values = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        return cls(**values, site=row.site_id, station=placed.station)


def router(tariffs: Tariffs) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["tariffs"])
    _add_tariffs(routes, tariffs)
    _add_versions(routes, tariffs)
    _add_assignments(routes, tariffs)
    return routes


def _add_tariffs(routes: APIRouter, tariffs: Tariffs) -> None:
    def tagged_view(found: Priced, answer: Any) -> TariffView:
        view = TariffView.of(found)
        told: TariffView = answer(view, version_of(found.tariff), state_of(view))
        return told

    @routes.get("/tariffs", responses=LIST_RESPONSES)
    async def list_tariffs(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.TARIFFS))],
        currency: Annotated[str | None, Query(max_length=3)] = None,
        text: Text = None,
    ) -> Page[TariffView]:
        found = await tariffs.list_tariffs(caller, listing.part, currency=currency, text=text)
        return listing.answer(found, TariffView, TariffView.of)

    @routes.post("/tariffs", status_code=201)
    async def create_tariff(caller: Operator, request: TariffRequest) -> TariffView:
        """With its first version; it holds nowhere until it is assigned."""
        return TariffView.of(
            await tariffs.create(caller, request.name, request.currency, request.draft())
        )

    @routes.get("/tariffs/{tariff}", responses=ETAG_RESPONSES)
    async def read_tariff(caller: Viewer, tariff: TariffPath, tagged: IfNoneMatch) -> TariffView:
        return tagged_view(await tariffs.tariff(caller, tariff), tagged.answer)

    @routes.patch("/tariffs/{tariff}")
    async def rename_tariff(
        caller: Operator, tariff: TariffPath, request: TariffChange, expected: IfMatch
    ) -> TariffView:
        renamed = await tariffs.rename(caller, tariff, request.name or None, expected)
        return tagged_view(renamed, expected.answer)

    @routes.get("/stations/{station}/tariff")
    async def read_stations_tariff(
        caller: Viewer,
        station: StationPath,
        evse: Annotated[int, Query(ge=1, le=LARGEST_ID)] = 1,
    ) -> TariffView:
        """The tariff that holds there now, and its version in force."""
        return TariffView.of(await tariffs.applied(caller, station, evse))


def _add_versions(routes: APIRouter, tariffs: Tariffs) -> None:
    @routes.get("/tariffs/{tariff}/versions", responses=LIST_RESPONSES)
    async def list_versions(
        caller: Viewer,
        tariff: TariffPath,
        listing: Annotated[Listing, Depends(listing(store.VERSIONS))],
    ) -> Page[VersionView]:
        """The newest first, if not asked otherwise; none ever changes."""
        found = await tariffs.history(caller, tariff, listing.part)
        return listing.answer(found, VersionView, VersionView.of)

    @routes.post("/tariffs/{tariff}/versions", status_code=201)
    async def add_version(
        caller: Operator, tariff: TariffPath, request: VersionRequest, expected: IfMatch
    ) -> VersionView:
        """New prices, for transactions that start from `valid_from` on."""
        return VersionView.of(await tariffs.add_version(caller, tariff, request.draft(), expected))

    @routes.post("/tariffs/{tariff}/quote")
    async def quote(caller: Viewer, tariff: TariffPath, request: QuoteRequest) -> QuoteView:
        """What a transaction with that measure would cost; nothing is stored."""
        measure = Measure(
            WattHours(request.energy_wh), Milliseconds(request.duration_ms), request.ended
        )
        return QuoteView.of(
            await tariffs.quote(caller, tariff, measure, number=request.version, at=request.at)
        )


def _add_assignments(routes: APIRouter, tariffs: Tariffs) -> None:
    @routes.get("/tariff-assignments", responses=LIST_RESPONSES)
    async def list_assignments(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.ASSIGNMENTS))],
        tariff: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        site: Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="as a whole")] = None,
        station: Annotated[str | None, Query(max_length=MAX_STATION_LENGTH)] = None,
        ended: Annotated[bool, Query(description="those that hold no more")] = False,
    ) -> Page[AssignmentView]:
        found = await tariffs.list_assignments(
            caller, listing.part, tariff=tariff, site=site, station=station, ended=ended
        )
        return listing.answer(found, AssignmentView, AssignmentView.of)

    @routes.post("/tariff-assignments", status_code=201)
    async def assign(caller: Operator, request: AssignmentRequest) -> AssignmentView:
        """From now on, instead of what held at exactly that place; the narrowest place wins."""
        place = Place(request.site, request.station, request.evse)
        return AssignmentView.of(await tariffs.assign(caller, request.tariff, place))

    @routes.get("/tariff-assignments/{assignment}", responses=ETAG_RESPONSES)
    async def read_assignment(
        caller: Viewer, assignment: AssignmentPath, tagged: IfNoneMatch
    ) -> AssignmentView:
        """One that holds."""
        found = await tariffs.assignment(caller, assignment)
        return tagged.answer(AssignmentView.of(found), version_of(found.row))

    @routes.delete("/tariff-assignments/{assignment}", status_code=204)
    async def unassign(caller: Operator, assignment: AssignmentPath, expected: IfMatch) -> None:
        """From now on the next wider place's tariff holds there."""
        await tariffs.unassign(caller, assignment, expected)
