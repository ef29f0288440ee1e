"""Reading transactions, and starting and stopping them from afar."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from cloud.authorization.api import Authorizer, Decision, find_refs, reveal
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.http import Caller
from cloud.stations.api import StationFinder
from cloud.transactions import store
from cloud.transactions.api import IdTokenRefused, TransactionNotFound, TransactionOver
from cloud.transactions.projection import State
from cloud.transactions.store import Contradicting, Recorded, Transaction
from protocols.agent_link import Action, IdToken, OpenTransaction, RemoteStart, RemoteStop

START_VALID = timedelta(minutes=2)
STOP_VALID = timedelta(minutes=10)


class Commands(Protocol):
    """The way to a station."""

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID: ...


@dataclass(frozen=True)
class Listed:
    """A transaction with the names that other modules keep."""

    row: Transaction
    station: str
    id_token: IdToken | None


@dataclass(frozen=True)
class Detail:
    listed: Listed
    events: list[Recorded]
    conflicts: list[Contradicting]


@dataclass(frozen=True)
class Filters:
    station: str | None = None
    state: State | None = None
    id_token: str | None = None
    start: datetime | None = None
    end: datetime | None = None


class Transactions:
    def __init__(
        self,
        database: Database,
        stations: StationFinder,
        authorizer: Authorizer,
        commands: Commands,
    ) -> None:
        self._database = database
        self._stations = stations
        self._authorizer = authorizer
        self._commands = commands

    # ------------------------------------------------------------------ reading

    async def list_transactions(
        self,
        caller: Caller,
        after: tuple[datetime, UUID] | None,
        limit: int,
        filters: Filters,
    ) -> list[Listed]:
        """Raises StationNotFound when the filter names a station that is not there."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = filters.station and await self._stations.find(cursor, filters.station)
            refs = await find_refs(cursor, filters.id_token) if filters.id_token else None
            found = await store.transactions(
                cursor,
                after,
                limit,
                station_id=station.id if station else None,
                state=filters.state,
                tokens=refs,
                start=filters.start,
                end=filters.end,
            )
            return await self._named(cursor, found)

    async def _named(self, cursor: Cursor, found: Sequence[Transaction]) -> list[Listed]:
        names = await self._stations.identities(cursor, {row.station_id for row in found})
        tokens = await reveal(cursor, {row.token for row in found if row.token is not None})
        return [
            Listed(
                row,
                names.get(row.station_id, ""),
                tokens.get(row.token) if row.token is not None else None,
            )
            for row in found
        ]

    async def detail(self, caller: Caller, transaction: UUID) -> Detail:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            row = await self._transaction(cursor, transaction)
            return Detail(
                (await self._named(cursor, [row]))[0],
                await store.history(cursor, transaction),
                await store.conflicts(cursor, transaction),
            )

    async def _transaction(self, cursor: Cursor, transaction: UUID) -> Transaction:
        row = await store.transaction(cursor, transaction)
        if row is None:
            raise TransactionNotFound(
                f"there is no transaction {transaction}; it may not have reached the cloud yet",
                transaction=str(transaction),
            )
        return row

    # ------------------------------------------------------------------ commands

    async def remote_start(
        self, caller: Caller, identity: str, evse: int, id_token: IdToken
    ) -> UUID:
        """Ask a station to start; raises IdTokenRefused for a token that may not charge."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._stations.find(cursor, identity)
            await self._stations.evse(cursor, station, evse)
            decision = await self._authorizer.decide(cursor, id_token.value)
            if decision is not Decision.ACCEPTED:
                raise IdTokenRefused(
                    f"the id token {id_token.value!r} may not charge: it is"
                    f" {decision.lower()}; enter it, unblock it or extend it first",
                    id_token=id_token.value,
                    decision=str(decision),
                )
            return await self._commands.send(
                cursor,
                caller.tenant_id,
                station.id,
                RemoteStart(evse, id_token),
                START_VALID,
                caller.subject,
            )

    async def remote_stop(self, caller: Caller, identity: str, transaction: UUID) -> UUID:
        """Ask a station to stop its transaction; raises TransactionOver when it has ended."""
        async with self._database.unit(caller.tenant_id) as cursor:
            station = await self._stations.find(cursor, identity)
            row = await self._transaction(cursor, transaction)
            if row.station_id != station.id:
                raise TransactionNotFound(
                    f"transaction {transaction} is not one of station {identity!r}",
                    transaction=str(transaction),
                )
            if row.state == State.ENDED:
                raise TransactionOver(
                    f"transaction {transaction} has ended already", transaction=str(transaction)
                )
            return await self._commands.send(
                cursor,
                caller.tenant_id,
                station.id,
                RemoteStop(transaction),
                STOP_VALID,
                caller.subject,
            )

    # ------------------------------------------------------------------ for the welcome

    async def open_transactions(
        self, cursor: Cursor, station_id: int, told: Collection[UUID]
    ) -> tuple[tuple[OpenTransaction, ...], tuple[UUID, ...]]:
        """What the cloud holds open for the station, and which of the told ones are over."""
        steps = await store.open_steps(cursor, station_id)
        tokens = await reveal(cursor, {token for _, token in steps if token is not None})
        still = tuple(
            OpenTransaction(
                transaction=event.transaction,
                evse=event.evse,
                seq_no=event.seq_no,
                started=event.started,
                energy_wh=event.energy_wh,
                meter_wh=event.meter_wh,
                raw_wh=event.raw_wh,
                id_token=tokens.get(token) if token is not None else None,
            )
            for event, token in steps
        )
        return still, tuple(await store.ended(cursor, station_id, told))
