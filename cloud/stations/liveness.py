"""Last known is never shown as now: how old a state is, who says so, whether it is stale."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cloud.communication.api import Presence

SILENT_LINK = timedelta(seconds=120)
"""An agent that was not heard of for this long is not trusted to be online."""
SILENT_STATION = timedelta(minutes=15)
"""The same for a station that speaks OCPP: three heartbeats."""
SILENT_BOARD = timedelta(seconds=15)
"""A board that had not answered for this long when the agent wrote its state."""


@dataclass(frozen=True)
class Freshness:
    at: datetime
    age_s: int
    source: str
    """`board`: measured; `agent` or `station`: its own word, a board being silent or unknown."""
    stale: bool


def freshness(
    at: datetime, measured_at: datetime | None, presence: Presence | None, now: datetime
) -> Freshness:
    """How far a state may be taken as the present one."""
    silent_board = measured_at is not None and at - measured_at > SILENT_BOARD
    by_agent = presence is None or presence.link == "agent"
    patience = SILENT_LINK if by_agent else SILENT_STATION
    heard = presence is not None and presence.online and now - presence.last_seen <= patience
    shown = measured_at if silent_board and measured_at is not None else at
    return Freshness(
        at=shown,
        age_s=max(0, int((now - shown).total_seconds())),
        source=_source(measured_at, by_agent=by_agent, silent_board=silent_board),
        stale=silent_board or not heard,
    )


def _source(measured_at: datetime | None, *, by_agent: bool, silent_board: bool) -> str:
    if not by_agent:
        return "station"
    return "agent" if measured_at is None or silent_board else "board"
