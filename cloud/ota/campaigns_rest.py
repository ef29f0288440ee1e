"""/api/v1/cohorts, /campaigns, and stations' tags and updates."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from cloud.kernel.etags import (
    ETAG_RESPONSES,
    Guarded,
    IfMatch,
    IfNoneMatch,
    state_of,
    version_of,
)
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, Flag, Zone, example
from cloud.ota import campaign_store as store
from cloud.ota.campaign_store import AuditRow, CohortRow, StepRow
from cloud.ota.campaigns import Campaigns, Draft, Named, Shown, etag_of
from cloud.ota.cohorts import Candidate, Cohort
from cloud.ota.rest import ReleaseView
from cloud.ota.rollout import Count, Stage, Standing, total
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
Number = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Percent = Annotated[int, Field(ge=1, le=100)]
Clock = Annotated[str, Field(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Word = Annotated[str, Field(min_length=1, max_length=50)]
CohortPath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
CampaignPath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
StationPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
Text = Annotated[str | None, Query(max_length=100, description="part of its name")]
MOST_SHOWN: Final = 500
MOST_WAVES: Final = 20
MOST_S: Final = 90 * 86_400

# --------------------------------------------------------------------------- cohorts


class Narrowing(Body):
    sites: list[Number] = Field([], max_length=1000)
    models: list[Word] = Field([], max_length=100, description="parts of what a station says it is")
    versions: list[Word] = Field(
        [], max_length=100, description="beginnings of the version that it runs"
    )
    tags: list[Word] = Field([], max_length=100)
    hardware: list[Word] = Field([], max_length=100, description="hardware ids that agents tell")
    percent: Percent = Field(100, description="of those that the rest leaves; always the same ones")


class CohortRequest(Narrowing):
    """Each field narrows, and any of its values will do; an empty one does not narrow."""

    model_config = example(name="Pilot", sites=[1], percent=10)

    name: Name

    def cohort(self) -> Cohort:
        return Cohort(
            tuple(self.sites),
            tuple(self.models),
            tuple(self.versions),
            tuple(self.tags),
            tuple(self.hardware),
            self.percent,
        )


class CohortChange(Narrowing):
    """What is given replaces what was; campaigns that exist keep what it was."""

    model_config = example(percent=20)

    name: Name = ""


class CohortView(BaseModel):
    id: int
    name: str
    sites: list[int]
    models: list[str]
    versions: list[str]
    tags: list[str]
    hardware: list[str] = []
    percent: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: CohortRow) -> CohortView:
        same = {name: getattr(row, name) for name in ("id", "name", "created_at", "updated_at")}
        return cls(**same, **row.narrowed)


class MemberView(BaseModel):
    station: str
    site: int | None
    models: list[str]
    version: str
    tags: list[str]
    hardware: list[str] = Field(description="[]: its agent has not told")

    @classmethod
    def of(cls, one: Candidate) -> MemberView:
        return cls(
            station=one.identity,
            site=one.site_id,
            models=list(one.models),
            version=one.version,
            tags=sorted(one.tags),
            hardware=sorted(one.hardware),
        )


class MembersView(BaseModel):
    count: int
    stations: list[MemberView] = Field(description=f"the first {MOST_SHOWN}")


class TagsView(BaseModel):
    tags: list[str]


class TagsRequest(Body):
    model_config = example(tags=["pilot"])

    tags: list[Word] = Field(max_length=100)


# --------------------------------------------------------------------------- campaigns


class WindowModel(Body):
    """When installations may begin, every day; an end before the start is the next day's."""

    start: Clock
    end: Clock
    time_zone: Zone = "UTC"


class SignatureModel(Body):
    """What the maker of an OCPP station has signed the file with."""

    certificate: Annotated[str, Field(min_length=1, max_length=5500, description="PEM")]
    signature: Annotated[str, Field(min_length=1, max_length=800, description="base64")]


