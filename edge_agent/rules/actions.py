"""What may happen to an EVSE, and what may follow: the vocabulary of the connector's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from edge_agent.hardware.board import EvseReading
from edge_agent.records import Register, Transaction
from edge_agent.rules.power_limit import Offer
from protocols.agent_link import (
    BillingFact,
    ClockCorrected,
    EvseStatus,
    IdToken,
    OpenTransaction,
    StoppedReason,
    Trigger,
)
from protocols.quantities import MilliAmperes

# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Read:
    """The board answered."""

    reading: EvseReading


@dataclass(frozen=True, slots=True)
class Lost:
    """The board has been silent for too long; the text says how."""

    text: str


@dataclass(frozen=True, slots=True)
class Offered:
    """The power limit rules decided anew."""

    offer: Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorized:
    """An id token was accepted for this EVSE, by card or by command."""

    id_token: IdToken
    trigger: Trigger
    command: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """The running transaction shall end."""

    reason: StoppedReason
    trigger: Trigger
    command: UUID | None = None


@dataclass(frozen=True, slots=True)
class Operative:
    """The EVSE was taken out of service, or back."""

    operative: bool


@dataclass(frozen=True, slots=True)
class Reserved:
    """The EVSE is kept for one id token from now on, or no longer."""

    reserved: bool


@dataclass(frozen=True, slots=True)
class Adopt:
    """The cloud holds a transaction open here that this journal may not know (as far)."""

    known: OpenTransaction


@dataclass(frozen=True, slots=True)
class CloudEnded:
    """The cloud knows this transaction to be over."""

    transaction: UUID


@dataclass(frozen=True, slots=True)
class Redated:
    """The wall time of this boot became known."""

    correction: ClockCorrected


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Read
    | Lost
    | Offered
    | Authorized
    | StopAsked
    | Operative
    | Reserved
    | Adopt
    | CloudEnded
    | Redated
    | Tick
)

# --------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Withhold:
    evse: int


@dataclass(frozen=True, slots=True)
class SetLimit:
    evse: int
    limit: MilliAmperes
    raises: bool
    """More than before: only after what led to it is on disk."""


@dataclass(frozen=True, slots=True)
class Emit:
    fact: BillingFact


@dataclass(frozen=True, slots=True)
class Keep:
    record: Transaction | Register


@dataclass(frozen=True, slots=True)
class Forget:
    transaction: UUID


@dataclass(frozen=True, slots=True)
class Release:
    evse: int


@dataclass(frozen=True, slots=True)
class ReportStatus:
    status: EvseStatus


Action = Withhold | SetLimit | Emit | Keep | Forget | Release | ReportStatus
Durable = Emit | Keep | Forget


def rank(action: Action) -> int:
    """The order of a step: safe first, then durable, then power, then the report."""
    if isinstance(action, SetLimit):
        return 3 if action.raises else 1
    return _RANKS[type(action)]


_RANKS: Final[dict[type, int]] = {
    Withhold: 0,
    Emit: 2,
    Keep: 2,
    Forget: 2,
    Release: 4,
    ReportStatus: 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSettings:
    """Times and steps of the connector's rules."""

    connection_timeout_ms: int = 60_000
    """An accepted token waits this long for the cable."""
    idle_ms: int = 10_000
    """A vehicle that draws nothing for so long has suspended charging."""
    fault_grace_ms: int = 60_000
    """A fault that clears within this does not end the transaction."""
    lock_after: int = 0
    """So many faults within `lock_within_ms` need a person's confirmation; 0: never."""
    lock_within_ms: int = 3_600_000
    confirm_codes: frozenset[int] = frozenset()
    """Error codes of the board that need one at once."""
    opening_ms: int = 10_000
    """A contactor has opened by then, or something is wrong."""
    lost_patience_ms: int = 300_000
    """A decided end waits so long for a silent board's last energy."""
    checkpoint_ms: int = 60_000
    checkpoint_wh: int = 500
    event_ms: int = 300_000
    """Between periodic transaction events; telemetry carries the values in between."""
    status_ms: int = 300_000
    """An unchanged status is repeated after so long, so that its age stays known."""
