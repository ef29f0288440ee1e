"""The station's port on the agent: fake boards, a real journal, no sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from edge_agent.agent import Agent, Inbox
from edge_agent.journal import Journal, JournalBudget, JournalError
from edge_agent.rules.authorization import Heard
from edge_agent.rules.charging_profiles import Pattern, Period, Profile, Profiles, Purpose, Unit
from edge_agent.rules.station import RefusedError
from edge_agent.uplink.ocpp.charger import AgentCharger
from edge_agent.uplink.ocpp.device import DeviceModel, variables_of
from edge_agent.uplink.ocpp.port import (
    CancelReservation,
    LogKind,
    Outcome,
    Reserve,
    Restart,
    SetOperative,
    Start,
    Stop,
    Upload,
)
from protocols.agent_link import (
    ConnectorStatus,
    IdToken,
    SecurityEvent,
    SetLocalList,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds
from tests.edge_agent.uplink.ocpp.bench import ABOUT

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
CARD = IdToken("CARD")


class World:
    """A rig, its agent and the port on it; `backend` is what it says of tokens."""

    def __init__(self, rig: Rig, journal: Journal, password: Path | None = None) -> None:
        self.rig = rig
        self.journal = journal
        self.agent = Agent(
            loop=rig.loop,
            desk=rig.desk,
            journal=journal,
            inbox=Inbox(),
            version="1",
            on_journal_error="continue",
        )
        self.restarts = 0
        self.asked: list[str] = []
        self.backend: dict[str, bool] | None = {}
        self.charger = AgentCharger(
            self.agent, "KRV-1", password_file=password, restart=self._restart
        )
        made = variables_of(ABOUT, time=str, entries=int, state=str)
        self.charger.device = DeviceModel(made, journal, self.charger.configured)
        self.charger.authorize = self._authorize
        rig.desk.ask = self.charger.ask

    def _restart(self) -> None:
        self.restarts += 1

    async def _authorize(self, token: IdToken) -> Heard | None:
        self.asked.append(token.value)
        if self.backend is None:
            return None
        return Heard(accepted=self.backend.get(token.value, False), why="the backend says so")

    def set(self, component: str, name: str, value: str) -> None:
        variable = self.charger.device.find(component, name)
        assert not isinstance(variable, str)
        assert self.charger.device.set(variable, value) == ""

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            await self.rig.seconds(1)
            await self.charger.upkeep()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    budget = JournalBudget()
    with closing(
        Journal.open(tmp_path / "journal", station="KRV-1", boot=uuid4(), budget=budget)
    ) as opened:
        yield opened


@pytest.fixture
async def world(make_rig: Callable[..., Rig], journal: Journal, tmp_path: Path) -> World:
    made = World(make_rig(boards=2, store=journal), journal, tmp_path / "password")
    await made.seconds(2)
    return made


# --------------------------------------------------------------------------- cards


async def test_a_stranger_is_asked_for_and_remembered(world: World) -> None:
    world.backend = {"CARD": True}
    world.rig.boards[0].plug()
    await world.seconds(1)
    assert "the backend says so" in await world.rig.card("CARD", 1)
    await world.seconds(2)
    world.rig.boards[0].unplug()
    await world.seconds(2)
    world.backend = None
    world.rig.boards[0].plug()
    await world.seconds(1)
    assert "accepted it before" in await world.rig.card("CARD", 1)
    assert world.asked == ["CARD"]


async def test_who_is_refused_does_not_charge(world: World) -> None:
    with pytest.raises(RefusedError, match="the backend says so"):
        await world.rig.card("STRANGER", 1)
    world.backend = None
    with pytest.raises(RefusedError, match="blocked"):
        await world.rig.card("STRANGER", 1)


async def test_settings_decide_who_is_asked_and_what_holds_offline(world: World) -> None:
    world.backend = {"CARD": True}
    await world.rig.card("CARD", 1)
    world.set("AuthCtrlr", "LocalPreAuthorize", "false")
    await world.rig.card("CARD", 2)
    assert world.asked == ["CARD", "CARD"]
    world.backend = None
    world.set("AuthCtrlr", "LocalAuthorizeOffline", "false")
    with pytest.raises(RefusedError, match="LocalAuthorizeOffline"):
        await world.rig.card("CARD", 1)
    world.set("AuthCtrlr", "LocalAuthorizeOffline", "true")
    world.set("AuthCtrlr", "OfflineTxForUnknownIdEnabled", "true")
    assert "policy allows" in await world.rig.card("OTHER", 1)


async def test_the_cache_outlives_the_process_until_it_is_cleared(
    world: World, make_rig: Callable[..., Rig], journal: Journal
) -> None:
    world.backend = {"CARD": True}
    await world.rig.card("CARD", 1)
    again = World(make_rig(boards=2, store=journal), journal)
    again.backend = None
    await again.seconds(1)
    assert "accepted it before" in await again.rig.card("CARD", 1)
    again.charger.clear_cache()
    third = World(make_rig(boards=2, store=journal), journal)
    third.backend = None
    await third.seconds(1)
    with pytest.raises(RefusedError, match="not in the local list"):
        await third.rig.card("CARD", 1)


# --------------------------------------------------------------------------- deeds


async def test_a_remote_start_names_itself_in_the_transaction(world: World) -> None:
    world.rig.boards[0].plug()
    await world.seconds(1)
    done = await world.charger.perform(Start(id_token=CARD, evse=1, remote_id=4711))
    assert done.outcome is Outcome.ACCEPTED
    await world.seconds(3)
    first = world.journal.next_fact()
    assert first is not None
    assert first.fact.command == UUID(int=4711)  # type: ignore[union-attr]  # a transaction's
    running = world.rig.station.running(1)
    assert running is not None
    assert (await world.charger.perform(Stop(running.id))).outcome is Outcome.ACCEPTED
    await world.seconds(3)
    assert world.rig.station.running(1) is None
    assert (await world.charger.perform(Stop(running.id))).outcome is Outcome.REJECTED


async def test_a_remote_start_may_have_to_be_authorized(world: World) -> None:
    deed = Start(id_token=IdToken("STRANGER"), evse=1, authorize=True)
    assert (await world.charger.perform(deed)).outcome is Outcome.REJECTED
    world.backend = {"STRANGER": True}
    world.asked.clear()
    assert (await world.charger.perform(deed)).outcome is Outcome.ACCEPTED
    assert world.asked == ["STRANGER"]


async def test_a_profile_that_comes_with_a_start_holds_for_it_alone(world: World) -> None:
    limit = Profile(
        id=5,
        evse=0,
        stack=0,
        purpose=Purpose.TRANSACTION,
        pattern=Pattern.RELATIVE,
        unit=Unit.AMPERE,
        periods=(Period(0, 9_000),),
        set_ms=0,
    )
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.charger.perform(Start(id_token=CARD, evse=1, profile=limit))
    await world.seconds(3)
    assert (world.rig.loop.told[1].offered_ma, world.rig.loop.told[1].limited_by) == (
        9_000,
        "profile",
    )
    world.rig.boards[0].unplug()
    await world.seconds(3)
    assert world.rig.station.profiles == Profiles()
    assert world.journal.named("ocpp_profile", Profile) == []


async def test_the_stations_maximum_is_shared_by_its_evses(world: World) -> None:
    most = Profile(
        id=6,
        evse=0,
        stack=0,
        purpose=Purpose.STATION_MAX,
        pattern=Pattern.ABSOLUTE,
        unit=Unit.AMPERE,
        periods=(Period(0, 20_000),),
        set_ms=0,
    )
    world.charger.set_profiles(Profiles().put(most))
    for number, board in enumerate(world.rig.boards, start=1):
        board.plug()
        await world.seconds(1)
        await world.charger.perform(Start(id_token=IdToken(f"CARD{number}"), evse=number))
    for _ in range(40):
        await world.seconds(1)
        assert sum(board.drawn_current() for board in world.rig.boards) <= 20_000
    assert [board.drawn_current() for board in world.rig.boards] == [10_000, 10_000]


async def test_availability_waits_for_a_transaction_and_outlives_the_process(
    world: World,
) -> None:
    world.backend = {"CARD": True}
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(2)
    done = await world.charger.perform(SetOperative(0, operative=False))
    assert done.outcome is Outcome.SCHEDULED
    assert world.journal.availability() == {1: False, 2: False}
    await world.seconds(1)
    assert world.rig.loop.told[1].status is ConnectorStatus.OCCUPIED
    assert world.rig.loop.told[2].status is ConnectorStatus.UNAVAILABLE


async def test_a_refused_transaction_ends_deauthorized(world: World) -> None:
    world.backend = {"CARD": True}
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(2)
    running = world.rig.station.running(1)
    await world.charger.deauthorize(running.id, "blocked")
    await world.seconds(3)
    (session,) = world.journal.sessions(5)
    assert session.reason is StoppedReason.DEAUTHORIZED


async def test_a_restart_ends_transactions_first(world: World) -> None:
    world.backend = {"CARD": True}
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(2)
    assert (await world.charger.perform(Restart(immediate=True))).outcome is Outcome.ACCEPTED
    refused = await world.charger.perform(Start(id_token=CARD, evse=2))
    assert refused.outcome is Outcome.REJECTED
    async with asyncio.timeout(30):
        while not world.restarts:
            await world.seconds(1)
            await asyncio.sleep(0.02)
    ends = [f for f in _facts(world.journal) if f.type is TransactionEventType.ENDED]
    assert [end.trigger for end in ends] == [Trigger.RESET]
    assert world.journal.named("ocpp_boot", tuple[str]) == [("RemoteReset",)]


def _facts(journal: Journal) -> list[Any]:
    return [fact for batch in journal.billing(limit=99) for fact in batch.facts]


# --------------------------------------------------------------------------- reservations


def _reserve(world: World, seconds: int = 60, evse: int = 1, number: int = 7) -> Reserve:
    until = world.charger.now().wall_ms + seconds * 1000
    return Reserve(evse=evse, id=number, id_token=CARD, group="G", until_wall_ms=until)


async def test_a_reserved_evse_admits_its_token_and_group(world: World) -> None:
    world.backend = {"CARD": True, "OTHER": True}
    assert (await world.charger.perform(_reserve(world))).outcome is Outcome.ACCEPTED
    assert world.rig.loop.told[1].status is ConnectorStatus.RESERVED
    with pytest.raises(RefusedError, match="reserved"):
        await world.rig.card("OTHER", 1)
    start = Start(id_token=IdToken("OTHER"), evse=1)
    assert (await world.charger.perform(start)).outcome is Outcome.REJECTED
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(2)
    running = world.rig.station.running(1)
    assert world.charger.reservation(running.id) == 7
    world.rig.boards[0].unplug()
    await world.seconds(2)
    assert world.rig.loop.told[1].status is ConnectorStatus.AVAILABLE
    await world.rig.card("OTHER", 1)


async def test_a_reservation_ends_by_time_or_by_word(world: World) -> None:
    await world.charger.perform(_reserve(world, seconds=3))
    await world.seconds(4)
    assert world.rig.loop.told[1].status is ConnectorStatus.AVAILABLE
    await world.charger.perform(_reserve(world))
    assert (await world.charger.perform(CancelReservation(8))).outcome is Outcome.REJECTED
    assert (await world.charger.perform(CancelReservation(7))).outcome is Outcome.ACCEPTED
    assert world.rig.loop.told[1].status is ConnectorStatus.AVAILABLE


async def test_what_cannot_be_reserved(world: World) -> None:
    await world.charger.perform(_reserve(world))
    again = await world.charger.perform(_reserve(world, number=8))
    assert again.outcome is Outcome.OCCUPIED
    await world.charger.perform(SetOperative(2, operative=False))
    gone = await world.charger.perform(_reserve(world, evse=2, number=9))
    assert gone.outcome is Outcome.UNAVAILABLE
    world.rig.boards[1].fault()
    await world.seconds(2)
    broken = await world.charger.perform(_reserve(world, evse=2, number=9))
    assert broken.outcome is Outcome.FAULTED
    late = await world.charger.perform(_reserve(world, seconds=-5, number=7))
    assert late.outcome is Outcome.REJECTED


# --------------------------------------------------------------------------- settings, authority


async def test_settings_change_what_they_are_about(world: World) -> None:
    world.set("TxCtrlr", "EVConnectionTimeOut", "17")
    world.set("SampledDataCtrlr", "TxUpdatedInterval", "0")
    for connector in world.rig.station.connectors.values():
        assert connector.settings.connection_timeout_ms == 17_000
        assert connector.settings.event_ms > 10**11


async def test_on_a_dear_link_a_transaction_s_values_come_more_seldom_and_none_is_left_out(
    world: World,
) -> None:
    world.backend = {"CARD": True}
    world.set("SampledDataCtrlr", "TxUpdatedInterval", "10")
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(45)
    events = taken_events(world)
    assert sum(map(is_periodic, events)) >= 3
    world.charger.thin(30_000)
    await world.seconds(60)
    thinned = taken_events(world)
    assert 1 <= sum(map(is_periodic, thinned)) <= 2
    world.set("SampledDataCtrlr", "TxUpdatedInterval", "7")
    assert event_intervals(world) == {30_000}
    world.charger.thin(0)
    assert event_intervals(world) == {7_000}
    world.rig.boards[0].unplug()
    await world.seconds(3)
    events += [*thinned, *taken_events(world)]
    assert [event.seq_no for event in events] == list(range(len(events)))
    assert events[-1].type is TransactionEventType.ENDED


def taken_events(world: World) -> list[TransactionEvent]:
    """What the backend has not had yet, in order."""
    found = []
    while (pending := world.journal.next_fact(others=False)) is not None:
        assert isinstance(pending.fact, TransactionEvent)
        found.append(pending.fact)
        world.journal.delivered(pending)
    return found


def is_periodic(event: TransactionEvent) -> bool:
    return event.trigger is Trigger.METER_VALUE_PERIODIC


def event_intervals(world: World) -> set[int]:
    return {one.settings.event_ms for one in world.rig.station.connectors.values()}


async def test_the_password_is_kept_in_its_file_alone(world: World, tmp_path: Path) -> None:
    renewed: list[None] = []
    world.charger.renewed = lambda: renewed.append(None)
    world.set("SecurityCtrlr", "BasicAuthPassword", "a long enough password")
    file = tmp_path / "password"
    assert file.read_text() == "a long enough password\n"
    assert (file.stat().st_mode & 0o777, renewed) == (0o600, [None])
    file.unlink()
    file.mkdir()
    with pytest.raises(JournalError, match="not changed"):
        world.set("SecurityCtrlr", "BasicAuthPassword", "another long password")


async def test_the_cloud_has_no_say_where_transactions_belong_to_a_backend(world: World) -> None:
    from protocols.agent_link import Command, CommandStatus

    world.rig.desk.foreign = "the OCPP backend wss://csms.example"
    now = world.charger.now().wall_ms
    command = Command(uuid4(), Milliseconds(now), Milliseconds(60_000), SetLocalList(4, ()))
    await world.rig.desk.command(command)
    result = world.journal.result_of(command.id)
    assert result is not None
    assert result.status is CommandStatus.REJECTED
    assert "belong to the OCPP backend" in result.text


# --------------------------------------------------------------------------- logs


@asynccontextmanager
async def taking(status: int = 201) -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """A server that takes files by PUT; gives its URL and what it has got by path."""
    got: dict[str, bytes] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"Content-Length: (\d+)", head)[1])  # type: ignore[index]  # it is there
        got[head.split()[1]] = await reader.readexactly(length)
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://user:word@127.0.0.1:{server.sockets[0].getsockname()[1]}/in/", got


async def _told(world: World, last: str) -> list[str]:
    told: list[str] = []
    world.charger.tell = lambda event: told.append(event.status)
    async with asyncio.timeout(30):
        while last not in told:
            await asyncio.sleep(0.02)
    return told


async def test_diagnostics_are_really_brought_without_secrets(world: World) -> None:
    world.set("SecurityCtrlr", "BasicAuthPassword", "a long enough password")
    world.backend = {"CARD": True}
    world.rig.boards[0].plug()
    await world.seconds(1)
    await world.rig.card("CARD", 1)
    await world.seconds(2)
    async with taking() as (url, got):
        done = await world.charger.perform(Upload(kind=LogKind.DIAGNOSTICS, location=url))
        assert done.outcome is Outcome.ACCEPTED
        assert await _told(world, "Uploaded") == ["Uploading", "Uploaded"]
    content = gzip.decompress(got[f"/in/{done.text}"])
    assert b"a long enough" not in content
    found = json.loads(content)
    assert found["sessions"][0]["id_token"] == "CARD"
    assert found["status"]["evses"][0]["status"] == "Occupied"
    assert found["settings"]["TxCtrlr.EVConnectionTimeOut"] == "60"


async def test_the_security_log_has_its_events_of_that_time(world: World) -> None:
    for wall in (-1000, 0):
        at = msgspec.structs.replace(
            world.charger.now(), wall_ms=Milliseconds(world.charger.now().wall_ms + wall)
        )
        event = SecurityEvent(id=uuid4(), at=at, type="MeterJumped", text=str(wall))
        world.journal.commit(facts=[event])
    since = world.charger.now().wall_ms - 500
    async with taking() as (url, got):
        deed = Upload(kind=LogKind.SECURITY, location=f"{url}log", request_id=3, since_ms=since)
        await world.charger.perform(deed)
        await _told(world, "Uploaded")
    found = json.loads(gzip.decompress(got["/in/log"]))
    assert [one["text"] for one in found["security_events"]] == ["0"]


async def test_an_upload_that_fails_is_tried_as_often_as_asked(world: World) -> None:
    async with taking(status=507) as (url, got):
        deed = Upload(kind=LogKind.DIAGNOSTICS, location=url, retries=1, interval_s=0)
        await world.charger.perform(deed)
        busy = await world.charger.perform(deed)
        assert busy.outcome is Outcome.REJECTED
        assert await _told(world, "UploadFailure") == ["Uploading", "UploadFailure"]
        assert len(got) == 1
    for location in ("ftp://x.example/", "http:///", "http://x.example:99999/"):
        refused = await world.charger.perform(Upload(kind=LogKind.SECURITY, location=location))
        assert refused.outcome is Outcome.REJECTED
