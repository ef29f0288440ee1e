from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from edge_agent.hardware.board import EnergyKind
from edge_agent.rules.actions import (
    Adopt,
    Authorized,
    CloudEnded,
    ConnectorSettings,
    Lost,
    Offered,
    Operative,
    Read,
    Release,
    SetLimit,
    StopAsked,
    Tick,
    Withhold,
)
from edge_agent.rules.power_limit import Offer
from protocols.agent_link import (
    ChargingState,
    CommandResult,
    CommandStatus,
    ConnectorStatus,
    IdToken,
    OpenTransaction,
    SecurityEvent,
    StoppedReason,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import MilliAmperes, WattHours

Bench = Any  # the fixture's class lives in conftest, which cannot be imported

STARTED, UPDATED, ENDED = TransactionEventType
COMMAND = UUID(int=5)


def test_cable_then_card_starts(bench: Bench) -> None:
    bench.plug()
    bench.poll(3)
    assert bench.status.status is ConnectorStatus.OCCUPIED
    actions = bench.present()
    assert len(bench.events(STARTED)) == 1
    assert bench.events()[0].trigger is Trigger.AUTHORIZED
    kinds = [type(a).__name__ for a in actions]
    assert kinds.index("Emit") < kinds.index("Release") < kinds.index("SetLimit")
    bench.poll(5)
    assert bench.status.charging_state is ChargingState.CHARGING


def test_card_then_cable_starts(bench: Bench) -> None:
    bench.poll()
    bench.present()
    bench.poll(30)
    assert not bench.events()
    bench.plug()
    bench.poll()
    assert len(bench.events(STARTED)) == 1


def test_a_card_waits_only_so_long_for_the_cable(bench: Bench) -> None:
    bench.poll()
    bench.present()
    bench.poll(61)
    bench.plug()
    bench.poll(5)
    assert not bench.events()


def test_nothing_is_touched_before_the_first_reading(bench: Bench) -> None:
    assert bench.present() == []
    assert bench.log == []


def test_the_first_reading_withholds_and_pauses(bench: Bench) -> None:
    bench.plug()
    bench.poll()
    assert {"Withhold", "SetLimit"} <= set(bench.log)
    assert not bench.released


@pytest.mark.parametrize("seconds", [1, 7, 100, 4000])
def test_energy_is_the_meters_difference(bench: Bench, seconds: int) -> None:
    bench.charge(seconds)
    bench.stop()
    bench.poll(3)
    (ended,) = bench.events(ENDED)
    assert ended.energy_wh == bench.true_wh
    assert ended.reason is StoppedReason.LOCAL
    assert not bench.kept
    assert bench.drawn == 0


def test_two_sessions_one_after_another_do_not_share_a_watt_hour(bench: Bench) -> None:
    bench.charge(1)
    bench.unplug()
    bench.poll(5)
    first = bench.true_wh
    bench.charge(600)
    bench.unplug()
    bench.poll()
    one, two = bench.events(ENDED)
    assert (one.energy_wh, two.energy_wh) == (first, bench.true_wh - first)


def test_unplugging_ends_with_the_last_energy(bench: Bench) -> None:
    bench.charge(100)
    bench.unplug()
    bench.poll()
    (ended,) = bench.events(ENDED)
    assert (ended.reason, ended.trigger) == (StoppedReason.EV_DISCONNECTED, Trigger.EV_DEPARTED)
    assert ended.charging_state is ChargingState.IDLE
    assert bench.status.status is ConnectorStatus.AVAILABLE


def test_a_stop_is_durable_before_its_end_is_known(bench: Bench) -> None:
    bench.charge(50)
    bench.connector.handle(
        StopAsked(reason=StoppedReason.REMOTE, trigger=Trigger.REMOTE_STOP), bench.now
    )
    before = bench.connector.state.session.record
    assert before.stopping is StoppedReason.REMOTE


def test_a_stopped_session_is_not_resumed_after_a_crash(bench: Bench) -> None:
    bench.charge(50)
    bench.stop(StoppedReason.REMOTE)
    bench.die()
    bench.poll(3)
    (ended,) = bench.events(ENDED)
    assert ended.reason is StoppedReason.REMOTE
    assert not bench.released


def test_a_stopped_session_of_a_board_that_stays_lost_ends_with_what_is_known(
    bench: Bench,
) -> None:
    bench.charge(50)
    read = bench.true_wh
    bench.wait(6)
    bench.tell(Lost("no answer"))
    bench.stop()
    bench.wait(299)
    bench.tell(Lost("no answer"))
    assert not bench.events(ENDED)
    bench.wait(1)
    bench.tell(Lost("no answer"))
    assert [e.energy_wh for e in bench.events(ENDED)] == [read]


def test_a_vehicle_that_is_full_is_suspended(bench: Bench) -> None:
    bench.charge(60)
    bench.wants = 0
    bench.poll(15)
    assert bench.status.charging_state is ChargingState.SUSPENDED_EV
    assert bench.events()[-1].trigger is Trigger.CHARGING_STATE_CHANGED


def test_a_limit_under_six_amperes_suspends_and_lifts(bench: Bench) -> None:
    bench.charge(30)
    bench.tell(Offered(Offer(MilliAmperes(0), "site")))
    bench.poll(2)
    assert bench.status.charging_state is ChargingState.SUSPENDED_EVSE
    assert (bench.status.limited_by, bench.drawn) == ("site", 0)
    bench.tell(Offered(Offer(MilliAmperes(10_000), "site")))
    bench.poll(2)
    assert bench.status.charging_state is ChargingState.CHARGING
    assert bench.drawn == 10_000


def test_a_fault_opens_the_contactor_first_and_clears(bench: Bench) -> None:
    bench.charge(30)
    bench.log.clear()
    bench.broken = True
    bench.poll()
    assert bench.log[0] in {"Withhold", "SetLimit"}
    assert bench.log.index("Withhold") < bench.log.index("Emit")
    assert bench.status.status is ConnectorStatus.FAULTED
    assert "state F" in bench.status.error
    bench.broken = False
    bench.poll(3)
    assert bench.drawn == 16_000
    assert len(bench.events(STARTED)) == 1


def test_a_fault_that_stays_ends_the_transaction(bench: Bench) -> None:
    bench.charge(30)
    bench.broken = True
    bench.poll(75)
    (ended,) = bench.events(ENDED)
    assert ended.reason is StoppedReason.OTHER


def test_a_silent_board_pauses_and_recovers(bench: Bench) -> None:
    bench.charge(100)
    bench.wait(6)
    actions = bench.tell(Lost("no answer for 6 s"))
    assert any(isinstance(a, Withhold) for a in actions)
    assert (bench.status.status, bench.status.error) == (
        ConnectorStatus.FAULTED,
        "no answer for 6 s",
    )
    bench.poll(3)
    assert bench.drawn == 16_000
    bench.unplug()
    bench.poll()
    assert bench.events(ENDED)[0].energy_wh == bench.true_wh
    assert len(bench.events(STARTED)) == 1


def test_a_board_that_restarts_in_a_session_is_told_again(bench: Bench) -> None:
    bench.charge(400)
    bench.released, bench.limit, bench.raw = False, 32_000, 0
    bench.poll(4)
    assert (bench.released, bench.limit) == (True, 16_000)
    bench.poll(60)
    bench.unplug()
    bench.poll()
    assert bench.events(ENDED)[0].energy_wh == bench.true_wh


def test_a_board_that_restarts_before_a_watt_hour_has_flowed_is_told_again(bench: Bench) -> None:
    bench.charge(0)
    assert bench.released
    bench.released, bench.awaits_release, bench.limit, bench.raw = False, True, 32_000, 0
    bench.poll(4)
    assert (bench.released, bench.limit) == (True, 16_000)
    bench.poll(60)
    bench.unplug()
    bench.poll()
    assert bench.events(ENDED)[0].energy_wh == bench.true_wh


def test_a_vehicle_changed_between_two_looks_is_not_released_on_the_last_card(bench: Bench) -> None:
    bench.charge(400)
    bench.released, bench.awaits_release = False, True
    bench.poll(10)
    assert not bench.released


def test_charging_without_a_transaction_is_stopped_and_told_once(bench: Bench) -> None:
    bench.plug()
    bench.autostart, bench.limit = True, 32_000
    actions = bench.poll()
    assert any(isinstance(a, Withhold) for a in actions)
    bench.poll(60)
    alarms = [f for f in bench.facts if isinstance(f, SecurityEvent)]
    assert [a.type for a in alarms] == ["UnauthorizedCharging"]


def test_a_crash_resumes_and_counts_what_flowed_meanwhile(bench: Bench) -> None:
    bench.charge(300)
    bench.wait(3600)
    bench.die()
    bench.poll(5)
    assert not bench.events(ENDED)
    bench.unplug()
    bench.poll(2)
    (ended,) = bench.events(ENDED)
    assert ended.energy_wh == bench.true_wh
    numbers = [e.seq_no for e in bench.events()]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("deeds", range(8))
@pytest.mark.parametrize("dead_s", [0, 40, 400, 4000])
def test_a_crash_in_the_midst_of_the_start_costs_no_energy(
    bench: Bench, deeds: int, dead_s: int
) -> None:
    """However far the new session's register has climbed past the last one's meanwhile."""
    bench.charge(500)
    bench.unplug()
    bench.poll(3)
    first = bench.true_wh
    bench.plug()
    bench.poll(2)
    card = Authorized(id_token=IdToken("04A1B2C3"), trigger=Trigger.AUTHORIZED)
    bench.killed_in(card, deeds)
    bench.wait(dead_s)
    bench.poll(3)
    if deeds == 0:
        assert not bench.kept
        bench.present()
        bench.poll(3)
    assert bench.drawn
    bench.unplug()
    bench.poll(3)
    energies = [event.energy_wh for event in bench.events(ENDED)]
    assert energies == [first, bench.true_wh - first]


def test_nothing_flows_before_the_registers_start_is_on_disk(bench: Bench) -> None:
    bench.charge(500)
    bench.unplug()
    bench.poll(3)
    bench.plug()
    bench.poll(2)
    for action in bench.connector.handle(
        Authorized(id_token=IdToken("04A1B2C3"), trigger=Trigger.AUTHORIZED), bench.now
    ):
        bench._do(action)
    assert (bench.released, bench.drawn) == (True, 0)
    bench.tell(Read(bench.reading()))
    assert (bench.register.raw_wh, bench.drawn) == (0, 16_000)


def test_a_board_without_a_readable_register_still_starts(bench: Bench) -> None:
    bench.plug()
    bench.poll(2)
    true, blind = bench.reading, replace
    bench.reading = lambda: blind(true(), energy=None)
    bench.present()
    assert bench.drawn == 16_000


def test_a_vehicle_gone_while_the_agent_was_dead_ends_with_the_boards_energy(
    bench: Bench,
) -> None:
    bench.charge(300)
    bench.wait(1800)
    bench.unplug()
    bench.die()
    bench.poll(3)
    (ended,) = bench.events(ENDED)
    assert (ended.energy_wh, ended.reason) == (bench.true_wh, StoppedReason.EV_DISCONNECTED)


def test_a_vehicle_changed_while_the_agent_was_dead_does_not_charge_on_the_last_ones_card(
    bench: Bench,
) -> None:
    bench.charge(300)
    bench.wait(1800)
    bench.unplug()
    bench.die()
    bench.released, bench.awaits_release = False, True
    bench.plug()
    bench.poll(5)
    (ended,) = bench.events(ENDED)
    assert (ended.energy_wh, ended.reason) == (bench.true_wh, StoppedReason.EV_DISCONNECTED)
    assert bench.drawn == 0
    first = bench.true_wh
    bench.present()
    bench.poll(60)
    bench.unplug()
    bench.poll(2)
    assert bench.events(ENDED)[-1].energy_wh == bench.true_wh - first > 0


def test_a_power_cut_ends_with_the_best_known_energy(bench: Bench) -> None:
    bench.charge(300)
    (known,) = bench.kept.values()
    bench.released, bench.limit, bench.raw = False, 32_000, 0
    bench.die()
    bench.poll(20)
    (ended,) = bench.events(ENDED)
    assert (ended.reason, ended.energy_wh) == (StoppedReason.POWER_LOSS, known.energy_wh)
    assert not bench.released


def test_a_lifetime_register_resumes_across_a_power_cut(
    make_bench: Callable[..., Bench],
) -> None:
    info = replace(make_bench().info, energy_kind=EnergyKind.LIFETIME)
    bench = make_bench(info)
    bench.charge(300)
    bench.raw += 0
    bench.die()
    bench.poll(20)
    assert not bench.events(ENDED)


def test_out_of_service_lets_the_running_one_finish(bench: Bench) -> None:
    bench.charge(10)
    bench.tell(Operative(operative=False))
    bench.poll(5)
    assert bench.status.status is ConnectorStatus.OCCUPIED
    bench.unplug()
    bench.poll()
    assert bench.status.status is ConnectorStatus.UNAVAILABLE
    bench.charge(5)
    assert len(bench.events(STARTED)) == 1


def test_a_remote_start_is_answered_when_it_waits_and_when_it_starts(bench: Bench) -> None:
    bench.poll()
    bench.tell(Authorized(id_token=IdToken("CAR"), trigger=Trigger.REMOTE_START, command=COMMAND))
    bench.plug()
    bench.poll()
    results = [f for f in bench.facts if isinstance(f, CommandResult)]
    assert [r.status for r in results] == [CommandStatus.ACCEPTED, CommandStatus.EXECUTED]
    assert results[-1].transaction == bench.events()[0].transaction
    assert bench.events()[0].command == COMMAND


def test_a_remote_start_without_a_vehicle_fails(bench: Bench) -> None:
    bench.poll()
    bench.tell(Authorized(id_token=IdToken("CAR"), trigger=Trigger.REMOTE_START, command=COMMAND))
    bench.poll(61)
    results = [f for f in bench.facts if isinstance(f, CommandResult)]
    assert [r.status for r in results] == [CommandStatus.ACCEPTED, CommandStatus.FAILED]


def test_what_the_board_did_not_do_is_due_again(bench: Bench) -> None:
    bench.plug()
    bench.poll(2)
    actions = bench.connector.handle(
        Authorized(id_token=IdToken("X"), trigger=Trigger.AUTHORIZED), bench.now
    )
    (release,) = [a for a in actions if isinstance(a, Release)]
    bench.connector.undone(release)
    again = bench.connector.handle(Read(bench.reading()), bench.now)
    assert release in again
    seen = bench.connector.handle(Read(bench.reading()), bench.now)
    (limit,) = [a for a in seen if isinstance(a, SetLimit)]
    bench.connector.undone(limit)
    assert limit in bench.connector.handle(Read(bench.reading()), bench.now)


def test_a_step_can_be_taken_back_as_a_whole(bench: Bench) -> None:
    """What the loop does when the disk is full: no transaction came to be, and none is lost."""
    bench.plug()
    bench.poll(2)
    before = bench.connector.state
    bench.connector.handle(Authorized(id_token=IdToken("X"), trigger=Trigger.AUTHORIZED), bench.now)
    bench.connector.state = before
    bench.poll(3)
    assert not bench.events()
    bench.present()
    assert len(bench.events(STARTED)) == 1


def known(bench: Bench, **changes: Any) -> OpenTransaction:
    cloud = OpenTransaction(
        transaction=UUID(int=77),
        evse=1,
        seq_no=4,
        started=bench.now,
        energy_wh=WattHours(900),
        meter_wh=WattHours(5_000),
        raw_wh=WattHours(900),
        id_token=IdToken("CAR"),
    )
    return msgspec.structs.replace(cloud, **changes)


def test_a_transaction_that_only_the_cloud_knows_goes_on(bench: Bench) -> None:
    bench.plug()
    bench.raw = 1_000
    bench.poll(2)
    bench.tell(Adopt(known(bench)))
    bench.poll(60)
    assert bench.drawn == 16_000
    gained = bench.true_wh
    bench.unplug()
    bench.poll(2)
    (ended,) = bench.events(ENDED)
    assert ended.transaction == UUID(int=77)
    assert ended.energy_wh == 1_000 + gained
    assert ended.meter_wh >= 5_100
    assert ended.seq_no > 4


def test_a_transaction_that_only_the_cloud_knows_ends_when_its_vehicle_is_gone(
    bench: Bench,
) -> None:
    bench.raw = 950
    bench.poll(2)
    bench.tell(Adopt(known(bench)))
    bench.poll(2)
    (ended,) = bench.events(ENDED)
    assert ended.energy_wh == 950


def test_another_session_at_the_evse_ends_the_clouds_with_what_it_knew(bench: Bench) -> None:
    bench.charge(30)
    bench.tell(Adopt(known(bench)))
    (ended,) = bench.events(ENDED)
    assert (ended.energy_wh, ended.reason) == (900, StoppedReason.POWER_LOSS)
    assert bench.drawn == 16_000


def test_an_old_copy_goes_on_behind_the_clouds_numbers(bench: Bench) -> None:
    bench.charge(30)
    (mine,) = bench.kept
    bench.tell(Adopt(known(bench, transaction=mine, seq_no=40, energy_wh=WattHours(10))))
    bench.unplug()
    bench.poll()
    (ended,) = bench.events(ENDED)
    assert ended.seq_no == 41


def test_what_ended_here_while_the_welcome_was_under_way_is_not_taken_up_again(
    bench: Bench,
) -> None:
    """The welcome was written before the cloud heard of the end, and is handled after it."""
    bench.charge(30)
    (mine,) = bench.kept
    bench.unplug()
    bench.poll(2)
    (ended,) = bench.events(ENDED)
    assert ended.energy_wh > 0
    late = Adopt(known(bench, transaction=mine, seq_no=0, energy_wh=WattHours(0)))
    for beside in (False, True):  # with the EVSE idle, and with the next session in it
        if beside:
            bench.charge(30)
        assert bench.tell(late) == []
        assert bench.events(ENDED) == [ended]


def test_what_the_cloud_has_ended_is_dropped_without_another_end(bench: Bench) -> None:
    bench.charge(30)
    (mine,) = bench.kept
    bench.tell(CloudEnded(mine))
    bench.poll(3)
    assert not bench.events(ENDED)
    assert not bench.kept
    assert bench.drawn == 0


def test_a_status_is_repeated_only_after_minutes(bench: Bench) -> None:
    bench.poll(3)
    bench.log.clear()
    bench.poll(200)
    assert "ReportStatus" not in bench.log
    bench.poll(200)
    assert bench.log.count("ReportStatus") == 1


def test_time_alone_changes_nothing(bench: Bench) -> None:
    bench.poll(3)
    assert bench.tell(Tick()) == []


def test_a_session_of_an_hour_writes_little(bench: Bench) -> None:
    bench.charge(3600)
    assert len(bench.events()) < 20
    assert bench.log.count("Keep") < 2 * 90


def faulted(bench: Bench) -> None:
    """A fault that clears by itself."""
    bench.broken = True
    bench.poll()
    bench.broken = False
    bench.poll()


def test_a_fault_that_comes_again_needs_a_confirmation(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(settings=ConnectorSettings(lock_after=3))
    for _ in range(2):
        faulted(bench)
        assert bench.status.status is ConnectorStatus.AVAILABLE
    faulted(bench)
    assert bench.status.status is ConnectorStatus.FAULTED
    assert bench.status.error.startswith("3 faults within 60 min, at last: the board is in state F")
    bench.tell(Operative(True))
    assert bench.status.status is ConnectorStatus.AVAILABLE
    faulted(bench)
    assert bench.status.status is ConnectorStatus.AVAILABLE


def test_faults_that_are_far_apart_need_none(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(settings=ConnectorSettings(lock_after=2, lock_within_ms=60_000))
    for _ in range(5):
        faulted(bench)
        bench.wait(61)
        assert bench.status.status is ConnectorStatus.AVAILABLE


def test_a_locked_evse_ends_its_transaction_and_lets_nobody_begin(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(settings=ConnectorSettings(lock_after=1))
    bench.plug()
    bench.poll()
    bench.present()
    bench.poll(10)
    assert bench.drawn > 0
    faulted(bench)
    assert bench.drawn == 0
    bench.poll(70)
    assert len(bench.events(ENDED)) == 1
    bench.present()
    bench.poll(5)
    assert len(bench.events(STARTED)) == 1
