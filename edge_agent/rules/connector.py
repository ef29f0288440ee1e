"""One EVSE: from cable and card to a transaction, and out of it again, whatever happens.

An event is first absorbed into what is known (`EvseState`), then `_decide` compares what is with
what ought to be. So nothing depends on the order of events, and whatever could not be done (a
full disk, a refused write) is simply due again at the next event.

| known                               | ought to be                                          |
|-------------------------------------|------------------------------------------------------|
| nothing yet                         | nothing is touched but the safe limit                |
| no transaction                      | withheld, limit 0; charging all the same is an alarm |
| cable and accepted token            | transaction: persisted first, then released          |
| transaction, board lost or at fault | withheld; a fault that stays ends it                 |
| end decided                         | withheld; ended when the last energy is known        |
| transaction after a restart         | proven to be the same session, or ended              |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from edge_agent.hardware.board import EnergyKind, EvseInfo, EvseReading, IecState
from edge_agent.records import Register, Transaction
from edge_agent.rules import session as accounts
from edge_agent.rules.actions import (
    Action,
    Adopt,
    Authorized,
    CloudEnded,
    ConnectorSettings,
    Emit,
    Event,
    Forget,
    Keep,
    Lost,
    Offered,
    Operative,
    Read,
    Redated,
    Release,
    ReportStatus,
    Reserved,
    SetLimit,
    StopAsked,
    Tick,
    Withhold,
    rank,
)
from edge_agent.rules.adoption import as_known, catch_up, take_over
from edge_agent.rules.clock import redate
from edge_agent.rules.evse import EvseState, Waiting, draws, flows
from edge_agent.rules.metering import Meter, Rating, Step, count, expect_reset
from edge_agent.rules.power_limit import PAUSE
from edge_agent.rules.reporting import status_of
from edge_agent.rules.session import Context, NewId, Session
from protocols.agent_link import (
    ChargingState,
    CommandResult,
    CommandStatus,
    SecurityEvent,
    Stamp,
    StoppedReason,
    Trigger,
)
from protocols.quantities import IEC_MIN_CURRENT, WattHours

BROKEN: Final = {IecState.NO_POWER, IecState.FAULT}
LONG_AGO: Final = -(2**62)
LIMIT_STEP_MA: Final = 1000
"""Boards round what they apply to whole amperes."""
APPLIED_MS: Final = 2000
"""What a board was told must show in its readings by then."""


class Connector:
    """The rules of one EVSE. `state` may be read, kept and put back; only `handle` changes it."""

    def __init__(
        self,
        info: EvseInfo,
        settings: ConnectorSettings,
        new_id: NewId,
        *,
        register: Register | None = None,
        margin: int = 2,
    ) -> None:
        self.info = info
        self.evse = info.evse
        self.settings = settings
        self.new_id = new_id
        self.rating = Rating.of(info, margin)
        empty = Register(evse=info.evse, meter_wh=WattHours(0))
        self.state = EvseState(meter=Meter(register=register or empty))
        self._absorb: dict[type, Callable[..., list[Action]]] = {
            Read: self._read,
            Lost: self._lost,
            Offered: self._offered,
            Authorized: self._authorized,
            StopAsked: self._stop_asked,
            Operative: self._operative,
            Reserved: self._reserved,
            Adopt: self._adopt,
            CloudEnded: self._cloud_ended,
            Redated: self._redated,
            Tick: lambda _event, _now: [],
        }

    def resume(self, record: Transaction, now: Stamp) -> None:
        """Take over an open transaction from the journal, before the first event."""
        self._set(
            session=Session.resume(record, self.state.meter, now.mono_ms),
            charging=record.charging_state,
        )

    def handle(self, event: Event, now: Stamp) -> list[Action]:
        """Absorb one event and say what follows, in the order in which it must be done."""
        actions = self._absorb[type(event)](event, now)
        actions += self._decide(now)
        actions += self._report(now)
        return sorted(actions, key=rank)

    def undone(self, action: Withhold | Release | SetLimit) -> None:
        """The board did not do it: it is due again, for a lost board when it has returned."""
        if self.state.lost:
            return
        if isinstance(action, SetLimit):
            self._set(written=None)
        else:
            self._set(released=None)

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # by field name

    def _context(self, now: Stamp) -> Context:
        return Context(
            now=now,
            meter=self.state.meter,
            new_id=self.new_id,
            billing_grade=self.info.billing_grade,
        )

    # ------------------------------------------------------------------ absorbing

    def _read(self, event: Read, now: Stamp) -> list[Action]:
        reading, expected = event.reading, self.state.meter.fresh
        meter, step = count(self.state.meter, reading.energy, now.mono_ms, self.rating)
        returned = bool(self.state.lost)
        self._set(reading=reading, read_at=now, meter=meter, step=step, lost="")
        self._note_fault(reading, now)
        restarted = self._board_restarted(step) and not expected
        restarted = restarted or reading.restarted
        if returned or restarted or self._overrides(reading, now) or self._forgot(reading, now):
            self._set(written=None, released=None)
        if expected and self.state.session is not None:
            self._set(session=replace(self.state.session, saved_ms=LONG_AGO))
        if not self.state.closed:
            self._set(alarmed=False)
        return self._flag(step, now)

    def _note_fault(self, reading: EvseReading, now: Stamp) -> None:
        fault = ""
        if reading.error_code:
            fault = f"the board reports error {reading.error_code}"
        elif reading.state in BROKEN:
            fault = f"the board is in state {reading.state}"
        if fault and not self.state.board_fault:
            self._count_fault(reading.error_code, fault, now)
        self._set(board_fault=fault)
        self._hold_fault(fault or self.state.locked, now)

    def _hold_fault(self, fault: str, now: Stamp) -> None:
        if fault and not self.state.fault:
            self._set(fault_ms=now.mono_ms)
        self._set(fault=fault)

    def _count_fault(self, code: int, fault: str, now: Stamp) -> None:
        """A fault that is grave, or comes again and again, is not got over by itself."""
        settings, since = self.settings, now.mono_ms - self.settings.lock_within_ms
        recent = (*(at for at in self.state.faults if at > since), now.mono_ms)
        self._set(faults=recent)
        if code in settings.confirm_codes:
            why = fault
        elif settings.lock_after and len(recent) >= settings.lock_after:
            minutes = settings.lock_within_ms // 60_000
            why = f"{len(recent)} faults within {minutes} min, at last: {fault}"
        else:
            return
        self._set(locked=f"{why}; look at the charger, then confirm with karvon agent recover")

    def _board_restarted(self, step: Step) -> bool:
        running = self.state.session
        return step is Step.RESET and running is not None and running.proven

    def _forgot(self, reading: EvseReading, now: Stamp) -> bool:
        """The board waits for the release that it was given: it has started over meanwhile.

        Before a whole watt-hour has flowed its register does not tell. Later it does, and a board
        that waits with its register unchanged may have another vehicle by now.
        """
        running = self.state.session
        if running is None or running.energy(self.state.meter) > 0:
            return False
        told = self.state.released is True and now.mono_ms - self.state.released_ms >= APPLIED_MS
        return told and reading.awaits_release

    def _overrides(self, reading: EvseReading, now: Stamp) -> bool:
        """The board applies more than it was told, read well after it was told so."""
        written, applied = self.state.written, reading.applied_limit
        if written is None or applied is None or now.mono_ms - self.state.written_ms < APPLIED_MS:
            return False
        if written < self.info.min_current:
            return applied >= self.info.min_current
        return applied > written + LIMIT_STEP_MA

    def _flag(self, step: Step, now: Stamp) -> list[Action]:
        if step is not Step.JUMPED:
            return []
        text = f"EVSE {self.evse}: the energy register jumped; the jump is not counted"
        return [self._security("MeterJumped", text, now), Keep(self.state.meter.register)]

    def _security(self, kind: str, text: str, now: Stamp) -> Emit:
        return Emit(SecurityEvent(id=self.new_id(), at=now, type=kind, text=text))

    def _lost(self, event: Lost, now: Stamp) -> list[Action]:
        since = self.state.lost_ms if self.state.lost else now.mono_ms
        self._set(lost=event.text, lost_ms=since)
        return []

    def _offered(self, event: Offered, _now: Stamp) -> list[Action]:
        self._set(offer=event.offer)
        return []

    def _operative(self, event: Operative, now: Stamp) -> list[Action]:
        """Back in service is also what confirms that a fault is over."""
        self._set(operative=event.operative)
        if event.operative and self.state.locked:
            self._set(locked="", faults=())
            self._hold_fault(self.state.board_fault, now)
        return []

    def _reserved(self, event: Reserved, _now: Stamp) -> list[Action]:
        self._set(reserved=event.reserved)
        return []

    def _authorized(self, event: Authorized, now: Stamp) -> list[Action]:
        actions: list[Action] = []
        if self.state.waiting is not None:
            actions = self._give_up("another id token was presented", now)
        until = now.mono_ms + self.settings.connection_timeout_ms
        self._set(waiting=Waiting(event, until))
        if event.command is not None and not self._may_begin():
            text = "accepted; waiting for the vehicle"
            actions.append(self._answer(event, CommandStatus.ACCEPTED, text, now))
        return actions

    def _answer(
        self, who: Authorized | StopAsked, status: CommandStatus, text: str, now: Stamp
    ) -> Emit:
        running = self.state.session
        if who.command is None:
            raise ValueError("only commands are answered")
        return Emit(
            CommandResult(
                id=self.new_id(),
                command=who.command,
                at=now,
                status=status,
                text=text,
                transaction=running.record.id if running else None,
            )
        )

    def _stop_asked(self, event: StopAsked, now: Stamp) -> list[Action]:
        actions = self._ask_stop(event, now)
        if event.command is not None:
            actions.append(self._answer(event, CommandStatus.EXECUTED, "stopping", now))
        return actions

    def _ask_stop(self, event: StopAsked, now: Stamp) -> list[Action]:
        """Decide the end; the first reason stands."""
        running = self.state.session
        if running is None or running.stop is not None:
            return []
        self._set(
            session=replace(
                running,
                stop=event.reason,
                stop_ms=now.mono_ms,
                stop_trigger=event.trigger,
                stop_command=event.command,
            )
        )
        return []

    def _redated(self, event: Redated, _now: Stamp) -> list[Action]:
        running = self.state.session
        if running is None:
            return []
        started = redate(running.record.started, event.correction)
        record = msgspec.structs.replace(running.record, started=started)
        self._set(session=replace(running, record=record))
        return [Keep(record)] if record != running.record else []

    def _cloud_ended(self, event: CloudEnded, now: Stamp) -> list[Action]:
        running = self.state.session
        if running is None or running.record.id != event.transaction:
            return []
        over = self.state.ended(event.transaction)
        self._set(session=None, over=over, released=None, withheld_ms=now.mono_ms)
        return [Forget(event.transaction), Keep(self.state.meter.register)]

    def _adopt(self, event: Adopt, now: Stamp) -> list[Action]:
        known, running = event.known, self.state.session
        if known.transaction in self.state.over:
            return []  # it ended here after the cloud had looked
        if running is None:
            meter, adopted = take_over(self.state, known, now)
            self._set(meter=meter, session=adopted, step=Step.COUNTED)
            self._set(charging=ChargingState.SUSPENDED_EVSE)
            return [Keep(adopted.record), Keep(meter.register)]
        if running.record.id == known.transaction:
            caught_up = catch_up(running, known)
            self._set(session=caught_up)
            return [Keep(caught_up.record)] if caught_up != running else []
        orphan = as_known(known, self.state.meter, now)
        context = self._context(now)
        return accounts.end(orphan, context, Trigger.ABNORMAL_CONDITION, ChargingState.IDLE)

    # ------------------------------------------------------------------ deciding

    def _decide(self, now: Stamp) -> list[Action]:
        running = self.state.session
        if self.state.reading is None:
            decided = running is not None and running.stop is not None
            announced = self._announce_stop(running, now) if running and decided else []
            return self._expire(now) + announced
        actions: list[Action] = []
        if self.state.session is not None:
            actions += self._run(now)
        if self.state.session is None:
            actions += self._stand_by(now)
        return actions + self._drive(now)

    def _run(self, now: Stamp) -> list[Action]:
        """A transaction is open: prove it, end it, or go on."""
        running = self.state.session
        if running is None:
            return []
        if not running.proven and self.state.step is not Step.DOUBTED and self._answered:
            self._prove(running, now)
        if not self.state.plugged:
            gone = StopAsked(reason=StoppedReason.EV_DISCONNECTED, trigger=Trigger.EV_DEPARTED)
            self._ask_stop(gone, now)
        if self.state.fault and now.mono_ms - self.state.fault_ms >= self.settings.fault_grace_ms:
            broken = StopAsked(reason=StoppedReason.OTHER, trigger=Trigger.ABNORMAL_CONDITION)
            self._ask_stop(broken, now)
        running = self.state.session or running
        if running.stop is not None:
            return self._finish(running, now)
        return self._go_on(running, now) if running.proven else []

    @property
    def _answered(self) -> bool:
        return not self.state.lost

    def _prove(self, running: Session, now: Stamp) -> None:
        """After a restart: the same vehicle at a register that went on, or it is over."""
        if self.state.step is Step.RESET and not running.young:
            running = replace(
                running,
                stop=running.stop or StoppedReason.POWER_LOSS,
                stop_ms=now.mono_ms,
                start_wh=self.state.meter.register.meter_wh - running.record.energy_wh,
            )
        elif running.stop is None and self._swapped(running):
            running = replace(
                running,
                stop=StoppedReason.EV_DISCONNECTED,
                stop_ms=now.mono_ms,
                stop_trigger=Trigger.EV_DEPARTED,
            )
        self._set(session=replace(running, proven=True), written=None, released=None)

    def _swapped(self, running: Session) -> bool:
        """Another vehicle is here: the board waits for a release that this session has had.

        A young one may have been persisted and never released.
        """
        return bool(self.state.reading and self.state.reading.awaits_release and not running.young)

    def _finish(self, running: Session, now: Stamp) -> list[Action]:
        """The end is decided: end it once the last energy is known, or patience is out."""
        if not self._settled(running, now):
            return self._announce_stop(running, now)
        state = ChargingState.EV_CONNECTED if self.state.plugged else ChargingState.IDLE
        actions = accounts.end(running, self._context(now), running.stop_trigger, state)
        over = self.state.ended(running.record.id)
        self._set(session=None, over=over, charging=state, released=None, idle_since_ms=None)
        return actions

    def _settled(self, running: Session, now: Stamp) -> bool:
        """The last energy has been read since the end was decided; or nobody can wait longer.

        Time alone proves nothing: this process may have been frozen, with a reading still to come.
        """
        state, waited = self.state, now.mono_ms - running.stop_ms
        if state.lost:
            return now.mono_ms - state.lost_ms >= self.settings.lost_patience_ms
        if state.read_at is None or not running.proven:
            return False
        if state.step is Step.DOUBTED:
            fresh = state.read_at.mono_ms > running.stop_ms
            return fresh and waited >= self.settings.lost_patience_ms
        if not state.plugged:
            return True
        if state.read_at.mono_ms <= running.stop_ms:
            return False
        return waited >= self.settings.opening_ms or self._opened()

    def _opened(self) -> bool:
        """A reading from after the withholding shows no current any more."""
        reading, read_at, withheld = self.state.reading, self.state.read_at, self.state.withheld_ms
        if reading is None or read_at is None or withheld is None:
            return False
        return (
            self.state.released is False
            and read_at.mono_ms > withheld
            and not self.state.closed
            and not flows(reading)
        )

    def _announce_stop(self, running: Session, now: Stamp) -> list[Action]:
        """Make the decided end durable, once, so that no restart forgets it."""
        if running.record.stopping is not None:
            return []
        state = ChargingState.SUSPENDED_EVSE
        changed, actions = accounts.update(running, self._context(now), running.stop_trigger, state)
        self._set(session=changed, charging=state)
        return actions

    def _go_on(self, running: Session, now: Stamp) -> list[Action]:
        state = self._charging_state(now)
        context = self._context(now)
        since_event = now.mono_ms - running.event_ms
        if state is not self.state.charging:
            abnormal = bool(self.state.fault or self.state.lost)
            trigger = Trigger.ABNORMAL_CONDITION if abnormal else Trigger.CHARGING_STATE_CHANGED
            running, actions = accounts.update(running, context, trigger, state)
        elif since_event >= self.settings.event_ms:
            trigger = Trigger.METER_VALUE_PERIODIC
            running, actions = accounts.update(running, context, trigger, state)
        elif self._checkpoint_due(running, now):
            running, actions = accounts.checkpoint(running, context, state)
        else:
            return []
        self._set(session=running, charging=state)
        return actions

    def _checkpoint_due(self, running: Session, now: Stamp) -> bool:
        gained = running.energy(self.state.meter) - running.record.energy_wh
        waited = now.mono_ms - running.saved_ms
        return gained >= self.settings.checkpoint_wh or waited >= self.settings.checkpoint_ms

    def _charging_state(self, now: Stamp) -> ChargingState:
        if self.state.lost or self.state.fault or self.state.offer.limit < IEC_MIN_CURRENT:
            self._set(idle_since_ms=None)
            return ChargingState.SUSPENDED_EVSE
        if self.state.closed and (self.state.reading is None or draws(self.state.reading)):
            self._set(idle_since_ms=None)
            return ChargingState.CHARGING
        idle_since = self.state.idle_since_ms
        if idle_since is None:
            self._set(idle_since_ms=now.mono_ms)
            return self.state.charging
        long_idle = now.mono_ms - idle_since >= self.settings.idle_ms
        return ChargingState.SUSPENDED_EV if long_idle else self.state.charging

    def _stand_by(self, now: Stamp) -> list[Action]:
        """No transaction: start one, or see to it that nothing flows."""
        if self._may_begin() and self.state.waiting is not None:
            return self._begin(self.state.waiting.who, now)
        state = ChargingState.EV_CONNECTED if self.state.plugged else ChargingState.IDLE
        self._set(charging=state)
        return self._expire(now) + self._forbid(now)

    def _may_begin(self) -> bool:
        state = self.state
        ready = state.plugged and state.operative and state.session is None
        return ready and not (state.fault or state.lost or state.step is Step.DOUBTED)

    def _begin(self, who: Authorized, now: Stamp) -> list[Action]:
        session, actions = accounts.begin(self.evse, who, self._context(now))
        self._set(
            session=session,
            waiting=None,
            charging=ChargingState.EV_CONNECTED,
            idle_since_ms=None,
            released=False,
            reserved=False,
        )
        if who.command is not None:
            actions.append(self._answer(who, CommandStatus.EXECUTED, "started", now))
        return actions

    def _expire(self, now: Stamp) -> list[Action]:
        waiting = self.state.waiting
        if waiting is None or now.mono_ms < waiting.until_ms:
            return []
        return self._give_up("no vehicle was ready in time", now)

    def _give_up(self, why: str, now: Stamp) -> list[Action]:
        waiting = self.state.waiting
        self._set(waiting=None)
        if waiting is None or waiting.who.command is None:
            return []
        return [self._answer(waiting.who, CommandStatus.FAILED, why, now)]

    def _forbid(self, now: Stamp) -> list[Action]:
        """The contactor is closed without a transaction: open it, and tell."""
        if not self.state.closed or self.state.lost:
            return []
        withheld = self.state.withheld_ms
        if withheld is not None and now.mono_ms - withheld < self.settings.opening_ms:
            return []
        self._set(released=None)
        if self.state.alarmed:
            return []
        self._set(alarmed=True)
        text = f"EVSE {self.evse} was charging without a transaction; it was told to stop"
        return [self._security("UnauthorizedCharging", text, now)]

    # ------------------------------------------------------------------ driving the board

    def _drive(self, now: Stamp) -> list[Action]:
        """Write what differs from what the board was last told."""
        running, state = self.state.session, self.state
        unproven = running is not None and not running.proven and running.stop is None
        if unproven and not (state.fault or state.lost):
            return []
        wanted = running is not None and running.stop is None and not state.fault and not state.lost
        actions: list[Action] = []
        limit = state.offer.limit if wanted and not self._register_starts(running) else PAUSE
        if limit != state.written:
            raises = limit > PAUSE and (state.written is None or limit > state.written)
            actions.append(SetLimit(self.evse, limit, raises))
            self._set(written=limit, written_ms=now.mono_ms)
        if wanted is not state.released:
            actions.append(Release(self.evse) if wanted else Withhold(self.evse))
            self._tell_contactor(wanted, now)
        return actions

    def _register_starts(self, running: Session | None) -> bool:
        """Released, but the disk does not know yet where the session register has started.

        If anything flowed now, and this process died, a start from zero that has climbed past the
        old value could not be told from a register that went on.
        """
        state = self.state
        if running is None or not running.unmeasured or self.rating.kind is not EnergyKind.SESSION:
            return False
        readable = state.reading is not None and state.reading.energy is not None
        return readable and (state.released is not True or state.meter.fresh)

    def _tell_contactor(self, wanted: bool, now: Stamp) -> None:
        if wanted:
            self._set(released=True, released_ms=now.mono_ms, meter=expect_reset(self.state.meter))
        else:
            self._set(released=False, withheld_ms=now.mono_ms)

    # ------------------------------------------------------------------ reporting

    def _report(self, now: Stamp) -> list[Action]:
        status, last = status_of(self.state, self.evse, now), self.state.reported
        if last is not None:
            same = msgspec.structs.replace(status, at=last.at, measured_at=last.measured_at) == last
            if same and now.mono_ms - last.at.mono_ms < self.settings.status_ms:
                return []
        self._set(reported=status)
        return [ReportStatus(status)]
