"""/api/v1/stations/{station}/variables, /charging-profiles, /charging-limits, /reservations,
/local-list: what stations have told that they hold.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from cloud.configuration import store
from cloud.configuration.service import Configuration
from cloud.configuration.store import (
    LimitHeld,
    ListStands,
    ProfileHeld,
    ReservationHeld,
    VariableHeld,
)
from cloud.kernel.etags import ETAG_RESPONSES, IfNoneMatch, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Word = Annotated[str | None, Query(max_length=100)]
EvseFilter = Annotated[int | None, Query(ge=0, le=LARGEST_ID, description="0: the station's own")]


class VariableView(BaseModel):
    """A variable of the device model; OCPP 1.6's keys belong to `ChargingStation`."""

    component: str
    component_instance: str
    evse: int | None
    connector: int | None
    variable: str
    variable_instance: str
    attribute: str
    value: str | None = Field(description="null: not told, or not for reading")
    mutability: str = Field(description="empty: not told")
    characteristics: dict[str, Any]
    at: datetime = Field(description="when the station told it last")

    @classmethod
    def of(cls, held: VariableHeld) -> VariableView:
        fields = {name: getattr(held, name) for name in cls.model_fields}
        return cls(**{**fields, "evse": held.evse or None, "connector": held.connector or None})


class ProfileView(BaseModel):
    profile: int = Field(description="its id")
    evse: int = Field(description="0: the station")
    purpose: str
    stack_level: int
    source: str = Field(description="CSO: set from here; else who set it there")
    details: dict[str, Any] = Field(description="as OCPP 2.x writes it")
    command: UUID | None
    at: datetime

    @classmethod
    def of(cls, held: ProfileHeld) -> ProfileView:
        return cls(
            profile=held.profile_id,
            evse=held.evse,
            purpose=held.purpose,
            stack_level=held.stack_level,
            source=held.source,
            details=held.profile,
            command=held.command,
            at=held.at,
        )


class LimitView(BaseModel):
    """A limit that others impose on the station."""

    evse: int
    source: str
    is_grid_critical: bool
    schedules: list[Any]
    at: datetime

    @classmethod
    def of(cls, held: LimitHeld) -> LimitView:
        return cls.model_validate(held, from_attributes=True)


class Standing(StrEnum):
    """How a reservation stands."""

    ACTIVE = "active"
    USED = "used"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REMOVED = "removed"
    NO_TRANSACTION = "no_transaction"


class ReservationView(BaseModel):
    reservation: int
    evse: int = Field(description="0: any")
    connector_type: str
    status: str
    expires_at: datetime
    command: UUID | None = Field(description="whose request names the id token")
    at: datetime

    @classmethod
    def of(cls, held: ReservationHeld) -> ReservationView:
        return cls(
            reservation=held.reservation_id,
            evse=held.evse,
            connector_type=held.connector_type,
            status=held.status,
            expires_at=held.expires_at,
            command=held.command,
            at=held.at,
        )


class LocalListView(BaseModel):
    station: str
    version: int | None = Field(description="null: not known; 0: none; below: not supported")
    command: UUID | None
    at: datetime | None

    @classmethod
    def of(cls, station: str, held: ListStands | None) -> LocalListView:
        if held is None:
            return cls(station=station, version=None, command=None, at=None)
        return cls(station=station, version=held.version, command=held.command, at=held.at)


def router(configuration: Configuration) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/stations/{station}", tags=["configuration"])

    @routes.get("/variables", responses=LIST_RESPONSES)
    async def list_variables(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.VARIABLES))],
        component: Word = None,
        evse: EvseFilter = None,
        text: Annotated[Word, Query(description="part of component or variable")] = None,
    ) -> Page[VariableView]:
        """As the station told them last; `commands/get-variables` has it tell them anew."""
        found = await configuration.variables(caller, listing.part, station, component, evse, text)
        return listing.answer(found, VariableView, VariableView.of)

    @routes.get("/charging-profiles", responses=LIST_RESPONSES)
    async def list_charging_profiles(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.PROFILES))],
        evse: EvseFilter = None,
        purpose: Word = None,
    ) -> Page[ProfileView]:
        found = await configuration.profiles(caller, listing.part, station, evse, purpose)
        return listing.answer(found, ProfileView, ProfileView.of)

    @routes.get("/charging-limits", responses=LIST_RESPONSES)
    async def list_charging_limits(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.LIMITS))],
    ) -> Page[LimitView]:
        """What others (the grid, an energy manager) impose on the station."""
        found = await configuration.limits(caller, listing.part, station)
        return listing.answer(found, LimitView, LimitView.of)

    @routes.get("/reservations", responses=LIST_RESPONSES)
    async def list_reservations(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.RESERVATIONS))],
        status: Standing | None = None,
    ) -> Page[ReservationView]:
        found = await configuration.reservations(caller, listing.part, station, status)
        return listing.answer(found, ReservationView, ReservationView.of)

    @routes.get("/local-list", responses=ETAG_RESPONSES)
    async def read_local_list(
        caller: Viewer, station: IdentityPath, tagged: IfNoneMatch
    ) -> LocalListView:
        """Which list of id tokens the station holds."""
        view = LocalListView.of(station, await configuration.local_list(caller, station))
        return tagged.answer(view, version_of(view.model_dump(mode="json")))

    return routes