class CampaignRequest(Body):
    model_config = example(name="Agent 2.1", release=1, cohort=1, waves=[1, 10, 50])

    name: Name
    release: Number
    cohort: Number
    waves: list[Annotated[int, Field(ge=1, le=99)]] = Field(
        [], max_length=MOST_WAVES, description="cumulative percents; the last wave takes the rest"
    )
    success_percent: Percent = Field(
        95, description="of a wave that must have succeeded before the next one begins"
    )
    error_percent: Percent = Field(
        5, description="of a wave, or of all so far, that must not fail: reaching it halts"
    )
    min_sample: Annotated[int, Field(ge=1, le=10_000)] = Field(
        5, description="devices that must have come to an end before failures halt it"
    )
    deadline_s: Annotated[int, Field(ge=60, le=MOST_S)] = Field(
        86_400, description="from the offer, or the window's end: silence until then is failure"
    )
    window: WindowModel | None = None
    force: Flag = Field(False, description="not to wait for the window, nor for transactions")
    signed: SignatureModel | None = Field(None, description="for stations that speak OCPP")

    def draft(self) -> Draft:
        terms = self.model_dump(exclude={"name", "release", "cohort", "waves"})
        waves = [*sorted(set(self.waves)), 100]
        return Draft(self.name, self.release, self.cohort, {**terms, "waves": waves})


class CountsView(BaseModel):
    waiting: int
    offered: int = Field(description="under way")
    succeeded: int
    failed: int
    excused: int = Field(description="of the failed: taken into the bargain when it went on")
    skipped: int = Field(description="ran the version already")
    gone: int
    withdrawn: int

    @classmethod
    def of(cls, count: Count) -> CountsView:
        return cls.model_validate(count, from_attributes=True)


class CampaignView(BaseModel):
    id: int
    name: str
    stage: Stage
    reason: str = Field(description="why it halted")
    release: ReleaseView
    cohort: int
    waves: list[int] = Field(description="cumulative percents")
    wave: int = Field(description="the current one, from 1")
    counts: CountsView
    by_wave: list[CountsView]
    success_percent: int
    error_percent: int
    min_sample: int
    deadline_s: int
    window: WindowModel | None
    force: bool
    signed: bool
    author: str
    approved_by: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, shown: Shown) -> CampaignView:
        row, terms = shown.row, shown.row.terms
        by_wave = [Count(**one) for one in row.counts]
        same = ("id", "name", "reason", "author", "approved_by")
        times = ("created_at", "started_at", "ended_at")
        kept = ("success_percent", "error_percent", "min_sample", "deadline_s", "force", "waves")
        return cls(
            **{name: getattr(row, name) for name in (*same, *times)},
            **{name: terms[name] for name in kept},
            stage=Stage(row.stage),
            release=ReleaseView.of(shown.release),
            cohort=row.cohort_id,
            wave=row.wave + 1,
            counts=CountsView.of(total(by_wave)),
            by_wave=[CountsView.of(one) for one in by_wave],
            window=terms["window"],
            signed=terms["signed"] is not None,
        )


class DeviceView(BaseModel):
    campaign: int
    station: str = Field(description="empty: it is not yours any more")
    component: str
    link: str
    wave: int
    standing: Standing
    word: str = Field(description="the last status that it told, in OCPP 2.0.1's words")
    running: str = Field(description="the version that it was seen to run last")
    reason: str
    excused: bool
    request: UUID
    offered_at: datetime | None
    deadline_at: datetime | None
    at: datetime

    @classmethod
    def of(cls, named: Named) -> DeviceView:
        row = named.row
        same = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        return cls(**{**same, "wave": row.wave + 1}, station=named.station, excused=row.is_excused)


class StepView(BaseModel):
    at: datetime
    what: str = Field(description="a standing, or a status that the station told")
    reason: str

    @classmethod
    def of(cls, row: StepRow) -> StepView:
        return cls.model_validate(row, from_attributes=True)


class AuditView(BaseModel):
    at: datetime
    actor: str
    what: str
    reason: str

    @classmethod
    def of(cls, row: AuditRow) -> AuditView:
        return cls.model_validate(row, from_attributes=True)


