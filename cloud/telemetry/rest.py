"""/api/v1/stations/{station}/telemetry and /api/v1/telemetry/energy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, TypeVar, cast
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import CSV, LIST_RESPONSES, Format, to_csv, wanted
from cloud.kernel.paging import decode_cursor, encode_cursor
from cloud.kernel.rest import LARGEST_ID, Instant
from cloud.telemetry.api import UnknownTimeZone
from cloud.telemetry.energy import Energy
from cloud.telemetry.power import with_power
from cloud.telemetry.service import Span, Telemetry
from cloud.telemetry.store import Bucket, Charged, Gap
from cloud.telemetry.tiers.plan import EPOCH, MINUTE, Piece, floor
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Identity = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EVERY = re.compile(r"^([1-9][0-9]{0,4})([smhd])$")
_LONG = re.compile(r"^([1-9][0-9]{0,4})([mhd])$")
_Int = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_ID)]
_YEARS = range(1990, 2200)


def _calendar(at: datetime) -> datetime:
    """Years that neither PostgreSQL nor a bucket's arithmetic would overflow with."""
    if at.year not in _YEARS:
        raise ValueError(f"the year must be between {_YEARS.start} and {_YEARS.stop - 1}")
    return at


Time = Annotated[Instant, AfterValidator(_calendar)]


FormatWanted = Annotated[Format | None, Query(alias="format", description="instead of `Accept`")]


class BucketView(BaseModel):
    evse: int = Field(description="0: the site's meter")
    at: datetime = Field(description="the bucket's start")
    samples: int
    energy_wh: int | None = Field(description="lifetime register, last in the bucket")
    power_w: int | None = Field(
        description="mean; where none was told, what the register makes of it since the one before"
    )
    power_max_w: int | None
    current_l1_ma: int | None
    current_l2_ma: int | None
    current_l3_ma: int | None
    voltage_l1_mv: int | None
    voltage_l2_mv: int | None
    voltage_l3_mv: int | None
    offered_ma: int | None = Field(description="last in the bucket")

    @classmethod
    def of(cls, bucket: Bucket) -> BucketView:
        return cls.model_validate(bucket, from_attributes=True)


class GapView(BaseModel):
    """Samples that the agent had to thin or drop while it was away."""

    evse: int
    first_at: datetime
    last_at: datetime
    samples: int
    cause: str

    @classmethod
    def of(cls, gap: Gap) -> GapView:
        return cls.model_validate(gap, from_attributes=True)


class CoarseView(BaseModel):
    """A stretch of the answer of which only minutes or hours are left."""

    from_: datetime = Field(serialization_alias="from")
    to: datetime
    every_s: int

    @classmethod
    def of(cls, piece: Piece) -> CoarseView:
        step = piece.tier.step // timedelta(seconds=1)
        return cls(from_=piece.start, to=piece.end, every_s=step)


class TelemetryView(BaseModel):
    items: list[BucketView]
    next: str | None
    gaps: list[GapView]
    coarse: list[CoarseView] = Field(
        description="where no finer values are kept than these; a bucket holds what began in it"
    )


class Group(StrEnum):
    STATION = "station"
    SITE = "site"


class EnergyView(BaseModel):
    """What was charged in one stretch of time."""

    at: datetime = Field(description="the bucket's start")
    to: datetime
    energy_wh: int
    stations: int = Field(description="how many stations told their meters in it")
    station: str | None = Field(description="with group=station")
    site: int | None = Field(description="with group=site; null: stations without a site")

    @classmethod
    def of(cls, one: Charged, bounds: Sequence[datetime], group: Group | None) -> EnergyView:
        return cls(
            at=bounds[one.n - 1],
            to=bounds[one.n],
            energy_wh=one.energy_wh,
            stations=one.stations,
            station=one.station if group is Group.STATION else None,
            site=(one.key or None) if group is Group.SITE else None,
        )


class FleetView(BaseModel):
    items: list[EnergyView]
    next: str | None
    counted_until: datetime | None = Field(
        description="what was measured later is not in it yet; null: nothing is counted yet"
    )
    late_hours: int = Field(description="hours of stations whose late samples are not in it yet")
    coarse: list[CoarseView]


View = TypeVar("View", TelemetryView, FleetView)


