"""/api/v1/transactions, and starting and stopping them."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from cloud.kernel.etags import ETAG_RESPONSES, IfNoneMatch, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page, Part
from cloud.kernel.rest import LARGEST_ID, Body, Instant, example
from cloud.tariffs.api import Cost, PartKind, TariffVersion, shown
from cloud.transactions import store
from cloud.transactions.history_store import Recorded
from cloud.transactions.native import NativeEvent
from cloud.transactions.projection import State
from cloud.transactions.service import Detail, Filters, Listed, Transactions
from protocols.agent_link import MAX_STATION_LENGTH, IdToken, SignedValue

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
_FIRST_EVENTS = 100
Identity = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]


class IdTokenView(Body):
    value: str = Field(min_length=1, max_length=255)
    type: str = Field("ISO14443", min_length=1, max_length=20)


class CostPartView(BaseModel):
    kind: PartKind
    amount_minor: int


class CostView(BaseModel):
    """By the version of the tariff that held where and when it started, whatever holds now."""

    tariff: int
    version: int
    currency: str
    total_minor: int = Field(description="in the currency's minor unit")
    total: str = Field(description="for people, with the version's shown_digits")
    tax_minor: int = Field(description="contained in the total")
    parts: list[CostPartView] = Field(description="they add up to the total")
    final: bool = Field(description="false while it is open: the cost so far")

    @classmethod
    def of(cls, version: TariffVersion, cost: Cost) -> CostView:
        return cls(
            tariff=version.tariff_id,
            version=version.number,
            currency=version.currency,
            total_minor=cost.total.minor,
            total=shown(cost.total, version.shown_digits),
            tax_minor=cost.tax.minor,
            parts=[CostPartView(kind=part.kind, amount_minor=part.minor) for part in cost.parts],
            final=cost.final,
        )


class TransactionView(BaseModel):
    transaction: UUID
    station: str
    evse: int
    connector: int
    state: State
    charging_state: str
    id_token: IdTokenView | None
    started_at: datetime
    started_dating: str = Field(description="synced, cloud, estimated or unset")
    ended_at: datetime | None
    ended_dating: str | None
    reason: str | None
    energy_wh: int
    meter_wh: int = Field(description="the EVSE's lifetime register")
    raw_wh: int | None = Field(description="the board's own register")
    duration_ms: int = Field(description="time without power is not in it")
    billing_grade: bool
    seq_no: int = Field(description="of the event that gave the measure")
    start_seen: bool = Field(description="false while the first event is still missing")
    conflicts: int
    command: UUID | None = Field(description="the remote start that began it; of 1.6 inferred")
    last_at: datetime
    updated_at: datetime
    origin: str = Field(description="who told it: agent, ocpp1.6 or ocpp2.x")
    native_key: str | None = Field(
        description="what OCPP 2.x calls it (transactionId); of 1.6 what makes its start unique"
    )
    number: int | None = Field(description="what OCPP 1.6 calls it (transactionId)")
    concluded: bool = Field(
        description="the station told no end; `reason` says why we hold that it is over"
    )
    review: str | None = Field(description="why a person should look at it before it is billed")
    cost: CostView | None = Field(description="null: no tariff held where and when it started")

    @classmethod
    def of(cls, listed: Listed) -> TransactionView:
        row, token = listed.row, listed.id_token
        values = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        holder = IdTokenView(value=token.value, type=token.type) if token else None
        return cls(
            **values,
            transaction=row.id,
            station=listed.station,
            id_token=holder,
            cost=CostView.of(*listed.priced) if listed.priced else None,
        )


class SignedView(BaseModel):
    """What a meter has signed, as it came; check it with the tool of its encoding."""

    moment: str | None = Field(description="Transaction.Begin or .End; null: the station told none")
    encoding: str | None = Field(description="as OCMF; null: the station told none")
    data: str = Field(description="the signed octets in Base64, or what an OCPP station told")
    text: str | None = Field(description="the same octets as text, where they are text")
    public_key: str | None = Field(description="in Base64, where the meter tells it")

    @classmethod
    def of(cls, one: SignedValue) -> SignedView:
        text = one.data.decode("latin-1")
        return cls(
            moment=one.moment,
            encoding=one.encoding,
            data=b64encode(one.data).decode("ascii"),
            text=text if text.isascii() and text.isprintable() else None,
            public_key=b64encode(one.public_key).decode("ascii") or None,
        )

    @classmethod
    def as_told(cls, told: str) -> SignedView:
        return cls(moment=None, encoding=None, data=told, text=told, public_key=None)


class EventView(BaseModel):
    id: UUID
    seq_no: int
    type: str
    trigger: str
    at: datetime
    dating: str
    received_at: datetime
    charging_state: str | None
    energy_wh: int | None = Field(description="null: a register was told, not the energy")
    meter_wh: int | None = Field(description="null: no register was told")
    raw_wh: int | None
    reason: str | None
    command: UUID | None
    concluded: bool = Field(description="our own conclusion, not told by the station")
    signed: list[SignedView] = Field(description="what the meter has signed, untouched")

    @classmethod
    def of(cls, recorded: Recorded) -> EventView:
        event = recorded.step.event
        signed = (
            [SignedView.as_told(one) for one in event.signed]
            if isinstance(event, NativeEvent)
            else [SignedView.of(one) for one in event.signatures]
        )
        told: dict[str, Any] = {
            "energy_wh": None,
            "meter_wh": None,
            "raw_wh": None,
            "command": None,
            "concluded": False,
        }
        if isinstance(event, NativeEvent):
            told |= {"meter_wh": event.register_wh, "raw_wh": event.register_wh}
            told["concluded"] = event.concluded
        else:
            told |= {name: getattr(event, name) for name in told if name != "concluded"}
        return cls(
            id=event.id,
            seq_no=event.seq_no,
            type=str(event.type),
            trigger=str(event.trigger),
            at=recorded.step.at.at,
            dating=str(recorded.step.at.quality),
            received_at=recorded.received_at,
            charging_state=str(event.charging_state) if event.charging_state else None,
            reason=str(event.reason) if event.reason else None,
            signed=signed,
            **told,
        )


class ConflictView(BaseModel):
    event_id: UUID
    kind: str
    noted_at: datetime


class TransactionDetailView(TransactionView):
    events: list[EventView] = Field(description="the first ones, in order of their number")
    more_events: str | None = Field(description="`cursor` for the events behind them; null: none")
    contradictions: list[ConflictView]

    @classmethod
    def of_detail(cls, detail: Detail) -> TransactionDetailView:
        return cls(
            **TransactionView.of(detail.listed).model_dump(),
            events=[EventView.of(event) for event in detail.events.rows],
            more_events=detail.events.next,
            contradictions=[
                ConflictView.model_validate(one, from_attributes=True) for one in detail.conflicts
            ],
        )


class RemoteStartRequest(Body):
    model_config = example(evse=1, id_token={"value": "04A2B3C4D5E6F7"})

    evse: int = Field(ge=1, le=1000)
    id_token: IdTokenView


class RemoteStopRequest(Body):
    model_config = example(transaction="0196a0f0-0000-7000-8000-000000000001")

    transaction: UUID


class CommandView(BaseModel):
    command: UUID
    status_url: str

    @classmethod
    def of(cls, command: UUID) -> CommandView:
        return cls(command=command, status_url=f"/api/v1/commands/{command}")


async def _filters(
    station: Annotated[str | None, Query(max_length=MAX_STATION_LENGTH)] = None,
    site: Annotated[
        int | None, Query(ge=1, le=LARGEST_ID, description="stations there now")
    ] = None,
    evse: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    state: State | None = None,
    id_token: Annotated[str | None, Query(max_length=255, description="in any case")] = None,
    start: Annotated[
        Instant | None, Query(alias="from", description="started then or later")
    ] = None,
    end: Annotated[Instant | None, Query(alias="to", description="started before")] = None,
    ended_from: Instant | None = None,
    ended_to: Instant | None = None,
    min_energy_wh: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    review: Annotated[bool | None, Query(description="those that a person should look at")] = None,
) -> Filters:
    return Filters(
        station,
        site,
        evse,
        state,
        id_token,
        start,
        end,
        ended_from,
        ended_to,
        min_energy_wh,
        review,
    )


def router(transactions: Transactions) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["transactions"])
    _add_reading(routes, transactions)
    _add_commands(routes, transactions)
    return routes


def _add_reading(routes: APIRouter, transactions: Transactions) -> None:
    @routes.get("/transactions", responses=LIST_RESPONSES)
    async def list_transactions(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.TRANSACTIONS))],
        filters: Annotated[Filters, Depends(_filters)],
    ) -> Page[TransactionView]:
        """The latest first, if not asked otherwise."""
        found = await transactions.list_transactions(caller, listing.part, filters)
        return listing.answer(found, TransactionView, TransactionView.of)

    @routes.get("/transactions/{transaction}", responses=ETAG_RESPONSES)
    async def read_transaction(
        caller: Viewer, transaction: UUID, tagged: IfNoneMatch
    ) -> TransactionDetailView:
        """With its first events; the others are read at `/transactions/{transaction}/events`."""
        first = Part(store.EVENTS, store.EVENTS.default, _FIRST_EVENTS)
        view = TransactionDetailView.of_detail(
            await transactions.detail(caller, transaction, first)
        )
        return tagged.answer(view, version_of(view.model_dump(mode="json")))

    @routes.get("/transactions/{transaction}/events", responses=LIST_RESPONSES)
    async def list_events(
        caller: Viewer,
        transaction: UUID,
        listing: Annotated[Listing, Depends(listing(store.EVENTS))],
    ) -> Page[EventView]:
        found = await transactions.events(caller, transaction, listing.part)
        return listing.answer(found, EventView, EventView.of)


def _add_commands(routes: APIRouter, transactions: Transactions) -> None:
    @routes.post("/stations/{station}/commands/remote-start", status_code=202)
    async def remote_start(
        caller: Operator, station: Identity, request: RemoteStartRequest
    ) -> CommandView:
        token = IdToken(request.id_token.value, request.id_token.type)
        return CommandView.of(await transactions.remote_start(caller, station, request.evse, token))

    @routes.post("/stations/{station}/commands/remote-stop", status_code=202)
    async def remote_stop(
        caller: Operator, station: Identity, request: RemoteStopRequest
    ) -> CommandView:
        return CommandView.of(await transactions.remote_stop(caller, station, request.transaction))
