"""Sites and stations: making, finding, joining, commanding them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cloud.communication.api import Credential, Known, Presence, Resident
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import KarvonError, Unauthorized, Unavailable
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.http import Caller
from cloud.kernel.limiter import Limiter
from cloud.kernel.paging import Cut, Part
from cloud.stations import imports, registration, store
from cloud.stations.api import (
    ClaimRefused,
    EvseNotFound,
    SiteExists,
    SiteInUse,
    SiteNotFound,
    StationExists,
    StationNotFound,
    StationRef,
    TooManyClaims,
)
from cloud.stations.imports import Entry
from cloud.stations.ports import AgentEndpoint, Link
from cloud.stations.registration import ClaimCode, Policy, Standing, Verdict
from cloud.stations.store import (
    Connector,
    Evse,
    EvseState,
    Filters,
    Hardware,
    Site,
    Station,
    StationState,
)
from cloud.stations.tenancy_store import keys_of, owner_held, stations_at
from protocols.agent_link import Action, Hello

CLAIM_VALID = timedelta(days=30)
COMMAND_VALID = timedelta(minutes=2)
MOST_PENDING = 1000


@dataclass(frozen=True)
class Settings:
    policy: Policy
    endpoint: AgentEndpoint
    tenant: TenantId
    """Whose stations they become that nobody has announced."""


@dataclass(frozen=True)
class StationDetail:
    station: Station
    presence: Presence | None
    evses: list[Evse] = field(default_factory=list)
    states: dict[int, EvseState] = field(default_factory=dict)
    agent: StationState | None = None
    hardware: Hardware | None = None


@dataclass(frozen=True)
class EvseDetail:
    """One EVSE of a station."""

    of: StationDetail
    evse: Evse


@dataclass(frozen=True)
class NewStation:
    detail: StationDetail
    code: str
    expires_at: datetime


@dataclass(frozen=True)
class Admitted:
    identity: str
    credential: Credential
    endpoint: AgentEndpoint
    key: int
    tenant: TenantId
    certificate: str | None = None
    """For the key of its signing request (PEM, with the chain)."""


@dataclass(frozen=True)
class Waiting:
    identity: str
    code: str | None
    """The code to come back with; told once."""


class Stations:
    """Implements StationFinder and communication's directory."""

    def __init__(
        self,
        database: Database,
        link: Link,
        settings: Settings,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = self.database = database
        self._link = link
        self._settings = settings
        self._clock = clock
        self._limiter = Limiter(burst=20, every=timedelta(seconds=3))

    # ------------------------------------------------------------------ for neighbours

    async def find(self, cursor: Cursor, identity: str) -> StationRef:
        """Raises StationNotFound."""
        station = await self._station(cursor, identity)
        return StationRef(station.id, station.tenant_id, station.identity)

    async def resolve(self, cursor: Cursor, identity: str, *, hold: bool = False) -> Known | None:
        """Who speaks under that identity; None when nobody may."""
        station = await (owner_held if hold else store.station)(cursor, identity)
        return None if station is None else Known(station.id, station.tenant_id)

    async def key_of(self, cursor: Cursor, identity: str) -> int:
        """Raises StationNotFound."""
        return (await self.find(cursor, identity)).id

    async def keys_ever(self, cursor: Cursor, identity: str) -> list[int]:
        """Also of stations that were the tenant's once. Raises StationNotFound."""
        return await keys_of(cursor, identity) or [await self.key_of(cursor, identity)]

    async def at_site(self, cursor: Cursor, site_id: int) -> list[int]:
        """Keys of the stations there now. Raises SiteNotFound."""
        await self._site(cursor, site_id)
        return await stations_at(cursor, site_id)

    async def identities(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        """Wire identities by key; those that are not there are left out."""
        return await store.identities(cursor, stations)

    async def residents(self, cursor: Cursor, identities: Collection[str]) -> dict[str, Resident]:
        """How the stations of these identities stand in the register."""
        return await store.residents(cursor, identities)

    async def connectors_of(self, cursor: Cursor, station_id: int) -> list[tuple[int, int]]:
        """Each EVSE and connector that the station has told of, in order."""
        return [
            (evse.evse, connector)
            for evse in await store.evses(cursor, [station_id])
            if evse.gone_at is None and evse.evse > 0
            for connector in evse.connectors
        ]

    async def enter_unannounced(
        self, cursor: Cursor, identities: Collection[str]
    ) -> dict[str, Resident]:
        """Those that came over OCPP unheard of, as the policy says; as many as the list takes."""
        policy, wanted = self._settings.policy, sorted(identities)
        if policy is Policy.PENDING:
            wanted = wanted[: max(0, MOST_PENDING - await store.count_pending(cursor))]
        standing = Standing.PENDING if policy is Policy.PENDING else Standing.EXPECTED
        await store.enlist(cursor, self._settings.tenant, wanted, standing, self._clock())
        return await store.residents(cursor, wanted)

    async def evse(self, cursor: Cursor, station: StationRef, evse: int) -> None:
        """Raises EvseNotFound when the station has told its EVSEs and this is none of them."""
        described = await store.evses(cursor, [station.id])
        told = [known.evse for known in described if known.gone_at is None]
        if described and evse not in told:
            raise EvseNotFound(
                f"station {station.identity!r} has no EVSE {evse}; it has {told}",
                station=station.identity,
                evse=evse,
            )

    async def hello(self, cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello) -> None:
        """Take over what a greeting says of the station's EVSEs."""
        await store.describe_evses(cursor, tenant, station_id, hello.evses, self._clock())

    async def _station(self, cursor: Cursor, identity: str, *, lock: bool = False) -> Station:
        station = await store.station(cursor, identity, lock=lock)
        if station is None:
            raise StationNotFound(
                f"there is no station {identity!r}; create it or check the spelling",
                station=identity,
            )
        return station

    # ------------------------------------------------------------------ sites

    async def create_site(self, caller: Caller, fields: dict[str, Any]) -> Site:
        async with self._database.unit(caller.tenant_id) as cursor:
            site = await store.add_site(cursor, caller.tenant_id, fields, self._clock())
        if site is None:
            raise _site_exists(fields["name"])
        return site

    async def site(self, caller: Caller, site_id: int) -> Site:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._site(cursor, site_id)

    async def _site(self, cursor: Cursor, site_id: int, *, lock: bool = False) -> Site:
        site = await store.site(cursor, site_id, lock=lock)
        if site is None:
            raise SiteNotFound(f"there is no site {site_id}; list the sites first", site=site_id)
        return site

    async def list_sites(self, caller: Caller, part: Part, text: str | None) -> Cut[Site]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.sites(cursor, part, text)

    async def change_site(
        self, caller: Caller, site_id: int, changes: dict[str, Any], expected: Expected
    ) -> Site:
        """Raises SiteNotFound, SiteExists, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._site(cursor, site_id, lock=True)))
            changed = await store.change_site(cursor, site_id, changes)
            if changed is None:
                raise _site_exists(changes["name"])
        return changed

    async def delete_site(self, caller: Caller, site_id: int, expected: Expected) -> None:
        """Raises SiteNotFound, SiteInUse, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._site(cursor, site_id, lock=True)))
            if not await store.delete_site(cursor, site_id):
                raise SiteInUse(
                    f"stations belong to site {site_id}; move or delete them first", site=site_id
                )

    # ------------------------------------------------------------------ stations

    async def create_station(
        self, caller: Caller, identity: str, name: str, site_id: int | None
    ) -> NewStation:
        """A station that is expected, and the code it may claim its credentials with, once."""
        async with self._database.unit(caller.tenant_id) as cursor:
            if site_id is not None:
                await self._site(cursor, site_id)
            station = await store.add_station(
                cursor,
                caller.tenant_id,
                identity,
                name=name,
                site_id=site_id,
                registration=Standing.EXPECTED,
                now=self._clock(),
            )
            if station is None:
                raise StationExists(
                    f"the identity {identity!r} is taken; choose another, or make a new claim"
                    " code for the existing station",
                    station=identity,
                )
            return await self._new_code(cursor, station)

    async def _new_code(self, cursor: Cursor, station: Station) -> NewStation:
        code, now = registration.new_code(), self._clock()
        claim = ClaimCode(registration.digest(code), now + CLAIM_VALID)
        await store.set_claim(cursor, station.tenant_id, station.id, claim, now)
        detail = (await self._details(cursor, [station]))[0]
        return NewStation(detail, code, claim.expires_at)

    async def new_claim_code(self, caller: Caller, identity: str) -> NewStation:
        """Another code for the station; its credentials change when the code is used."""
        async with self._database.unit(caller.tenant_id) as cursor:
            return await self._new_code(cursor, await self._station(cursor, identity))

    async def detail(self, caller: Caller, identity: str) -> StationDetail:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._station(cursor, identity)
            return (await self._details(cursor, [station]))[0]

    async def list_stations(
        self,
        caller: Caller,
        part: Part,
        filters: Filters,
    ) -> Cut[StationDetail]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            found = await store.stations(cursor, part, filters)
            return Cut(await self._details(cursor, found.rows), found.next)

    async def list_evses(
        self,
        caller: Caller,
        part: Part,
        *,
        identity: str | None = None,
        site: int | None = None,
        status: str | None = None,
        gone: bool | None = None,
    ) -> Cut[EvseDetail]:
        """EVSEs of the fleet, a site or a station. Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = None if identity is None else await self._station(cursor, identity)
            found = await store.fleet_evses(
                cursor,
                part,
                station_id=station.id if station else None,
                site=site,
                status=status,
                gone=gone,
            )
            ids = sorted({evse.station_id for evse in found.rows})
            details = {
                detail.station.id: detail
                for detail in await self._details(cursor, await store.stations_by_id(cursor, ids))
            }
            return Cut(
                [EvseDetail(details[evse.station_id], evse) for evse in found.rows], found.next
            )

    async def evse_detail(self, caller: Caller, identity: str, evse: int) -> EvseDetail:
        """Raises StationNotFound and EvseNotFound."""
        detail = await self.detail(caller, identity)
        for known in detail.evses:
            if known.evse == evse:
                return EvseDetail(detail, known)
        raise _no_evse(identity, evse)

    async def _details(self, cursor: Cursor, stations: Sequence[Station]) -> list[StationDetail]:
        ids = [station.id for station in stations]
        presence = await self._link.presence(cursor, ids)
        evses: dict[int, list[Evse]] = defaultdict(list)
        for evse in await store.evses(cursor, ids):
            evses[evse.station_id].append(evse)
        states: dict[int, dict[int, EvseState]] = defaultdict(dict)
        for state in await store.evse_states(cursor, ids):
            states[state.station_id][state.evse] = state
        agents = {state.station_id: state for state in await store.station_states(cursor, ids)}
        hardware = {one.station_id: one for one in await store.hardware(cursor, ids)}
        return [
            StationDetail(
                station,
                presence.get(station.id, None),
                evses[station.id],
                states[station.id],
                agents.get(station.id),
                hardware.get(station.id),
            )
            for station in stations
        ]

    async def list_connectors(
        self, caller: Caller, part: Part, identity: str, evse: int
    ) -> Cut[Connector]:
        """Raises StationNotFound and EvseNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._station(cursor, identity)
            if evse not in {known.evse for known in await store.evses(cursor, [station.id])}:
                raise _no_evse(identity, evse)
            return await store.connectors(cursor, part, station.id, evse)

    async def enter(
        self, cursor: Cursor, tenant: TenantId, entries: Sequence[Entry]
    ) -> tuple[list[imports.Verdict], datetime]:
        """Create and change many stations; also says how long the new claim codes hold."""
        now = self._clock()
        until = now + CLAIM_VALID
        return await imports.enter(cursor, tenant, entries, now, until), until

    async def change_station(
        self, caller: Caller, identity: str, changes: dict[str, Any], expected: Expected
    ) -> StationDetail:
        """Change name or site_id. Raises StationNotFound, SiteNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._station(cursor, identity, lock=True)
            expected.check(version_of(station))
            if changes.get("site_id") is not None:
                await self._site(cursor, changes["site_id"])
            changed = await store.change_station(cursor, station.id, changes, self._clock())
            return (await self._details(cursor, [changed]))[0]

    async def delete_station(self, caller: Caller, identity: str, expected: Expected) -> None:
        """Take a station out of the fleet: its credential is void, its history stays.

        Raises StationNotFound and Stale.
        """
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._station(cursor, identity, lock=True)
            expected.check(version_of(station))
            await self._link.forget(cursor, station.id)
            await store.delete_station(cursor, station, self._clock(), caller.subject)
        await self._link.publish_credentials()

    async def command(self, caller: Caller, identity: str, evse: int, action: Action) -> UUID:
        """Queue a command for an EVSE (0: the whole station); returns its id."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self.find(cursor, identity)
            if evse:
                await self.evse(cursor, station, evse)
            return await self._link.send(
                cursor, caller.tenant_id, station.id, action, COMMAND_VALID, caller.subject
            )

    # ------------------------------------------------------------------ joining

    async def claim(
        self, asker: str, identity: str, code: str | None, csr: str | None = None
    ) -> Admitted | Waiting:
        """Let a station in, or put it on the list; with `csr` it gets a certificate, too.

        Raises ClaimRefused, TooManyClaims and, before the code is used, CertificateRefused.
        """
        now = self._clock()
        self.slow_down(asker)
        key = None if csr is None else self._link.key_digest(csr, identity)
        async with self._database.commit_unit() as cursor:
            outcome = await self._claim(cursor, identity, code, now, key)
        if isinstance(outcome, KarvonError):
            raise outcome
        if isinstance(outcome, Admitted):
            await self._link.publish_credentials()
            if csr is not None:
                signed = await self._link.certificate(outcome.tenant, outcome.key, identity, csr)
                return replace(outcome, certificate=signed)
        return outcome

    def slow_down(self, asker: str) -> None:
        """Nobody guesses fast. Raises TooManyClaims."""
        if not self._limiter.allow(asker, self._clock()):
            raise TooManyClaims("too many claims from this address; try again in a minute")

    async def _claim(
        self,
        cursor: Cursor,
        identity: str,
        code: str | None,
        now: datetime,
        key: bytes | None,
    ) -> Admitted | Waiting | KarvonError:
        station = await store.station(cursor, identity, lock=True)
        held = await store.claim(cursor, station.id) if station else None
        standing = Standing(station.registration) if station else None
        verdict = registration.judge(self._settings.policy, standing, held, code, now, key)
        if verdict is Verdict.CREATE:
            return await self._admit(cursor, await self._unannounced(cursor, identity, now), None)
        if verdict is Verdict.ENLIST:
            return await self._enlist(cursor, identity, now)
        if verdict is Verdict.LET_IN and station is not None:
            used = None if held is None or key is None else replace(held, used_by=key)
            return await self._admit(cursor, station, used)
        if verdict is Verdict.WAIT:
            return Waiting(identity, None)
        return _refusal(verdict, identity)

    async def _unannounced(self, cursor: Cursor, identity: str, now: datetime) -> Station:
        policy = self._settings.policy
        standing = Standing.PENDING if policy is Policy.PENDING else Standing.EXPECTED
        made = await store.add_station(
            cursor,
            self._settings.tenant,
            identity,
            name="",
            site_id=None,
            registration=standing,
            now=now,
        )
        if made is None:
            raise TooManyClaims(f"two claims for {identity!r} at one moment; try again")
        return made

    async def _admit(self, cursor: Cursor, station: Station, used: ClaimCode | None) -> Admitted:
        now, tenant = self._clock(), station.tenant_id
        credential = await self._link.issue(cursor, tenant, station.id, station.identity)
        await store.use_claim(cursor, tenant, station.id, used, now + registration.REPEAT)
        await store.set_registration(cursor, station.id, Standing.REGISTERED, now, now)
        return Admitted(station.identity, credential, self._settings.endpoint, station.id, tenant)

    # ------------------------------------------------------------------ for itself

    async def renew(self, username: str, password: str, csr: str) -> str:
        """A new certificate for the controller that logs in so.

        Raises Unauthorized, CertificateRefused, and Unavailable without an authority.
        """
        async with self._database.commit_unit() as cursor:
            station = await self._itself(cursor, username, password)
        signed = await self._link.certificate(station.tenant_id, station.id, station.identity, csr)
        if signed is None:
            raise Unavailable("this cloud holds no authority that could sign certificates")
        return signed

    async def retire(self, username: str, password: str) -> str:
        """The controller takes its own station out of the fleet, as `delete_station` does.

        Returns the station's identity. Raises Unauthorized.
        """
        async with self._database.commit_unit() as cursor:
            station = await self._itself(cursor, username, password)
            await self._link.forget(cursor, station.id)
            await store.delete_station(cursor, station, self._clock(), "station")
        await self._link.publish_credentials()
        return station.identity

    async def _itself(self, cursor: Cursor, username: str, password: str) -> Station:
        owner = await self._link.owner(cursor, username, password)
        found = [] if owner is None else await store.stations_by_id(cursor, [owner.id])
        held = await store.station(cursor, found[0].identity, lock=True) if found else None
        if held is None:
            raise Unauthorized("no station has this name and password; was it retired already?")
        return held

    async def _enlist(self, cursor: Cursor, identity: str, now: datetime) -> Waiting | KarvonError:
        if await store.count_pending(cursor) >= MOST_PENDING:
            return TooManyClaims(
                f"{MOST_PENDING} stations wait for approval; approve or reject some first"
            )
        made = await self._new_code(cursor, await self._unannounced(cursor, identity, now))
        return Waiting(identity, made.code)

    async def approve(self, caller: Caller, identity: str) -> StationDetail:
        """Let a waiting station in when it comes back with the code it was told."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._pending(cursor, identity)
            now = self._clock()
            await store.set_registration(cursor, station.id, Standing.EXPECTED, None, now)
            await store.extend_claim(cursor, station.id, now + CLAIM_VALID)
            return (await self._details(cursor, [await self._station(cursor, identity)]))[0]

    async def reject(self, caller: Caller, identity: str) -> None:
        """Forget a waiting station; it may ask again."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._pending(cursor, identity)
            await self._link.forget(cursor, station.id)  # it may wait on an OCPP connection
            await store.forget_pending(cursor, station.id)

    async def _pending(self, cursor: Cursor, identity: str) -> Station:
        station = await self._station(cursor, identity, lock=True)
        if station.registration != Standing.PENDING:
            raise StationNotFound(
                f"station {identity!r} does not wait for approval", station=identity
            )
        return station


def _no_evse(identity: str, evse: int) -> EvseNotFound:
    detail = f"station {identity!r} has told of no EVSE {evse}; list its EVSEs first"
    return EvseNotFound(detail, station=identity, evse=evse)


def _site_exists(name: str) -> SiteExists:
    return SiteExists(f"a site named {name!r} exists; choose another name", name=name)


_REFUSALS = {
    Verdict.UNKNOWN: "station {!r} is not known here; an operator must create it first, which"
    " gives the code to claim it with",
    Verdict.WRONG_CODE: "the claim code for station {!r} is missing, wrong or used up; an operator"
    " can make a new one for it",
    Verdict.EXPIRED: "the claim code for station {!r} has expired; an operator can make a new one",
}


def _refusal(verdict: Verdict, identity: str) -> ClaimRefused:
    return ClaimRefused(_REFUSALS[verdict].format(identity), station=identity, why=str(verdict))
