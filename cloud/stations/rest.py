"""/api/v1/sites, /stations, /pending, /claims."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import available_timezones

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field, field_validator

from cloud.kernel.etags import ETAG_RESPONSES, Guarded, Tagged, version_of
from cloud.kernel.http import Caller, Page, Paging, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.rest import LARGEST_ID, Body
from cloud.stations import store
from cloud.stations.liveness import freshness
from cloud.stations.registration import Standing
from cloud.stations.service import NewStation, StationDetail, Stations, Waiting
from cloud.stations.store import Evse, EvseState, Site
from protocols.agent_link import MAX_STATION_LENGTH, LinkError, SetAvailability, SetLimit, escape
from protocols.quantities import MilliAmperes, Milliseconds

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Identity = Annotated[
    str, Field(min_length=1, max_length=MAX_STATION_LENGTH, description="its wire identity")
]
SitePath = Annotated[int, Path(le=LARGEST_ID)]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Text = Annotated[str | None, Query(max_length=100, description="part of identity or name")]
_MOST_MA = 1_000_000
_LONGEST_S = 7 * 24 * 3600
_EVSES = 1000


def _known_zone(name: str) -> str:
    if name not in _zones():
        raise ValueError("no time zone of the IANA list, such as Asia/Tashkent")
    return name


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


Zone = Annotated[str, Field(max_length=60, description="IANA name"), AfterValidator(_known_zone)]


class SiteRequest(Body):
    name: Name
    address: str = Field("", max_length=300)
    latitude: float | None = Field(None, ge=-90, le=90)
    longitude: float | None = Field(None, ge=-180, le=180)
    time_zone: Zone = "UTC"


class SiteChange(Body):
    """Fields that are left out stay as they are."""

    name: Name = ""
    address: str = Field("", max_length=300)
    latitude: float | None = Field(None, ge=-90, le=90)
    longitude: float | None = Field(None, ge=-180, le=180)
    time_zone: Zone = "UTC"


class SiteView(BaseModel):
    id: int
    name: str
    address: str
    latitude: float | None
    longitude: float | None
    time_zone: str
    created_at: datetime

    @classmethod
    def of(cls, site: Site) -> SiteView:
        return cls.model_validate(site, from_attributes=True)


class StationRequest(Body):
    station: Identity
    name: str = Field("", max_length=100)
    site: int | None = Field(None, ge=1, le=LARGEST_ID)

    @field_validator("station")
    @classmethod
    def _writable(cls, value: str) -> str:
        return _on_the_wire(value)


class StationChange(Body):
    name: str | None = Field(None, max_length=100)
    site: int | None = Field(None, ge=1, le=LARGEST_ID)


class EvseValue(BaseModel):
    status: str
    charging_state: str
    transaction: UUID | None
    offered_ma: int | None
    limited_by: str
    error: str


class EvseStateView(BaseModel):
    """Last known, with its age: shown as now only when it is not stale."""

    value: EvseValue
    at: datetime
    age_s: int
    source: str = Field(description="board: measured; agent: the agent's word")
    stale: bool


class EvseView(BaseModel):
    evse: int
    phases: int | None
    max_ma: int | None
    energy_step_wh: int | None
    billing_grade: bool | None
    connectors: list[int]
    state: EvseStateView | None


class AgentView(BaseModel):
    version: str
    boards: dict[str, str]
    local_list_version: int
    pending_billing: int
    pending_telemetry: int
    journal_bytes: int
    at: datetime
    age_s: int


class StationView(BaseModel):
    station: str
    name: str
    site: int | None
    registration: Standing
    created_at: datetime
    registered_at: datetime | None
    online: bool
    last_seen: datetime | None
    evses: list[EvseView]
    agent: AgentView | None

    @classmethod
    def of(cls, detail: StationDetail, now: datetime) -> StationView:
        station = detail.station
        described = {evse.evse: evse for evse in detail.evses}
        numbers = sorted(described.keys() | detail.states.keys())
        return cls(
            station=station.identity,
            name=station.name,
            site=station.site_id,
            registration=Standing(station.registration),
            created_at=station.created_at,
            registered_at=station.registered_at,
            online=detail.presence.online if detail.presence else False,
            last_seen=detail.presence.last_seen if detail.presence else None,
            evses=[_evse(n, described.get(n), detail.states.get(n), detail, now) for n in numbers],
            agent=_agent(detail, now),
        )


def _evse(
    number: int,
    evse: Evse | None,
    state: EvseState | None,
    detail: StationDetail,
    now: datetime,
) -> EvseView:
    return EvseView(
        evse=number,
        phases=evse.phases if evse else None,
        max_ma=evse.max_ma if evse else None,
        energy_step_wh=evse.energy_step_wh if evse else None,
        billing_grade=evse.billing_grade if evse else None,
        connectors=evse.connectors if evse else [],
        state=_evse_state(state, detail, now) if state else None,
    )


def _evse_state(state: EvseState, detail: StationDetail, now: datetime) -> EvseStateView:
    fresh = freshness(state.at, state.measured_at, detail.presence, now)
    value = EvseValue.model_validate(state, from_attributes=True)
    return EvseStateView(
        value=value, at=fresh.at, age_s=fresh.age_s, source=fresh.source, stale=fresh.stale
    )


def _agent(detail: StationDetail, now: datetime) -> AgentView | None:
    agent = detail.agent
    if agent is None:
        return None
    return AgentView(
        version=agent.agent_version,
        boards=agent.boards,
        local_list_version=agent.local_list_version,
        pending_billing=agent.pending_billing,
        pending_telemetry=agent.pending_telemetry,
        journal_bytes=agent.journal_bytes,
        at=agent.at,
        age_s=max(0, int((now - agent.at).total_seconds())),
    )


class ClaimCodeView(BaseModel):
    code: str = Field(description="for `karvon agent claim`, good once, shown only now")
    expires_at: datetime


class NewStationView(StationView):
    claim: ClaimCodeView

    @classmethod
    def of_new(cls, made: NewStation, now: datetime) -> NewStationView:
        view = StationView.of(made.detail, now)
        claim = ClaimCodeView(code=made.code, expires_at=made.expires_at)
        return cls(**view.model_dump(), claim=claim)


class ClaimRequest(Body):
    station: Identity
    code: str | None = Field(None, max_length=100)

    @field_validator("station")
    @classmethod
    def _writable(cls, value: str) -> str:
        return _on_the_wire(value)


class ClaimView(BaseModel):
    station: str
    mqtt_url: str
    username: str
    password: str = Field(description="shown only now")
    ca_pem: str


class WaitingView(BaseModel):
    station: str
    status: str = "pending"
    code: str | None = Field(description="claim again with it once approved; shown only once")
    detail: str


class LimitRequest(Body):
    evse: int = Field(ge=0, le=_EVSES, description="0: the whole site's share")
    limit_ma: int | None = Field(ge=0, le=_MOST_MA, description="null lifts the limit")
    valid_s: int = Field(900, ge=1, le=_LONGEST_S)


class AvailabilityRequest(Body):
    evse: int = Field(0, ge=0, le=_EVSES, description="0: all")
    operative: bool


class CommandView(BaseModel):
    command: UUID
    status_url: str

    @classmethod
    def of(cls, command: UUID) -> CommandView:
        return cls(command=command, status_url=f"/api/v1/commands/{command}")


def _on_the_wire(identity: str) -> str:
    try:
        escape(identity)
    except LinkError as error:
        raise ValueError(str(error)) from None
    if not identity.isprintable() or "/" in identity:
        raise ValueError("a station identity holds printable characters and no slash")
    return identity


def router(stations: Stations, clock: Callable[[], datetime]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["stations"])
    _add_sites(routes, stations)
    _add_stations(routes, stations, clock)
    _add_commands(routes, stations)
    _add_joining(routes, stations, clock)
    return routes


def _add_sites(routes: APIRouter, stations: Stations) -> None:
    @routes.get("/sites", responses=LIST_RESPONSES)
    async def list_sites(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.SITES))],
        text: Text = None,
    ) -> Page[SiteView]:
        found = await stations.list_sites(caller, listing.part, text)
        return listing.answer(found, SiteView, SiteView.of)

    @routes.post("/sites", status_code=201)
    async def create_site(caller: Operator, request: SiteRequest) -> SiteView:
        return SiteView.of(await stations.create_site(caller, request.model_dump()))

    @routes.get("/sites/{site}", responses=ETAG_RESPONSES)
    async def read_site(
        caller: Viewer, site: SitePath, tagged: Annotated[Tagged, Depends()]
    ) -> SiteView:
        found = await stations.site(caller, site)
        return tagged.answer(SiteView.of(found), version_of(found))

    @routes.patch("/sites/{site}")
    async def change_site(
        caller: Operator,
        site: SitePath,
        request: SiteChange,
        expected: Annotated[Guarded, Depends()],
    ) -> SiteView:
        changes = request.model_dump(exclude_unset=True)
        changed = await stations.change_site(caller, site, changes, expected)
        return expected.answer(SiteView.of(changed), version_of(changed))

    @routes.delete("/sites/{site}", status_code=204)
    async def delete_site(
        caller: Operator, site: SitePath, expected: Annotated[Guarded, Depends()]
    ) -> None:
        await stations.delete_site(caller, site, expected)


def _add_stations(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    @routes.get("/stations")
    async def list_stations(
        caller: Viewer,
        paging: Annotated[Paging, Depends()],
        site: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        registration: Standing | None = None,
        text: Text = None,
    ) -> Page[StationView]:
        found = await stations.list_stations(
            caller,
            paging.after_str() or "",
            paging.limit + 1,
            site_id=site,
            standing=registration,
            text=text,
        )
        now = clock()
        return paging.page(
            found, lambda one: StationView.of(one, now), lambda one: (one.station.identity,)
        )

    @routes.post("/stations", status_code=201)
    async def create_station(caller: Operator, request: StationRequest) -> NewStationView:
        made = await stations.create_station(caller, request.station, request.name, request.site)
        return NewStationView.of_new(made, clock())

    @routes.get("/stations/{station}")
    async def read_station(caller: Viewer, station: IdentityPath) -> StationView:
        return StationView.of(await stations.detail(caller, station), clock())

    @routes.patch("/stations/{station}")
    async def change_station(
        caller: Operator, station: IdentityPath, request: StationChange
    ) -> StationView:
        changed = await stations.change_station(
            caller, station, name=request.name, site_id=request.site
        )
        return StationView.of(changed, clock())

    @routes.post("/stations/{station}/claim-codes", status_code=201)
    async def new_claim_code(caller: Technician, station: IdentityPath) -> ClaimCodeView:
        made = await stations.new_claim_code(caller, station)
        return ClaimCodeView(code=made.code, expires_at=made.expires_at)


def _add_commands(routes: APIRouter, stations: Stations) -> None:
    @routes.post("/stations/{station}/commands/set-limit", status_code=202)
    async def set_limit(
        caller: Technician, station: IdentityPath, request: LimitRequest
    ) -> CommandView:
        limit = None if request.limit_ma is None else MilliAmperes(request.limit_ma)
        valid = Milliseconds(request.valid_s * 1000)
        action = SetLimit(request.evse, limit, valid)
        return CommandView.of(await stations.command(caller, station, request.evse, action))

    @routes.post("/stations/{station}/commands/set-availability", status_code=202)
    async def set_availability(
        caller: Technician, station: IdentityPath, request: AvailabilityRequest
    ) -> CommandView:
        action = SetAvailability(request.evse, request.operative)
        return CommandView.of(await stations.command(caller, station, request.evse, action))


def _add_joining(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    responses: dict[int | str, dict[str, Any]] = {202: {"model": WaitingView}}

    @routes.post("/claims", responses=responses)
    async def claim(http: Request, response: Response, request: ClaimRequest) -> Any:
        asker = http.client.host if http.client else "?"
        outcome = await stations.claim(asker, request.station, request.code)
        if isinstance(outcome, Waiting):
            response.status_code = 202
            return WaitingView(
                station=outcome.identity,
                code=outcome.code,
                detail="waits for an operator's approval; then claim again with the code",
            )
        return ClaimView(
            station=outcome.identity,
            mqtt_url=outcome.endpoint.mqtt_url,
            username=outcome.credential.username,
            password=outcome.credential.password,
            ca_pem=outcome.endpoint.ca_pem,
        )

    @routes.get("/pending")
    async def list_pending(
        caller: Technician, paging: Annotated[Paging, Depends()]
    ) -> Page[StationView]:
        found = await stations.list_stations(
            caller, paging.after_str() or "", paging.limit + 1, standing=Standing.PENDING
        )
        now = clock()
        return paging.page(
            found, lambda one: StationView.of(one, now), lambda one: (one.station.identity,)
        )

    @routes.post("/pending/{station}/approval")
    async def approve(caller: Operator, station: IdentityPath) -> StationView:
        return StationView.of(await stations.approve(caller, station), clock())

    @routes.delete("/pending/{station}", status_code=204)
    async def reject(caller: Operator, station: IdentityPath) -> None:
        await stations.reject(caller, station)
