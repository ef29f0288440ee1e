from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from edge_agent.hardware.board import BoardRefusedError
from edge_agent.loop import LoopSettings
from edge_agent.rules.authorization import OfflinePolicy
from edge_agent.rules.site import SiteLoad, SiteRules
from edge_agent.rules.station import RefusedError, StationSettings
from protocols.agent_link import (
    ChargingState,
    ClockCorrected,
    Command,
    CommandStatus,
    ConnectorStatus,
    IdToken,
    LocalListEntry,
    OpenTransaction,
    RemoteStart,
    RemoteStop,
    SetAvailability,
    SetLimit,
    SetLocalList,
    StoppedReason,
    Stream,
    TransactionEventType,
    UnknownCommand,
    Verdict,
    Watch,
    Welcome,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
STARTED, UPDATED, ENDED = TransactionEventType
MA = MilliAmperes


def command(rig: Rig, do: Any, valid_ms: int = 30_000) -> Command:
    now = rig.clock.now().wall_ms
    return Command(id=uuid4(), issued_ms=now, valid_ms=Milliseconds(valid_ms), do=do)


def welcome(rig: Rig, **changes: Any) -> Welcome:
    known: dict[str, Any] = {
        "cloud": UUID(int=1),
        "outbox": UUID(int=2),
        "verdict": Verdict.GO_ON,
        "now_ms": rig.clock.now().wall_ms,
        "committed": dict.fromkeys(Stream, ()),
    }
    return Welcome(**(known | changes))


async def test_the_board_hears_a_safe_limit_before_anything_else(rig: Rig) -> None:
    rig.board.plug()
    await rig.loop.step(rig.loop.lines[0])
    assert rig.board.calls[:5] == [
        "open",
        "set_limit 1 0",
        "withhold 1",
        "arm_failsafe 60 6000",
        "read",
    ]


async def test_a_session_is_billed_to_the_watt_hour(rig: Rig) -> None:
    await rig.charge(1800)
    assert rig.status().charging_state is ChargingState.CHARGING
    rig.board.unplug()
    await rig.seconds(2)
    (ended,) = rig.events(ENDED)
    assert ended.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)
    assert rig.store.open == {}


async def test_the_start_is_on_disk_before_the_board_is_released(rig: Rig) -> None:
    rig.board.plug()
    await rig.seconds(2)
    seen: list[int] = []
    release = rig.board.release

    async def watched(evse: int) -> None:
        seen.append(len(rig.store.open))
        await release(evse)

    rig.board.release = watched
    await rig.card()
    assert seen == [1]


async def test_a_card_stops_what_it_started(rig: Rig) -> None:
    await rig.charge(60)
    assert "stopping" in await rig.card("card")
    await rig.seconds(2)
    (ended,) = rig.events(ENDED)
    assert ended.reason is StoppedReason.LOCAL
    assert rig.board.drawn_current() == 0


@pytest.mark.parametrize(
    ("value", "evse", "why"),
    [
        ("NOBODY", None, "not in the local list"),
        ("CARD", 9, "there is no EVSE 9"),
        ("OTHER", 1, "another id token"),
    ],
)
async def test_a_refused_card_is_told_why(rig: Rig, value: str, evse: int | None, why: str) -> None:
    await rig.charge(5)
    with pytest.raises(RefusedError, match=why):
        await rig.card(value, evse)


async def test_a_full_disk_allows_no_start_but_lets_the_running_one_end(rig: Rig) -> None:
    await rig.charge(60)
    rig.store.broken = "disk is full"
    rig.board.unplug()
    await rig.seconds(5)
    assert rig.events(ENDED) == []
    rig.board.plug()
    await rig.seconds(5)
    for _ in range(2):
        with pytest.raises(RefusedError, match="disk is full"):
            await rig.card()
    assert rig.board.drawn_current() == 0
    rig.store.broken = ""
    rig.ledger.retry()
    (ended,) = rig.events(ENDED)
    assert ended.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)
    assert [e.seq_no for e in rig.events()] == list(range(len(rig.events())))


async def test_a_disk_that_fills_up_while_a_card_waits_starts_nothing(rig: Rig) -> None:
    await rig.seconds(2)
    await rig.card()
    rig.store.broken = "disk is full"
    rig.board.plug()
    await rig.seconds(10)
    assert rig.board.drawn_current() == 0
    rig.store.broken = ""
    await rig.seconds(2)
    assert len(rig.events(STARTED)) == 1
    assert rig.board.drawn_current() > 0


