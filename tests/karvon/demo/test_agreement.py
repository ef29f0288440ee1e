"""The referee itself: it must complain of every kind of loss, and of nothing else."""

from __future__ import annotations

import pytest

from karvon.demo.agreement import Booked, Kept, Truth, complaints, within_step
from protocols.quantities import WattHours

TRUTH = [Truth(1_500_400, over=True), Truth(200_999, over=True)]
KEPT = [Kept("a", WattHours(1_500), over=True), Kept("b", WattHours(200), over=True)]
BOOKED = [
    Booked("a", WattHours(1_500), over=True, seq_nos=(0, 1, 2)),
    Booked("b", WattHours(200), over=True, seq_nos=(0, 1)),
]


def test_the_same_story_draws_no_complaint() -> None:
    assert complaints(TRUTH, KEPT, BOOKED) == []


@pytest.mark.parametrize(
    ("truth_mwh", "energy_wh", "step_wh", "agrees"),
    [
        (1_000_000, 1_000, 1, True),
        (1_000_000, 999, 1, True),
        (1_001_001, 1_000, 1, False),
        (998_999, 1_000, 1, False),
        (1_009_000, 1_000, 10, True),
        (1_011_000, 1_000, 10, False),
    ],
)
def test_one_watt_hour_or_the_coarser_step(
    truth_mwh: int, energy_wh: int, step_wh: int, agrees: bool
) -> None:
    assert within_step(truth_mwh, energy_wh, step_wh) is agrees


def test_a_lost_session_is_noticed() -> None:
    found = complaints(TRUTH, KEPT, BOOKED[:1])
    assert "2 sessions took place, 1 are in the cloud" in found
    assert "session b is in the journal, but not in the cloud" in found


def test_a_doubled_session_is_noticed() -> None:
    found = complaints(TRUTH, KEPT, [*BOOKED, BOOKED[1]])
    assert "transaction b is in the cloud 2 times" in found


def test_lost_energy_is_noticed() -> None:
    short = Booked("b", WattHours(198), over=True, seq_nos=(0, 1))
    found = complaints(TRUTH, KEPT, [BOOKED[0], short])
    assert "session 2: 200.999 Wh flowed, 198 Wh are in the cloud (b)" in found
    assert any("the journal has 200 Wh" in line for line in found)


def test_a_session_left_open_is_noticed() -> None:
    still = Booked("b", WattHours(200), over=False, seq_nos=(0, 1))
    assert any("says open" in line for line in complaints(TRUTH, KEPT, [BOOKED[0], still]))


def test_a_missing_event_is_noticed() -> None:
    holed = Booked("b", WattHours(200), over=True, seq_nos=(0, 2))
    found = complaints(TRUTH, KEPT, [BOOKED[0], holed])
    assert found == ["transaction b: events [1] are not in the cloud"]
    assert complaints(TRUTH, KEPT, [BOOKED[0], holed], journal_lost=True) == []


def test_a_session_that_the_journal_forgot_is_noticed_unless_its_disk_was_lost() -> None:
    assert complaints(TRUTH, KEPT[:1], BOOKED) == [
        "transactions ['b'] are in the cloud, but not in the journal"
    ]
    assert complaints(TRUTH, KEPT[:1], BOOKED, journal_lost=True) == []


def test_what_moved_no_energy_is_no_session() -> None:
    nothing = Booked("c", WattHours(0), over=True, seq_nos=(0, 1))
    assert complaints([*TRUTH, Truth(12, over=True)], KEPT, BOOKED) == []
    assert complaints(TRUTH, KEPT, [*BOOKED, nothing]) == []
