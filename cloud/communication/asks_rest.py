"""/api/v1/stations/{station}/ocpp/{action}, and everyday asks as commands of their own."""

import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response
from pydantic import BaseModel, Field

from cloud.communication.calls import VALID, Calls, Wish
from cloud.communication.rest import Status
from cloud.communication.store import CommandRow
from cloud.kernel.http import PROBLEM, PROBLEM_RESPONSES, Caller, Problem, Role, require
from cloud.kernel.idempotency import HEADER, LONGEST_KEY
from cloud.kernel.rest import LARGEST_ID, Flag, Moment, example
from cloud.kernel.rest import Body as Request
from protocols.agent_link import MAX_STATION_LENGTH, IdToken
from protocols.ocpp import asks
from protocols.ocpp.actions import without_secrets
from protocols.ocpp.asks import AnyAsk, Purpose, Unit
from protocols.ocpp.messages import Variable

Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
LONGEST_WAIT_S: Final = 120
_LONGEST_VALID_S: Final = 7 * 86_400
_EVSES: Final = 1000
Evse = Annotated[int, Field(ge=1, le=_EVSES)]
Seconds = Annotated[int, Field(ge=0, le=_LONGEST_VALID_S)]
Tries = Annotated[int, Field(ge=0, le=100)]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        description="http(s):// or ftp(s)://, of a public host or one of KARVON_TRANSFER_HOSTS",
        json_schema_extra={"format": "transfer-url"},
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=255)]
Number = Annotated[int, Field(ge=0, le=LARGEST_ID)]


class GivenView(BaseModel):
    command: UUID
    status_url: str

    @classmethod
    def of(cls, command: UUID) -> "GivenView":
        return cls(command=command, status_url=f"/api/v1/commands/{command}")


class GivenListView(BaseModel):
    commands: list[GivenView]


class ReservedView(GivenView):
    reservation: int


class ProfileView(GivenView):
    profile: int


class CalledView(BaseModel):
    """What a station answered; its status is one of a command."""

    command: UUID
    status_url: str
    action: str
    status: Status
    accepted: bool
    text: str = Field(description="the status it gave, or why there is no response")
    response: dict[str, Any] | None = Field(description="null: none, or refused with CALLERROR")
    error: str

    @classmethod
    def of(cls, row: CommandRow) -> "CalledView":
        return cls(
            **GivenView.of(row.id).model_dump(),
            action=row.ocpp_action or "",
            status=Status(row.status),
            accepted=row.status == Status.EXECUTED,
            text=row.result,
            response=without_secrets(row.response),
            error=row.error,
        )


# --------------------------------------------------------------------------- bodies


class Valid(Request):
    valid_s: int = Field(
        round(VALID.total_seconds()),
        ge=1,
        le=_LONGEST_VALID_S,
        description="how long it may wait for a station that is away",
    )

    @property
    def valid(self) -> timedelta:
        return timedelta(seconds=self.valid_s)


class Asking(Valid):
    """A body that is an ask by itself."""

    @abstractmethod
    def ask(self) -> AnyAsk: ...


class TokenBody(Request):
    value: Text
    type: str = Field("ISO14443", min_length=1, max_length=20)

    def token(self) -> IdToken:
        return IdToken(self.value, self.type)


class UnlockBody(Asking):
    model_config = example(evse=1)

    evse: Evse
    connector: Evse = 1

    def ask(self) -> AnyAsk:
        return asks.UnlockConnector(evse=self.evse, connector=self.connector)


class ResetBody(Asking):
    model_config = example(kind="soft")

    kind: Literal["soft", "hard", "on_idle"] = Field(
        description="soft: transactions end in order; on_idle (2.x): when the last one has ended"
    )
    evse: Evse | None = Field(None, description="2.x; null: the whole station")

    def ask(self) -> AnyAsk:
        return asks.Reset(kind=self.kind, evse=self.evse)


class TriggerBody(Asking):
    model_config = example(message="StatusNotification", evse=1)

    message: Annotated[str, Field(pattern=r"^[A-Za-z]{1,50}$", description="2.x's name of it")]
    evse: Evse | None = None
    connector: Evse | None = None

    def ask(self) -> AnyAsk:
        return asks.TriggerMessage(message=self.message, evse=self.evse, connector=self.connector)


class ClearCacheBody(Asking):
    def ask(self) -> AnyAsk:
        return asks.ClearCache()


class VariableBody(Request):
    variable: Annotated[str, Field(min_length=1, max_length=50)]
    component: str = Field("ChargingStation", min_length=1, max_length=50)
    component_instance: str = Field("", max_length=50)
    variable_instance: str = Field("", max_length=50)
    evse: Evse | None = None
    connector: Evse | None = None
    attribute: Literal["Actual", "Target", "MinSet", "MaxSet"] = "Actual"


