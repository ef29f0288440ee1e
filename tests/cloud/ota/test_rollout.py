"""The rules of campaigns, under any order of events."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.ota.rollout import (
    FAILURES,
    Abort,
    Count,
    Device,
    Entered,
    Event,
    Gone,
    Offer,
    Pause,
    Plan,
    Proof,
    Reported,
    Resume,
    Rollout,
    Running,
    Stage,
    Staged,
    Standing,
    Tick,
    Withdraw,
    share_of,
    total,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NEW, OLD = "2.0.0", "1.9.0"
PLAN = Plan(NEW, 90, 10, 3, timedelta(hours=1))


def request(station: int) -> UUID:
    return UUID(int=station)


def campaign(*waves: int, plan: Plan = PLAN, proof: Proof = Proof.REPORT_AND_VERSION) -> Rollout:
    """A campaign with waves of these sizes, its first offers made."""
    stations = ((wave, n) for wave, size in enumerate(waves) for n in range(size))
    devices = [
        Device(number, wave, proof, request=request(number), running=OLD)
        for number, (wave, _) in enumerate(stations, 1)
    ]
    rollout = Rollout(plan, devices)
    rollout.handle(Tick(), NOW)
    return rollout


def under_way(rollout: Rollout) -> list[int]:
    return [one.station for one in rollout.devices.values() if one.standing is Standing.OFFERED]


def succeed(rollout: Rollout, station: int) -> list[Any]:
    rollout.handle(Running(station, NEW), NOW)
    return rollout.handle(Reported(station, request(station), "Installed"), NOW)


def fail(rollout: Rollout, station: int) -> list[Any]:
    return rollout.handle(Reported(station, request(station), "InstallationFailed", "why"), NOW)


# --------------------------------------------------------------------------- numbered faults


def test_ota_f36_refused_request_fails_the_device() -> None:
    """A station that is in the middle of another update says so, and is not waited for."""
    rollout = campaign(4)
    done = rollout.handle(Reported(2, request(2), "Rejected", "Rejected"), NOW)
    assert Entered(2, "failed", "Rejected: Rejected") in done
    assert Withdraw(2) in done
    assert rollout.devices[2].standing is Standing.FAILED


def test_ota_f38_abort_withdraws_all_that_has_not_ended() -> None:
    rollout = campaign(3, 5)
    succeed(rollout, 1)
    done = rollout.handle(Abort(), NOW)
    assert [one.station for one in done if isinstance(one, Withdraw)] == [2, 3]
    assert Staged(Stage.ABORTED, 0) in done
    assert (rollout.count.succeeded, rollout.count.withdrawn) == (1, 7)
    assert rollout.handle(Reported(2, request(2), "Downloading"), NOW) == [
        Entered(2, "Downloading")
    ]
    assert rollout.devices[2].standing is Standing.WITHDRAWN


def test_ota_f39_a_status_told_again_changes_nothing() -> None:
    rollout = campaign(2)
    told = Reported(1, request(1), "Downloading")
    assert rollout.handle(told, NOW) == [Entered(1, "Downloading")]
    assert rollout.handle(told, NOW) == []
    succeed(rollout, 1)
    assert rollout.handle(Reported(1, request(1), "Installed"), NOW) == []
    assert rollout.handle(Reported(1, UUID(int=99), "InstallationFailed"), NOW) == []
    assert rollout.count.succeeded == 1


def test_ota_f51_silence_is_failure_at_the_deadline_and_not_before() -> None:
    rollout = campaign(2)
    rollout.handle(Reported(2, request(2), "Downloading"), NOW)
    almost = NOW + PLAN.deadline - timedelta(milliseconds=1)
    assert rollout.handle(Tick(), almost) == []
    done = rollout.handle(Tick(), NOW + PLAN.deadline)
    reasons = [one.reason for one in done if isinstance(one, Entered)]
    assert rollout.count.failed == 2
    assert "it told nothing last" in reasons[0]
    assert "it told Downloading last" in reasons[1]
    succeed(rollout, 1)
    assert rollout.devices[1].standing is Standing.FAILED


def test_ota_f52_installed_before_the_version_is_seen_does_not_count() -> None:
    rollout = campaign(2)
    rollout.handle(Reported(1, request(1), "Installed"), NOW)
    assert rollout.count.succeeded == 0
    rollout.handle(Running(1, NEW), NOW)
    assert rollout.count.succeeded == 1
    rollout.handle(Running(2, NEW), NOW)  # its trial, which may yet be rolled back
    assert rollout.count.succeeded == 1
    rollout.handle(Running(2, OLD), NOW)
    rollout.handle(Reported(2, request(2), "Installed"), NOW)
    assert rollout.count.succeeded == 1


def test_ota_f53_a_small_group_is_not_judged_by_one_of_it() -> None:
    rollout = campaign(2, 20)
    fail(rollout, 1)
    assert rollout.stage is Stage.RUNNING
    succeed(rollout, 2)
    assert (rollout.stage, rollout.wave) == (Stage.RUNNING, 1)
    none = campaign(2, 20)
    fail(none, 1)
    fail(none, 2)
    assert (none.stage, none.wave) == (Stage.HALTED, 0)


def test_ota_f54_counts_follow_stations_that_are_deleted_or_moved() -> None:
    rollout = campaign(10, 10)
    for station in range(1, 9):
        succeed(rollout, station)
    assert rollout.wave == 0
    rollout.handle(Gone(9), NOW)
    assert rollout.counts[0].size == 9
    assert rollout.wave == 0, "8 of 9 are not 90 percent"
    rollout.handle(Gone(10), NOW)
    assert (rollout.counts[0].size, rollout.wave) == (8, 1)
    rollout.handle(Gone(1), NOW)
    assert rollout.counts[0] == Count(succeeded=7, gone=3)
    waiting = campaign(1, 3)
    waiting.handle(Gone(3), NOW)
    succeed(waiting, 1)
    assert under_way(waiting) == [2, 4]
    succeed(waiting, 2)
    succeed(waiting, 4)
    assert waiting.stage is Stage.FINISHED


def test_ota_f54_failures_weigh_more_in_what_is_left() -> None:
    rollout = campaign(20)
    for station in (1, 2, 3):
        succeed(rollout, station)
    fail(rollout, 4)
    assert rollout.stage is Stage.RUNNING, "1 of 20 is 5 percent"
    for station in range(11, 20):
        rollout.handle(Gone(station), NOW)
    assert rollout.stage is Stage.RUNNING, "1 of 11 is less than 10 percent"
    done = rollout.handle(Gone(20), NOW)
    assert done[-1] == Staged(Stage.HALTED, 0, "1 of 10 devices of wave 1 failed")


@pytest.mark.parametrize("told", [Running(1, OLD), Reported(1, request(1), "InstallationFailed")])
def test_ota_f55_a_later_fallback_is_a_failure(told: Event) -> None:
    rollout = campaign(3)
    for station in (1, 2, 3):
        succeed(rollout, station)
    assert rollout.stage is Stage.FINISHED
    done = rollout.handle(told, NOW)
    assert Withdraw(1) in done
    assert (rollout.count.succeeded, rollout.count.failed) == (2, 1)
    assert rollout.stage is Stage.FINISHED


def test_ota_f55_a_fallback_halts_a_campaign_under_way() -> None:
    rollout = campaign(3, 30)
    for station in (1, 2, 3):
        succeed(rollout, station)
    assert rollout.wave == 1
    rollout.handle(Running(2, OLD), NOW)
    assert rollout.stage is Stage.HALTED


# --------------------------------------------------------------------------- waves


def test_a_halt_comes_with_the_device_that_reaches_the_threshold() -> None:
    rollout = campaign(100)
    for station in range(1, 10):
        fail(rollout, station)
        assert rollout.stage is Stage.RUNNING
    done = fail(rollout, 10)
    assert done[-1] == Staged(Stage.HALTED, 0, "10 of 100 devices of wave 1 failed")


def test_a_person_lets_a_halted_campaign_go_on_and_new_failures_halt_it_again() -> None:
    rollout = campaign(10, 20)
    for station in (1, 2, 3):
        succeed(rollout, station)
    fail(rollout, 4)
    assert rollout.stage is Stage.HALTED
    rollout.handle(Resume(), NOW)
    assert rollout.stage is Stage.RUNNING
    assert rollout.counts[0].size == 9
    fail(rollout, 5)
    assert rollout.stage is Stage.HALTED
    assert rollout.count.failed == 2


def test_a_pause_offers_nothing_new_and_what_is_under_way_goes_on() -> None:
    rollout = campaign(2, 3)
    rollout.handle(Pause(), NOW)
    succeed(rollout, 1)
    succeed(rollout, 2)
    assert under_way(rollout) == []
    assert rollout.stage is Stage.PAUSED
    rollout.handle(Resume(), NOW)
    assert under_way(rollout) == [3, 4, 5]


def test_a_next_wave_takes_only_the_room_that_stragglers_leave() -> None:
    rollout = campaign(10, 10)
    for station in range(1, 10):
        succeed(rollout, station)
    assert rollout.wave == 1
    assert len(under_way(rollout)) == 10
    assert 10 in under_way(rollout)


def test_a_window_moves_the_deadline_to_its_end() -> None:
    rollout = Rollout(PLAN, [Device(1, 0, Proof.REPORT, request=request(1))])
    rollout.handle(Tick(), NOW, NOW + timedelta(hours=5))
    assert rollout.devices[1].deadline == NOW + timedelta(hours=6)


def test_an_ocpp_station_is_proven_by_its_boot_alone() -> None:
    rollout = campaign(2, proof=Proof.VERSION)
    rollout.handle(Reported(1, request(1), "Installed"), NOW)
    assert rollout.count.succeeded == 0
    rollout.handle(Running(1, "v2.0.0 "), NOW)
    rollout.handle(Running(2, NEW), NOW)
    assert rollout.count.succeeded == 2
    settings = campaign(1, proof=Proof.REPORT)
    settings.handle(Reported(1, request(1), "Installed"), NOW)
    assert settings.stage is Stage.FINISHED


def test_empty_waves_are_passed_over_and_an_empty_campaign_is_finished() -> None:
    rollout = campaign(0, 2)
    assert under_way(rollout) == [1, 2]
    assert campaign().stage is Stage.FINISHED


# --------------------------------------------------------------------------- properties

STATIONS = st.integers(1, 14)
WORDS = st.sampled_from(["Downloading", "Installing", "Installed", *sorted(FAILURES)])
EVENTS = st.one_of(
    st.builds(lambda s, w: Reported(s, request(s), w), STATIONS, WORDS),
    st.builds(Running, STATIONS, st.sampled_from([OLD, NEW])),
    st.builds(lambda s: (s,), STATIONS),  # both halves of a success
    st.builds(Gone, STATIONS),
    st.sampled_from([Pause(), Resume(), Resume(), Abort()]),
    st.integers(1, 90).map(lambda minutes: timedelta(minutes=minutes)),
)
PLANS = st.builds(
    Plan,
    st.just(NEW),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(0, 6),
    st.just(timedelta(hours=1)),
)


def _events(told: list[Any]) -> list[tuple[Event, datetime]]:
    now, events = NOW, []
    for one in told:
        if isinstance(one, timedelta):
            now += one
            events.append((Tick(), now))
        elif isinstance(one, tuple):
            events += [(Running(one[0], NEW), now)]
            events += [(Reported(one[0], request(one[0]), "Installed"), now)]
        else:
            events.append((one, now))
    return events


@given(PLANS, st.lists(st.integers(0, 5), min_size=1, max_size=4), st.lists(EVENTS, max_size=60))
def test_whatever_happens_the_counts_are_exact_and_no_wave_is_exceeded(
    plan: Plan, sizes: list[int], told: list[Any]
) -> None:
    rollout = campaign(*sizes, plan=plan)
    offered: Counter[int] = Counter(under_way(rollout))
    stages = [rollout.stage]
    for event, now in _events(told):
        done = rollout.handle(event, now)
        offers = [one.station for one in done if isinstance(one, Offer)]
        offered.update(offers)
        _check(rollout, plan, offers)
        stages += [one.stage for one in done if isinstance(one, Staged)]
    assert all(number == 1 for number in offered.values()), "each is offered once"
    over = [n for n, stage in enumerate(stages) if stage in {Stage.ABORTED, Stage.FINISHED}]
    assert not over or over[0] == len(stages) - 1, "what is over stays over"


def _check(rollout: Rollout, plan: Plan, offers: list[int]) -> None:
    fresh = Rollout(plan, rollout.devices.values(), Stage.ABORTED, rollout.wave)
    assert rollout.counts == fresh.counts
    now = rollout.counts[rollout.wave]
    if offers:
        assert rollout.count.offered <= now.size, "never more than the wave"
    if rollout.stage is Stage.RUNNING:
        begun = [*rollout.counts[: rollout.wave + 1], total(rollout.counts[: rollout.wave + 1])]
        for count in begun:
            failed = count.failed - count.excused
            judged = count.settled >= plan.min_sample and failed
            assert not judged or failed < share_of(plan.error_percent, count.size)
    for device in rollout.devices.values():
        assert device.wave <= rollout.wave or device.standing not in {
            Standing.OFFERED,
            Standing.SUCCEEDED,
            Standing.FAILED,
        }


@given(st.permutations(range(1, 31)), st.integers(0, 30), PLANS)
def test_the_same_outcomes_halt_or_not_in_any_order(order: list[int], bad: int, plan: Plan) -> None:
    """One wave in which so many fail: it halts if and only if they reach the threshold."""
    rollout = campaign(30, plan=plan)
    for station in order:
        (fail if station <= bad else succeed)(rollout, station)
    reached = bad > 0 and bad >= share_of(plan.error_percent, 30)
    short = 30 - bad < share_of(plan.success_percent, 30)
    assert (rollout.stage is Stage.HALTED) is (reached or short)
    assert (rollout.count.failed, rollout.count.succeeded) == (bad, 30 - bad)
