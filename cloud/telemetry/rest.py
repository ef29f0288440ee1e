"""/api/v1/stations/{station}/telemetry."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

from cloud.kernel.http import Caller, Role, decode_cursor, encode_cursor, require
from cloud.telemetry.service import Span, Telemetry
from cloud.telemetry.store import Bucket, Gap
from cloud.telemetry.tiers.plan import Piece
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Identity = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EVERY = re.compile(r"^([1-9][0-9]{0,4})([smhd])$")
_YEARS = range(1990, 2200)


def _calendar(at: datetime) -> datetime:
    """Years that neither PostgreSQL nor a bucket's arithmetic would overflow with."""
    if at.year not in _YEARS:
        raise ValueError(f"the year must be between {_YEARS.start} and {_YEARS.stop - 1}")
    return at


Time = Annotated[AwareDatetime, AfterValidator(_calendar)]


class BucketView(BaseModel):
    evse: int = Field(description="0: the site's meter")
    at: datetime = Field(description="the bucket's start")
    samples: int
    energy_wh: int | None = Field(description="lifetime register, last in the bucket")
    power_w: int | None = Field(description="mean")
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


def router(telemetry: Telemetry, clock: Callable[[], datetime]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["telemetry"])

    @routes.get("/stations/{station}/telemetry")
    async def read_telemetry(
        caller: Viewer,
        station: Identity,
        start: Annotated[Time | None, Query(alias="from", description="24 h before to")] = None,
        end: Annotated[Time | None, Query(alias="to", description="now")] = None,
        evse: Annotated[int | None, Query(ge=0, le=32767)] = None,
        every: Annotated[str, Query(pattern=_EVERY.pattern, description="e.g. 60s, 15m")] = "60s",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1440,
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> TelemetryView:
        """Energy, power, currents and voltages in equal buckets; empty ones are left out."""
        until = end or clock().astimezone(UTC) + timedelta(seconds=1)
        span = Span(start or until - timedelta(days=1), until, _step(every), evse)
        after = decode_cursor(cursor, tuple[int, datetime]) if cursor else None
        found = await telemetry.read(caller, station, span, after, limit + 1)
        shown = found.buckets[:limit]
        more = len(found.buckets) > limit
        return TelemetryView(
            items=[BucketView.of(bucket) for bucket in shown],
            next=encode_cursor((shown[-1].evse, shown[-1].at)) if more else None,
            gaps=[GapView.of(gap) for gap in found.gaps],
            coarse=[CoarseView.of(piece) for piece in found.coarse],
        )

    return routes


def _step(every: str) -> timedelta:
    match = _EVERY.match(every)
    assert match is not None, "the route's pattern lets nothing else through"
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
