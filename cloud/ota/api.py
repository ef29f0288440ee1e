"""What neighbours may know of updates, what this module asks of them, and its errors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.errors import KarvonError, Kind, Unavailable
from protocols.agent_link import Action
from protocols.ocpp.asks import AnyAsk


class ReleaseNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "release.not_found"


class ReleaseRefused(KarvonError):
    """Its metadata does not follow from what the release keys have signed before."""

    kind = Kind.INVALID
    code = "release.refused"


class ReleaseIncomplete(KarvonError):
    """Metadata names files that have not come."""

    kind = Kind.CONFLICT
    code = "release.incomplete"


class ReleaseUnusable(KarvonError):
    """It was revoked, or holds nothing that the stations could take."""

    kind = Kind.CONFLICT
    code = "release.unusable"


class FileNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "release_file.not_found"


class FileMisplaced(KarvonError):
    """A part of a file that is not the next one; `received` says where to go on."""

    kind = Kind.CONFLICT
    code = "release_file.offset"


class FileTooLarge(KarvonError):
    kind = Kind.TOO_LARGE
    code = "release_file.too_large"


class StorageFull(Unavailable):
    code = "release_file.no_room"


class CohortNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "cohort.not_found"


class CohortExists(KarvonError):
    kind = Kind.CONFLICT
    code = "cohort.exists"


class CampaignNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "campaign.not_found"


class CampaignStage(KarvonError):
    """What was asked cannot be done at the stage that the campaign is in."""

    kind = Kind.CONFLICT
    code = "campaign.stage"


class OwnCampaign(KarvonError):
    kind = Kind.FORBIDDEN
    code = "campaign.own"


class NobodyMeant(KarvonError):
    kind = Kind.CONFLICT
    code = "campaign.empty"


class DeviceNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "campaign_device.not_found"


class TooManyDownloads(KarvonError):
    kind = Kind.RATE_LIMITED
    code = "ota.too_often"


@dataclass(frozen=True)
class Order:
    """A command for a station, under an id of our own making."""

    id: UUID
    station_id: int
    do: Action | AnyAsk
    until: datetime


class Link(Protocol):
    """The way to stations (communication has it)."""

    async def links(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        """`agent` or an OCPP version by station; those never connected are left out."""
        ...

    async def order(
        self, cursor: Cursor, tenant: TenantId, orders: Sequence[Order], actor: str
    ) -> None:
        """Queue commands in the caller's unit of work; they go out when that commits."""
        ...
