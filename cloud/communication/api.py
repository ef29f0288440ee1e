"""What neighbours may know of the agent link, and what it asks of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.errors import KarvonError, Kind
from protocols.agent_link import Hello, IdToken, OpenTransaction, SetLocalList
from protocols.ocpp.asks import ListEntry
from protocols.ocpp.messages import TokenInfo


class CommandNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "command.not_found"


class CommandUnderWay(KarvonError):
    kind = Kind.CONFLICT
    code = "command.under_way"


LONGEST_CSR: Final = 5500
"""OCPP's own limit for a signing request, in characters."""


class CertificateRefused(KarvonError):
    """A signing request that the station may not make; `why` stands in the params."""

    kind = Kind.INVALID
    code = "certificate.refused"


class CertificateNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "certificate.not_found"


class CertificateRevoked(KarvonError):
    kind = Kind.CONFLICT
    code = "certificate.revoked"


class NoAuthority(KarvonError):
    kind = Kind.CONFLICT
    code = "certificate.no_authority"


class TooManyCertificates(KarvonError):
    kind = Kind.RATE_LIMITED
    code = "certificate.too_often"


class OcppContradiction(KarvonError):
    """A station could not connect any more as it would have to."""

    kind = Kind.CONFLICT
    code = "ocpp.contradiction"


class CommandNotSupported(KarvonError):
    """By the station's link, or by the version that it speaks."""

    kind = Kind.CONFLICT
    code = "command.not_supported"


class StationNotConnected(KarvonError):
    kind = Kind.CONFLICT
    code = "station.not_connected"


class UnknownAction(KarvonError):
    kind = Kind.NOT_FOUND
    code = "ocpp.unknown_action"


class BadPayload(KarvonError):
    """What OCPP's schema refuses; `path` is a JSON pointer."""

    kind = Kind.INVALID
    code = "ocpp.invalid"


class TransferRefused(KarvonError):
    """An address that stations must not be sent to."""

    kind = Kind.INVALID
    code = "transfer.refused"


class Unanswered(KarvonError):
    kind = Kind.TIMEOUT
    code = "command.unanswered"


@dataclass(frozen=True)
class Known:
    """A station that may speak: its key inside and whose it is."""

    id: int
    tenant_id: TenantId


class StationDirectory(Protocol):
    """Who a wire identity is (stations implements it)."""

    async def resolve(self, cursor: Cursor, identity: str, *, hold: bool = False) -> Known | None:
        """None when nobody may speak so; `hold`: whose it is stays until the unit's end."""
        ...

    async def identities(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]: ...

    async def key_of(self, cursor: Cursor, identity: str) -> int:
        """The station of the cursor's tenant; raises its own not-found error."""
        ...


@dataclass(frozen=True)
class Resident:
    """A station as it stands in the register."""

    id: int
    tenant_id: TenantId
    standing: Literal["pending", "expected", "registered"]


class StationRegister(Protocol):
    """Which stations may join over OCPP (stations implements it)."""

    async def residents(
        self, cursor: Cursor, identities: Collection[str]
    ) -> dict[str, Resident]: ...

    async def enter_unannounced(
        self, cursor: Cursor, identities: Collection[str]
    ) -> dict[str, Resident]:
        """Create them, or put them on the list, by the registration policy.

        Left out are those for which the list has no room.
        """
        ...


class KnownConnectors(Protocol):
    """What is known of how stations are built (stations implements it)."""

    async def connectors_of(self, cursor: Cursor, station_id: int) -> list[tuple[int, int]]:
        """Each EVSE and connector that the station has told of, in order."""
        ...


class TokenJudge(Protocol):
    """Whether id tokens may charge, from memory (authorization implements it)."""

    def at_hand(self, tenant: TenantId, token: IdToken, now: datetime) -> TokenInfo | None:
        """None when it must be looked up first."""
        ...

    async def look_up(self, tokens: Collection[tuple[TenantId, IdToken]]) -> None:
        """Bring these into memory, for `at_hand`. Raises Unavailable."""
        ...


class Greeted(Protocol):
    """A module that takes something over from a hello, in the hello's database transaction."""

    async def hello(
        self, cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello
    ) -> None: ...


class TransactionBook(Protocol):
    """What a welcome tells of transactions (transactions implements it)."""

    async def open_transactions(
        self, cursor: Cursor, station_id: int, told: Collection[UUID]
    ) -> tuple[tuple[OpenTransaction, ...], tuple[UUID, ...]]:
        """Those open for the station, and which of the told ones are over."""
        ...


class NativeTransactions(Protocol):
    """What stations that speak OCPP call their transactions (transactions implements it)."""

    async def native(
        self, cursor: Cursor, transactions: Collection[UUID]
    ) -> dict[UUID, tuple[str | None, int | None]]:
        """2.x's transactionId and 1.6's number; those that have neither are left out."""
        ...


class Begun(NamedTuple):
    """A transaction's beginning as an OCPP station told it."""

    station_id: int
    remote_start_id: int | None
    """2.x's; None in 1.6, which does not tell what it was started by."""
    evse: int
    id_token: str
    at: datetime


class RemoteStarts(Protocol):
    """Which commands may have begun transactions (communication has them)."""

    async def __call__(self, cursor: Cursor, begun: Sequence[Begun]) -> list[list[UUID]]:
        """For each beginning those that fit, the latest first."""
        ...


class ListVersion(Protocol):
    """The local list that a station should hold (authorization implements it)."""

    async def list_version(self, cursor: Cursor, tenant: TenantId) -> int: ...


class ListPortion(
    msgspec.Struct, frozen=True, kw_only=True, tag="keep_local_list", tag_field="action"
):
    """A part of the tenant's id tokens for an OCPP station's local list, named and not held.

    A list that a thousand stations take is not stored with a thousand commands: what a part
    consists of is put in when it goes out.
    """

    number: int
    """The version that the station's list has with it."""
    full: bool
    """It replaces what the station holds."""
    groups: tuple[int, ...] | None
    """Of these groups of id tokens; None: of all."""
    after: int
    through: int
    """What changed after the one and up to the other number of the log of changes."""
    floor: int
    """What left up to this number was never on that list."""
    limit: int
    """Entries at most."""


class LocalLists(Protocol):
    """What goes out for commands to take over a local list (authorization implements it)."""

    async def local_list(self, cursor: Cursor, tenant: TenantId) -> SetLocalList:
        """The tenant's list as it is now."""
        ...

    async def portion(
        self, cursor: Cursor, tenant: TenantId, portion: ListPortion
    ) -> tuple[ListEntry, ...]:
        """The entries of a part of it (commit role)."""
        ...


class Speaking(NamedTuple):
    """A station that speaks OCPP over a connection of now."""

    station_id: int
    tenant_id: TenantId
    version: str


@dataclass(frozen=True)
class Presence:
    """How a station's connection stands."""

    online: bool
    last_seen: datetime
    link: str = "agent"
    """`agent`, or the OCPP version as the WebSocket's subprotocol names it."""
    since: datetime | None = None
    """When this connection began."""


@dataclass(frozen=True)
class Credential:
    """What a station logs in to the broker with; the password is not kept."""

    username: str
    password: str
