"""What REST takes and shows of sites, stations, EVSEs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field

from cloud.communication.api import LONGEST_CSR
from cloud.kernel.imports import RowReport
from cloud.kernel.rest import LARGEST_ID, Body, Flag, Zone
from cloud.stations.imports import Entry, Verdict
from cloud.stations.liveness import freshness
from cloud.stations.registration import Standing
from cloud.stations.service import EvseDetail, NewStation, StationDetail
from cloud.stations.store import Connector, Evse, EvseState, Hardware, Site
from protocols.agent_link import MAX_STATION_LENGTH, LinkError, escape

Name = Annotated[str, Field(min_length=1, max_length=100)]
_MOST_MA = 1_000_000
_LONGEST_S = 7 * 24 * 3600
_EVSES = 1000


def _on_the_wire(identity: str) -> str:
    try:
        escape(identity)
    except LinkError as error:
        raise ValueError(str(error)) from None
    if not identity.isprintable() or "/" in identity:
        raise ValueError("a station identity holds printable characters and no slash")
    return identity


Identity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_STATION_LENGTH,
        description="its wire identity: printable characters, no slash",
        json_schema_extra={"format": "station-identity"},
    ),
    AfterValidator(_on_the_wire),
]


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


class StationChange(Body):
    """Fields that are left out stay as they are; `site: null` takes the station off its site."""

    name: str = Field("", max_length=100)
    site: int | None = Field(None, ge=1, le=LARGEST_ID)


class StationRow(Body):
    """A station as an import names it; what is left out stays as it is."""

    station: Identity
    name: str = Field("", max_length=100)
    site: int | None = Field(None, ge=1, le=LARGEST_ID, description="the site's number, or")
    site_name: str | None = Field(None, max_length=100, description="the site's name")

    def entry(self, line: int) -> Entry:
        given = self.model_fields_set
        return Entry(
            line=line,
            identity=self.station,
            name=self.name if "name" in given else None,
            site=self.site,
            site_name=self.site_name,
            keep_site=not {"site", "site_name"} & given,
        )


class StationRowReport(RowReport):
    claim_code: str | None = Field(None, description="of a created station, shown only now")
    claim_expires_at: datetime | None = None

    @classmethod
    def of(cls, verdict: Verdict, until: datetime) -> StationRowReport:
        return cls(
            line=verdict.line,
            key=verdict.identity,
            outcome=verdict.outcome,
            reason=verdict.reason,
            claim_code=verdict.code,
            claim_expires_at=until if verdict.code else None,
        )


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
    source: str = Field(description="board: measured; agent, station: its own word")
    stale: bool


class EvseView(BaseModel):
    evse: int
    phases: int | None
    max_ma: int | None
    energy_step_wh: int | None
    billing_grade: bool | None
    connectors: list[int]
    gone: bool = Field(description="the station no longer tells of it; its state is the last")
    gone_at: datetime | None
    state: EvseStateView | None


class FleetEvseView(EvseView):
    station: str
    site: int | None

    @classmethod
    def of(cls, detail: EvseDetail, now: datetime) -> FleetEvseView:
        of, number = detail.of, detail.evse.evse
        view = _evse(number, detail.evse, of.states.get(number), of, now)
        return cls(**view.model_dump(), station=of.station.identity, site=of.station.site_id)


class ConnectorView(BaseModel):
    station: str
    evse: int
    connector: int
    gone: bool

    @classmethod
    def of(cls, connector: Connector, station: str) -> ConnectorView:
        return cls(
            station=station,
            evse=connector.evse,
            connector=connector.connector,
            gone=connector.gone,
        )


class LinkUseView(BaseModel):
    today_bytes: int = Field(description="both ways, whoever caused it, since midnight UTC")
    month_bytes: int
    metered: bool = Field(description="it costs money by what it carries")


class NetworkView(BaseModel):
    """The controller's ways to the network, and what they have carried."""

    in_use: str | None = Field(description="the interface with the default route; null: none")
    links: dict[str, LinkUseView]
    monthly_budget_bytes: int | None = Field(description="of all metered links together")
    level: int = Field(description="0: all telemetry is sent; 1, 2: thinned; 3: it waits on disk")


class AgentView(BaseModel):
    version: str
    boards: dict[str, str]
    local_list_version: int
    pending_billing: int
    pending_telemetry: int
    journal_bytes: int
    alarms: list[str] = Field(description="what keeps the agent from its duty")
    network: NetworkView | None = Field(description="null: it has not told")
    hardware: list[str] = Field(description="hardware ids of releases that fit; []: not told")
    at: datetime
    age_s: int


