"""Which version of which tariff a transaction gets when it starts, and what such versions say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from cloud.kernel.database import Cursor, TenantId
from cloud.stations.api import sites_of
from cloud.tariffs import store
from cloud.tariffs.pricing import TariffVersion
from cloud.tariffs.store import Start

_MOST_KEPT: Final = 10_000


async def pin(
    cursor: Cursor,
    tenant: TenantId,
    station_id: int,
    site_id: int | None,
    evse: int,
    at: datetime,
) -> int | None:
    """The version that is in force there and then, by its id; None where nothing has a price.

    The narrowest assignment wins: EVSE, station, site, tenant. One whose tariff has not begun by
    then is passed over.
    """
    sites = {} if site_id is None else {station_id: site_id}
    return (await store.pins(cursor, [Start(tenant, station_id, evse, at)], sites))[0]


async def pins(cursor: Cursor, starts: Sequence[Start]) -> list[int | None]:
    """`pin` for many starts of any tenants, in their order, by where their stations stand now.

    Works in the commit path's role too, which sees every tenant.
    """
    if not starts:
        return []
    sites = await sites_of(cursor, {start.station_id for start in starts})
    return await store.pins(cursor, starts, sites)


class PriceBook:
    """Versions by their id. They never change, so what was read once is kept.

    Ask only for ids that stand in rows which the unit of work may see: what is kept is not asked
    of the database again.
    """

    def __init__(self) -> None:
        self._kept: dict[int, TariffVersion] = {}
        self._assigned = False

    async def pins(self, cursor: Cursor, starts: Sequence[Start]) -> list[int | None]:
        """`pins`, for who sees every tenant; next to nothing before the first tariff is assigned.

        Assignments end but never go, so one that was seen once need not be looked for again.
        """
        if starts and not self._assigned:
            self._assigned = await store.any_assigned(cursor)
        return await pins(cursor, starts) if self._assigned else [None] * len(starts)

    async def versions(self, cursor: Cursor, ids: Collection[int]) -> dict[int, TariffVersion]:
        """Those that are not there are left out."""
        missing = {one for one in ids if one not in self._kept}
        if missing:
            if len(self._kept) > _MOST_KEPT:
                self._kept.clear()
                missing = set(ids)
            self._kept |= await store.versions(cursor, missing)
        return {one: self._kept[one] for one in ids if one in self._kept}
