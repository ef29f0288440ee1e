"""The shell around the rules: poll, decide, make safe, persist, act, report; in that order.

One task per board. All that concerns a board's EVSEs happens under its lock, one step at a time,
so that a step is decided on what the step before has left. A board that fails holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import msgspec

from edge_agent.clock import Clock
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EvseReading,
    Failsafe,
    PowerBoard,
    Signs,
)
from edge_agent.ledger import Ledger, starts
from edge_agent.pulse import beat
from edge_agent.rules.actions import (
    Action,
    Durable,
    Emit,
    Event,
    Forget,
    Keep,
    Lost,
    Offered,
    Read,
    Release,
    ReportStatus,
    SetLimit,
    Withhold,
    rank,
)
from edge_agent.rules.connector import Connector
from edge_agent.rules.evse import EvseState
from edge_agent.rules.power_limit import PAUSE
from edge_agent.rules.station import Station
from protocols.agent_link import (
    EvseStatus,
    Sample,
    SignedValue,
    Stamp,
    TransactionEvent,
    TransactionEventType,
)

T = TypeVar("T")
Power = Withhold | SetLimit | Release
DURABLE_RANK: Final = 2
log = logging.getLogger(__name__)
BOARD_ERRORS: Final = (BoardUnreachableError, BoardRefusedError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Intervals of the loop, in seconds."""

    poll_s: float = 1.0
    deadline_s: float = 4.0
    """For one request to a board."""
    lost_after_s: float = 5.0
    """A board that has been silent for this long is lost: its EVSEs are faulted and paused."""
    failsafe: Failsafe | None = None


