from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from edge_agent.agent import MOST_HEARD, Agent, Inbox, supervised
from edge_agent.hardware.board import BoardUnreachableError, MeterReading
from edge_agent.journal import Journal, JournalBudget, JournalError
from edge_agent.main import IN_USE, withhold_all
from edge_agent.rules.actions import ConnectorSettings
from edge_agent.rules.site import SiteRules
from edge_agent.rules.station import RefusedError, StationSettings
from protocols.agent_link import ConnectorStatus, Sample, UnknownCommand
from protocols.quantities import MilliAmperes

Rig = Any  # the fixture's class lives in conftest, which cannot be imported


def open_journal(folder: Path) -> Journal:
    return Journal.open(folder, station="TAS-1", boot=uuid4(), budget=JournalBudget())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(open_journal(tmp_path)) as journal:
        yield journal


def agent_of(rig: Rig, journal: Journal, **settings: Any) -> Agent:
    known = {"version": "1", "on_journal_error": "continue"} | settings
    return Agent(loop=rig.loop, desk=rig.desk, journal=journal, inbox=Inbox(), **known)


async def accept_strangers(rig: Rig) -> None:
    from edge_agent.rules.authorization import OfflinePolicy

    rig.station.authorizer.policy = OfflinePolicy(allow_unknown=True)


async def test_a_session_survives_the_process_in_a_real_journal(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    first = open_journal(tmp_path)
    rig = make_rig(store=first)
    await accept_strangers(rig)
    await rig.charge(200)
    first.close()
    rig.time.advance(40)
    with closing(open_journal(tmp_path)) as second:
        rig.store = second
        rig.start()
        await rig.seconds(100)
        rig.board.unplug()
        await rig.seconds(2)
        (session,) = second.sessions(10)
    assert session.ended
    assert session.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)


async def test_a_clean_end_leaves_the_session_open_and_its_measure_fresh(
    make_rig: Callable[..., Rig], journal: Journal
) -> None:
    rig = make_rig(store=journal)
    await accept_strangers(rig)
    await rig.charge(45)
    running = asyncio.create_task(agent_of(rig, journal).run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (kept,) = journal.transactions()
    assert kept.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)
    assert rig.board.calls[-1] == "close"


async def test_the_status_tells_boards_queue_and_alarms(
    make_rig: Callable[..., Rig], journal: Journal
) -> None:
    rig = make_rig(store=journal)
    await accept_strangers(rig)
    agent = agent_of(rig, journal)
    await rig.charge(20)
    rig.ledger.failure = "the disk is full"
    status = agent.status()
    assert status["uplink"] == "not configured"
    assert status["evses"][0].status is ConnectorStatus.OCCUPIED
    assert status["status"].alarms == ("the disk is full",)
    assert status["status"].boards == {"board1": rig.board.identity}
    assert status["status"].pending_billing > 0


async def test_the_policy_may_end_sessions_when_the_disk_refuses(rig: Rig, tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        agent = agent_of(rig, journal, on_journal_error="stop")
        await rig.charge(20)
        rig.store.broken = "disk is full"
        await agent._without_disk()
        await rig.seconds(3)
    assert rig.board.drawn_current() == 0


async def test_a_stuck_board_is_seen(rig: Rig, journal: Journal) -> None:
    agent = agent_of(rig, journal)
    await rig.seconds(1)
    assert agent.stuck() == []
    rig.time.advance(61)
    assert agent.stuck() == ["board1"]


class FakeMeter:
    """A site meter that says what the test wants, or nothing."""

    identity = "meter"

    def __init__(self) -> None:
        self.silent = False

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self) -> MeterReading:
        if self.silent:
            raise BoardUnreachableError("the meter did not answer")
        amperes = MilliAmperes(30_000)
        return MeterReading(taken_at=0, current=(amperes, MilliAmperes(5_000), None))


async def test_the_site_meter_sets_the_load_and_is_recorded(
    make_rig: Callable[..., Rig], journal: Journal
) -> None:
    site = SiteRules(limit=(40_000,) * 3, metered=True)
    rig = make_rig(station=StationSettings(site=site))
    agent = agent_of(rig, journal)
    await agent._take_site(FakeMeter())
    assert rig.station.site.load.current == (30_000, 5_000, 30_000)
    (sample,) = rig.store.samples
    assert isinstance(sample, Sample)
    assert (sample.evse, sample.current_l1_ma) == (0, 30_000)


async def test_without_a_journal_every_board_that_answers_is_stopped(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = make_rig(boards=2)
    rig.boards[0].go_silent()
    rig.boards[1].plug()
    await rig.boards[1].release(1)
    assert rig.boards[1].drawn_current() > 0
    await withhold_all(rig.loop.lines, 1)
    assert rig.boards[1].drawn_current() == 0


def test_a_journal_in_use_is_told_apart_from_a_broken_one(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError) as refusal:
        open_journal(tmp_path)
    assert refusal.value.what == IN_USE


async def test_what_dies_is_started_again_later_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    async def work() -> None:
        raise ValueError("boom")

    caplog.set_level(logging.CRITICAL)
    with pytest.raises(asyncio.CancelledError):
        await supervised("work", work, sleep)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_locked_evse_stays_out_of_service_over_a_restart_until_confirmed(
    rig: Rig, journal: Journal
) -> None:
    agent = agent_of(rig, journal)
    rig.station.connectors[1].settings = ConnectorSettings(confirm_codes=frozenset({7}))
    with pytest.raises(RefusedError, match="all are in service"):
        await rig.desk.recover(None)
    await rig.seconds(1)
    rig.board.fault(code=7)
    await rig.seconds(2)
    rig.board.clear()
    await rig.seconds(2)
    assert rig.status().status is ConnectorStatus.FAULTED
    (alarm,) = agent.alarms()
    assert alarm.startswith("EVSE 1: the board reports error 7; look at the charger")
    await rig.desk.lock_out()
    rig.start()
    await rig.seconds(1)
    assert rig.status().status is ConnectorStatus.UNAVAILABLE
    with pytest.raises(RefusedError, match="out of service"):
        await rig.card(evse=1)
    assert await rig.desk.recover(1) == "in service again: EVSE 1"
    assert rig.status().status is ConnectorStatus.AVAILABLE
    assert rig.store.availability() == {1: True}


async def test_who_sends_more_commands_than_can_be_done_is_kept_waiting() -> None:
    inbox = Inbox()
    for _ in range(MOST_HEARD):
        await inbox.command(UnknownCommand(uuid4(), "dance"))
    late = asyncio.create_task(inbox.command(UnknownCommand(uuid4(), "dance")))
    await asyncio.sleep(0)  # the task's first step
    assert not late.done()
    done = asyncio.Event()

    class Desk:
        async def command(self, _command: UnknownCommand) -> None:
            done.set()

    working = asyncio.create_task(inbox.work(cast("Any", Desk())))
    async with asyncio.timeout(60):
        await done.wait()
        await late
    working.cancel()
