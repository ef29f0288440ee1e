"""What neighbours may know of stations: who they are, their clocks, their errors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.errors import KarvonError, Kind
from cloud.stations.clock import (
    BootClock,
    Dated,
    Dating,
    date,
    date_told,
    from_ms,
    plausible,
    sent_clock,
    to_ms,
    trusted_at,
    trusts,
)
from cloud.stations.store import (
    FleetStation,
    agent_versions,
    boot_clocks,
    evse_states,
    existing_stations,
    fleet,
    note_charging,
    sites_of,
)
from cloud.stations.tenancy_store import Former, former_owners, former_owners_ask

__all__ = [
    "BootClock",
    "ClaimRefused",
    "Dated",
    "Dating",
    "EvseNotFound",
    "FleetStation",
    "Former",
    "SiteExists",
    "SiteInUse",
    "SiteNotFound",
    "StationExists",
    "StationFinder",
    "StationNotFound",
    "StationRef",
    "TooManyClaims",
    "agent_versions",
    "boot_clocks",
    "date",
    "date_told",
    "evse_states",
    "existing_stations",
    "fleet",
    "former_owners",
    "former_owners_ask",
    "from_ms",
    "note_charging",
    "plausible",
    "sent_clock",
    "sites_of",
    "to_ms",
    "trusted_at",
    "trusts",
]


class StationNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "station.not_found"


class StationExists(KarvonError):
    kind = Kind.CONFLICT
    code = "station.exists"


class EvseNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "evse.not_found"


class SiteNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "site.not_found"


class SiteExists(KarvonError):
    kind = Kind.CONFLICT
    code = "site.exists"


class SiteInUse(KarvonError):
    kind = Kind.CONFLICT
    code = "site.in_use"


class ClaimRefused(KarvonError):
    kind = Kind.FORBIDDEN
    code = "claim.refused"


class TooManyClaims(KarvonError):
    kind = Kind.RATE_LIMITED
    code = "claim.too_often"


@dataclass(frozen=True)
class StationRef:
    """A station that exists: its key inside and its identity on the wire."""

    id: int
    tenant_id: TenantId
    identity: str


class StationFinder(Protocol):
    """Finds the stations that the unit of work's tenant may see."""

    async def find(self, cursor: Cursor, identity: str) -> StationRef:
        """Raises StationNotFound."""
        ...

    async def keys_ever(self, cursor: Cursor, identity: str) -> list[int]:
        """Also of stations that were the tenant's once. Raises StationNotFound."""
        ...

    async def at_site(self, cursor: Cursor, site_id: int) -> list[int]:
        """Keys of the stations there now. Raises SiteNotFound."""
        ...

    async def identities(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        """Wire identities by key; those that are not there are left out."""
        ...

    async def evse(self, cursor: Cursor, station: StationRef, evse: int) -> None:
        """Raises EvseNotFound when the station has told its EVSEs and this is none of them."""
        ...
