"""When an update may begin, and what proves a new version. No time passes here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.update import (
    EXTEND_MS,
    LATE_MS,
    STEADY_MS,
    Conditions,
    Expected,
    Fetch,
    Health,
    Hold,
    Install,
    LetGo,
    Phase,
    StopFetching,
    Tell,
    Trial,
    UpdateRefusedError,
    UpdateRules,
    Verdict,
)
from edge_agent.updates.messages import Current, Failure, Nothing, Progress, Ready, Subject
from protocols.agent_link import UpdateState
from protocols.release import Window

ASKED, OTHER = UUID(int=1), UUID(int=2)
ABOUT = Subject(target="agent/x.zst", version="2.0", request=ASKED)
READY = Ready(about=ABOUT, slot="s", component="agent/a", counter=2, valid_until_ms=1_000_000)
IDLE = Conditions(wall_ms=1000)


def waiting(**fields: Any) -> UpdateRules:
    rules = UpdateRules()
    rules.asked(ASKED)
    rules.heard(msgspec.structs.replace(READY, **fields))
    return rules


def states(actions: list[Any]) -> list[UpdateState]:
    return [each.state for each in actions if isinstance(each, Tell)]


def test_it_is_fetched_reported_and_installed_when_nobody_charges() -> None:
    rules = UpdateRules()
    assert rules.asked(ASKED) == [Fetch(ASKED)]
    assert states(rules.heard(Progress(ABOUT, UpdateState.DOWNLOADING))) == ["Downloading"]
    assert states(rules.heard(READY)) == ["InstallScheduled"]
    assert rules.tick(IDLE) == [Hold()]
    actions = rules.tick(IDLE)
    assert states(actions) == ["Installing"]
    assert actions[-1] == Install(READY)


def test_free_evses_are_held_while_others_charge_and_let_go_when_it_is_given_up() -> None:
    rules = waiting()
    busy = replace(IDLE, busy=(2,))
    actions = rules.tick(busy)
    assert Hold() in actions
    assert [each.reason for each in actions if isinstance(each, Tell)] == ["EVSE 2 in use"]
    assert rules.tick(busy) == [Hold()]
    assert LetGo() in rules.asked(ASKED)


def test_free_evses_stay_in_service_where_that_is_wanted() -> None:
    rules = waiting()
    rules.hold_free = False
    assert Hold() not in rules.tick(replace(IDLE, busy=(2,)))
    assert rules.tick(IDLE) == [Hold()]


def test_ota_f37_a_session_that_starts_after_the_idle_check_wins() -> None:
    rules = waiting()
    rules.tick(IDLE)
    rules.tick(IDLE)
    assert rules.phase is Phase.COMMITTED
    assert LetGo() in rules.interrupted("EVSE 1 in use")
    assert rules.phase is Phase.WAITING
    assert Install(READY) not in rules.tick(replace(IDLE, busy=(1,)))
    assert rules.tick(IDLE)[-1] == Install(READY)


def test_ota_f16_what_expired_between_download_and_install_is_asked_for_anew() -> None:
    rules = waiting()
    rules.tick(IDLE)
    late = replace(IDLE, wall_ms=READY.valid_until_ms)
    assert rules.tick(late) == [LetGo(), Fetch(ASKED)]
    assert states(rules.heard(Failure(UpdateState.INVALID_SIGNATURE, "expired", ABOUT))) == [
        "InvalidSignature"
    ]
    assert rules.tick(late) == []


@pytest.mark.parametrize(
    ("wall_ms", "why"), [(4_999, "has not come"), (6_000, "has passed"), (5_500, "")]
)
def test_windows_are_honoured(wall_ms: int, why: str) -> None:
    rules = waiting(window=Window(5_000, 6_000))
    actions = rules.tick(replace(IDLE, wall_ms=wall_ms))
    told = [each.reason for each in actions if isinstance(each, Tell)]
    assert (Hold() in actions) is (not why)
    assert all(why in reason for reason in told)
    assert bool(told) is bool(why)


def test_force_waits_for_nobody_but_not_without_power() -> None:
    rules = waiting(force=True, window=Window(5_000, 6_000))
    busy = replace(IDLE, busy=(1,))
    assert states(rules.tick(replace(busy, forbidden="it runs on battery"))) == ["InstallScheduled"]
    assert rules.tick(busy)[-1].__class__ is Install


def test_ota_f36_new_request_before_the_restart_cancels_after_it_is_refused() -> None:
    rules = UpdateRules()
    rules.asked(ASKED)
    assert rules.asked(ASKED) == []
    assert rules.asked(OTHER) == [StopFetching(), Fetch(OTHER)]
    rules = waiting()
    rules.tick(IDLE)
    assert rules.asked(OTHER) == [LetGo(), Fetch(OTHER)]
    rules = waiting()
    rules.tick(IDLE)
    rules.tick(IDLE)
    with pytest.raises(UpdateRefusedError, match="has begun"):
        rules.asked(OTHER)


def test_ota_f38_abort_before_download_and_before_install() -> None:
    """The director asks for nothing any more: whatever was on its way stops there."""
    rules = UpdateRules()
    rules.asked(ASKED)
    rules.heard(Progress(ABOUT, UpdateState.DOWNLOADING))
    rules.asked(OTHER)
    assert states(rules.heard(Nothing())) == ["InstallationFailed"]
    rules = waiting()
    rules.tick(IDLE)
    assert LetGo() in rules.asked(OTHER)
    (told,) = rules.heard(Nothing())
    assert isinstance(told, Tell)
    assert told.reason == "it is not asked for any more"
    assert rules.tick(IDLE) == []


def test_ota_f24_one_download_failed_however_often_it_fails() -> None:
    rules, told = UpdateRules(), []
    failure = Failure(UpdateState.DOWNLOAD_FAILED, "given up after 8 tries", ABOUT)
    for _ in range(5):
        rules.asked(ASKED)
        told += rules.heard(failure)
    assert states(told) == ["DownloadFailed"]
    assert rules.trouble == "given up after 8 tries"


def test_a_look_that_nobody_asked_for_troubles_only_people_here() -> None:
    rules = UpdateRules()
    rules.asked(None)
    assert rules.heard(Failure(UpdateState.INVALID_SIGNATURE, "timestamp expired")) == []
    assert rules.trouble == "timestamp expired"
    rules.asked(OTHER)
    (told,) = rules.heard(Failure(UpdateState.INVALID_SIGNATURE, "timestamp expired"))
    assert isinstance(told, Tell)
    assert told.about.request == OTHER


def test_what_was_rolled_back_is_not_tried_again_for_the_same_request() -> None:
    rules = UpdateRules(failed={READY.slot: ASKED})
    rules.asked(ASKED)
    assert rules.heard(READY) == []
    assert (rules.phase, rules.tick(IDLE)) == (Phase.IDLE, [])
    assert "rolled back" in rules.trouble
    rules.asked(OTHER)
    again = msgspec.structs.replace(ABOUT, request=OTHER)
    assert states(rules.heard(msgspec.structs.replace(READY, about=again))) == ["InstallScheduled"]
    rules = UpdateRules(failed={READY.slot: ASKED})
    rules.asked(None, "/stick")
    assert states(rules.heard(READY)) == ["InstallScheduled"]


def test_a_technician_ends_it_up_to_the_point_of_no_return() -> None:
    rules = waiting()
    rules.tick(IDLE)
    actions = rules.abort("by hand")
    assert (actions[0], states(actions)) == (LetGo(), ["InstallationFailed"])
    assert (rules.phase, rules.tick(IDLE)) == (Phase.IDLE, [])
    rules.asked(None)  # the look of every six hours
    assert rules.heard(Progress(ABOUT, UpdateState.DOWNLOADING)) == []
    assert rules.heard(READY) == []
    assert (rules.phase, "asked for anew" in rules.trouble) == (Phase.IDLE, True)
    rules.asked(ASKED)
    assert states(rules.heard(READY)) == ["InstallScheduled"]
    with pytest.raises(UpdateRefusedError, match="no update"):
        UpdateRules().abort("by hand")
    rules.tick(IDLE)
    rules.tick(IDLE)
    with pytest.raises(UpdateRefusedError, match="has begun"):
        rules.abort("by hand")


def test_a_fetch_is_ended_by_hand_before_anything_is_known_of_it() -> None:
    rules = UpdateRules()
    rules.asked(ASKED)
    assert rules.abort("by hand") == [StopFetching()]
    assert (rules.phase, rules.aborted) == (Phase.IDLE, ASKED)


def test_an_earlier_look_that_ends_late_does_not_end_the_one_that_was_asked_for() -> None:
    rules = UpdateRules()
    (first,) = rules.asked(None)
    stop, second = rules.asked(ASKED)
    assert stop == StopFetching()
    assert rules.heard(Nothing(), first) == []
    assert rules.phase is Phase.FETCHING
    assert states(rules.heard(READY, second)) == ["InstallScheduled"]
    (third,) = rules.tick(replace(IDLE, wall_ms=READY.valid_until_ms))
    assert rules.heard(Nothing(), second) == []
    assert states(rules.heard(READY, third)) == []
    assert rules.phase is Phase.WAITING


def test_a_fetch_that_nobody_will_hear_of_is_forgotten() -> None:
    rules = UpdateRules()
    rules.asked(ASKED)
    rules.lost()
    assert rules.phase is Phase.IDLE
    rules = waiting()
    rules.lost()
    assert rules.phase is Phase.WAITING


def test_what_runs_already_is_said_to_be_installed() -> None:
    rules = UpdateRules()
    rules.asked(ASKED)
    assert states(rules.heard(Current(ABOUT))) == ["Installed"]


EVENTS = st.lists(
    st.one_of(
        st.sampled_from([ASKED, OTHER, None]),
        st.sampled_from(
            [
                READY,
                msgspec.structs.replace(READY, force=True),
                Nothing(),
                Current(ABOUT),
                Failure(UpdateState.DOWNLOAD_FAILED, "x", ABOUT),
            ]
        ),
        st.builds(
            Conditions,
            wall_ms=st.sampled_from([0, 2_000_000]),
            busy=st.sampled_from([(), (1,), (1, 2)]),
            forbidden=st.sampled_from(["", "battery"]),
        ),
        st.just("interrupted"),
        st.just("given up"),
    ),
    max_size=30,
)


@given(EVENTS)
def test_what_is_held_is_let_go_unless_it_is_installed(events: list[Any]) -> None:
    """EVSEs are never forgotten out of service, and nothing is installed over a session."""
    rules, held = UpdateRules(), False
    for event in events:
        if isinstance(event, Conditions):
            actions = rules.tick(event)
            installs = [each for each in actions if isinstance(each, Install)]
            assert not (installs and event.busy and not installs[0].ready.force)
            assert not (installs and event.forbidden)
        elif event == "interrupted":
            actions = rules.interrupted("x")
        elif event == "given up":
            actions = rules.given_up("x")
        elif isinstance(event, UUID) or event is None:
            if rules.phase is Phase.COMMITTED:
                continue
            actions = rules.asked(event)
        else:
            actions = rules.heard(event)
        for action in actions:
            held = isinstance(action, Hold) or (held and not isinstance(action, LetGo))
        if rules.phase in {Phase.IDLE, Phase.FETCHING}:
            assert not held


# --------------------------------------------------------------------------- the trial

WELL = Health(boards=("b1",), cloud=True)
EXPECTED = Expected(frozenset({"b1"}), cloud=True)


def judge(health: Health, *at_ms: int, expected: Expected = EXPECTED) -> list[Verdict]:
    trial = Trial(expected, 0)
    return [trial.judge(health, at) for at in at_ms]


def test_well_for_a_while_is_confirmed() -> None:
    assert judge(WELL, 5, 5 + STEADY_MS) == ["wait", "confirm"]


def test_well_now_and_then_is_not() -> None:
    trial = Trial(EXPECTED, 0)
    assert trial.judge(WELL, 0) is Verdict.WAIT
    assert trial.judge(replace(WELL, journal="full"), 5_000) is Verdict.WAIT
    assert trial.judge(WELL, STEADY_MS) is Verdict.WAIT


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (replace(WELL, journal="disk full"), "journal: disk full"),
        (replace(WELL, stuck=("b1",)), "stuck: b1"),
        (replace(WELL, boards=()), "b1"),
    ],
)
def test_what_was_well_and_is_not_fails(health: Health, why: str) -> None:
    trial = Trial(EXPECTED, 0)
    assert trial.judge(health, LATE_MS - 1) is Verdict.WAIT
    assert trial.judge(health, LATE_MS) is Verdict.FAIL
    assert why in trial.why


def test_ota_f30_cloud_lost_by_the_new_version_fails_lost_before_extends() -> None:
    alone = replace(WELL, cloud=False)
    assert judge(alone, LATE_MS) == ["fail"]
    before = Expected(frozenset({"b1"}), cloud=False)
    assert judge(alone, 0, LATE_MS, EXTEND_MS - 1, EXTEND_MS, expected=before) == [
        "wait",
        "wait",
        "wait",
        "confirm",
    ]
    assert judge(WELL, 0, STEADY_MS, expected=before) == ["wait", "confirm"]


def test_a_board_that_was_silent_before_is_not_waited_for() -> None:
    none = Expected(frozenset(), cloud=True)
    assert judge(replace(WELL, boards=()), 0, STEADY_MS, expected=none)[-1] is Verdict.CONFIRM


def test_expectations_survive_the_boot_record() -> None:
    assert Expected.of(EXPECTED.plain()) == EXPECTED
    assert Expected.of({"boards": [1, "b"], "cloud": 1}) == Expected(frozenset({"b"}), cloud=True)
