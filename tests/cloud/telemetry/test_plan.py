"""The planner: every instant is answered once, by a tier that holds exactly what was asked for."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloud.telemetry.tiers.plan import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    MOST_PIECES,
    Marks,
    Tier,
    common_step,
    floor,
    plan,
)

DAY_1 = EPOCH + 20_000 * DAY
times = st.integers(0, 4 * 86_400_000).map(lambda ms: DAY_1 + timedelta(milliseconds=ms))
days = st.integers(0, 4).map(lambda n: DAY_1 + n * DAY)
units = st.sampled_from((timedelta(milliseconds=1), timedelta(seconds=1), MINUTE, HOUR))


@st.composite
def marks(draw: st.DrawFn) -> Marks:
    until = floor(draw(times), MINUTE)
    kept = [min(draw(days), floor(until, DAY)) for _ in range(3)]
    return Marks(until + MINUTE, until, *kept)


@given(times, times, units, marks(), st.sets(times.map(lambda at: floor(at, HOUR)), max_size=20))
def test_pieces_cover_the_span_once(
    one: datetime, other: datetime, unit: timedelta, tiers: Marks, late: set[datetime]
) -> None:
    start = floor(min(one, other), unit)
    end = max(one, other, start + unit)
    pieces = plan(start, end, common_step([start], unit), tiers, late)
    assert all(a.end <= b.start for a, b in pairwise(pieces))
    assert all(start <= piece.start < piece.end <= end for piece in pieces)
    covered = sum((piece.end - piece.start for piece in pieces), timedelta(0))
    left = [tiers.raw_from, min(tiers.until, tiers.minute_from, tiers.hour_from)]
    assert covered == max(end - max(start, min(left)), timedelta(0))
    assert len(pieces) <= MOST_PIECES + len(late) or not late


@given(times, times, units, marks(), st.sets(times.map(lambda at: floor(at, HOUR)), max_size=6))
def test_roll_ups_answer_only_what_they_hold_whole(
    one: datetime, other: datetime, unit: timedelta, tiers: Marks, late: set[datetime]
) -> None:
    start = floor(min(one, other), unit)
    end = max(one, other, start + unit)
    for piece in plan(start, end, common_step([start], unit), tiers, late):
        assert piece.start >= tiers.begins(piece.tier)
        if piece.tier is Tier.RAW:
            assert not piece.coarse
            continue
        assert piece.end <= tiers.until
        if piece.start >= tiers.raw_from:
            hours = {floor(piece.start, HOUR) + n * HOUR for n in range(100)}
            assert not {h for h in hours if piece.start <= h < piece.end} & late
        if not piece.coarse:
            assert floor(piece.start, piece.tier.step) == piece.start
            assert floor(piece.end, piece.tier.step) == piece.end
            assert common_step([start], unit) % piece.tier.step == timedelta(0)


def test_an_hour_wins_over_its_minutes_and_both_over_samples() -> None:
    until = DAY_1 + 30 * HOUR + 7 * MINUTE
    tiers = Marks(until, until, EPOCH, EPOCH, EPOCH)
    told = plan(DAY_1, DAY_1 + 31 * HOUR, HOUR, tiers, [DAY_1 + 2 * HOUR])
    assert [(piece.tier, (piece.end - DAY_1) / HOUR) for piece in told] == [
        (Tier.HOUR, 2),
        (Tier.RAW, 3),
        (Tier.HOUR, 30),
        (Tier.MINUTE, 30 + 7 / 60),
        (Tier.RAW, 31),
    ]


def test_a_finer_question_than_what_is_left_gets_what_is_left_and_is_told() -> None:
    tiers = Marks(DAY_1 + 4 * DAY, DAY_1 + 4 * DAY, DAY_1 + 3 * DAY, DAY_1 + DAY, EPOCH)
    told = plan(DAY_1, DAY_1 + 4 * DAY, timedelta(seconds=1), tiers)
    assert [(piece.tier, piece.coarse) for piece in told] == [
        (Tier.HOUR, True),
        (Tier.MINUTE, True),
        (Tier.RAW, False),
    ]
