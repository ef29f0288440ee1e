"""Campaigns and cohorts: made by one person, approved by another, then planned by themselves."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4, uuid5

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.ota import campaign_store as store
from cloud.ota import cohorts, releases
from cloud.ota import store as release_store
from cloud.ota.api import (
    CampaignNotFound,
    CampaignStage,
    CohortExists,
    CohortNotFound,
    DeviceNotFound,
    NobodyMeant,
    OwnCampaign,
    ReleaseUnusable,
)
from cloud.ota.campaign_store import (
    AuditRow,
    CampaignRow,
    CohortRow,
    DeviceRow,
    NewDevice,
    StepRow,
)
from cloud.ota.cohorts import Candidate, Cohort
from cloud.ota.planner import AGENT, Surroundings, turn
from cloud.ota.rollout import Abort, Event, Pause, Proof, Resume, Stage, Standing
from cloud.ota.store import ReleaseRow, TargetRow
from cloud.stations.api import FleetStation, StationFinder, fleet
from protocols.release import Encoding, Kind

logger = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 5.0
ORDERS: Final[dict[str, Event]] = {"pause": Pause(), "resume": Resume(), "abort": Abort()}


@dataclass(frozen=True)
class Draft:
    """A campaign as it is entered."""

    name: str
    release: int
    cohort: int
    terms: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A campaign with its release."""

    row: CampaignRow
    release: ReleaseRow


@dataclass(frozen=True)
class Named:
    """A device with its station's identity; empty: it is not the tenant's any more."""

    row: DeviceRow
    station: str


@dataclass(frozen=True)
class Taker:
    """A station that can take a release, and how."""

    station: Candidate
    link: str
    path: str
    """The image that it is directed to."""


