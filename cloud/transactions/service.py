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
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder
from cloud.tariffs.api import Cost, PriceBook, TariffVersion
from cloud.transactions import store
from cloud.transactions.api import IdTokenRefused, TransactionNotFound, TransactionOver
from cloud.transactions.costs import cost
from cloud.transactions.history_store import Recorded
from cloud.transactions.projection import State
from cloud.transactions.store import Contradicting, Transaction, TransactionFilters
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
    priced: tuple[TariffVersion, Cost] | None
    """By what, and what it costs, or has cost so far."""


@dataclass(frozen=True)
class Detail:
    listed: Listed
    events: Cut[Recorded]
    conflicts: list[Contradicting]


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed by, as a person names it."""

    station: str | None = None
    site: int | None = None
    evse: int | None = None
    state: State | None = None
    id_token: str | None = None
    started_from: datetime | None = None
    started_to: datetime | None = None
    ended_from: datetime | None = None
    ended_to: datetime | None = None
    min_energy_wh: int | None = None
    review: bool | None = None


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
        self._book = PriceBook()

    # ------------------------------------------------------------------ reading

    async def list_transactions(self, caller: Caller, part: Part, filters: Filters) -> Cut[Listed]:
        """Raises StationNotFound and SiteNotFound when a filter names what is not there."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            cut = await store.transactions(cursor, part, await self._narrowed(cursor, filters))
            return Cut(await self._named(cursor, cut.rows), cut.next)

    async def _narrowed(self, cursor: Cursor, given: Filters) -> TransactionFilters:
        """The filters with our own keys for what people name."""
        stations = None
        if given.station is not None:
            stations = await self._stations.keys_ever(cursor, given.station)
        if given.site is not None:
            there = await self._stations.at_site(cursor, given.site)
            stations = there if stations is None else [s for s in stations if s in there]
        same = {
            name: getattr(given, name)
            for name in ("evse", "state", "started_from", "started_to", "ended_from", "ended_to",
                         "min_energy_wh", "review")
        }  # fmt: skip
        tokens = None if given.id_token is None else await find_refs(cursor, given.id_token)
        return TransactionFilters(stations=stations, tokens=tokens, **same)

    async def _named(self, cursor: Cursor, found: Sequence[Transaction]) -> list[Listed]:
        names = await self._stations.identities(cursor, {row.station_id for row in found})
        tokens = await reveal(cursor, {row.token for row in found if row.token is not None})
        versions = await self._book.versions(
            cursor, {row.tariff_version for row in found if row.tariff_version is not None}
        )
        return [
            Listed(
                row,
                names.get(row.station_id, ""),
                tokens.get(row.token) if row.token is not None else None,
                _priced(row, versions.get(row.tariff_version or 0)),
            )
            for row in found
        ]

    async def detail(self, caller: Caller, transaction: UUID, part: Part) -> Detail:
        """A transaction with one page of its events. Raises TransactionNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            row = await self._transaction(cursor, transaction)
            return Detail(
                (await self._named(cursor, [row]))[0],
                await store.events(cursor, transaction, part),
                await store.conflicts(cursor, transaction),
            )

    async def events(self, caller: Caller, transaction: UUID, part: Part) -> Cut[Recorded]:
        """Raises TransactionNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            await self._transaction(cursor, transaction)
            return await store.events(cursor, transaction, part)

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

    # ------------------------------------------------------------------ for gateways

    async def native(
        self, cursor: Cursor, transactions: Collection[UUID]
    ) -> dict[UUID, tuple[str | None, int | None]]:
        """2.x's transactionId and 1.6's number; those that have neither are left out."""
        return await store.native_names(cursor, transactions)


def _priced(row: Transaction, version: TariffVersion | None) -> tuple[TariffVersion, Cost] | None:
    return None if version is None else (version, cost(row, version))
