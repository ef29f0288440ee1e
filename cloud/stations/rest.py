"""/api/v1/sites, /stations, /evses, /pending, /claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from cloud.kernel.database import Cursor
from cloud.kernel.errors import Unauthorized
from cloud.kernel.etags import (
    ETAG_RESPONSES,
    Guarded,
    IfMatch,
    IfNoneMatch,
    state_of,
    version_of,
)
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.imports import Importing, ImportReport, Line, import_body
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Instant
from cloud.stations import store
from cloud.stations.registration import Standing
from cloud.stations.service import StationDetail, Stations, Waiting
from cloud.stations.store import Filters
from cloud.stations.views import (
    AvailabilityRequest,
    CertificateView,
    ClaimCodeView,
    ClaimRequest,
    ClaimView,
    CommandView,
    ConnectorView,
    FleetEvseView,
    LimitRequest,
    NewStationView,
    RenewalRequest,
    RetiredView,
    SiteChange,
    SiteRequest,
    SiteView,
    StationChange,
    StationRequest,
    StationRow,
    StationRowReport,
    StationView,
    WaitingView,
)
from protocols.agent_link import MAX_STATION_LENGTH, ConnectorStatus, SetAvailability, SetLimit
from protocols.quantities import MilliAmperes, Milliseconds

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
SitePath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
EvsePath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
SiteFilter = Annotated[int | None, Query(ge=1, le=LARGEST_ID)]
Text = Annotated[str | None, Query(max_length=100, description="part of identity or name")]
Part = Annotated[str | None, Query(max_length=100)]
StationListing = Annotated[Listing, Depends(listing(store.STATIONS))]
EvseListing = Annotated[Listing, Depends(listing(store.EVSES))]


_basic = HTTPBasic(auto_error=False, description="What a claim gave: its username and password")


async def _login(
    login: Annotated[HTTPBasicCredentials | None, Depends(_basic)],
) -> HTTPBasicCredentials:
    if login is None:
        raise Unauthorized("log in with the username and password of the claim (HTTP Basic)")
    return login


LoggedIn = Annotated[HTTPBasicCredentials, Depends(_login)]


def router(stations: Stations, clock: Callable[[], datetime]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["stations"])
    _add_sites(routes, stations)
    _add_stations(routes, stations, clock)
    _add_changes(routes, stations, clock)
    _add_evses(routes, stations, clock)
    _add_commands(routes, stations)
    _add_claims(routes, stations)
    _add_pending(routes, stations, clock)
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
    async def read_site(caller: Viewer, site: SitePath, tagged: IfNoneMatch) -> SiteView:
        found = await stations.site(caller, site)
        return tagged.answer(SiteView.of(found), version_of(found))

    @routes.patch("/sites/{site}")
    async def change_site(
        caller: Operator, site: SitePath, request: SiteChange, expected: IfMatch
    ) -> SiteView:
        changes = request.model_dump(exclude_unset=True)
        changed = await stations.change_site(caller, site, changes, expected)
        return expected.answer(SiteView.of(changed), version_of(changed))

    @routes.delete("/sites/{site}", status_code=204)
    async def delete_site(caller: Operator, site: SitePath, expected: IfMatch) -> None:
        """Refused (409) while stations belong to it."""
        await stations.delete_site(caller, site, expected)


async def _filters(
    site: SiteFilter = None,
    registration: Standing | None = None,
    online: bool | None = None,
    status: Annotated[
        ConnectorStatus | None, Query(description="of at least one EVSE, as last known")
    ] = None,
    model: Annotated[Part, Query(description="part of what a power board says it is")] = None,
    version: Annotated[Part, Query(description="part of the agent's version")] = None,
    text: Text = None,
    updated_since: Annotated[
        Instant | None, Query(description="changed, or told a new state, since then")
    ] = None,
) -> Filters:
    return Filters(
        site=site,
        registration=registration,
        online=online,
        status=status,
        model=model,
        version=version,
        text=text,
        updated_since=updated_since,
    )


def _add_stations(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    @routes.get("/stations", responses=LIST_RESPONSES)
    async def list_stations(
        caller: Viewer, listing: StationListing, filters: Annotated[Filters, Depends(_filters)]
    ) -> Page[StationView]:
        found = await stations.list_stations(caller, listing.part, filters)
        now = clock()
        return listing.answer(found, StationView, lambda one: StationView.of(one, now))

    @routes.post("/stations", status_code=201)
    async def create_station(caller: Operator, request: StationRequest) -> NewStationView:
        made = await stations.create_station(caller, request.station, request.name, request.site)
        return NewStationView.of_new(made, clock())

    @routes.post(
        "/stations/import",
        openapi_extra=import_body(StationRow, "stations"),
        responses=LIST_RESPONSES,
    )
    async def import_stations(
        caller: Operator, importing: Annotated[Importing, Depends()]
    ) -> ImportReport[StationRowReport]:
        """Create and change up to 10,000 stations; created ones come with their claim codes."""
        read = await importing.read(StationRow, "stations", lambda row: row.station)

        async def enter(cursor: Cursor, lines: Sequence[Line[StationRow]]) -> list[Any]:
            entries = [line.row.entry(line.line) for line in lines]
            told, until = await stations.enter(cursor, caller.tenant_id, entries)
            return [StationRowReport.of(verdict, until) for verdict in told]

        report = await importing.run(
            stations.database, caller.tenant_id, read, enter, StationRowReport
        )
        return importing.answer(report, StationRowReport)

    @routes.get("/stations/{station}", responses=ETAG_RESPONSES)
    async def read_station(
        caller: Viewer, station: IdentityPath, tagged: IfNoneMatch
    ) -> StationView:
        found = await stations.detail(caller, station)
        view = StationView.of(found, clock())
        return tagged.answer(view, version_of(found.station), state_of(view))


def _add_changes(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    def answered(changed: StationDetail, expected: Guarded) -> StationView:
        view = StationView.of(changed, clock())
        return expected.answer(view, version_of(changed.station), state_of(view))

    @routes.patch("/stations/{station}")
    async def change_station(
        caller: Operator, station: IdentityPath, request: StationChange, expected: IfMatch
    ) -> StationView:
        changes = request.model_dump(exclude_unset=True)
        if "site" in changes:
            changes["site_id"] = changes.pop("site")
        return answered(await stations.change_station(caller, station, changes, expected), expected)

    @routes.delete("/stations/{station}", status_code=204)
    async def delete_station(caller: Operator, station: IdentityPath, expected: IfMatch) -> None:
        """Its credentials are void at once; what it did stays in the history."""
        await stations.delete_station(caller, station, expected)

    @routes.post("/stations/{station}/claim-codes", status_code=201)
    async def new_claim_code(caller: Technician, station: IdentityPath) -> ClaimCodeView:
        made = await stations.new_claim_code(caller, station)
        return ClaimCodeView(code=made.code, expires_at=made.expires_at)


def _add_evses(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    @routes.get("/evses", responses=LIST_RESPONSES)
    async def list_evses(
        caller: Viewer,
        listing: EvseListing,
        site: SiteFilter = None,
        status: ConnectorStatus | None = None,
        gone: Annotated[
            bool, Query(description="those that their station no longer tells of")
        ] = False,
    ) -> Page[FleetEvseView]:
        """Every EVSE of the fleet with its last known state."""
        found = await stations.list_evses(caller, listing.part, site=site, status=status, gone=gone)
        now = clock()
        return listing.answer(found, FleetEvseView, lambda one: FleetEvseView.of(one, now))

    @routes.get("/stations/{station}/evses", responses=LIST_RESPONSES)
    async def list_stations_evses(
        caller: Viewer, listing: EvseListing, station: IdentityPath
    ) -> Page[FleetEvseView]:
        """The station's EVSEs, also those that are gone."""
        found = await stations.list_evses(caller, listing.part, identity=station)
        now = clock()
        return listing.answer(found, FleetEvseView, lambda one: FleetEvseView.of(one, now))

    @routes.get("/stations/{station}/evses/{evse}", responses=ETAG_RESPONSES)
    async def read_evse(
        caller: Viewer, station: IdentityPath, evse: EvsePath, tagged: IfNoneMatch
    ) -> FleetEvseView:
        found = await stations.evse_detail(caller, station, evse)
        view = FleetEvseView.of(found, clock())
        return tagged.answer(view, version_of(found.evse), state_of(view))

    @routes.get("/stations/{station}/evses/{evse}/connectors", responses=LIST_RESPONSES)
    async def list_connectors(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.CONNECTORS))],
        station: IdentityPath,
        evse: EvsePath,
    ) -> Page[ConnectorView]:
        found = await stations.list_connectors(caller, listing.part, station, evse)
        return listing.answer(found, ConnectorView, lambda one: ConnectorView.of(one, station))


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


