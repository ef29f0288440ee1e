"""/api/v1/stations/{station}/settings and /api/v1/settings: what agents shall run on, and do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field, model_validator

from cloud.configuration import settings_store as store
from cloud.configuration.settings import Settings, Shown, etag_of
from cloud.kernel.etags import ETAG_RESPONSES, IfMatch, IfNoneMatch, state_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, example
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Identity = Annotated[str, Field(min_length=1, max_length=MAX_STATION_LENGTH)]
MOST_STATIONS = 1000
APPLIED = "applied"


class DesiredView(BaseModel):
    version: int
    document: dict[str, Any]
    set_by: str
    set_at: datetime


class ReportedView(BaseModel):
    version: int = Field(description="of the settings in force there; 0: its file alone")
    told: int = Field(description="the version it was told last")
    state: str = Field(description="of that: pending, trial, applied, refused, rolled_back")
    reason: str
    since: datetime


class SettingsView(BaseModel):
    station: str
    desired: DesiredView | None = Field(description="null: nothing is set from here")
    reported: ReportedView | None = Field(description="null: its agent has not told yet")
    in_sync: bool = Field(description="it runs on what is desired")

    @classmethod
    def of(cls, shown: Shown) -> SettingsView:
        held = shown.compared
        desired = reported = None
        if held is not None and held.version is not None:
            desired = DesiredView.model_validate(held, from_attributes=True)
        if held is not None and held.told is not None:
            fields = {name: getattr(held, name) for name in ("told", "state", "reason", "since")}
            reported = ReportedView(version=held.running or 0, **fields)
        runs = None if reported is None else (reported.version, reported.state)
        wanted = desired is None or runs == (desired.version, APPLIED)
        return cls(station=shown.station, desired=desired, reported=reported, in_sync=wanted)


class SettingsRequest(Body):
    model_config = example(document={"times": {"event_s": 60}, "site": {"limit_ma": 25_000}})

    document: dict[str, Any] = Field(description="see docs/configuration.md; {}: the file alone")


class SettingsForMany(SettingsRequest):
    model_config = example(document={"uplink": {"telemetry_every_s": 30}}, site=1)

    stations: list[Identity] = Field([], max_length=MOST_STATIONS)
    site: int | None = Field(None, ge=1, le=LARGEST_ID)

    @model_validator(mode="after")
    def _somebody(self) -> SettingsForMany:
        if not self.stations and self.site is None:
            raise ValueError("name stations, or a site")
        return self


class SettingsOfMany(BaseModel):
    items: list[SettingsView]


def router(settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["configuration"])

    @routes.get("/stations/{station}/settings", responses=ETAG_RESPONSES)
    async def read_settings(
        caller: Viewer, station: IdentityPath, tagged: IfNoneMatch
    ) -> SettingsView:
        """What the station's agent shall run on, and what it says that it does."""
        shown = await settings.read(caller, station)
        view = SettingsView.of(shown)
        return tagged.answer(view, etag_of(shown.compared), state_of(view))

    @routes.put("/stations/{station}/settings")
    async def put_settings(
        caller: Operator, station: IdentityPath, request: SettingsRequest, expected: IfMatch
    ) -> SettingsView:
        """Replace the settings from afar; the agent tries them and puts them back if need be."""
        shown = await settings.put(caller, station, request.document, expected)
        return expected.answer(SettingsView.of(shown), etag_of(shown.compared))

    @routes.get("/settings", responses=LIST_RESPONSES)
    async def list_settings(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.COMPARED))],
        in_sync: Annotated[bool | None, Query(description="it runs on what is desired")] = None,
        site: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    ) -> Page[SettingsView]:
        """Every station that settings were set for, or that told of them."""
        found = await settings.list_all(caller, listing.part, site, in_sync=in_sync)
        return listing.answer(found, SettingsView, SettingsView.of)

    @routes.put("/settings")
    async def put_settings_of_many(caller: Operator, request: SettingsForMany) -> SettingsOfMany:
        """The same document for several stations or a whole site: all of them, or none."""
        done = await settings.put_many(caller, request.document, request.stations, request.site)
        return SettingsOfMany(items=[SettingsView.of(one) for one in done])

    return routes