def router(campaigns: Campaigns) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["updates"])
    _add_cohorts(routes, campaigns)
    _add_tags(routes, campaigns)
    _add_campaigns(routes, campaigns)
    _add_orders(routes, campaigns)
    _add_devices(routes, campaigns)
    return routes


def _add_cohorts(routes: APIRouter, campaigns: Campaigns) -> None:
    @routes.get("/cohorts", responses=LIST_RESPONSES)
    async def list_cohorts(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.COHORTS))],
        text: Text = None,
    ) -> Page[CohortView]:
        found = await campaigns.list_cohorts(caller, listing.part, text)
        return listing.answer(found, CohortView, CohortView.of)

    @routes.post("/cohorts", status_code=201)
    async def create_cohort(caller: Operator, request: CohortRequest) -> CohortView:
        return CohortView.of(await campaigns.add_cohort(caller, request.name, request.cohort()))

    @routes.get("/cohorts/{cohort}", responses=ETAG_RESPONSES)
    async def read_cohort(caller: Viewer, cohort: CohortPath, tagged: IfNoneMatch) -> CohortView:
        row = await campaigns.cohort(caller, cohort)
        return tagged.answer(CohortView.of(row), version_of(row))

    @routes.patch("/cohorts/{cohort}")
    async def change_cohort(
        caller: Operator, cohort: CohortPath, request: CohortChange, expected: IfMatch
    ) -> CohortView:
        changes = request.model_dump(exclude_unset=True)
        row = await campaigns.change_cohort(caller, cohort, changes, expected)
        return expected.answer(CohortView.of(row), version_of(row))

    @routes.delete("/cohorts/{cohort}", status_code=204)
    async def remove_cohort(caller: Operator, cohort: CohortPath, expected: IfMatch) -> None:
        """Campaigns keep what it was."""
        await campaigns.remove_cohort(caller, cohort, expected)

    @routes.get("/cohorts/{cohort}/members")
    async def read_members(caller: Viewer, cohort: CohortPath) -> MembersView:
        """The stations that are in it now."""
        found = await campaigns.members(caller, cohort)
        shown = [MemberView.of(one) for one in found[:MOST_SHOWN]]
        return MembersView(count=len(found), stations=shown)


def _add_tags(routes: APIRouter, campaigns: Campaigns) -> None:
    @routes.get("/stations/{station}/tags", responses=ETAG_RESPONSES)
    async def read_tags(caller: Viewer, station: StationPath, tagged: IfNoneMatch) -> TagsView:
        tags = await campaigns.tags(caller, station)
        return tagged.answer(TagsView(tags=tags), version_of(tags))

    @routes.put("/stations/{station}/tags")
    async def put_tags(
        caller: Operator, station: StationPath, request: TagsRequest, expected: IfMatch
    ) -> TagsView:
        """Words that cohorts may go by; these replace those that it has."""
        tags = await campaigns.put_tags(caller, station, request.tags, expected)
        return expected.answer(TagsView(tags=tags), version_of(tags))

    @routes.get("/stations/{station}/updates", responses=LIST_RESPONSES)
    async def list_stations_updates(
        caller: Viewer,
        station: StationPath,
        listing: Annotated[Listing, Depends(listing(store.OF_STATION))],
    ) -> Page[DeviceView]:
        """Its part in campaigns, the latest first."""
        found = await campaigns.of_station(caller, station, listing.part)
        return listing.answer(found, DeviceView, DeviceView.of)