def _add_claims(routes: APIRouter, stations: Stations) -> None:
    responses: dict[int | str, dict[str, Any]] = {202: {"model": WaitingView}}

    @routes.post("/claims", responses=responses)
    async def claim(
        http: Request, response: Response, request: ClaimRequest
    ) -> ClaimView | WaitingView:
        outcome = await stations.claim(_asker(http), request.station, request.code, request.csr)
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
            certificate=outcome.certificate,
        )

    @routes.post("/claims/certificate")
    async def renew(http: Request, request: RenewalRequest, login: LoggedIn) -> CertificateView:
        """A claimed station's next client certificate, before the last one ends."""
        stations.slow_down(_asker(http))
        signed = await stations.renew(login.username, login.password, request.csr)
        return CertificateView(certificate=signed)

    @routes.post("/claims/retirement")
    async def retire(http: Request, login: LoggedIn) -> RetiredView:
        """A claimed station leaves the fleet: its credentials are void, its history stays."""
        stations.slow_down(_asker(http))
        return RetiredView(station=await stations.retire(login.username, login.password))


def _asker(http: Request) -> str:
    return http.client.host if http.client else "?"


def _add_pending(routes: APIRouter, stations: Stations, clock: Callable[[], datetime]) -> None:
    @routes.get("/pending", responses=LIST_RESPONSES)
    async def list_pending(caller: Technician, listing: StationListing) -> Page[StationView]:
        filters = Filters(registration=Standing.PENDING)
        found = await stations.list_stations(caller, listing.part, filters)
        now = clock()
        return listing.answer(found, StationView, lambda one: StationView.of(one, now))

    @routes.post("/pending/{station}/approval")
    async def approve(caller: Operator, station: IdentityPath) -> StationView:
        return StationView.of(await stations.approve(caller, station), clock())

    @routes.delete("/pending/{station}", status_code=204)
    async def reject(caller: Operator, station: IdentityPath) -> None:
        await stations.reject(caller, station)
