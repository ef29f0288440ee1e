"""All that is known of one EVSE at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from edge_agent.hardware.board import EvseReading, IecState
from edge_agent.rules.actions import Authorized
from edge_agent.rules.metering import Meter, Step
from edge_agent.rules.power_limit import NOTHING, Offer
from edge_agent.rules.session import Session
from protocols.agent_link import ChargingState, EvseStatus, Stamp
from protocols.quantities import MilliAmperes

CLOSED: Final = {IecState.CHARGING, IecState.VENTILATION}
FLOWING_MA: Final = 500
MOST_OVER: Final = 32


@dataclass(frozen=True, slots=True)
class Waiting:
    """An accepted token that waits for the cable."""

    who: Authorized
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvseState:
    """All that is known of an EVSE; replaced as a whole, so that a step can be taken back."""

    meter: Meter
    reading: EvseReading | None = None
    read_at: Stamp | None = None
    lost: str = ""
    lost_ms: int = 0
    fault: str = ""
    fault_ms: int = 0
    board_fault: str = ""
    """What the board reports now; `fault` outlasts it where somebody has to confirm."""
    faults: tuple[int, ...] = ()
    """When the board's latest faults began."""
    locked: str = ""
    """Why this EVSE stays out of service until somebody has looked at it and confirmed."""
    operative: bool = True
    reserved: bool = False
    waiting: Waiting | None = None
    session: Session | None = None
    over: tuple[UUID, ...] = ()
    """The latest transactions that ended here; the cloud may hear of their end later."""
    charging: ChargingState = ChargingState.IDLE
    idle_since_ms: int | None = None
    offer: Offer = NOTHING
    written: MilliAmperes | None = None
    written_ms: int = 0
    released: bool | None = None
    released_ms: int = 0
    """What the board was last told; None: it must be told again."""
    withheld_ms: int | None = None
    alarmed: bool = False
    reported: EvseStatus | None = None
    step: Step = Step.COUNTED

    def ended(self, transaction: UUID) -> tuple[UUID, ...]:
        """`over` with this one."""
        return (*self.over, transaction)[-MOST_OVER:]

    @property
    def plugged(self) -> bool:
        return self.reading is not None and self.reading.state is not IecState.NO_VEHICLE

    @property
    def closed(self) -> bool:
        return self.reading is not None and self.reading.state in CLOSED


def flows(reading: EvseReading) -> bool:
    """Whether any phase carries current."""
    return any(current is not None and current >= FLOWING_MA for current in reading.current)


def draws(reading: EvseReading) -> bool:
    """Whether the vehicle takes power, as far as the board can tell."""
    if all(current is None for current in reading.current):
        return reading.power is None or reading.power > 0
    return flows(reading)