async def test_a_silent_board_is_lost_after_five_seconds_and_recovers(rig: Rig) -> None:
    await rig.charge(60)
    rig.board.go_silent()
    await rig.seconds(3)
    assert rig.status().status is ConnectorStatus.OCCUPIED
    await rig.seconds(3)
    assert rig.status().status is ConnectorStatus.FAULTED
    assert "did not answer" in rig.status().error
    rig.board.come_back()
    await rig.seconds(15)
    assert rig.status().status is ConnectorStatus.OCCUPIED
    assert rig.board.drawn_current() > 0


async def test_one_board_that_is_gone_does_not_stop_the_other(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(boards=2)
    rig.boards[0].go_silent()
    rig.boards[1].plug()
    await rig.seconds(7)
    await rig.card(evse=2)
    await rig.seconds(30)
    assert rig.boards[1].drawn_current() > 0
    assert rig.status(1).status is ConnectorStatus.FAULTED


async def test_a_board_that_hangs_runs_into_the_deadline(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(settings=LoopSettings(deadline_s=0.01))
    await rig.seconds(1)

    async def never() -> None:
        await asyncio.Event().wait()

    rig.board.read = never
    await rig.seconds(7)
    assert "no answer within" in rig.status().error


async def test_a_limit_that_the_board_refuses_stays_unconfirmed_and_is_tried_again(
    rig: Rig,
) -> None:
    rig.board.plug()
    await rig.seconds(2)
    set_limit, refusals = rig.board.set_limit, ["it reads back 6 A"] * 3

    async def refusing(evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        if refusals:
            raise BoardRefusedError(refusals.pop())
        answer: MilliAmperes | None = await set_limit(evse, limit)
        return answer

    rig.board.set_limit = refusing
    await rig.card()
    assert rig.board.drawn_current() == 0
    await rig.seconds(4)
    assert rig.board.drawn_current() == 32_000


async def test_a_killed_agent_resumes_and_bills_every_watt_hour_once(rig: Rig) -> None:
    await rig.charge(300)
    rig.time.advance(50)
    rig.start()
    await rig.seconds(30)
    rig.board.unplug()
    await rig.seconds(2)
    (ended,) = rig.events(ENDED)
    assert ended.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)
    assert len(rig.events(STARTED)) == 1


async def test_killed_right_after_the_release_the_agent_measures_before_anything_flows(
    rig: Rig,
) -> None:
    await rig.charge(300)
    rig.board.unplug()
    await rig.seconds(2)
    first = rig.board.true_energy()
    rig.board.plug()
    await rig.seconds(2)
    release = rig.board.release

    async def deadly(evse: int) -> None:
        await release(evse)
        raise KeyboardInterrupt

    rig.board.release = deadly
    with pytest.raises(KeyboardInterrupt):
        await rig.card()
    rig.board.release = release
    rig.time.advance(3600)
    rig.board.calls.clear()
    rig.start()
    await rig.seconds(1)
    assert rig.board.calls[:3] == ["open", "set_limit 1 0", "arm_failsafe 60 6000"]
    await rig.seconds(60)
    rig.board.unplug()
    await rig.seconds(2)
    assert rig.board.true_energy() > first
    ended = rig.events(ENDED)[-1]
    assert ended.energy_wh == pytest.approx(rig.board.true_energy() - first, abs=1)


async def test_no_end_is_reported_before_it_is_persisted(rig: Rig) -> None:
    await rig.charge(60)
    withhold, told = rig.board.withhold, []

    async def watched(evse: int) -> None:
        told.append(rig.loop.told[1].charging_state)
        await withhold(evse)

    rig.board.withhold = watched
    rig.board.unplug()
    await rig.seconds(2)
    assert told == [ChargingState.CHARGING]
    assert rig.loop.told[1].charging_state is ChargingState.IDLE


async def test_a_clean_stop_leaves_the_session_open_with_its_last_energy(rig: Rig) -> None:
    await rig.charge(130)
    rig.loop.checkpoint()
    (kept,) = rig.store.open.values()
    assert kept.energy_wh == pytest.approx(rig.board.true_energy(), abs=7)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_stopped_between_the_decision_and_the_commit_nothing_is_lost(
    rig: Rig, cancelled: bool
) -> None:
    """The last checkpoint must not take an end for done that never reached the disk."""
    await rig.charge(130)
    rig.time.advance(30)
    rig.board.unplug()
    hangs = asyncio.Event()

    async def hanging(_evse: int) -> None:
        hangs.set()
        await asyncio.Event().wait()

    withhold, rig.board.withhold = rig.board.withhold, hanging
    step = asyncio.create_task(rig.loop.step(rig.loop.lines[0]))
    await hangs.wait()
    if cancelled:
        step.cancel()
        await asyncio.wait([step])
    rig.loop.checkpoint()
    step.cancel()
    rig.board.withhold = withhold
    rig.start()
    await rig.seconds(3)
    (ended,) = rig.events(ENDED)
    assert ended.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)


async def test_a_remote_start_and_stop(rig: Rig) -> None:
    rig.board.plug()
    await rig.seconds(2)
    start = command(rig, RemoteStart(evse=1, id_token=IdToken("CAR", "Central")))
    await rig.desk.command(start)
    await rig.seconds(20)
    (started,) = rig.events(STARTED)
    assert started.command == start.id
    assert rig.store.result_of(start.id).status is CommandStatus.EXECUTED
    stop = command(rig, RemoteStop(started.transaction))
    await rig.desk.command(stop)
    await rig.seconds(3)
    assert rig.events(ENDED)[0].reason is StoppedReason.REMOTE
    assert rig.store.result_of(stop.id).transaction == started.transaction


async def test_a_command_is_carried_out_once(rig: Rig) -> None:
    rig.board.plug()
    await rig.seconds(2)
    start = command(rig, RemoteStart(evse=1, id_token=IdToken("CAR")))
    for _ in range(3):
        await rig.desk.command(start)
    rig.start()
    await rig.desk.command(start)
    assert len(rig.events(STARTED)) == 1


async def test_a_late_command_expires(rig: Rig) -> None:
    late = command(rig, RemoteStart(evse=1, id_token=IdToken("CAR")), valid_ms=10)
    rig.time.advance(1)
    await rig.desk.command(late)
    assert rig.store.result_of(late.id).status is CommandStatus.EXPIRED


async def test_what_cannot_be_done_is_rejected_with_the_reason(rig: Rig) -> None:
    stop = command(rig, RemoteStop(UUID(int=9)))
    await rig.desk.command(stop)
    result = rig.store.result_of(stop.id)
    assert (result.status, "not open here" in result.text) == (CommandStatus.REJECTED, True)


async def test_a_watch_is_handed_to_the_uplink(rig: Rig) -> None:
    asked: list[Watch] = []
    rig.desk.watch = asked.append
    watch = Watch(evse=0, every_ms=Milliseconds(1000), valid_ms=Milliseconds(60_000))
    good, bad = command(rig, watch), command(rig, msgspec.structs.replace(watch, evse=9))
    for each in (good, bad, good):
        await rig.desk.command(each)
    assert asked == [watch]
    assert rig.store.result_of(good.id).status is CommandStatus.EXECUTED
    assert rig.store.result_of(bad.id).status is CommandStatus.REJECTED


async def test_an_action_of_a_later_version_is_rejected_and_named(rig: Rig) -> None:
    unknown = UnknownCommand(UUID(int=77), "sing")
    for _ in range(2):
        await rig.desk.command(unknown)
    result = rig.store.result_of(unknown.id)
    assert (result.status, "'sing'" in result.text) == (CommandStatus.REJECTED, True)


async def test_a_commanded_limit_holds_survives_a_restart_and_expires(rig: Rig) -> None:
    await rig.charge(30)
    limit = SetLimit(evse=1, limit_ma=MA(10_000), valid_ms=Milliseconds(60_000))
    await rig.desk.command(command(rig, limit))
    await rig.seconds(2)
    assert (rig.board.drawn_current(), rig.status().limited_by) == (10_000, "command")
    rig.start()
    await rig.seconds(20)
    assert rig.board.drawn_current() == 10_000
    await rig.seconds(60)
    assert (rig.board.drawn_current(), rig.status().limited_by) == (6_000, "failsafe")
    lift = SetLimit(evse=1, limit_ma=None, valid_ms=Milliseconds(0))
    await rig.desk.command(command(rig, lift))
    await rig.seconds(30)
    assert rig.board.drawn_current() == 32_000
    assert rig.store.site_limits == {}


async def test_availability_and_local_list_by_command_survive_a_restart(rig: Rig) -> None:
    await rig.seconds(1)
    await rig.desk.command(command(rig, SetAvailability(evse=0, operative=False)))
    entries = (LocalListEntry(IdToken("NEW")),)
    await rig.desk.command(command(rig, SetLocalList(version=8, entries=entries)))
    rig.start()
    await rig.seconds(1)
    assert rig.status().status is ConnectorStatus.UNAVAILABLE
    with pytest.raises(RefusedError, match="out of service"):
        await rig.card("NEW", 1)
    with pytest.raises(RefusedError, match="version 8"):
        await rig.card("CARD", 1)


async def test_two_evses_share_the_site_and_never_exceed_it(make_rig: Callable[..., Rig]) -> None:
    site = SiteRules(limit=(40_000,) * 3)
    rig = make_rig(boards=2, station=StationSettings(site=site))
    for board in rig.boards:
        board.plug()
    await rig.seconds(2)
    await rig.card("CARD", 1)
    await rig.seconds(20)
    assert rig.boards[0].drawn_current() == 32_000
    await rig.card("OTHER", 2)
    for _ in range(20):
        await rig.seconds(1)
        assert sum(board.drawn_current() for board in rig.boards) <= 40_000
    assert [board.drawn_current() for board in rig.boards] == [20_000, 20_000]


async def test_a_silent_site_meter_leaves_the_safe_share(make_rig: Callable[..., Rig]) -> None:
    site = SiteRules(limit=(40_000,) * 3, metered=True, safe_share=MA(8_000))
    rig = make_rig(station=StationSettings(site=site))
    await rig.charge(6)
    assert rig.board.drawn_current() == 8_000
    rig.station.site.load = SiteLoad(current=(18_000,) * 3, at_ms=rig.clock.now().mono_ms)
    await rig.seconds(1)
    assert (rig.board.drawn_current(), rig.status().limited_by) == (30_000, "site")
    await rig.seconds(6)
    assert rig.board.drawn_current() == 8_000


async def test_a_stranger_pauses_after_its_energy_and_goes_on_once_known(
    make_rig: Callable[..., Rig],
) -> None:
    policy = OfflinePolicy(allow_unknown=True, unknown_energy=WattHours(500))
    rig = make_rig(policy=policy)
    rig.board.plug()
    await rig.seconds(2)
    await rig.card("STRANGER")
    await rig.seconds(300)
    assert rig.board.drawn_current() == 0
    assert rig.status().limited_by == "authorization"
    assert 500 <= rig.board.true_energy() < 520
    entries = (LocalListEntry(IdToken("STRANGER")),)
    await rig.desk.command(command(rig, SetLocalList(version=9, entries=entries)))
    await rig.seconds(30)
    assert rig.board.drawn_current() == 32_000


async def test_who_was_started_by_the_cloud_is_no_stranger(make_rig: Callable[..., Rig]) -> None:
    policy = OfflinePolicy(
        allow_unknown=True, unknown_cap=MA(10_000), unknown_energy=WattHours(500)
    )
    rig = make_rig(policy=policy)
    rig.board.plug()
    await rig.seconds(2)
    await rig.desk.command(command(rig, RemoteStart(evse=1, id_token=IdToken("STRANGER"))))
    await rig.seconds(300)
    assert rig.board.drawn_current() == 32_000


async def test_the_cloud_knows_a_session_that_this_old_copy_does_not(rig: Rig) -> None:
    rig.board.plug()
    await rig.seconds(2)
    known = OpenTransaction(
        transaction=UUID(int=5),
        evse=1,
        seq_no=3,
        started=rig.clock.now(),
        energy_wh=WattHours(0),
        meter_wh=WattHours(100),
        raw_wh=WattHours(0),
        id_token=IdToken("CARD"),
    )
    await rig.desk.welcomed(welcome(rig, open_transactions=(known,)))
    await rig.seconds(60)
    rig.board.unplug()
    await rig.seconds(2)
    (ended,) = rig.events(ENDED)
    assert (ended.transaction, ended.seq_no > 3) == (UUID(int=5), True)
    assert ended.energy_wh == pytest.approx(rig.board.true_energy(), abs=1)


async def test_the_clouds_time_dates_an_unset_clock(rig: Rig) -> None:
    rig.synced = False
    rig.start()
    await rig.charge(5)
    assert rig.events(STARTED)[0].started.quality.value == "unset"
    later = Milliseconds(rig.clock.now().wall_ms + 3_600_000)
    await rig.desk.welcomed(welcome(rig, now_ms=later))
    (fact,) = [f for f in rig.store.facts if isinstance(f, ClockCorrected)]
    assert fact.quality.value == "cloud"
    (kept,) = rig.store.open.values()
    assert kept.started.quality.value == "cloud"


async def test_every_reading_becomes_a_sample_with_lifetime_energy(rig: Rig) -> None:
    await rig.charge(600)
    rig.board.unplug()
    await rig.seconds(2)
    await rig.charge(5)
    energies = [sample.energy_wh for sample in rig.store.samples]
    assert energies == sorted(energies)
    assert rig.store.samples[-1].current_l1_ma == 32_000


async def test_an_hour_of_charging_commits_about_once_a_minute(rig: Rig) -> None:
    await rig.charge(3600)
    assert rig.store.commits < 100
