"""Commands to stations: stored first, delivered while they live, answered by a billing fact."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

from cloud.communication import endings, store
from cloud.communication.api import (
    CommandNotFound,
    CommandUnderWay,
    LocalLists,
    StationDirectory,
)
from cloud.communication.store import CommandFilters, CommandRow
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from protocols.agent_link import Action, BillingBatch, Command, CommandResult
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

AGAIN_AFTER: Final = timedelta(seconds=10)
"""An unanswered command is sent again; the agent knows the id and answers the same."""
LATE_ANSWERS: Final = timedelta(seconds=30)
"""How long after its end a command may still be answered before it counts as expired."""
SWEEP_S: Final = 5.0
AT_ONCE: Final = 200

Publish = Callable[[str, Command], Awaitable[None]]


@dataclass(frozen=True)
class Named:
    """A command and its station's identity."""

    row: CommandRow
    station: str


class Commands:
    """Stores commands in the caller's transaction; `run` delivers and expires them."""

    def __init__(
        self,
        database: Database,
        directory: StationDirectory,
        lists: LocalLists,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._directory = directory
        self._lists = lists
        self._clock = clock
        self._wake = asyncio.Event()

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID:
        """Queue a command in the caller's unit of work; it goes out when that commits."""
        command_id = uuid4()
        now = self._clock()
        await store.add_command(
            cursor, command_id, tenant, station_id, action, actor, now, now + valid_for
        )
        return command_id

    async def get(self, caller: Caller, command_id: UUID) -> Named:
        """Raises CommandNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return (await self._named(cursor, [await self._command(cursor, command_id)]))[0]

    async def _command(self, cursor: Cursor, command_id: UUID) -> CommandRow:
        found = await store.command(cursor, command_id)
        if found is None:
            raise CommandNotFound(f"there is no command {command_id}", command=str(command_id))
        return found

    async def _named(self, cursor: Cursor, found: Sequence[CommandRow]) -> list[Named]:
        names = await self._directory.identities(cursor, {row.station_id for row in found})
        return [Named(row, names.get(row.station_id, "")) for row in found]

    async def list_commands(
        self, caller: Caller, part: Part, station: str | None = None, **filters: Any
    ) -> Cut[Named]:
        """Filters are CommandFilters'; raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = None if station is None else await self._directory.key_of(cursor, station)
            cut = await store.commands(cursor, part, CommandFilters(station_id=key, **filters))
            return Cut(await self._named(cursor, cut.rows), cut.next)

    async def cancel(self, caller: Caller, command_id: UUID) -> Named:
        """Withdraw a command that was not sent yet. Raises CommandNotFound, CommandUnderWay."""
        async with self._database.unit(caller.tenant_id) as cursor:
            row = await store.cancel_command(cursor, command_id, self._clock())
            if row is None:
                held = await self._command(cursor, command_id)
                raise CommandUnderWay(
                    f"command {command_id} is {held.status}; only one that still waits for its"
                    " station can be cancelled",
                    command=str(command_id),
                    status=held.status,
                )
            await endings.tell(cursor, [endings.of(row)])
            return (await self._named(cursor, [row]))[0]

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        """What was given and answered stays with the tenant that gave it; the rest is withdrawn."""
        await store.hand_over(cursor, move.station_id, move.new, self._clock())

    # ------------------------------------------------------------------ delivery

    async def run(self, publish: Publish) -> None:
        """Deliver and expire, for ever; the database wakes it, and every few seconds time does."""
        listening = asyncio.create_task(
            self._database.wake_on(store.COMMAND_CHANNEL, self._wake), name="listen for commands"
        )
        try:
            while True:
                try:
                    await self.deliver(publish)
                    await self._expire()
                except Unavailable as error:
                    logger.warning("commands wait: %s", error)
                try:
                    async with asyncio.timeout(SWEEP_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def deliver(self, publish: Publish, station_id: int | None = None) -> None:
        """Publish what is due; all of one station's at once after its hello."""
        now = self._clock()
        before = now if station_id is not None else now - AGAIN_AFTER
        async with self._database.commit_unit() as cursor:
            due = await store.due_commands(cursor, now, before, station_id, AT_ONCE)
            names = await self._directory.identities(cursor, {row.station_id for row in due})
            lists = {
                tenant: await self._lists.local_list(cursor, tenant)
                for tenant in {TenantId(row.tenant_id) for row in due if _names_a_list(row)}
            }
            await store.note_sent(cursor, [row.id for row in due], now)
        for row in due:
            if _names_a_list(row):
                await asyncio.sleep(0)  # packing a long list takes a while: let others in between
                action: Action = lists[TenantId(row.tenant_id)]
            else:
                action = msgspec.convert(row.action, Action)
            await publish(names[row.station_id], _as_command(row, action))

    async def _expire(self) -> None:
        now = self._clock()
        async with self._database.commit_unit() as cursor:
            await endings.expire(cursor, now - LATE_ANSWERS, now)


def _names_a_list(row: CommandRow) -> bool:
    return row.action.get("action") == store.SET_LOCAL_LIST


def _as_command(row: CommandRow, action: Action) -> Command:
    valid = row.expires_at - row.requested_at
    return Command(
        id=row.id,
        issued_ms=Milliseconds(round(row.requested_at.timestamp() * 1000)),
        valid_ms=Milliseconds(round(valid.total_seconds() * 1000)),
        do=action,
    )


class CommandResults:
    """The commit path's part: what agents answered."""

    name = "commands"

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        happened = []
        for delivery in deliveries:
            if isinstance(delivery.batch, BillingBatch):
                for fact in delivery.batch.facts:
                    if isinstance(fact, CommandResult):
                        happened += await self._take(cursor, delivery, fact)
        return happened

    async def _take(self, cursor: Cursor, delivery: Delivery, fact: CommandResult) -> list[Event]:
        owner = await store.answer_command(
            cursor,
            delivery.station_id,
            fact.command,
            fact.status,
            fact.text,
            fact.transaction,
            delivery.received_at,
        )
        if owner is None:
            return []
        data = {"text": fact.text, "transaction": str(fact.transaction or "")}
        return [
            Event(
                owner,
                f"command.{fact.status}",
                delivery.station_id,
                str(fact.command),
                data,
            )
        ]