def router(telemetry: Telemetry, clock: Callable[[], datetime]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["telemetry"])

    @routes.get("/stations/{station}/telemetry", responses=LIST_RESPONSES)
    async def read_telemetry(
        caller: Viewer,
        request: Request,
        response: Response,
        station: Identity,
        start: Annotated[Time | None, Query(alias="from", description="24 h before to")] = None,
        end: Annotated[Time | None, Query(alias="to", description="now")] = None,
        evse: Annotated[int | None, Query(ge=0, le=32767)] = None,
        every: Annotated[str, Query(pattern=_EVERY.pattern, description="e.g. 60s, 15m")] = "60s",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1440,
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
        form: FormatWanted = None,
    ) -> TelemetryView:
        """Energy, power, currents and voltages in equal buckets; empty ones are left out.

        As CSV the buckets alone, and the next page in the header Link.
        """
        until = end or clock().astimezone(UTC) + timedelta(seconds=1)
        span = Span(start or until - timedelta(days=1), until, _step(every), evse)
        after = decode_cursor(cursor, tuple[int, datetime]) if cursor else None
        found = await telemetry.read(caller, station, span, after, limit + 1)
        shown = found.buckets[:limit]
        more = len(found.buckets) > limit
        view = TelemetryView(
            items=[BucketView.of(bucket) for bucket in with_power(shown)],
            next=encode_cursor((shown[-1].evse, shown[-1].at)) if more else None,
            gaps=[GapView.of(gap) for gap in found.gaps],
            coarse=[CoarseView.of(piece) for piece in found.coarse],
        )
        return _sent(request, response, form, view)

    @routes.get("/telemetry/energy", responses=LIST_RESPONSES)
    async def read_energy(
        caller: Viewer,
        request: Request,
        response: Response,
        start: Annotated[Time | None, Query(alias="from", description="7 d before to")] = None,
        end: Annotated[Time | None, Query(alias="to", description="now")] = None,
        every: Annotated[
            str, Query(pattern=_LONG.pattern, description="e.g. 15m, 1h, 1d: days of time_zone")
        ] = "1d",
        time_zone: Annotated[str, Query(max_length=60, description="IANA name")] = "UTC",
        site: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        group: Annotated[Group | None, Query(description="else all together")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
        form: FormatWanted = None,
    ) -> FleetView:
        """Energy that all stations have charged, per bucket; empty ones are left out.

        `from` and `to` are taken to the minute. It comes from the EVSEs' meters; a site's own
        meter (EVSE 0) is not added to them. As CSV the buckets alone.
        """
        until = floor((end or clock()).astimezone(UTC), MINUTE)
        since = floor(start.astimezone(UTC), MINUTE) if start else until - timedelta(days=7)
        asked = Energy(since, until, _step(every), _zone(time_zone), site, group)
        after = decode_cursor(cursor, tuple[_Int, _Int]) if cursor else (0, 0)
        found = await telemetry.energy(caller, asked, after, limit + 1)
        shown, more = found.charged[:limit], len(found.charged) > limit
        view = FleetView(
            items=[EnergyView.of(one, found.bounds, group) for one in shown],
            next=encode_cursor((shown[-1].n, shown[-1].key)) if more else None,
            counted_until=found.counted_until if found.counted_until > EPOCH else None,
            late_hours=found.late_hours,
            coarse=[CoarseView.of(piece) for piece in found.coarse],
        )
        return _sent(request, response, form, view)

    return routes


def _sent(request: Request, response: Response, form: Format | None, view: View) -> View:
    """The answer as it was asked for; `next` also as a Link."""
    headers = {}
    if view.next is not None:
        url = request.url.include_query_params(cursor=view.next)
        headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    if wanted(request, form) is Format.CSV:
        kind: type[BaseModel] = BucketView if isinstance(view, TelemetryView) else EnergyView
        sent = Response(to_csv(kind, view.items), media_type=CSV, headers=headers)
        return cast("View", sent)  # FastAPI sends a Response as it is
    response.headers.update(headers)
    return view


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UnknownTimeZone(
            f"there is no time zone {name!r}; give an IANA name such as Asia/Tashkent",
            time_zone=name,
        ) from None


def _step(every: str) -> timedelta:
    match = _EVERY.match(every)
    assert match is not None, "the route's pattern lets nothing else through"
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
