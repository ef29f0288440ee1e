"""Transactions as the cloud knows them, when this journal knows less (an old copy, a new disk)."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edge_agent.records import Register, Transaction
from edge_agent.rules.evse import EvseState
from edge_agent.rules.metering import Meter
from edge_agent.rules.session import Session
from protocols.agent_link import ChargingState, OpenTransaction, Stamp, StoppedReason
from protocols.quantities import Milliseconds, WattHours


def as_known(known: OpenTransaction, meter: Meter, now: Stamp) -> Session:
    """The cloud's transaction, to be ended with what the cloud knows of it."""
    record = Transaction(
        id=known.transaction,
        evse=known.evse,
        started=known.started,
        id_token=known.id_token,
        seq_no=known.seq_no,
        energy_wh=known.energy_wh,
        duration_ms=_since(known.started, now),
        charging_state=ChargingState.SUSPENDED_EVSE,
    )
    resumed = Session.resume(record, meter, now.mono_ms)
    return replace(resumed, stop=StoppedReason.POWER_LOSS)


def catch_up(running: Session, known: OpenTransaction) -> Session:
    """Go on behind what the cloud has already seen of the same transaction."""
    if known.seq_no <= running.record.seq_no:
        return running
    record = msgspec.structs.replace(
        running.record,
        seq_no=known.seq_no,
        energy_wh=max(running.record.energy_wh, known.energy_wh),
    )
    return replace(running, record=record)


def take_over(state: EvseState, known: OpenTransaction, now: Stamp) -> tuple[Meter, Session]:
    """Make a transaction of the cloud our own: to be proven if it can be the same session.

    The meter is put where the cloud last saw it, so that it does not run back there either.
    """
    seen = state.reading is not None
    raw = state.meter.register.raw_wh if seen else known.raw_wh
    same = raw is not None and known.raw_wh is not None and raw >= known.raw_wh
    gained = raw - known.raw_wh if same and raw is not None and known.raw_wh is not None else 0
    total = max(state.meter.register.meter_wh, known.meter_wh + gained)
    register = Register(evse=known.evse, meter_wh=WattHours(total), raw_wh=raw)
    meter = Meter(register=register, at_ms=state.meter.at_ms if seen else None)
    session = replace(
        as_known(known, meter, now),
        start_wh=total - known.energy_wh - gained,
        stop=None if same else StoppedReason.POWER_LOSS,
    )
    return meter, session


def _since(started: Stamp, now: Stamp) -> Milliseconds:
    """Since a start that another life of this agent stamped."""
    if started.boot == now.boot:
        return Milliseconds(max(0, now.mono_ms - started.mono_ms))
    return Milliseconds(max(0, now.wall_ms - started.wall_ms))
