"""A station moves to another tenant while facts are on their way; every row has one owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from cloud.authorization.service import Authorization
from cloud.authorization.station_lists import ListHandover
from cloud.communication import store as communication_store
from cloud.communication.commands import CommandResults, Commands
from cloud.configuration.service import ConfigurationHandover
from cloud.diagnostics.service import DiagnosticsHandover
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.facts import Delivery, GroupCommitter
from cloud.kernel.http import Role
from cloud.main import CommandLink, Directory, Lists
from cloud.ota.campaigns import UpdateHandover
from cloud.stations.api import SiteNotFound, StationNotFound, StationRef, to_ms
from cloud.stations.tenancy import Tenancy
from cloud.stations.writer import StateWriter
from cloud.telemetry.service import TelemetryHandover
from cloud.telemetry.writer import TelemetryWriter
from cloud.transactions.writer import TransactionWriter
from protocols.agent_link import (
    Batch,
    BillingBatch,
    BillingFact,
    ChargingState,
    ClockQuality,
    CommandResult,
    CommandStatus,
    ConnectorStatus,
    EvseStatus,
    Hello,
    IdToken,
    Mark,
    SecurityEvent,
    SeriesGap,
    SetLocalList,
    Stamp,
    StateBatch,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
OUTBOX, BOOT = UUID(int=2), UUID(int=1)
OLD, NEW = TenantId(1), TenantId(2)


def stamp(at: datetime) -> Stamp:
    return Stamp(Milliseconds(to_ms(at)), Milliseconds(0), BOOT, ClockQuality.SYNCED)


def event(
    transaction: UUID, seq_no: int, kind: TransactionEventType, started: datetime
) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=kind,
        seq_no=seq_no,
        at=stamp(started + timedelta(minutes=seq_no)),
        trigger=Trigger.AUTHORIZED,
        evse=1,
        started=stamp(started),
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(seq_no * 100),
        meter_wh=WattHours(seq_no * 100),
        id_token=IdToken("PERSON") if seq_no == 0 else None,
    )


@dataclass
class Moving:
    """One station that has greeted, its commit path, and the way to move it."""

    world: Any
    station: StationRef
    sink: GroupCommitter
    tenancy: Tenancy
    lists: Authorization
    commands: Commands
    numbers: dict[Stream, int] = field(default_factory=dict)

    async def commit(self, *facts: BillingFact, tenant: TenantId = OLD) -> None:
        """Facts as a process brings them that still believes the station to be the tenant's."""
        await self.deliver(self.billing(*facts), Stream.BILLING, tenant)

    def billing(self, *facts: BillingFact) -> BillingBatch:
        return BillingBatch(OUTBOX, self.number(Stream.BILLING), 1, stamp(NOON), facts)

    def number(self, stream: Stream) -> int:
        self.numbers[stream] = self.numbers.get(stream, 0) + 1
        return self.numbers[stream]

    async def deliver(self, batch: Batch, stream: Stream, tenant: TenantId = OLD) -> None:
        delivery = Delivery(self.station.id, tenant, OUTBOX, NOON, stream, batch)  # type: ignore[arg-type]  # a batch of any stream
        assert await self.sink.append([delivery]) == [delivery]

    async def move(self) -> None:
        await self.tenancy.move("CP-1", NEW)

    async def owners(self, table: str) -> set[int]:
        async with self.world.database.commit_unit() as cursor:
            await cursor.execute(
                f"SELECT tenant_id FROM {table} WHERE station_id = %s", (self.station.id,)
            )
            return {tenant for (tenant,) in await cursor.fetchall()}


@pytest.fixture
async def moving(world: Any) -> AsyncIterator[Moving]:
    station = await world.station("CP-1")
    lists = Lists()
    commands = Commands(world.database, Directory(), lists, world.clock)
    lists.authorization = Authorization(world.database, CommandLink(commands), world.clock)
    followers = [
        commands,
        TelemetryHandover(),
        ConfigurationHandover(),
        DiagnosticsHandover(),
        UpdateHandover(world.clock),
        ListHandover(),
        lists.authorization,
    ]
    tenancy = Tenancy(world.database, followers, world.clock)
    writers = [StateWriter(), TelemetryWriter(), TransactionWriter(), CommandResults()]
    hello = Hello(OUTBOX, (BOOT,), stamp(NOON), {s: Mark(1, 1) for s in Stream}, "1.0", (), (), 0)
    async with world.database.commit_unit() as cursor:
        await communication_store.greet_outbox(cursor, OLD, station.id, hello)
        await communication_store.connected(cursor, OLD, station.id, hello, NOON)
    async with GroupCommitter(world.database, writers, linger_s=0.001) as sink:
        yield Moving(world, station, sink, tenancy, lists.authorization, commands)


