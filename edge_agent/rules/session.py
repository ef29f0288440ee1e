"""A transaction's accounts: its numbering, its energy, its duration, what is persisted when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

import msgspec

from edge_agent.records import Transaction
from edge_agent.rules.actions import Action, Authorized, Emit, Forget, Keep
from edge_agent.rules.metering import Meter
from protocols.agent_link import (
    ChargingState,
    Stamp,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

NewId = Callable[[], UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every event of a step shares."""

    now: Stamp
    meter: Meter
    new_id: NewId
    billing_grade: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open transaction while the agent runs."""

    record: Transaction
    """As last persisted."""
    start_wh: int
    """The EVSE's integral at the start."""
    counts_from_ms: int
    """Monotonic time of this boot at which `counted_ms` was right."""
    counted_ms: int = 0
    event_ms: int = 0
    saved_ms: int = 0
    stop: StoppedReason | None = None
    stop_ms: int = 0
    stop_trigger: Trigger = Trigger.ABNORMAL_CONDITION
    stop_command: UUID | None = None
    proven: bool = True
    """False after a restart, until a reading shows that it is still the same session."""
    young: bool = False
    """The restart came between its start and the first reading of a register that then began
    from zero: such a reset is its own."""

    @property
    def unmeasured(self) -> bool:
        """Nothing but its start has been told of it."""
        return self.record.seq_no == 0 and self.record.energy_wh == 0

    @classmethod
    def resume(cls, record: Transaction, meter: Meter, now_ms: int) -> Session:
        """Go on with a transaction that was persisted together with the meter's register."""
        return cls(
            record=record,
            start_wh=meter.register.meter_wh - record.energy_wh,
            counts_from_ms=now_ms,
            counted_ms=record.duration_ms,
            event_ms=now_ms,
            saved_ms=now_ms,
            stop=record.stopping,
            stop_ms=now_ms,
            proven=False,
            young=record.seq_no == 0 and record.energy_wh == 0,
        )

    def energy(self, meter: Meter) -> WattHours:
        """So far; never less than was said before."""
        return WattHours(max(self.record.energy_wh, meter.register.meter_wh - self.start_wh))

    def measured(self, meter: Meter, now: Stamp, state: ChargingState) -> Transaction:
        """The record as of now."""
        return msgspec.structs.replace(
            self.record,
            energy_wh=self.energy(meter),
            duration_ms=Milliseconds(self.counted_ms + now.mono_ms - self.counts_from_ms),
            charging_state=state,
            stopping=self.stop,
        )


def begin(evse: int, who: Authorized, context: Context) -> tuple[Session, list[Action]]:
    """Start a transaction: one durable Started before anything may flow."""
    record = Transaction(
        id=context.new_id(),
        evse=evse,
        started=context.now,
        id_token=who.id_token,
        seq_no=-1,
        energy_wh=WattHours(0),
        duration_ms=Milliseconds(0),
        charging_state=ChargingState.EV_CONNECTED,
        command=who.command,
    )
    session = Session(
        record=record,
        start_wh=context.meter.register.meter_wh,
        counts_from_ms=context.now.mono_ms,
    )
    return _tell(session, context, TransactionEventType.STARTED, who.trigger, who.command)


def update(
    session: Session, context: Context, trigger: Trigger, state: ChargingState
) -> tuple[Session, list[Action]]:
    changed = replace(session, record=session.measured(context.meter, context.now, state))
    command = session.stop_command if session.stop else None
    return _tell(changed, context, TransactionEventType.UPDATED, trigger, command)


def checkpoint(
    session: Session, context: Context, state: ChargingState
) -> tuple[Session, list[Action]]:
    """Persist the measure without telling the cloud."""
    record = session.measured(context.meter, context.now, state)
    saved = replace(session, record=record, saved_ms=context.now.mono_ms)
    return saved, [Keep(record), Keep(context.meter.register)]


def end(session: Session, context: Context, trigger: Trigger, state: ChargingState) -> list[Action]:
    """The one Ended of a transaction whose stop reason is decided."""
    last = replace(session, record=session.measured(context.meter, context.now, state))
    event = _event(last, context, TransactionEventType.ENDED, trigger, session.stop_command)
    return [Emit(event), Forget(session.record.id), Keep(context.meter.register)]


def _tell(
    session: Session,
    context: Context,
    kind: TransactionEventType,
    trigger: Trigger,
    command: UUID | None,
) -> tuple[Session, list[Action]]:
    event = _event(session, context, kind, trigger, command)
    now_ms = context.now.mono_ms
    told = replace(
        session,
        record=msgspec.structs.replace(
            session.measured(context.meter, context.now, session.record.charging_state),
            seq_no=event.seq_no,
        ),
        event_ms=now_ms,
        saved_ms=now_ms,
    )
    return told, [Emit(event), Keep(told.record), Keep(context.meter.register)]


def _event(
    session: Session,
    context: Context,
    kind: TransactionEventType,
    trigger: Trigger,
    command: UUID | None,
) -> TransactionEvent:
    record = session.record
    return TransactionEvent(
        id=context.new_id(),
        transaction=record.id,
        type=kind,
        seq_no=record.seq_no + 1,
        at=context.now,
        trigger=trigger,
        evse=record.evse,
        started=record.started,
        charging_state=record.charging_state,
        energy_wh=record.energy_wh,
        meter_wh=context.meter.register.meter_wh,
        raw_wh=context.meter.register.raw_wh,
        duration_ms=record.duration_ms,
        id_token=record.id_token,
        reason=session.stop if kind is TransactionEventType.ENDED else None,
        command=command,
        billing_grade=context.billing_grade,
    )
