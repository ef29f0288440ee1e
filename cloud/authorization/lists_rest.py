"""Local lists of stations that speak OCPP: what they are to keep, and how each of them stands."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field, model_validator

from cloud.authorization import list_store
from cloud.authorization.keeping import Status
from cloud.authorization.list_store import Policy
from cloud.authorization.station_lists import Stand, StationLists
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, example
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
SitePath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
StationPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
GroupName = Annotated[str, Field(min_length=1, max_length=100)]


class Keep(StrEnum):
    """Which id tokens a station keeps for when it is offline."""

    ALL = "all"
    GROUPS = "groups"
    NONE = "none"


class PolicyRequest(Body):
    model_config = example(keep="groups", groups=["fleet"])

    keep: Keep
    groups: list[GroupName] = Field([], max_length=100, description="names; with `groups` only")

    @model_validator(mode="after")
    def _groups_when_groups(self) -> PolicyRequest:
        if bool(self.groups) != (self.keep is Keep.GROUPS):
            raise ValueError("name groups with `groups`, and only then")
        return self


class PolicyView(BaseModel):
    keep: Keep | None = Field(description="null: nothing is said here; what is above holds")
    groups: list[str]
    updated_at: datetime | None

    @classmethod
    def of(cls, policy: Policy | None, names: dict[int, str]) -> PolicyView:
        if policy is None:
            return cls(keep=None, groups=[], updated_at=None)
        groups = sorted(names[one] for one in policy.groups if one in names)
        return cls(keep=Keep(policy.keep), groups=groups, updated_at=policy.updated_at)


class StandView(BaseModel):
    station: str
    policy: PolicyView
    from_: Literal["station", "site", "tenant"] | None = Field(
        alias="from", description="whose policy that is"
    )
    status: Status
    in_sync: bool
    reason: str = Field(description="what it refused, and how; empty: nothing")
    version: int | None = Field(description="that the station told or accepted; null: not known")
    sent_version: int | None = Field(description="of the last list that it accepted from us")
    behind: int | None = Field(
        description="entries that it still has to be sent, counted to 1000; null: not known"
    )
    checked_at: datetime | None = Field(description="when its version was last learned")
    since: datetime | None = Field(description="it has this status")
    next_try_at: datetime | None

    @classmethod
    def of(cls, stand: Stand) -> StandView:
        kept = stand.kept
        return cls.model_validate(
            {
                "station": stand.station,
                "policy": PolicyView.of(stand.policy, stand.groups),
                "from": stand.scope,
                "status": stand.status,
                "in_sync": stand.status is Status.IN_SYNC,
                "reason": kept.reason if kept else "",
                "version": kept.held if kept else None,
                "sent_version": kept.number if kept and kept.number > 0 else None,
                "behind": stand.behind,
                "checked_at": kept.checked_at if kept else None,
                "since": kept.since if kept else None,
                "next_try_at": kept.not_before if kept else None,
            }
        )


def router(lists: StationLists) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["local lists"])
    _add_tenants(routes, lists)
    _add_sites(routes, lists)
    _add_stations(routes, lists)
    return routes


async def _view(lists: StationLists, caller: Caller, policy: Policy | None) -> PolicyView:
    names = await lists.names(caller, policy.groups) if policy and policy.groups else {}
    return PolicyView.of(policy, names)


def _add_tenants(routes: APIRouter, lists: StationLists) -> None:
    @routes.get("/local-list-policy")
    async def read_policy(caller: Viewer) -> PolicyView:
        """What every OCPP station keeps for which neither it nor its site says otherwise."""
        return await _view(lists, caller, await lists.policy(caller, None, None))

    @routes.put("/local-list-policy")
    async def set_policy(caller: Operator, request: PolicyRequest) -> PolicyView:
        made = await lists.set_policy(caller, None, None, request.keep, request.groups)
        return await _view(lists, caller, made)

    @routes.delete("/local-list-policy", status_code=204)
    async def drop_policy(caller: Operator) -> None:
        await lists.drop_policy(caller, None, None)

    @routes.get("/local-lists", responses=LIST_RESPONSES)
    async def list_stands(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(list_store.KEPT))],
        status: Annotated[Status | None, Query(description="as it was planned last")] = None,
    ) -> Page[StandView]:
        """How every OCPP station's list stands that keeps one, or has kept one."""
        found = await lists.stands(caller, listing.part, status)
        return listing.answer(found, StandView, StandView.of)


def _add_sites(routes: APIRouter, lists: StationLists) -> None:
    @routes.get("/sites/{site}/local-list-policy")
    async def read_site_policy(caller: Viewer, site: SitePath) -> PolicyView:
        return await _view(lists, caller, await lists.policy(caller, site, None))

    @routes.put("/sites/{site}/local-list-policy")
    async def set_site_policy(
        caller: Operator, site: SitePath, request: PolicyRequest
    ) -> PolicyView:
        made = await lists.set_policy(caller, site, None, request.keep, request.groups)
        return await _view(lists, caller, made)

    @routes.delete("/sites/{site}/local-list-policy", status_code=204)
    async def drop_site_policy(caller: Operator, site: SitePath) -> None:
        await lists.drop_policy(caller, site, None)


def _add_stations(routes: APIRouter, lists: StationLists) -> None:
    @routes.get("/stations/{station}/local-list-policy")
    async def read_station_policy(caller: Viewer, station: StationPath) -> PolicyView:
        return await _view(lists, caller, await lists.policy(caller, None, station))

    @routes.put("/stations/{station}/local-list-policy")
    async def set_station_policy(
        caller: Operator, station: StationPath, request: PolicyRequest
    ) -> PolicyView:
        made = await lists.set_policy(caller, None, station, request.keep, request.groups)
        return await _view(lists, caller, made)

    @routes.delete("/stations/{station}/local-list-policy", status_code=204)
    async def drop_station_policy(caller: Operator, station: StationPath) -> None:
        await lists.drop_policy(caller, None, station)

    @routes.get("/stations/{station}/local-list/sync")
    async def read_sync(caller: Viewer, station: StationPath) -> StandView:
        """Whether the station holds what its policy says, since when, or why not."""
        return StandView.of(await lists.stand(caller, station))

    @routes.post("/stations/{station}/local-list/sync", status_code=202)
    async def sync(caller: Operator, station: StationPath) -> StandView:
        """Compare and send anew now, whatever the station has refused before."""
        await lists.sync(caller, station)
        return StandView.of(await lists.stand(caller, station))
