"""Which open transactions are over although nobody has said so: pure rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from protocols.agent_link import ConnectorStatus


@dataclass(frozen=True)
class Patience:
    """How long an open transaction may say nothing."""

    available: timedelta = timedelta(minutes=10)
    """While its station says that nobody is plugged in."""
    silent: timedelta = timedelta(hours=24)
    """While its station is connected, and its EVSE not occupied."""
    gone: timedelta = timedelta(days=7)
    """In any case."""


class Reason(StrEnum):
    """Why we hold that a transaction is over; beside `superseded`."""

    AVAILABLE = "connector_available"
    LOST = "lost"
    REMOVED = "station_removed"


class Open(NamedTuple):
    """An open transaction from which nothing came for a while."""

    id: UUID
    station: int
    evse: int
    agent: bool
    """An agent knows by itself what is open; it tells when it is back."""
    last_at: datetime
    heard_at: datetime
    """When the last of it came in."""


class Seen(NamedTuple):
    """How an EVSE stands, since when, and since when we know."""

    status: str
    at: datetime
    received_at: datetime


class End(NamedTuple):
    transaction: UUID
    reason: Reason
    at: datetime


def over(
    one: Open,
    now: datetime,
    patience: Patience,
    *,
    stations: Collection[int],
    connected: Collection[int],
    evses: Mapping[tuple[int, int], Seen],
) -> End | None:
    """How a transaction has ended, if it has; `stations` are those that there are."""
    if one.station not in stations:
        return End(one.id, Reason.REMOVED, one.last_at)
    if one.agent:
        return None
    seen, silent = evses.get((one.station, one.evse)), now - one.heard_at
    if (
        seen is not None
        and seen.status == ConnectorStatus.AVAILABLE
        and seen.at >= one.last_at
        and min(now - seen.received_at, silent) >= patience.available
    ):
        return End(one.id, Reason.AVAILABLE, seen.at)
    idle = seen is None or seen.status != ConnectorStatus.OCCUPIED
    if silent >= patience.gone or (silent >= patience.silent and one.station in connected and idle):
        return End(one.id, Reason.LOST, one.last_at)
    return None
