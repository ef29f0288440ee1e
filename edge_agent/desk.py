"""The desk: cards, commands and welcomes, checked and passed on to the loop."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID, uuid4

from edge_agent.ledger import Ledger
from edge_agent.loop import Loop
from edge_agent.records import LocalList, SiteLimit
from edge_agent.rules.actions import Authorized, Emit, Event, Operative, Redated
from edge_agent.rules.authorization import Heard
from edge_agent.rules.station import RefusedError
from protocols.agent_link import (
    ClockCorrected,
    ClockQuality,
    Command,
    CommandResult,
    CommandStatus,
    Configure,
    IdToken,
    RemoteStart,
    RemoteStop,
    SetAvailability,
    SetLimit,
    SetLocalList,
    UnknownCommand,
    Update,
    Watch,
    Welcome,
)
from protocols.quantities import Milliseconds

log = logging.getLogger(__name__)
NO_DISK = "the agent's journal cannot be written"


async def _nobody(_token: IdToken) -> Heard | None:
    return None


def _no_updates(_request: UUID) -> str:
    raise RefusedError("this agent takes no updates; configure [updates] and run it from a slot")


def _no_settings(_: Configure) -> str:
    raise RefusedError("this agent takes no settings from afar; upgrade it")


class Desk:
    """Answers each command once, with a result that outlives a restart."""

    def __init__(
        self, loop: Loop, *, ended_here: Callable[[], frozenset[UUID]] = frozenset
    ) -> None:
        self.loop = loop
        self.station = loop.station
        self.ledger: Ledger = loop.ledger
        self.clock = loop.clock
        self.watch: Callable[[Watch], None] = lambda _: None
        """Somebody looks: who sends telemetry shall do so more often. Set by who has an uplink."""
        self.ask: Callable[[IdToken], Awaitable[Heard | None]] = _nobody
        """What a backend says of a token; None where none is asked or answers in time."""
        self.update: Callable[[UUID], str] = _no_updates
        """A release waits: look for it. Returns what follows; set by who installs updates."""
        self.configure: Callable[[Configure], str] = _no_settings
        """Settings from afar. Returns what follows; set by who keeps them."""
        self.foreign: str = ""
        """Who else decides on transactions here; commands of the cloud for them are refused."""
        self._ended_here = ended_here
        self._taken: set[UUID] = set()

    async def present(self, token: IdToken, evse: int | None = None) -> str:
        """A card was shown; returns what to tell the person. Raises RefusedError."""
        if self.ledger.failure and not self.ledger.retry():
            raise RefusedError(f"no start now: {NO_DISK} ({self.ledger.failure})")
        heard = None
        if self.station.own_transaction(token, evse) is None:
            heard = await self.ask(token)
        target, event, text = self.station.present(token, evse, self.clock.now(), heard)
        await self.loop.tell(target, event)
        state = self.station.connectors[target].state
        if isinstance(event, Authorized) and not (state.waiting or state.session):
            raise RefusedError(f"no start now: {NO_DISK} ({self.ledger.failure})")
        return text

    async def command(self, command: Command | UnknownCommand) -> None:
        """Carry out a command of the cloud, at most once."""
        if command.id in self._taken or self.ledger.store.result_of(command.id) is not None:
            log.info("command %s was answered before", command.id)
            return
        self._taken.add(command.id)
        if isinstance(command, UnknownCommand):
            text = f"this agent does not know the action {command.action!r}; upgrade it"
            self._answer(command, CommandStatus.REJECTED, text)
            return
        now = self.clock.now()
        late = now.wall_ms >= command.issued_ms + command.valid_ms
        if late and now.quality is not ClockQuality.UNSET:
            self._answer(command, CommandStatus.EXPIRED, "it arrived after its expiry")
            return
        try:
            await self._carry_out(command)
        except RefusedError as error:
            self._answer(command, CommandStatus.REJECTED, str(error))

    async def _carry_out(self, command: Command) -> None:
        do = command.do
        if self.foreign and isinstance(do, RemoteStart | RemoteStop | SetLocalList):
            raise RefusedError(
                f"transactions here belong to {self.foreign}; use it, or change"
                " `carries` in the agent's configuration"
            )
        if isinstance(do, RemoteStart):
            if self.ledger.failure and not self.ledger.retry():
                raise RefusedError(NO_DISK)
            await self.loop.tell(*self.station.remote_start(do, command.id))
        elif isinstance(do, RemoteStop):
            await self.loop.tell(*self.station.remote_stop(do, command.id))
        elif isinstance(do, SetLimit):
            self._limit(command, do)
        elif isinstance(do, SetAvailability):
            await self._availability(command, do)
        elif isinstance(do, Watch):
            self.station.concerned(do.evse)
            self._persist(self._result(command, CommandStatus.EXECUTED))
            self.watch(do)
        elif isinstance(do, Update):
            text = self.update(do.request)
            self._persist(self._result(command, CommandStatus.EXECUTED, text))
        elif isinstance(do, Configure):
            text = self.configure(do)
            self._persist(self._result(command, CommandStatus.EXECUTED, text))
        else:
            self._local_list(command, do)

    def _limit(self, command: Command, do: SetLimit) -> None:
        self.station.concerned(do.evse)
        result = self._result(command, CommandStatus.EXECUTED)
        if do.limit_ma is None:
            self._persist(result, lifted=[do.evse])
            self.station.commands.pop(do.evse, None)
            return
        now = self.clock.now()
        until = Milliseconds(now.wall_ms + do.valid_ms)
        limit = SiteLimit(evse=do.evse, limit_ma=do.limit_ma, until_wall_ms=until)
        self._persist(result, put=[limit])
        self.station.hold(do, now)

    async def _availability(self, command: Command, do: SetAvailability) -> None:
        evses = self.station.concerned(do.evse)
        result = self._result(command, CommandStatus.EXECUTED)
        self._persist(result, availability=dict.fromkeys(evses, do.operative))
        await self.tell_all([(evse, Operative(do.operative)) for evse in evses])

    async def lock_out(self) -> None:
        """An EVSE that waits for a confirmation does so over a restart, too."""
        for evse, connector in self.station.connectors.items():
            state = connector.state
            if state.locked and state.operative:
                log.error("EVSE %s is out of service: %s", evse, state.locked)
                if self.ledger.write([], availability={evse: False}):
                    await self.loop.tell(evse, Operative(False))

    async def recover(self, evse: int | None) -> str:
        """A technician has looked at it: back into service. Raises RefusedError."""
        connectors = self.station.connectors
        named = list(connectors) if evse is None else self.station.concerned(evse)
        out = [each for each in named if not connectors[each].state.operative]
        if not out:
            raise RefusedError("no EVSE waits for a confirmation; all are in service")
        if not self.ledger.write([], availability=dict.fromkeys(out, True)):
            raise RefusedError(f"{NO_DISK}: {self.ledger.failure}")
        await self.tell_all([(each, Operative(True)) for each in out])
        return f"in service again: EVSE {', '.join(map(str, out))}"

    def _local_list(self, command: Command, do: SetLocalList) -> None:
        local = LocalList(version=do.version, entries=do.entries)
        self._persist(self._result(command, CommandStatus.EXECUTED), local_list=local)
        self.station.authorizer = self.station.authorizer.with_list(local)

    def _result(
        self, command: Command | UnknownCommand, status: CommandStatus, text: str = ""
    ) -> CommandResult:
        return CommandResult(
            id=uuid4(), command=command.id, at=self.clock.now(), status=status, text=text
        )

    def _persist(self, result: CommandResult, **settings: object) -> None:
        """Raises RefusedError when it cannot be made durable: then nothing was changed."""
        if not self.ledger.write([Emit(result)], **settings):
            raise RefusedError(f"{NO_DISK}: {self.ledger.failure}")
        self.loop.wake()

    def _answer(self, command: Command | UnknownCommand, status: CommandStatus, text: str) -> None:
        log.info("command %s: %s, %s", command.id, status, text)
        result = [Emit(self._result(command, status, text))]
        if not self.ledger.write(result):
            self.ledger.write_later(result)
        self.loop.wake()

    async def welcomed(self, welcome: Welcome) -> None:
        """The cloud's time and its view of our transactions."""
        await self.corrected(self.clock.cloud_time(welcome.now_ms))
        if self.foreign:
            return
        await self.tell_all(self.station.welcomed(welcome, self._ended_here()))

    async def corrected(self, fact: ClockCorrected | None) -> None:
        """Our account of time changed: record it, re-date what is open."""
        if fact is None:
            return
        log.warning("clock: offset %s ms, %s", fact.offset_ms, fact.quality)
        if not self.ledger.write([Emit(fact)]):
            self.ledger.write_later([Emit(fact)])
        await self.tell_all([(evse, Redated(fact)) for evse in self.station.connectors])

    async def tell_all(self, events: Sequence[tuple[int, Event]]) -> None:
        for evse, event in events:
            await self.loop.tell(evse, event)