class NewValueBody(VariableBody):
    value: str = Field(max_length=2500)


class GetVariablesBody(Asking):
    model_config = example(variables=[{"variable": "HeartbeatInterval"}])

    variables: list[VariableBody] = Field([], max_length=100, description="none: all")

    def ask(self) -> AnyAsk:
        named = tuple(Variable(**one.model_dump()) for one in self.variables)
        return asks.GetVariables(variables=named)


class SetVariablesBody(Asking):
    model_config = example(variables=[{"variable": "HeartbeatInterval", "value": "300"}])

    variables: list[NewValueBody] = Field(min_length=1, max_length=100)

    def ask(self) -> AnyAsk:
        named = tuple(Variable(**one.model_dump()) for one in self.variables)
        return asks.SetVariables(variables=named)


class ReserveBody(Valid):
    model_config = example(
        evse=1, id_token={"value": "04A2B3C4D5E6F7"}, expires_at="2030-01-01T12:00:00Z"
    )

    id_token: TokenBody
    expires_at: Moment
    evse: Evse | None = Field(None, description="null: any")
    group: Annotated[str, Field(min_length=1, max_length=36)] | None = None
    connector_type: Annotated[str, Field(min_length=1, max_length=20)] | None = Field(
        None, description="2.x, e.g. cCCS2"
    )

    def numbered(self, number: int) -> AnyAsk:
        return asks.ReserveNow(
            id=number,
            id_token=self.id_token.token(),
            expires_at=self.expires_at,
            evse=self.evse,
            group=self.group,
            connector_type=self.connector_type,
        )


class CancelReservationBody(Asking):
    model_config = example(reservation=1)

    reservation: Number

    def ask(self) -> AnyAsk:
        return asks.CancelReservation(id=self.reservation)


class PeriodBody(Request):
    start_s: Seconds
    limit_ma: int | None = Field(None, ge=0, le=10_000_000, description="per phase; unit A")
    limit_w: int | None = Field(None, ge=0, le=10_000_000, description="unit W")
    phases: Annotated[int, Field(ge=1, le=3)] | None = None


class SetProfileBody(Valid):
    model_config = example(
        evse=1,
        purpose="TxDefaultProfile",
        kind="Absolute",
        unit="A",
        periods=[{"start_s": 0, "limit_ma": 16000}],
    )

    evse: int = Field(ge=0, le=_EVSES, description="0: the station")
    purpose: Purpose
    kind: Literal["Absolute", "Recurring", "Relative"]
    unit: Unit
    periods: list[PeriodBody] = Field(min_length=1, max_length=500)
    id: Number | None = Field(None, description="that of one to replace; null: a new one")
    stack_level: int = Field(0, ge=0, le=100)
    recurrency: Literal["Daily", "Weekly"] | None = None
    valid_from: Moment | None = None
    valid_to: Moment | None = None
    start_at: Moment | None = None
    duration_s: Seconds | None = None
    transaction: UUID | None = Field(None, description="for TxProfile")

    def numbered(self, number: int) -> AnyAsk:
        fields = self.model_dump(exclude={"valid_s", "periods", "id"})
        periods = tuple(asks.Period(**one.model_dump()) for one in self.periods)
        return asks.SetChargingProfile(**fields, id=number, periods=periods)


class ClearProfileBody(Asking):
    model_config = example(evse=1, purpose="TxDefaultProfile")

    id: Number | None = None
    evse: Annotated[int, Field(ge=0, le=_EVSES)] | None = None
    purpose: Purpose | None = None
    stack_level: Annotated[int, Field(ge=0, le=100)] | None = None

    def ask(self) -> AnyAsk:
        return asks.ClearChargingProfile(**self.model_dump(exclude={"valid_s"}))


class GetProfilesBody(Asking):
    evse: Annotated[int, Field(ge=0, le=_EVSES)] | None = None
    purpose: Purpose | None = None

    def ask(self) -> AnyAsk:
        return asks.GetChargingProfiles(evse=self.evse, purpose=self.purpose)


class CompositeBody(Asking):
    model_config = example(evse=1, duration_s=3600)

    evse: int = Field(ge=0, le=_EVSES)
    duration_s: Seconds
    unit: Unit | None = None

    def ask(self) -> AnyAsk:
        return asks.GetCompositeSchedule(evse=self.evse, duration_s=self.duration_s, unit=self.unit)


