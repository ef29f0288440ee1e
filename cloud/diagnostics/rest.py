"""/api/v1/stations/{station}/security-events, /firmware, /logs, /monitors, /display-messages,
/notices: what stations told of their condition.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from cloud.diagnostics import store
from cloud.diagnostics.service import Diagnostics
from cloud.diagnostics.store import (
    MessageHeld,
    MonitorHeld,
    NoticeHeld,
    SecurityHeld,
    StatusHeld,
    TransferHeld,
)
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import Instant
from protocols.agent_link import MAX_STATION_LENGTH
from protocols.ocpp.actions import without_secrets

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Word = Annotated[str | None, Query(max_length=100)]
From = Annotated[Instant | None, Query(alias="from", description="then or later")]
To = Annotated[Instant | None, Query(alias="to", description="before")]


class SecurityEventView(BaseModel):
    id: UUID
    at: datetime
    type: str
    text: str
    link: str = Field(description="agent or ocpp: who told it")

    @classmethod
    def of(cls, held: SecurityHeld) -> SecurityEventView:
        return cls.model_validate(held, from_attributes=True)


class StepView(BaseModel):
    status: str
    at: datetime


class TransferView(BaseModel):
    """An update of firmware, or an upload of a log."""

    request: int | None = Field(description="its number, where the version has one")
    command: UUID | None = Field(description="null: the station did it by itself")
    location: str
    filename: str
    expected_version: str
    status: str
    open: bool
    concluded: bool = Field(description="not told: the station came back with that version")
    asked_at: datetime
    at: datetime
    history: list[StepView]

    @classmethod
    def of(cls, held: TransferHeld, history: list[StatusHeld]) -> TransferView:
        return cls(
            request=held.request_id,
            command=held.command,
            location=str(without_secrets(held.location)),
            filename=held.filename,
            expected_version=held.expected_version,
            status=held.status,
            open=held.is_open,
            concluded=held.is_concluded,
            asked_at=held.asked_at,
            at=held.at,
            history=[StepView(status=one.status, at=one.at) for one in history],
        )


class MonitorView(BaseModel):
    monitor: int = Field(description="its id")
    component: dict[str, Any]
    variable: dict[str, Any]
    type: str
    value: float
    severity: int = Field(description="0: danger, 9: debug")
    only_in_transaction: bool
    at: datetime

    @classmethod
    def of(cls, held: MonitorHeld) -> MonitorView:
        fields = {name: getattr(held, name) for name in cls.model_fields if name != "monitor"}
        return cls(monitor=held.monitor_id, **fields)


class DisplayMessageView(BaseModel):
    message: int = Field(description="its id")
    details: dict[str, Any] = Field(description="as OCPP writes it")
    at: datetime

    @classmethod
    def of(cls, held: MessageHeld) -> DisplayMessageView:
        return cls(message=held.message_id, details=held.message, at=held.at)


class NoticeView(BaseModel):
    id: int
    at: datetime = Field(description="when it came")
    action: str
    payload: dict[str, Any]

    @classmethod
    def of(cls, held: NoticeHeld) -> NoticeView:
        return cls.model_validate(held, from_attributes=True)


def router(diagnostics: Diagnostics) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/stations/{station}", tags=["diagnostics"])
    _add_transfers(routes, diagnostics)
    _add_lists(routes, diagnostics)
    return routes


def _add_transfers(routes: APIRouter, diagnostics: Diagnostics) -> None:
    @routes.get("/firmware", responses=LIST_RESPONSES)
    async def list_firmware_updates(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.TRANSFERS))],
        status: Word = None,
    ) -> Page[TransferView]:
        """Updates of the station's firmware with their history, the latest first."""
        found, history = await diagnostics.transfers(
            caller, listing.part, station, "firmware", status
        )
        return listing.answer(found, TransferView, lambda o: TransferView.of(o, history[o.id]))

    @routes.get("/logs", responses=LIST_RESPONSES)
    async def list_log_uploads(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.TRANSFERS))],
        status: Word = None,
    ) -> Page[TransferView]:
        """Uploads of logs and diagnostics with their history, the latest first."""
        found, history = await diagnostics.transfers(caller, listing.part, station, "log", status)
        return listing.answer(found, TransferView, lambda o: TransferView.of(o, history[o.id]))


def _add_lists(routes: APIRouter, diagnostics: Diagnostics) -> None:
    @routes.get("/security-events", responses=LIST_RESPONSES)
    async def list_security_events(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.SECURITY))],
        type: Word = None,  # noqa: A002  # the query parameter's name
        start: From = None,
        end: To = None,
    ) -> Page[SecurityEventView]:
        """The latest first, whether an agent told them or the station itself."""
        found = await diagnostics.security_events(caller, listing.part, station, type, start, end)
        return listing.answer(found, SecurityEventView, SecurityEventView.of)

    @routes.get("/monitors", responses=LIST_RESPONSES)
    async def list_monitors(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.MONITORS))],
        component: Word = None,
        severity: Annotated[
            int | None, Query(ge=0, le=9, description="that severe, or more")
        ] = None,
    ) -> Page[MonitorView]:
        found = await diagnostics.monitors(caller, listing.part, station, component, severity)
        return listing.answer(found, MonitorView, MonitorView.of)

    @routes.get("/display-messages", responses=LIST_RESPONSES)
    async def list_display_messages(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.MESSAGES))],
    ) -> Page[DisplayMessageView]:
        found = await diagnostics.messages(caller, listing.part, station)
        return listing.answer(found, DisplayMessageView, DisplayMessageView.of)

    @routes.get("/notices", responses=LIST_RESPONSES)
    async def list_notices(
        caller: Viewer,
        station: IdentityPath,
        listing: Annotated[Listing, Depends(listing(store.NOTICES))],
        action: Word = None,
        start: From = None,
        end: To = None,
    ) -> Page[NoticeView]:
        """Whatever else the station told, as it told it, the latest first."""
        found = await diagnostics.notices(caller, listing.part, station, action, start, end)
        return listing.answer(found, NoticeView, NoticeView.of)
