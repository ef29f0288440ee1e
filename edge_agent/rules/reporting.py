"""An EVSE's state in the words of the agent link."""

from __future__ import annotations

from edge_agent.rules.evse import EvseState
from edge_agent.rules.metering import Step
from protocols.agent_link import ConnectorStatus, EvseStatus, Stamp


def status_of(state: EvseState, evse: int, now: Stamp) -> EvseStatus:
    """What the station says of this EVSE now."""
    running = state.session
    error = state.lost or state.fault
    if not error and state.step is Step.DOUBTED:
        error = "the energy register shows an implausible value; it is not counted yet"
    return EvseStatus(
        evse=evse,
        at=now,
        status=_connector_status(state),
        charging_state=state.charging,
        transaction=running.record.id if running else None,
        offered_ma=state.offer.limit if running else None,
        limited_by=state.offer.limited_by if running else "",
        error=error,
        measured_at=state.read_at,
    )


def _connector_status(state: EvseState) -> ConnectorStatus:
    if state.lost or state.fault or state.reading is None:
        return ConnectorStatus.FAULTED
    if state.session is None and not state.operative:
        return ConnectorStatus.UNAVAILABLE
    if state.session is not None or state.plugged:
        return ConnectorStatus.OCCUPIED
    if state.reserved:
        return ConnectorStatus.RESERVED
    return ConnectorStatus.AVAILABLE
