"""What stations asks of its surroundings; the composition root answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from cloud.communication.api import Credential, Known, Presence
from cloud.kernel.database import Cursor, TenantId
from protocols.agent_link import Action


class Link(Protocol):
    """The agent link, as far as stations needs it."""

    async def presence(self, cursor: Cursor, stations: Collection[int]) -> dict[int, Presence]:
        """How the stations' connections stand; those never connected are left out."""
        ...

    async def issue(
        self, cursor: Cursor, tenant: TenantId, station_id: int, identity: str
    ) -> Credential:
        """A fresh credential; an earlier one is void once this unit has committed."""
        ...

    async def forget(self, cursor: Cursor, station_id: int) -> None:
        """Void the station's credential and forget its connection."""
        ...

    async def owner(self, cursor: Cursor, username: str, password: str) -> Known | None:
        """The station whose credential this is; None: nobody's."""
        ...

    def key_digest(self, csr: str, identity: str) -> bytes:
        """Of the key in a signing request. Raises CertificateRefused."""
        ...

    async def certificate(
        self, tenant: TenantId, station_id: int, identity: str, csr: str
    ) -> str | None:
        """A client certificate and its chain (PEM); None where this cloud has no authority.

        Raises CertificateRefused.
        """
        ...

    async def publish_credentials(self) -> None:
        """Let the broker know, after the commit."""
        ...

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID:
        """Queue a command; returns its id."""
        ...


@dataclass(frozen=True)
class AgentEndpoint:
    """Where agents connect, as a claim tells them."""

    mqtt_url: str
    ca_pem: str