def _add_campaigns(routes: APIRouter, campaigns: Campaigns) -> None:
    @routes.get("/campaigns", responses=LIST_RESPONSES)
    async def list_campaigns(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.CAMPAIGNS))],
        stage: Annotated[Stage | None, Query()] = None,
        release: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        text: Text = None,
    ) -> Page[CampaignView]:
        found = await campaigns.list_campaigns(caller, listing.part, stage, release, text)
        return listing.answer(found, CampaignView, CampaignView.of)

    @routes.post("/campaigns", status_code=201)
    async def create_campaign(caller: Operator, request: CampaignRequest) -> CampaignView:
        """A draft; it begins when somebody else approves it."""
        return CampaignView.of(await campaigns.create(caller, request.draft()))

    @routes.get("/campaigns/{campaign}", responses=ETAG_RESPONSES)
    async def read_campaign(
        caller: Viewer, campaign: CampaignPath, tagged: IfNoneMatch
    ) -> CampaignView:
        shown = await campaigns.campaign(caller, campaign)
        view = CampaignView.of(shown)
        return tagged.answer(view, etag_of(shown.row), state_of(view))

    @routes.get("/campaigns/{campaign}/audit", responses=LIST_RESPONSES)
    async def list_audit(
        caller: Viewer,
        campaign: CampaignPath,
        listing: Annotated[Listing, Depends(listing(store.AUDIT))],
    ) -> Page[AuditView]:
        """Who did what to it; `cloud` is what it did by itself."""
        found = await campaigns.audit(caller, campaign, listing.part)
        return listing.answer(found, AuditView, AuditView.of)


def _add_orders(routes: APIRouter, campaigns: Campaigns) -> None:
    def answered(shown: Shown, expected: Guarded) -> CampaignView:
        view = CampaignView.of(shown)
        return expected.answer(view, etag_of(shown.row), state_of(view))

    async def ordered(
        caller: Caller, campaign: int, what: Literal["pause", "resume", "abort"], expected: Any
    ) -> CampaignView:
        return answered(await campaigns.order(caller, campaign, what, expected), expected)

    @routes.post("/campaigns/{campaign}/approval")
    async def approve_campaign(
        caller: Operator, campaign: CampaignPath, expected: IfMatch
    ) -> CampaignView:
        """By somebody else than its author. It begins, with the stations that its cohort has."""
        return answered(await campaigns.approve(caller, campaign, expected), expected)

    @routes.post("/campaigns/{campaign}/pause")
    async def pause_campaign(
        caller: Operator, campaign: CampaignPath, expected: IfMatch
    ) -> CampaignView:
        """Offer it to nobody more; what is under way goes on."""
        return await ordered(caller, campaign, "pause", expected)

    @routes.post("/campaigns/{campaign}/resumption")
    async def resume_campaign(
        caller: Operator, campaign: CampaignPath, expected: IfMatch
    ) -> CampaignView:
        """Go on; after a halt the failures so far are taken into the bargain."""
        return await ordered(caller, campaign, "resume", expected)

    @routes.post("/campaigns/{campaign}/abort")
    async def abort_campaign(
        caller: Operator, campaign: CampaignPath, expected: IfMatch
    ) -> CampaignView:
        """For good: what has not come to an end is withdrawn, and stops where it safely can."""
        return await ordered(caller, campaign, "abort", expected)


def _add_devices(routes: APIRouter, campaigns: Campaigns) -> None:
    @routes.get("/campaigns/{campaign}/devices", responses=LIST_RESPONSES)
    async def list_devices(
        caller: Viewer,
        campaign: CampaignPath,
        listing: Annotated[Listing, Depends(listing(store.DEVICES))],
        standing: Annotated[Standing | None, Query()] = None,
        wave: Annotated[int | None, Query(ge=1, le=MOST_WAVES + 1)] = None,
        word: Annotated[str | None, Query(max_length=50, description="told last")] = None,
    ) -> Page[DeviceView]:
        found = await campaigns.devices(caller, campaign, listing.part, standing, wave, word)
        return listing.answer(found, DeviceView, DeviceView.of)

    @routes.get("/campaigns/{campaign}/devices/{station}/history", responses=LIST_RESPONSES)
    async def list_history(
        caller: Viewer,
        campaign: CampaignPath,
        station: StationPath,
        listing: Annotated[Listing, Depends(listing(store.STEPS))],
    ) -> Page[StepView]:
        """What a device went through, from the beginning."""
        found = await campaigns.history(caller, campaign, station, listing.part)
        return listing.answer(found, StepView, StepView.of)