class HardwareView(BaseModel):
    """What the station said of itself at its latest boot."""

    vendor: str
    model: str
    serial: str
    firmware: str
    iccid: str
    imsi: str
    meter_type: str
    meter_serial: str
    reason: str = Field(description="of the boot, as OCPP's BootReasonEnumType names it")
    booted_at: datetime

    @classmethod
    def of(cls, hardware: Hardware) -> HardwareView:
        return cls.model_validate(hardware, from_attributes=True)


class StationView(BaseModel):
    station: str
    name: str
    site: int | None
    registration: Standing
    created_at: datetime
    registered_at: datetime | None
    updated_at: datetime = Field(description="of its name, site or registration")
    online: bool
    last_seen: datetime | None
    link: str | None = Field(description="agent, ocpp1.6, ocpp2.0.1 or ocpp2.1: its newest one")
    connected_at: datetime | None = Field(description="when its newest connection began")
    status: EvseStateView | None = Field(description="of the station as a whole, where it tells")
    evses: list[EvseView]
    agent: AgentView | None
    hardware: HardwareView | None

    @classmethod
    def of(cls, detail: StationDetail, now: datetime) -> StationView:
        station = detail.station
        described = {evse.evse: evse for evse in detail.evses}
        numbers = sorted((described.keys() | detail.states.keys()) - {0})
        whole, presence = detail.states.get(0), detail.presence
        return cls(
            station=station.identity,
            name=station.name,
            site=station.site_id,
            registration=Standing(station.registration),
            created_at=station.created_at,
            registered_at=station.registered_at,
            updated_at=station.updated_at,
            online=presence.online if presence else False,
            last_seen=presence.last_seen if presence else None,
            link=presence.link if presence else None,
            connected_at=presence.since if presence else None,
            status=_evse_state(whole, detail, now, gone=False) if whole else None,
            evses=[_evse(n, described.get(n), detail.states.get(n), detail, now) for n in numbers],
            agent=_agent(detail, now),
            hardware=HardwareView.of(detail.hardware) if detail.hardware else None,
        )


def _evse(
    number: int,
    evse: Evse | None,
    state: EvseState | None,
    detail: StationDetail,
    now: datetime,
) -> EvseView:
    gone = evse.gone_at is not None if evse else bool(detail.evses)
    return EvseView(
        evse=number,
        phases=evse.phases if evse else None,
        max_ma=evse.max_ma if evse else None,
        energy_step_wh=evse.energy_step_wh if evse else None,
        billing_grade=evse.billing_grade if evse else None,
        connectors=evse.connectors if evse else [],
        gone=gone,
        gone_at=evse.gone_at if evse else None,
        state=_evse_state(state, detail, now, gone=gone) if state else None,
    )


def _evse_state(
    state: EvseState, detail: StationDetail, now: datetime, *, gone: bool
) -> EvseStateView:
    fresh = freshness(state.at, state.measured_at, detail.presence, now)
    value = EvseValue.model_validate(state, from_attributes=True)
    return EvseStateView(
        value=value, at=fresh.at, age_s=fresh.age_s, source=fresh.source, stale=gone or fresh.stale
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
        alarms=agent.alarms,
        hardware=agent.hardware,
        network=None if agent.network is None else NetworkView.model_validate(agent.network),
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
    csr: str | None = Field(
        None,
        max_length=LONGEST_CSR,
        description="PEM, its common name the station: a client certificate is made for its key,"
        " and whoever holds that key may repeat the claim for a day",
    )


class RenewalRequest(Body):
    csr: str = Field(max_length=LONGEST_CSR, description="PEM, its common name the station")


class CertificateView(BaseModel):
    certificate: str = Field(description="PEM, with the chain below the authority's")


class RetiredView(BaseModel):
    station: str


class ClaimView(BaseModel):
    station: str
    mqtt_url: str
    username: str
    password: str = Field(description="shown only now")
    ca_pem: str
    certificate: str | None = Field(
        None, description="for the request's key; null without one, or without an authority here"
    )


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
    operative: Flag


class CommandView(BaseModel):
    command: UUID
    status_url: str

    @classmethod
    def of(cls, command: UUID) -> CommandView:
        return cls(command=command, status_url=f"/api/v1/commands/{command}")