class FirmwareBody(Asking):
    model_config = example(
        location="https://firmware.example.com/station-2.1.bin",
        retrieve_at="2030-01-01T02:00:00Z",
        expected_version="2.1",
    )

    location: Url
    retrieve_at: Moment
    install_at: Moment | None = None
    retries: Tries | None = None
    retry_interval_s: Seconds | None = None
    signing_certificate: Annotated[str, Field(max_length=5500)] | None = None
    signature: Annotated[str, Field(max_length=800)] | None = None
    expected_version: str = Field(
        "",
        max_length=50,
        description="what the station will say it runs then; it may never say that it is done",
    )

    def ask(self) -> AnyAsk:
        return asks.UpdateFirmware(**self.model_dump(exclude={"valid_s"}))


class LogBody(Asking):
    model_config = example(kind="diagnostics", location="ftps://logs.example.com/in/")

    kind: Literal["diagnostics", "security"]
    location: Url
    since: Moment | None = None
    until: Moment | None = None
    retries: Tries | None = None
    retry_interval_s: Seconds | None = None

    def ask(self) -> AnyAsk:
        return asks.GetLog(**self.model_dump(exclude={"valid_s"}))


class EntryBody(Request):
    id_token: TokenBody
    blocked: Flag = False
    expires_at: Moment | None = None
    group: Annotated[str, Field(min_length=1, max_length=36)] | None = None
    removed: Flag = Field(False, description="take it off; differential lists only")

    def entry(self) -> asks.ListEntry:
        fields = self.model_dump(exclude={"id_token"})
        return asks.ListEntry(id_token=self.id_token.token(), **fields)


class LocalListBody(Valid):
    model_config = example()

    version: Annotated[int, Field(ge=1, le=LARGEST_ID)] | None = Field(
        None, description="null: the tenant's list as it is, which agents take too"
    )
    differential: Flag = False
    entries: list[EntryBody] = Field([], max_length=1000)

    def given(self, version: int) -> AnyAsk:
        entries = tuple(one.entry() for one in self.entries)
        return asks.SendLocalList(version=version, differential=self.differential, entries=entries)


class ListVersionBody(Asking):
    def ask(self) -> AnyAsk:
        return asks.GetLocalListVersion()


class TransferBody(Asking):
    model_config = example(vendor="com.example", message="hello", data="world")

    vendor: Text
    message: Annotated[str, Field(max_length=50)] | None = None
    data: Any = Field(None, description="text for 1.6, where else is sent as its JSON")

    def ask(self) -> AnyAsk:
        return asks.DataTransfer(vendor=self.vendor, message=self.message, data=self.data)


_PLAIN: Final[tuple[tuple[str, Role, type[Asking], str], ...]] = (
    ("unlock-connector", Role.TECHNICIAN, UnlockBody, "Release a connector's lock."),
    ("reset", Role.TECHNICIAN, ResetBody, "Restart the station, or one EVSE."),
    ("trigger-message", Role.TECHNICIAN, TriggerBody, "Have the station tell something now."),
    ("clear-cache", Role.TECHNICIAN, ClearCacheBody, "Empty its cache of id tokens."),
    ("get-variables", Role.TECHNICIAN, GetVariablesBody, "Read its settings anew."),
    ("cancel-reservation", Role.OPERATOR, CancelReservationBody, "Give a reservation up."),
    ("clear-charging-profile", Role.OPERATOR, ClearProfileBody, "Remove charging profiles."),
    ("get-charging-profiles", Role.TECHNICIAN, GetProfilesBody, "Have it tell what it holds."),
    ("get-composite-schedule", Role.TECHNICIAN, CompositeBody, "What all profiles amount to."),
    ("update-firmware", Role.OPERATOR, FirmwareBody, "Have it fetch and install firmware."),
    ("get-log", Role.TECHNICIAN, LogBody, "Have it upload diagnostics or its security log."),
    ("get-local-list-version", Role.TECHNICIAN, ListVersionBody, "Ask which list it holds."),
    ("data-transfer", Role.OPERATOR, TransferBody, "A vendor's own message."),
)


def router(calls: Calls) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["commands"], responses=PROBLEM_RESPONSES)
    for name, role, body, about in _PLAIN:
        routes.add_api_route(
            f"/stations/{{station}}/commands/{name}",
            _giving(calls, role, body),
            methods=["POST"],
            status_code=202,
            name=name,
            operation_id=name.replace("-", "_"),
            description=about,
            response_model=GivenView,
        )
    _add_numbered(routes, calls)
    _add_calls(routes, calls)
    return routes


def _giving(calls: Calls, role: Role, body: type[Asking]) -> Callable[..., Awaitable[GivenView]]:
    async def give(
        caller: Annotated[Caller, Depends(require(role))],
        station: IdentityPath,
        request: body,  # type: ignore[valid-type]  # FastAPI reads it at run time
    ) -> GivenView:
        asked: Asking = request
        (command, *_) = await calls.ask(caller, station, asked.ask(), asked.valid)
        return GivenView.of(command)

    return give


