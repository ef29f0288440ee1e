"""A station moves to another tenant: everything at once, in one database transaction.

What goes along and what stays is told in docs/decisions/0010.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloud.kernel import events
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.events import Event
from cloud.kernel.handover import Follower, Move, hand_over
from cloud.stations import tenancy_store as store
from cloud.stations.api import SiteNotFound, StationNotFound
from cloud.stations.tenancy_store import Owned


@dataclass(frozen=True)
class Moved:
    """What a move did; `changed` is false when the station was there already."""

    station: str
    old: TenantId
    new: TenantId
    changed: bool


class Tenancy:
    def __init__(
        self, database: Database, followers: Sequence[Follower], clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._followers = followers
        self._clock = clock

    async def move(self, identity: str, tenant: TenantId, site: str | None = None) -> Moved:
        """Give the station to the tenant, there into the site of that name or into none.

        Raises StationNotFound and SiteNotFound.
        """
        async with self._database.commit_unit() as cursor:
            station = await store.take(cursor, identity)
            if station is None:
                raise StationNotFound(
                    f"there is no station {identity!r}; check the spelling", station=identity
                )
            if station.tenant_id == tenant:
                return Moved(identity, tenant, tenant, changed=False)
            place = None if site is None else await self._site(cursor, tenant, site)
            await self._give(cursor, station, tenant, place)
        return Moved(identity, station.tenant_id, tenant, changed=True)

    async def _site(self, cursor: Cursor, tenant: TenantId, name: str) -> int:
        found = await store.site_id(cursor, tenant, name)
        if found is None:
            raise SiteNotFound(
                f"tenant {tenant} has no site named {name!r}; create it first, or leave it out",
                site=name,
            )
        return found

    async def _give(
        self, cursor: Cursor, station: Owned, tenant: TenantId, site: int | None
    ) -> None:
        move = Move(station.id, station.tenant_id, tenant)
        await hand_over(cursor, move)
        await store.give(cursor, station, tenant, site, self._clock())
        for module in self._followers:
            await module.station_moved(cursor, move)
        told = [(station.tenant_id, "station.left"), (tenant, "station.joined")]
        await events.append(
            cursor, [Event(who, kind, station.id, station.identity, {}) for who, kind in told]
        )