@dataclass(slots=True)
class Line:
    """One board, the station's EVSE numbers behind it, and how it is doing."""

    name: str
    board: PowerBoard
    numbers: dict[int, int]
    """The board's EVSE number -> the station's."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: bool = False
    trouble: str = ""
    heard_ms: int | None = None
    began_ms: int | None = None
    stepped_ms: int | None = None
    """When the last step was finished, whatever its outcome."""
    away: str = ""
    """Why somebody else has the line now; it is not asked then."""

    def own(self, evse: int) -> int:
        """The board's number of a station's EVSE."""
        return next(mine for mine, number in self.numbers.items() if number == evse)

    @property
    def described(self) -> str:
        return self.away or self.trouble or self.board.identity


class Loop:
    """Carries out what the rules decide, on the hardware and on disk."""

    def __init__(
        self,
        lines: Sequence[Line],
        station: Station,
        ledger: Ledger,
        clock: Clock,
        settings: LoopSettings,
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.lines = list(lines)
        self.station = station
        self.ledger = ledger
        self.clock = clock
        self.settings = settings
        self.wake = wake
        self.watchers: set[Callable[[EvseReading], None]] = set()
        self.told: dict[int, EvseStatus] = {}
        """What was last reported of each EVSE, which is never ahead of the commit."""
        self._ahead: dict[int, EvseState] = {}
        """What each EVSE was before a step that is decided, but not on disk yet."""
        self._line_of = {number: line for line in lines for number in line.numbers.values()}

    # ------------------------------------------------------------------ starting and stopping

    def recover(self) -> None:
        """Take up what the journal knows: open transactions, limits, availability."""
        now, store = self.clock.now(), self.ledger.store
        for record in store.transactions():
            if record.evse in self.station.connectors:
                self.station.connectors[record.evse].resume(record, now)
        for limit in store.limits():
            self.station.recall(limit, now)
        for evse, operative in store.availability().items():
            connector = self.station.connectors.get(evse)
            if connector is not None:
                connector.state = replace(connector.state, operative=operative)

    async def make_safe(self, line: Line) -> None:
        """The first thing a board hears: a safe limit, and no charging without a transaction."""
        now = self.clock.now()
        line.began_ms = line.began_ms or now.mono_ms
        try:
            await self._within(line.board.open())
            line.opened = True
            for mine, number in line.numbers.items():
                await self._make_evse_safe(line, mine, number)
            if self.settings.failsafe is not None:
                await self._within(line.board.arm_failsafe(self.settings.failsafe))
        except BOARD_ERRORS as error:
            self._note(line, error)

    async def _make_evse_safe(self, line: Line, mine: int, number: int) -> None:
        running = self.station.connectors[number].state.session
        open_here = running is not None
        measured = running is not None and not running.young
        limit = self.station.settings.failsafe if measured else PAUSE
        await self._within(line.board.set_limit(mine, limit))
        self.station.told(number, limit, self.clock.now())
        if not open_here:
            await self._within(line.board.withhold(mine))

    async def run_line(self, line: Line) -> None:
        """Poll one board for ever."""
        due = asyncio.get_running_loop().time()
        while True:
            beat()
            await self.step(line)
            now = asyncio.get_running_loop().time()
            due = max(due + self.settings.poll_s, now)
            await asyncio.sleep(due - now)

    def checkpoint(self) -> None:
        """Persist every open transaction as of now: before a clean end of the process."""
        now = self.clock.now()
        kept: list[Keep] = []
        for connector in self.station.connectors.values():
            state = self._ahead.get(connector.evse, connector.state)
            if state.session is not None:
                kept.append(Keep(state.session.measured(state.meter, now, state.charging)))
            kept.append(Keep(state.meter.register))
        self.ledger.write(kept)

    async def give_away(self, line: Line, why: str) -> None:
        """Let somebody else have the line; nobody charges there. See `take_back`."""
        async with line.lock:
            line.away = why
            for mine in line.numbers if line.opened else ():
                try:
                    await self._within(line.board.withhold(mine))
                except BOARD_ERRORS as error:
                    log.warning("board %s: not withheld before %s: %s", line.name, why, error)
            await self._within(line.board.close())

    async def take_back(self, line: Line) -> None:
        """It is made safe anew: it may be another board by now, or have started over."""
        async with line.lock:
            line.away, line.opened, line.heard_ms = "", False, None
            line.began_ms = self.clock.now().mono_ms
            for number in line.numbers.values():
                connector = self.station.connectors[number]
                untold: dict[str, Any] = {"written": None, "released": None}
                connector.state = replace(connector.state, **untold)

    # ------------------------------------------------------------------ one step

    async def step(self, line: Line) -> None:
        """Read a board once and do what follows."""
        async with line.lock:
            if line.away:
                line.stepped_ms = self.clock.now().mono_ms
                return
            if not line.opened:
                await self.make_safe(line)
            readings = await self._read(line) if line.opened else ()
            for reading in readings:
                await self._take(line, reading)
            if not readings:
                await self._missed(line)
            line.stepped_ms = self.clock.now().mono_ms

    async def _read(self, line: Line) -> tuple[EvseReading, ...]:
        try:
            readings = await self._within(line.board.read())
        except BOARD_ERRORS as error:
            self._note(line, error)
            return ()
        await self._heard(line)
        return tuple(
            replace(each, evse=line.numbers[each.evse])
            for each in readings
            if each.evse in line.numbers
        )

    async def _heard(self, line: Line) -> None:
        """A board silent for long may have restarted, or be another: it is asked and armed anew."""
        now, last = self.clock.now().mono_ms, line.heard_ms
        if line.trouble:
            log.warning("board %s answers again", line.name)
        line.trouble, line.heard_ms = "", now
        long = last is not None and now - last >= self.settings.lost_after_s * 1000
        if not long:
            return
        try:
            await self._within(line.board.open())
            if self.settings.failsafe is not None:
                await self._within(line.board.arm_failsafe(self.settings.failsafe))
        except BOARD_ERRORS as error:
            self._note(line, error)
            line.opened = not isinstance(error, BoardRefusedError)

    async def _take(self, line: Line, reading: EvseReading) -> None:
        connector = self.station.connectors[reading.evse]
        await self._handle(line, connector, Read(reading))
        await self._reoffer(line, connector)
        self._sample(connector, reading)
        for watcher in tuple(self.watchers):
            watcher(reading)

    async def _missed(self, line: Line) -> None:
        """No answer: after a while every EVSE of this board counts as lost."""
        now = self.clock.now().mono_ms
        since = line.heard_ms if line.heard_ms is not None else line.began_ms
        if since is None or now - since < self.settings.lost_after_s * 1000:
            return
        for number in line.numbers.values():
            connector = self.station.connectors[number]
            await self._handle(line, connector, Lost(f"board {line.name}: {line.trouble}"))
            await self._reoffer(line, connector)

    async def _reoffer(self, line: Line, connector: Connector) -> None:
        offer = self.station.offer(connector.evse, self.clock.now())
        if offer != connector.state.offer:
            await self._handle(line, connector, Offered(offer))

    async def tell(self, evse: int, event: Event) -> None:
        """An event from outside the poll: a card, a command, the cloud."""
        line, connector = self._line_of[evse], self.station.connectors[evse]
        async with line.lock:
            await self._handle(line, connector, event)
            await self._reoffer(line, connector)

    async def _handle(self, line: Line, connector: Connector, event: Event) -> None:
        before = connector.state
        actions = connector.handle(event, self.clock.now())
        safe, durable, power = _split(actions)
        if not await self._settle(line, connector, before, safe, durable):
            return
        await self._actuate(line, connector, power)
        if any(is_event(action, TransactionEventType.STARTED) for action in durable):
            await self._note_signed(line, connector)
        for action in actions:
            if isinstance(action, ReportStatus):
                self.told[action.status.evse] = action.status
                self.ledger.report(action.status)
        if durable or any(isinstance(action, ReportStatus) for action in actions):
            self.wake()
        if connector.state.meter.fresh and any(isinstance(each, Release) for each in power):
            await self._look_again(line, connector)

    async def _settle(
        self,
        line: Line,
        connector: Connector,
        before: EvseState,
        safe: list[Power],
        durable: list[Durable],
    ) -> bool:
        """Make safe, then persist; whatever keeps that from happening, the step is taken back."""
        self._ahead[connector.evse] = before
        persisted = False
        try:
            await self._actuate(line, connector, safe)
            durable = await self._with_signed(line, connector, durable)
            persisted = self._persist(connector, durable)
        finally:
            del self._ahead[connector.evse]
            if not persisted:
                untold = {"written": None, "released": None} if safe else {}
                connector.state = replace(before, **untold)  # type: ignore[arg-type]  # by field name
        return persisted

    async def _note_signed(self, line: Line, connector: Connector) -> None:
        """So that what an earlier transaction has left is never taken for this one's."""
        if isinstance(line.board, Signs):
            try:
                await self._within(line.board.note_signed(line.own(connector.evse)))
            except BOARD_ERRORS as error:
                log.warning("board %s: signed values were not looked at: %s", line.name, error)

    async def _with_signed(
        self, line: Line, connector: Connector, durable: list[Durable]
    ) -> list[Durable]:
        """What the meter has signed goes with the end; the end waits for it, but not for ever."""
        ends = any(is_event(action, TransactionEventType.ENDED) for action in durable)
        if not ends or not isinstance(line.board, Signs):
            return durable
        try:
            signed = await self._within(line.board.signed(line.own(connector.evse)))
        except BOARD_ERRORS as error:
            why = str(error) or f"not within {self.settings.deadline_s:g} s"
            log.warning("EVSE %s: ends without signed values: %s", connector.evse, why)
            return durable
        return [_signed(action, signed) for action in durable] if signed else durable

    def _persist(self, connector: Connector, durable: list[Durable]) -> bool:
        """False: a start could not be persisted; it must not happen."""
        if not durable or self.ledger.write(durable):
            return True
        if starts(durable):
            log.error("EVSE %s: no start while the journal cannot be written", connector.evse)
            return False
        self.ledger.write_later(durable)
        return True

    async def _look_again(self, line: Line, connector: Connector) -> None:
        """Right after a release a session register stands at its start: see it there."""
        for reading in await self._read(line):
            if reading.evse == connector.evse:
                await self._handle(line, connector, Read(reading))

    async def _actuate(self, line: Line, connector: Connector, actions: Sequence[Power]) -> None:
        """A contactor that should open is told so whatever fails; one that may close is not."""
        failed = False
        for action in actions:
            if failed and isinstance(action, Release):
                connector.undone(action)
                continue
            try:
                await self._command_board(line, action)
            except BOARD_ERRORS as error:
                failed = True
                self._note(line, error)
                connector.undone(action)

    async def _command_board(self, line: Line, action: Power) -> None:
        mine = line.own(action.evse)
        if isinstance(action, Withhold):
            await self._within(line.board.withhold(mine))
        elif isinstance(action, Release):
            await self._within(line.board.release(mine))
        else:
            self.station.telling(action.evse, action.limit, self.clock.now())
            await self._within(line.board.set_limit(mine, action.limit))
            self.station.told(action.evse, action.limit, self.clock.now())

    async def _within(self, request: Awaitable[T]) -> T:
        async with asyncio.timeout(self.settings.deadline_s):
            return await request

    def _note(self, line: Line, error: Exception) -> None:
        """One line in the log when trouble begins, not one per poll."""
        text = str(error) or f"no answer within {self.settings.deadline_s:g} s"
        if not line.trouble:
            log.warning("board %s: %s", line.name, text)
            line.trouble = text

    def _sample(self, connector: Connector, reading: EvseReading) -> None:
        state = connector.state
        at = state.read_at or self.clock.now()
        self.ledger.sample([as_sample(reading, at, state)])


