"""/api/v1/commands and the commands of one station."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from cloud.communication.commands import Commands
from cloud.communication.store import CommandRow
from cloud.kernel.http import PROBLEM_RESPONSES, Caller, Page, Paging, Role, require

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]


class Status(StrEnum):
    """How far a command has come; the last four are final."""

    REQUESTED = "requested"
    SENT = "sent"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EXECUTED = "executed"
    FAILED = "failed"
    EXPIRED = "expired"


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

    @classmethod
    def of(cls, row: CommandRow, station: str) -> CommandView:
        return cls(
            id=row.id,
            station=station,
            action=row.action,
            actor=row.actor,
            status=Status(row.status),
            requested_at=row.requested_at,
            expires_at=row.expires_at,
            sent_at=row.sent_at,
            accepted_at=row.accepted_at,
            finished_at=row.finished_at,
            result=row.result,
            transaction=row.transaction_id,
        )


def routes(commands: Commands) -> APIRouter:
    """Reading commands; each module that gives commands has the URL for its own."""
    router = APIRouter(prefix="/api/v1", tags=["commands"], responses=PROBLEM_RESPONSES)

    @router.get("/commands/{command_id}")
    async def read_command(caller: Viewer, command_id: UUID) -> CommandView:
        row, station = await commands.get(caller, command_id)
        return CommandView.of(row, station)

    @router.get("/stations/{station}/commands")
    async def list_commands(
        caller: Viewer,
        station: str,
        paging: Annotated[Paging, Depends()],
        status: Status | None = None,
    ) -> Page[CommandView]:
        found = await commands.list_commands(
            caller, station, paging.after_time_and_id(), paging.limit + 1, status
        )
        return paging.page(
            found,
            lambda row: CommandView.of(row, station),
            lambda row: (row.requested_at, row.id),
        )

    return router