class Campaigns:
    def __init__(
        self,
        database: Database,
        stations: StationFinder,
        around: Surroundings,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._stations = stations
        self._around = around
        self._clock = clock
        self._wake = asyncio.Event()

    # ------------------------------------------------------------------ cohorts

    async def list_cohorts(self, caller: Caller, part: Part, text: str | None) -> Cut[CohortRow]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.cohorts(cursor, part, text)

    async def cohort(self, caller: Caller, cohort_id: int) -> CohortRow:
        """Raises CohortNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await _cohort(cursor, cohort_id)

    async def add_cohort(self, caller: Caller, name: str, narrowed: Cohort) -> CohortRow:
        """Raises CohortExists."""
        async with self._database.unit(caller.tenant_id) as cursor:
            made = await store.add_cohort(
                cursor, caller.tenant_id, name, asdict(narrowed), self._clock()
            )
            if made is None:
                raise _taken(name)
            return made

    async def change_cohort(
        self, caller: Caller, cohort_id: int, changes: dict[str, Any], expected: Expected
    ) -> CohortRow:
        """For campaigns that are made from then on. Raises CohortNotFound, CohortExists, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await _cohort(cursor, cohort_id, lock=True)
            expected.check(version_of(held))
            name = changes.pop("name", None) or held.name
            changed = await store.change_cohort(
                cursor, cohort_id, name, {**held.narrowed, **changes}, self._clock()
            )
            if changed is None:
                raise _taken(name)
            return changed

    async def remove_cohort(self, caller: Caller, cohort_id: int, expected: Expected) -> None:
        """Campaigns keep what it was. Raises CohortNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await _cohort(cursor, cohort_id, lock=True)))
            await store.remove_cohort(cursor, cohort_id)

    async def members(self, caller: Caller, cohort_id: int) -> list[Candidate]:
        """Who is in it now. Raises CohortNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            narrowed = _narrowed((await _cohort(cursor, cohort_id)).narrowed)
            return [one for one, _ in await self._members(cursor, narrowed)]

    async def _members(self, cursor: Cursor, narrowed: Cohort) -> list[tuple[Candidate, str]]:
        """Each with its link; empty: never connected."""
        found = await fleet(cursor)
        keys = [one.id for one in found]
        links = await self._around.link.links(cursor, keys)
        tags = await release_store.tags(cursor, keys)
        candidates = (
            (_candidate(one, links.get(one.id, ""), tags.get(one.id, ())), links.get(one.id, ""))
            for one in found
        )
        return [(one, link) for one, link in candidates if narrowed.holds(one)]

    # ------------------------------------------------------------------ tags

    async def tags(self, caller: Caller, identity: str) -> list[str]:
        """Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = (await self._stations.find(cursor, identity)).id
            return (await release_store.tags(cursor, [key])).get(key, [])

    async def put_tags(
        self, caller: Caller, identity: str, names: Sequence[str], expected: Expected
    ) -> list[str]:
        """Raises StationNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            key = (await self._stations.find(cursor, identity)).id
            held = (await release_store.tags(cursor, [key])).get(key, [])
            expected.check(version_of(held))
            await release_store.put_tags(cursor, caller.tenant_id, key, set(names))
            return sorted(set(names))

    # ------------------------------------------------------------------ campaigns

    async def list_campaigns(
        self, caller: Caller, part: Part, stage: str | None, release: int | None, text: str | None
    ) -> Cut[Shown]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            cut = await store.campaigns(cursor, part, stage, release, text)
            return Cut(await self._shown(cursor, cut.rows), cut.next)

    async def campaign(self, caller: Caller, campaign_id: int) -> Shown:
        """Raises CampaignNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return (await self._shown(cursor, [await _campaign(cursor, campaign_id)]))[0]

    async def _shown(self, cursor: Cursor, rows: Sequence[CampaignRow]) -> list[Shown]:
        found = await release_store.releases_by(cursor, {row.release_id for row in rows})
        by_id = {one.id: one for one in found}
        return [Shown(row, by_id[row.release_id]) for row in rows]

    async def create(self, caller: Caller, draft: Draft) -> Shown:
        """Raises ReleaseNotFound, ReleaseUnusable, CohortNotFound."""
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            release = await self._usable(cursor, draft.release)
            cohort = await _cohort(cursor, draft.cohort)
            made = await store.add_campaign(
                cursor,
                caller.tenant_id,
                uuid4(),
                draft.name,
                release.id,
                cohort,
                draft.terms,
                caller.subject,
                now,
            )
            await store.add_audit(
                cursor, caller.tenant_id, made.id, caller.subject, "created", "", now
            )
            return Shown(made, release)

    async def _usable(self, cursor: Cursor, release_id: int) -> ReleaseRow:
        release = await releases.find(cursor, release_id)
        if release.revoked_at is not None:
            raise ReleaseUnusable(
                f"release {release_id} was revoked: the newest metadata names it no more",
                release=release_id,
            )
        return release

    async def approve(self, caller: Caller, campaign_id: int, expected: Expected) -> Shown:
        """Let it begin, with the stations that its cohort has now.

        Raises CampaignNotFound, CampaignStage, OwnCampaign, NobodyMeant, ReleaseUnusable, Stale.
        """
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            row = await _campaign(cursor, campaign_id, lock=True)
            expected.check(etag_of(row))
            if row.stage != Stage.DRAFT:
                raise _at_stage(row, "approved")
            if row.author == caller.subject:
                raise OwnCampaign(
                    "a campaign is approved by somebody else than its author; ask a colleague",
                    author=row.author,
                )
            release = await self._usable(cursor, row.release_id)
            await self._enlist(cursor, row, release, now)
            await store.approve(cursor, campaign_id, caller.subject, now)
            await store.add_audit(
                cursor, caller.tenant_id, campaign_id, caller.subject, "approved", "", now
            )
            row = await _campaign(cursor, campaign_id)
            await turn(cursor, row, release.version, [], self._around, now)
            return Shown(await _campaign(cursor, campaign_id), release)

    async def _enlist(
        self, cursor: Cursor, row: CampaignRow, release: ReleaseRow, now: datetime
    ) -> None:
        targets = [
            one for one in await release_store.targets(cursor, [release.id]) if one.is_current
        ]
        members = await self._members(cursor, _narrowed(row.narrowed))
        takers = {
            one.station.station_id: one
            for station, link in members
            if (one := taker(station, link, release, targets)) is not None
        }
        if not takers:
            raise NobodyMeant(
                f"none of the {len(members)} stations of this cohort can take release"
                f" {release.version}: agents take the image for a hardware id that they have told,"
                " or are tagged with; stations that speak OCPP a board's raw image for their model",
                members=len(members),
            )
        placed = cohorts.waves(
            str(row.key), (one.station for one in takers.values()), row.terms["waves"]
        )
        new = [
            _device(row, release, takers[station.station_id], place, wave)
            for place, (station, wave) in enumerate(placed)
        ]
        await store.add_devices(cursor, TenantId(row.tenant_id), row.id, new, now)

    async def order(self, caller: Caller, campaign_id: int, what: str, expected: Expected) -> Shown:
        """`pause`, `resume` or `abort`. Raises CampaignNotFound, CampaignStage, Stale."""
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            row = await _campaign(cursor, campaign_id, lock=True)
            expected.check(etag_of(row))
            release = await releases.find(cursor, row.release_id)
            if row.stage == Stage.DRAFT and what == "abort":
                await self._discard(cursor, caller, row, now)
            elif row.stage not in _ALLOWED[what]:
                raise _at_stage(row, what)
            else:
                order = (caller.subject, ORDERS[what])
                await turn(cursor, row, release.version, [order], self._around, now)
            return Shown(await _campaign(cursor, campaign_id), release)

    async def _discard(
        self, cursor: Cursor, caller: Caller, row: CampaignRow, now: datetime
    ) -> None:
        await store.put_stage(cursor, row.id, Stage.ABORTED, "", 0, [], now)
        await store.add_audit(
            cursor, caller.tenant_id, row.id, caller.subject, Stage.ABORTED, "", now
        )

    async def audit(self, caller: Caller, campaign_id: int, part: Part) -> Cut[AuditRow]:
        """Who did what. Raises CampaignNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            await _campaign(cursor, campaign_id)
            return await store.audit(cursor, part, campaign_id)

    async def devices(
        self,
        caller: Caller,
        campaign_id: int,
        part: Part,
        standing: str | None,
        wave: int | None,
        word: str | None,
    ) -> Cut[Named]:
        """Raises CampaignNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            await _campaign(cursor, campaign_id)
            wave = None if wave is None else wave - 1
            cut = await store.list_devices(cursor, part, campaign_id, standing, wave, word)
            return Cut(await self._named(cursor, cut.rows), cut.next)

    async def of_station(self, caller: Caller, identity: str, part: Part) -> Cut[Named]:
        """A station's part in campaigns, the latest first. Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            cut = await store.of_station(cursor, part, station.id)
            return Cut(await self._named(cursor, cut.rows), cut.next)

    async def _named(self, cursor: Cursor, rows: Sequence[DeviceRow]) -> list[Named]:
        names = await self._stations.identities(cursor, {row.station_id for row in rows})
        return [Named(row, names.get(row.station_id, "")) for row in rows]

    async def history(
        self, caller: Caller, campaign_id: int, identity: str, part: Part
    ) -> Cut[StepRow]:
        """What a device went through. Raises StationNotFound, DeviceNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            if await store.device(cursor, campaign_id, station.id) is None:
                raise DeviceNotFound(
                    f"campaign {campaign_id} has no station {identity!r}", station=identity
                )
            return await store.steps(cursor, part, campaign_id, station.id)

    async def offered_file(self, token: str) -> str | None:
        """What may be fetched with it now."""
        async with self._database.glance() as cursor:
            return await store.offered_file(cursor, token)

    # ------------------------------------------------------------------ by itself

    async def run(self) -> None:
        """Plan whatever has something to plan, for ever."""
        listening = asyncio.create_task(
            self._database.wake_on(store.CHANNEL, self._wake), name="listen for updates"
        )
        try:
            while True:
                try:
                    await self.plan()
                except Unavailable as error:
                    logger.warning("campaigns wait: %s", error)
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def plan(self) -> int:
        """One turn of every campaign that needs one; returns how many had it."""
        async with self._database.glance() as cursor:
            due = await store.to_plan(cursor, self._clock())
        planned = 0
        for campaign_id in due:
            async with self._database.commit_unit() as cursor:
                row = await store.campaign_alone(cursor, campaign_id)
                if row is None:
                    continue
                release = await releases.find(cursor, row.release_id)
                await turn(cursor, row, release.version, [], self._around, self._clock())
                planned += 1
        return planned


def etag_of(row: CampaignRow) -> str:
    """The version of what people change; counts and waves go on by themselves."""
    return version_of(row.id, row.name, row.stage, row.approved_by)


_ALLOWED: Final = {
    "pause": {Stage.RUNNING},
    "resume": {Stage.PAUSED, Stage.HALTED},
    "abort": {Stage.RUNNING, Stage.PAUSED, Stage.HALTED},
}


class UpdateHandover:
    """A station's part in campaigns ends with its tenant; the history stays."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        reason = "it moved to another tenant"
        await store.leave(cursor, move.station_id, reason, self._clock(), move.new)


async def forget_station(cursor: Cursor, station_id: int, now: datetime) -> None:
    """The same for one that is deleted."""
    await store.leave(cursor, station_id, "it was deleted", now)


def taker(
    station: Candidate, link: str, release: ReleaseRow, targets: Sequence[TargetRow]
) -> Taker | None:
    """How the station takes the release; None: it cannot, or never connected.

    A station is directed to one whole image: an agent finds the deltas to it by itself. Where an
    agent has not told its hardware and a release has images for several, a tag says which is its.
    """
    whole = [one for one in targets if one.custom["encoding"] != Encoding.ZSTD_DELTA]
    if link == AGENT:
        known = station.hardware or station.tags
        fitting = [one for one in whole if not known.isdisjoint(one.custom["hw_ids"])]
        chosen = whole if len(whole) == 1 and not station.hardware else fitting
    else:
        plain = release.kind == Kind.BOARD and link
        raw = [one for one in whole if one.custom["encoding"] == Encoding.RAW]
        chosen = [one for one in raw if plain and set(station.models) & set(one.custom["hw_ids"])]
    return Taker(station, link, chosen[0].path) if chosen else None


def _device(
    row: CampaignRow, release: ReleaseRow, taken: Taker, place: int, wave: int
) -> NewDevice:
    station = taken.station
    proof = _PROOF[Kind(release.kind)] if taken.link == AGENT else Proof.VERSION
    is_there = proof is not Proof.REPORT and station.version == release.version
    return NewDevice(
        station_id=station.station_id,
        component=release.component if taken.link == AGENT else f"{Kind.BOARD}/ocpp",
        link=taken.link,
        place=place,
        wave=wave,
        proof=proof,
        standing=Standing.SKIPPED if is_there else Standing.WAITING,
        request=uuid5(row.key, str(station.station_id)),
        running=station.version,
        reason="it ran this version already" if is_there else "",
        token=secrets.token_urlsafe(24),
        path=taken.path,
    )


_PROOF: Final = {
    Kind.AGENT: Proof.REPORT_AND_VERSION,
    Kind.BOARD: Proof.REPORT,  # the agent says so after its handshake with the board
    Kind.SETTINGS: Proof.REPORT,
}


def _candidate(one: FleetStation, link: str, tags: Sequence[str]) -> Candidate:
    is_agent = link in {AGENT, ""}
    return Candidate(
        one.id,
        one.identity,
        one.site_id,
        tuple(one.boards.values()) if is_agent else (one.model,),
        one.agent_version if is_agent else one.firmware,
        frozenset(tags),
        frozenset(one.hardware),
    )


def _narrowed(told: dict[str, Any]) -> Cohort:
    lists = {name: tuple(value) for name, value in told.items() if isinstance(value, list)}
    return Cohort(**{**told, **lists})


async def _cohort(cursor: Cursor, cohort_id: int, *, lock: bool = False) -> CohortRow:
    found = await store.cohort(cursor, cohort_id, lock=lock)
    if found is None:
        raise CohortNotFound(
            f"there is no cohort {cohort_id}; list the cohorts first", cohort=cohort_id
        )
    return found


async def _campaign(cursor: Cursor, campaign_id: int, *, lock: bool = False) -> CampaignRow:
    found = await store.campaign(cursor, campaign_id, lock=lock)
    if found is None:
        raise CampaignNotFound(
            f"there is no campaign {campaign_id}; list the campaigns first", campaign=campaign_id
        )
    return found


def _taken(name: str) -> CohortExists:
    return CohortExists(f"a cohort {name!r} exists; choose another name", name=name)


def _at_stage(row: CampaignRow, what: str) -> CampaignStage:
    return CampaignStage(
        f"campaign {row.id} is {row.stage}; that cannot be done now: {what}",
        campaign=row.id,
        stage=row.stage,
    )