STARTED, UPDATED, ENDED = (
    TransactionEventType.STARTED, TransactionEventType.UPDATED, TransactionEventType.ENDED,
)  # fmt: skip


async def test_a_transaction_keeps_the_tenant_of_its_start(moving: Moving) -> None:
    running, unheard, later = uuid4(), uuid4(), uuid4()
    await moving.commit(event(running, 0, STARTED, NOON - timedelta(minutes=30)))
    await moving.move()
    await moving.commit(event(running, 1, UPDATED, NOON - timedelta(minutes=30)))
    await moving.commit(event(running, 2, ENDED, NOON - timedelta(minutes=30)), tenant=NEW)
    await moving.commit(event(unheard, 0, STARTED, NOON - timedelta(hours=3)))
    await moving.commit(event(later, 0, STARTED, NOON + timedelta(minutes=5)))
    shown = {}
    for tenant in (OLD, NEW):
        async with await moving.world.client(Role.VIEWER, tenant) as client:
            page = (await client.get("/api/v1/transactions")).json()["items"]
            shown[tenant] = {one["transaction"] for one in page}
            assert {one["station"] for one in page} == {"CP-1"}
            assert {one["id_token"]["value"] for one in page} == {"PERSON"}
    assert shown == {OLD: {str(running), str(unheard)}, NEW: {str(later)}}
    async with await moving.world.client(Role.VIEWER, OLD) as client:
        detail = (await client.get(f"/api/v1/transactions/{running}")).json()
    assert (detail["state"], len(detail["events"])) == ("ended", 3)


async def test_the_station_its_state_and_measurements_go_along(moving: Moving) -> None:
    gap = SeriesGap(uuid4(), 1, Milliseconds(1), Milliseconds(2), 60, "evicted")
    await moving.commit(SecurityEvent(uuid4(), stamp(NOON), "Test", "before"), gap)
    state = EvseStatus(1, stamp(NOON), ConnectorStatus.AVAILABLE, ChargingState.IDLE)
    batch = StateBatch(OUTBOX, moving.number(Stream.STATE), 1, stamp(NOON), (state,))
    await moving.deliver(batch, Stream.STATE)
    await moving.move()
    again = StateBatch(OUTBOX, moving.number(Stream.STATE), 1, stamp(NOON), (replace_evse(state),))
    await moving.deliver(again, Stream.STATE)
    await moving.commit(SecurityEvent(uuid4(), stamp(NOON), "Test", "after"))
    for table in (
        "stations.evse_state", "stations.security_event", "telemetry.gap",
        "communication.connection", "kernel.outbox",
    ):  # fmt: skip
        assert await moving.owners(table) == {NEW}, table
    async with await moving.world.client(Role.VIEWER, OLD) as client:
        assert (await client.get("/api/v1/stations/CP-1")).status_code == 404
        assert (await client.get("/api/v1/stations")).json()["items"] == []
    async with await moving.world.client(Role.VIEWER, NEW) as client:
        assert (await client.get("/api/v1/stations/CP-1")).json()["station"] == "CP-1"
        kinds = [one["kind"] for one in (await client.get("/api/v1/events")).json()["items"]]
    assert kinds == ["station.joined", "evse.status", "station.security"]


def replace_evse(state: EvseStatus) -> EvseStatus:
    """The same told of another EVSE, whose row is new."""
    return EvseStatus(2, state.at, state.status, state.charging_state)


async def test_the_new_owners_list_is_sent_and_the_old_owners_commands_are_withdrawn(
    moving: Moving,
) -> None:
    async with await moving.world.client(Role.OPERATOR, NEW) as client:
        await client.post("/api/v1/id-tokens", json={"value": "THEIRS"})
    async with moving.world.database.unit(OLD) as cursor:
        given = await moving.commands.send(
            cursor, OLD, moving.station.id, SetLocalList(5, ()), timedelta(minutes=2), "key:1"
        )
    await moving.move()
    async with moving.world.database.commit_unit() as cursor:
        due = await communication_store.due_commands(
            cursor, moving.world.clock(), moving.world.clock(), moving.station.id, 10
        )
        assert [(one.tenant_id, one.action["action"]) for one in due] == [(NEW, "set_local_list")]
        composed = await moving.lists.local_list(cursor, NEW)
        withdrawn = await communication_store.command(cursor, given)
    assert [entry.id_token.value for entry in composed.entries] == ["THEIRS"]
    assert composed.version == due[0].action["version"]
    assert withdrawn
    assert (withdrawn.tenant_id, withdrawn.status) == (OLD, "cancelled")
    await moving.commit(CommandResult(uuid4(), given, stamp(NOON), CommandStatus.EXECUTED, ""))
    assert await events_of(moving, "command.executed") == {OLD}


