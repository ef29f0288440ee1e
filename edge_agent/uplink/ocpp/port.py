"""What the station needs of the agent, and what it asks it to do; in no OCPP version's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar
from uuid import UUID

from edge_agent.journal import PendingFact
from edge_agent.records import LocalList
from edge_agent.rules.authorization import Heard
from edge_agent.rules.charging_profiles import Profile, Profiles
from protocols.agent_link import (
    ClockCorrected,
    EvseDescription,
    EvseStatus,
    IdToken,
    Sample,
    Stamp,
)

T = TypeVar("T")

# --------------------------------------------------------------------------- deeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a transaction; without an EVSE on the only one that can be meant."""

    id_token: IdToken
    evse: int | None = None
    remote_id: int | None = None
    """2.x's remoteStartId, to be repeated in the transaction."""
    authorize: bool = False
    """Ask for the token first, as for a card."""
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    transaction: UUID


@dataclass(frozen=True, slots=True)
class SetOperative:
    """Take an EVSE (0: all) out of service, or back."""

    evse: int
    operative: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """End the agent's process, its transactions first; idle: only once there are none."""

    immediate: bool
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Reserve:
    evse: int | None
    id: int
    id_token: IdToken
    group: str | None
    until_wall_ms: int


@dataclass(frozen=True, slots=True)
class CancelReservation:
    id: int


class LogKind(StrEnum):
    """2.x's LogEnumType."""

    DIAGNOSTICS = "DiagnosticsLog"
    SECURITY = "SecurityLog"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Bring a log to a URL; how that goes is told as Transferred of the same request id."""

    kind: LogKind
    location: str
    request_id: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    retries: int = 0
    interval_s: int = 60


Deed = Start | Stop | SetOperative | Restart | Reserve | CancelReservation | Upload


class Outcome(StrEnum):
    """How a deed ended; versions have their own words for each."""

    ACCEPTED = "accepted"
    SCHEDULED = "scheduled"
    REJECTED = "rejected"
    OCCUPIED = "occupied"
    FAULTED = "faulted"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Done:
    outcome: Outcome
    text: str = ""


# --------------------------------------------------------------------------- the agent


class Charger(Protocol):
    """The agent behind the station. Nothing here waits; writes raise JournalError."""

    @property
    def station(self) -> str: ...

    @property
    def version(self) -> str:
        """The agent's own."""

    def now(self) -> Stamp: ...

    def when(self, stamp: Stamp) -> int:
        """A stamp's wall time (ms since 1970) as far as it is known by now."""

    def evses(self) -> tuple[EvseDescription, ...]: ...

    def statuses(self) -> Mapping[int, EvseStatus]:
        """What was last reported of each EVSE."""

    def operative(self, evse: int) -> bool: ...

    def latest(self, evse: int) -> Sample | None:
        """The last reading; None where the board has not answered."""

    def started(self, transaction: UUID) -> int | None:
        """When an open transaction began (ms since 1970)."""

    def waits(self, transaction: UUID | None) -> bool:
        """Whether something of it (None: of any transaction) has not been taken yet."""

    def reservation(self, transaction: UUID) -> int | None:
        """The reservation that a transaction used."""

    def local_list(self) -> LocalList: ...

    def set_local_list(self, local: LocalList) -> None: ...

    def clear_cache(self) -> None: ...

    def remember(self, token: IdToken, heard: Heard) -> None: ...

    def profiles(self) -> Profiles: ...

    def set_profiles(self, profiles: Profiles) -> None: ...

    def configured(self, component: str, variable: str, value: str) -> None:
        """A backend changed a setting: whatever depends on it changes now."""


class Store(Protocol):
    """What the station needs of the journal."""

    @property
    def position(self) -> int: ...

    def next_fact(
        self,
        *,
        exclude: Collection[str] = (),
        after: int = 0,
        up_to: int = 2**62,
        others: bool = True,
    ) -> PendingFact | None: ...

    def delivered(self, taken: PendingFact, number: int | None = None) -> None: ...

    def refuse(self, taken: PendingFact, why: str, at_ms: int) -> None: ...

    def numbers(self) -> dict[UUID, int]: ...

    def corrections(self) -> list[ClockCorrected]: ...

    def named(self, kind: str, shape: type[T]) -> list[T]: ...

    def keep(self, kind: str, records: Mapping[str, Any]) -> None: ...
