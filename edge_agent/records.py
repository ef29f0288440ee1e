"""What the agent keeps across restarts: the shapes that rules produce and the journal stores."""

from __future__ import annotations

from uuid import UUID

import msgspec

from protocols.agent_link import ChargingState, IdToken, LocalListEntry, Stamp, StoppedReason
from protocols.quantities import MilliAmperes, Milliseconds, WattHours


class Transaction(msgspec.Struct, frozen=True):
    """An open transaction as of its last checkpoint."""

    id: UUID
    evse: int
    started: Stamp
    id_token: IdToken | None
    seq_no: int
    """Of the last event that was made of it."""
    energy_wh: WattHours
    duration_ms: Milliseconds
    charging_state: ChargingState
    command: UUID | None = None
    stopping: StoppedReason | None = None
    """Its end was decided; it must never be resumed, only ended once the energy is known."""


class Register(msgspec.Struct, frozen=True):
    """An EVSE's lifetime energy as the agent integrates it, and the raw reading behind it."""

    evse: int
    meter_wh: WattHours
    raw_wh: WattHours | None = None


class SiteLimit(msgspec.Struct, frozen=True):
    """A limit that came by command and outlives a restart; 0 is the whole site."""

    evse: int
    limit_ma: MilliAmperes
    until_wall_ms: Milliseconds


class LocalList(msgspec.Struct, frozen=True):
    """The local authorization list and its version; version 0 is the empty list of a new agent."""

    version: int = 0
    entries: tuple[LocalListEntry, ...] = ()