def _add_numbered(routes: APIRouter, calls: Calls) -> None:
    @routes.post("/stations/{station}/commands/reserve", status_code=202)
    async def reserve(
        caller: Operator, station: IdentityPath, request: ReserveBody
    ) -> ReservedView:
        """Keep an EVSE, or any of them, free for an id token."""
        number = await calls.next_number(caller)
        (given,) = await calls.ask(caller, station, request.numbered(number), request.valid)
        return ReservedView(**GivenView.of(given).model_dump(), reservation=number)

    @routes.post("/stations/{station}/commands/set-charging-profile", status_code=202)
    async def set_charging_profile(
        caller: Operator, station: IdentityPath, request: SetProfileBody
    ) -> ProfileView:
        """Give the station, or an EVSE, a schedule of limits."""
        number = await calls.next_number(caller) if request.id is None else request.id
        (given,) = await calls.ask(caller, station, request.numbered(number), request.valid)
        return ProfileView(**GivenView.of(given).model_dump(), profile=number)

    @routes.post("/stations/{station}/commands/send-local-list", status_code=202)
    async def send_local_list(
        caller: Operator, station: IdentityPath, request: LocalListBody
    ) -> GivenView:
        """Give the station the tenant's list, or (OCPP) one of its own or changes to that."""
        if request.version is None:
            return GivenView.of(await calls.send_list(caller, station, request.valid))
        (given,) = await calls.ask(caller, station, request.given(request.version), request.valid)
        return GivenView.of(given)

    @routes.patch("/stations/{station}/variables", status_code=202)
    async def set_variables(
        caller: Technician, station: IdentityPath, request: SetVariablesBody
    ) -> GivenListView:
        """Change settings; OCPP 1.6 takes them one by one, as so many commands."""
        given = await calls.ask(caller, station, request.ask(), request.valid)
        return GivenListView(commands=[GivenView.of(one) for one in given])


# --------------------------------------------------------------------------- calls

_PREFERENCES: Final = re.compile(r"\s*([a-z-]+)\s*(?:=\s*\"?(\d+)\"?\s*)?")


async def _wish(
    response: Response,
    wait: Annotated[
        int, Query(ge=1, le=LONGEST_WAIT_S, description="seconds; `Prefer: wait=N` goes before")
    ] = 30,
    valid_s: Annotated[
        int, Query(ge=1, le=_LONGEST_VALID_S, description="with respond-async: how long it lives")
    ] = round(VALID.total_seconds()),
    prefer: Annotated[
        str | None,
        Header(max_length=200, description="`respond-async`: 202 at once; `wait=N`: seconds"),
    ] = None,
    key: Annotated[
        str | None,
        Header(alias=HEADER, min_length=1, max_length=LONGEST_KEY, include_in_schema=False),
    ] = None,
) -> Wish:
    told = dict(_preferences(prefer or ""))
    if "respond-async" in told:
        response.headers["Preference-Applied"] = "respond-async"
        return Wish(None, timedelta(seconds=valid_s), key)
    waited = told.get("wait")
    return Wish(float(min(max(waited or wait, 1), LONGEST_WAIT_S)), key=key)


def _preferences(header: str) -> list[tuple[str, int | None]]:
    """RFC 7240, as far as it concerns us; what is not known is to be ignored."""
    found = (_PREFERENCES.fullmatch(part) for part in header.lower().split(","))
    return [(one[1], int(one[2]) if one[2] else None) for one in found if one is not None]


_CALL_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": GivenView, "description": "stored; the status URL tells what becomes of it"},
    504: {"model": Problem, "description": "not answered in time", "content": {PROBLEM: {}}},
}


def _add_calls(routes: APIRouter, calls: Calls) -> None:
    @routes.post("/stations/{station}/ocpp/{action}", responses=_CALL_RESPONSES)
    async def call_station(
        caller: Operator,
        station: IdentityPath,
        action: Annotated[str, Path(pattern=r"^[A-Za-z0-9]{1,60}$")],
        payload: Annotated[dict[str, Any], Body()],
        wish: Annotated[Wish, Depends(_wish)],
        response: Response,
    ) -> CalledView | GivenView:
        """Any action of the OCPP version that the station speaks, in that version's own words.

        200 when the station has answered, whatever it said; 504 when it did not in time, and 409
        when it is not connected, unless `Prefer: respond-async` lets the call wait for it.
        """
        row = await calls.call(caller, station, action, payload, wish)
        if wish.wait_s is None:
            response.status_code = 202
            return GivenView.of(row.id)
        return CalledView.of(row)
