"""/api/v1/commands and the commands of one station."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from cloud.communication import store
from cloud.communication.commands import Commands, Named
from cloud.kernel.etags import ETAG_RESPONSES, IfNoneMatch, version_of
from cloud.kernel.http import PROBLEM_RESPONSES, Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import Instant
from protocols.agent_link import MAX_STATION_LENGTH
from protocols.ocpp.actions import without_secrets
from protocols.ocpp.asks import NAMES

Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]


class Status(StrEnum):
    """How far a command has come; those from rejected on are final."""

    REQUESTED = "requested"
    SENT = "sent"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EXECUTED = "executed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


ActionKind = StrEnum(  # type: ignore[misc]  # the asks are listed where they are
    "ActionKind",
    {
        name.upper(): name
        for name in (
            "remote_start",
            "remote_stop",
            "set_limit",
            "set_availability",
            "set_local_list",
            "ocpp",
            *NAMES,
        )
    },
)
"""What a command asks for."""


class CommandView(BaseModel):
    """A command and how far it has come; times are UTC."""

    id: UUID
    station: str
    action: dict[str, Any]
    actor: str
    status: Status
    requested_at: datetime
    expires_at: datetime
    sent_at: datetime | None
    accepted_at: datetime | None
    finished_at: datetime | None
    result: str
    transaction: UUID | None
    link: str | None = Field(description="agent or ocpp: how it went, or will go, out")
    ocpp_action: str | None
    request: dict[str, Any] | None = Field(description="as it went out over OCPP")
    response: dict[str, Any] | None = Field(description="as it was answered over OCPP")
    error: str = Field(description="why there was no response")

    @classmethod
    def of(cls, named: Named) -> CommandView:
        row = named.row
        return cls(
            id=row.id,
            station=named.station,
            action=without_secrets(row.action),
            actor=row.actor,
            status=Status(row.status),
            requested_at=row.requested_at,
            expires_at=row.expires_at,
            sent_at=row.sent_at,
            accepted_at=row.accepted_at,
            finished_at=row.finished_at,
            result=row.result,
            transaction=row.transaction_id,
            link=row.link,
            ocpp_action=row.ocpp_action,
            request=without_secrets(row.request),
            response=without_secrets(row.response),
            error=row.error,
        )


async def _filters(
    status: Status | None = None,
    kind: ActionKind | None = None,
    start: Annotated[
        Instant | None, Query(alias="from", description="requested then or later")
    ] = None,
    end: Annotated[Instant | None, Query(alias="to", description="requested before")] = None,
) -> dict[str, Any]:
    return {"status": status, "kind": kind, "requested_from": start, "requested_to": end}


Filters = Annotated[dict[str, Any], Depends(_filters)]
Listed = Annotated[Listing, Depends(listing(store.COMMANDS))]


def routes(commands: Commands) -> APIRouter:
    """Reading commands; each module that gives commands has the URL for its own."""
    router = APIRouter(prefix="/api/v1", tags=["commands"], responses=PROBLEM_RESPONSES)

    @router.get("/commands", responses=LIST_RESPONSES)
    async def list_all_commands(
        caller: Viewer,
        listing: Listed,
        filters: Filters,
        station: Annotated[str | None, Query(max_length=MAX_STATION_LENGTH)] = None,
    ) -> Page[CommandView]:
        """The latest first, if not asked otherwise."""
        found = await commands.list_commands(caller, listing.part, station, **filters)
        return listing.answer(found, CommandView, CommandView.of)

    @router.get("/commands/{command}", responses=ETAG_RESPONSES)
    async def read_command(caller: Viewer, command: UUID, tagged: IfNoneMatch) -> CommandView:
        found = await commands.get(caller, command)
        return tagged.answer(CommandView.of(found), version_of(found))

    @router.post("/commands/{command}/cancellation")
    async def cancel_command(caller: Technician, command: UUID) -> CommandView:
        """Withdraw a command that still waits for its station; 409 once it went out."""
        return CommandView.of(await commands.cancel(caller, command))

    @router.get("/stations/{station}/commands", responses=LIST_RESPONSES)
    async def list_commands(
        caller: Viewer,
        station: Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)],
        listing: Listed,
        filters: Filters,
    ) -> Page[CommandView]:
        found = await commands.list_commands(caller, listing.part, station, **filters)
        return listing.answer(found, CommandView, CommandView.of)

    return router
