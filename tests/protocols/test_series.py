"""Samples survive their way through columns."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.agent_link import COLUMNS, ClockQuality, LinkError, Sample, Stamp
from protocols.quantities import Milliseconds, WattHours
from protocols.series import to_samples, to_series

VALUES = st.none() | st.integers(-(2**40), 2**40)
OFFSETS = {boot: 1_790_000_000_000 + 977 * boot for boot in (1, 2)}


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    keys = draw(
        st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from([1, 2]), st.integers(0, 10**9)),
            max_size=40,
            unique=True,
        )
    )
    return [_sample(draw, *key) for key in keys]


def _sample(draw: st.DrawFn, evse: int, boot: int, mono: int) -> Sample:
    at = Stamp(
        Milliseconds(mono + OFFSETS[boot]),
        Milliseconds(mono),
        UUID(int=boot),
        draw(st.sampled_from(ClockQuality)),
    )
    columns: dict[str, Any] = {name: draw(VALUES) for name in COLUMNS}
    every = Milliseconds(draw(st.sampled_from([1000, 60_000])))
    return Sample(evse=evse, at=at, every_ms=every, **columns)


def by_time(sample: Sample) -> tuple[int, str, int]:
    return (sample.evse, str(sample.at.boot), sample.at.mono_ms)


@given(sample_lists())
def test_samples_come_back_as_they_went(samples: list[Sample]) -> None:
    series = to_series(samples)
    back = [sample for one in series for sample in to_samples(one)]
    assert sorted(back, key=by_time) == sorted(samples, key=by_time)
    assert all(min(one.dt_ms) >= 0 and one.dt_ms[0] == 0 for one in series)


@given(sample_lists())
def test_columns_never_measured_are_left_out(samples: list[Sample]) -> None:
    for one in to_series(samples):
        for name in COLUMNS:
            column = getattr(one, name)
            assert len(column) in {0, len(one.dt_ms)}
            assert column == () or any(value is not None for value in column)


@given(sample_lists().filter(bool), st.sampled_from(COLUMNS), st.integers(1, 3))
def test_a_column_of_the_wrong_length_is_refused(
    samples: list[Sample], name: str, excess: int
) -> None:
    one = to_series(samples)[0]
    wrong = msgspec.structs.replace(one, **{name: (1,) * (len(one.dt_ms) + excess)})
    with pytest.raises(LinkError, match=name):
        to_samples(wrong)


def test_a_clock_step_begins_another_series() -> None:
    def at(mono: int, offset: int) -> Sample:
        stamp = Stamp(
            Milliseconds(mono + offset), Milliseconds(mono), UUID(int=1), ClockQuality.SYNCED
        )
        return Sample(evse=1, at=stamp, energy_wh=WattHours(mono))

    series = to_series([at(0, 0), at(1000, 0), at(2000, 3_600_000), at(3000, 3_600_000)])
    assert [len(one.dt_ms) for one in series] == [2, 2]
    assert series[1].wall_ms == 3_602_000