def _split(actions: Sequence[Action]) -> tuple[list[Power], list[Durable], list[Power]]:
    """What must be done before, in and after the commit."""
    power = [a for a in actions if isinstance(a, Withhold | SetLimit | Release)]
    return (
        [a for a in power if rank(a) < DURABLE_RANK],
        [a for a in actions if isinstance(a, Emit | Keep | Forget)],
        [a for a in power if rank(a) > DURABLE_RANK],
    )


def is_event(action: Durable, kind: TransactionEventType) -> bool:
    """Whether this tells that a transaction did so."""
    return (
        isinstance(action, Emit)
        and isinstance(action.fact, TransactionEvent)
        and action.fact.type is kind
    )


def _signed(action: Durable, signed: tuple[SignedValue, ...]) -> Durable:
    if not isinstance(action, Emit) or not isinstance(action.fact, TransactionEvent):
        return action
    return Emit(msgspec.structs.replace(action.fact, signed=signed))


def as_sample(reading: EvseReading, at: Stamp, state: EvseState) -> Sample:
    """A reading as telemetry; energy is the lifetime integral, never a raw register."""
    return Sample(
        evse=reading.evse,
        at=at,
        energy_wh=state.meter.register.meter_wh,
        power_w=reading.power,
        current_l1_ma=reading.current[0],
        current_l2_ma=reading.current[1],
        current_l3_ma=reading.current[2],
        voltage_l1_mv=reading.voltage[0],
        voltage_l2_mv=reading.voltage[1],
        voltage_l3_mv=reading.voltage[2],
        offered_ma=state.written,
    )