async def events_of(moving: Moving, kind: str) -> set[int]:
    async with moving.world.database.commit_unit() as cursor:
        await cursor.execute("SELECT tenant_id FROM kernel.event WHERE kind = %s", (kind,))
        return {tenant for (tenant,) in await cursor.fetchall()}


async def test_an_owner_without_tokens_still_takes_the_list_away(moving: Moving) -> None:
    async with await moving.world.client(Role.OPERATOR, OLD) as client:
        await client.post("/api/v1/id-tokens", json={"value": "OURS"})
    await moving.move()
    async with moving.world.database.commit_unit() as cursor:
        composed = await moving.lists.local_list(cursor, NEW)
        held = await moving.lists.list_version(cursor, OLD)
    assert composed.entries == ()
    assert composed.version not in {0, held}


async def test_a_commit_under_way_is_wholly_before_the_move(moving: Moving) -> None:
    """The move waits for the commit that has locked the marks."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        name = "slow"

        async def write_batch(self, cursor: Cursor, deliveries: Any) -> list[Any]:
            entered.set()
            await go_on.wait()
            return []

    fact = SecurityEvent(uuid4(), stamp(NOON), "Test", "under way")
    batch = moving.billing(fact)
    delivery = Delivery(moving.station.id, OLD, OUTBOX, NOON, Stream.BILLING, batch)
    async with GroupCommitter(moving.world.database, [Slow(), StateWriter()]) as sink:
        appending = asyncio.create_task(sink.append([delivery]))
        await entered.wait()
        going = asyncio.create_task(moving.move())
        done, _ = await asyncio.wait([going], timeout=0.2)
        assert not done
        go_on.set()
        await asyncio.gather(appending, going)
    assert await events_of(moving, "station.security") == {OLD}
    assert await moving.owners("stations.security_event") == {NEW}


async def test_a_commit_that_waits_for_the_move_is_wholly_after_it(moving: Moving) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        async def station_moved(self, cursor: Cursor, move: Any) -> None:
            entered.set()
            await go_on.wait()

    slow = Tenancy(moving.world.database, [Slow()], moving.world.clock)
    going = asyncio.create_task(slow.move("CP-1", NEW))
    await entered.wait()
    fact = SecurityEvent(uuid4(), stamp(NOON), "Test", "late")
    appending = asyncio.create_task(moving.commit(fact))
    done, _ = await asyncio.wait([appending], timeout=0.2)
    assert not done
    go_on.set()
    await asyncio.gather(appending, going)
    assert await events_of(moving, "station.security") == {NEW}


async def test_moves_say_what_is_wrong_and_moving_twice_is_moving_once(
    moving: Moving, admin: httpx.AsyncClient
) -> None:
    with pytest.raises(StationNotFound):
        await moving.tenancy.move("CP-9", NEW)
    with pytest.raises(SiteNotFound):
        await moving.tenancy.move("CP-1", NEW, "nowhere")
    await admin.post("/api/v1/sites", json={"name": "Home"})
    moved = await moving.tenancy.move("CP-1", NEW)
    assert moved.changed
    assert not (await moving.tenancy.move("CP-1", NEW)).changed
    moving.world.clock.forward(days=1)
    back = await moving.tenancy.move("CP-1", OLD, "home")
    assert back == replace(moved, old=NEW, new=OLD)
    assert (await admin.get("/api/v1/stations/CP-1")).json()["site"] == 1


KEPT = {
    "transactions.transaction", "transactions.event", "transactions.conflict",  # the start's tenant
    "kernel.event", "kernel.dead_letter",  # what happened, happened to the tenant of that time
    "stations.former",
    "stations.claim", "stations.used_claim",  # void
    "communication.frame",  # names id tokens
    "communication.command",  # stays with the tenant that gave it
    '"authorization".list_push',  # made anew
    '"authorization".list_policy',  # names the old tenant's groups: void
    "tariffs.assignment",  # ends, and still prices what started before
    "ota.device", "ota.step",  # its part in campaigns of the tenant of that time
    "ota.observation",  # counted there once more: it is gone
    "ota.tag",  # the operator's words for it: void
}  # fmt: skip


async def test_every_table_about_stations_has_its_rule(moving: Moving, fill: Any) -> None:
    """A new table with both keys must either move or stand in the list above, with a reason."""
    async with moving.world.database.commit_unit() as cursor:
        await cursor.execute(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute t ON t.attrelid = c.oid AND t.attname = 'tenant_id'"
            " JOIN pg_attribute s ON s.attrelid = c.oid AND s.attname = 'station_id'"
            " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
        )
        tables = {name for (name,) in await cursor.fetchall()} - KEPT
    for table in sorted(tables):
        await fill(table, OLD, moving.station.id)
    await moving.move()
    assert {table: await moving.owners(table) for table in sorted(tables)} == {
        table: {NEW} for table in sorted(tables)
    }
