"""Packing series for COPY says the same as reading them sample by sample."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest.mock import patch
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.telemetry import columns
from cloud.telemetry.columns import COPY_HEADER, COPY_TRAILER, Dated, pack
from protocols.agent_link import COLUMNS, ClockQuality, LinkError, Series
from protocols.quantities import Milliseconds
from protocols.series import to_samples

BOOT = UUID(int=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
SIZES = {2: "!h", 4: "!i", 8: "!q"}

values = st.integers(-1000, 40_000)


def series_of(dt_ms: tuple[int, ...], **columns: object) -> Series:
    wall = Milliseconds(round(NOON.timestamp() * 1000))
    start = Milliseconds(5000)
    return msgspec.convert(
        {
            "evse": 1,
            "boot": BOOT,
            "wall_ms": wall,
            "mono_ms": start,
            "quality": ClockQuality.SYNCED,
            "every_ms": 1000,
            "dt_ms": dt_ms,
            **columns,
        },
        Series,
    )


@st.composite
def any_series(draw: st.DrawFn, *, holes: bool = True) -> Series:
    count = draw(st.integers(1, 6))
    steps = (0, *draw(st.lists(st.integers(0, 5000), min_size=count - 1, max_size=count - 1)))
    names = draw(st.sets(st.sampled_from(COLUMNS)))
    cell = st.none() | values if holes else values
    columns = {name: tuple(draw(st.lists(cell, min_size=count, max_size=count))) for name in names}
    return series_of(steps, **columns)


def read(data: bytes) -> Iterator[tuple[int | None, ...]]:
    """Rows of binary COPY, as PostgreSQL's documentation describes the format."""
    assert data.startswith(COPY_HEADER)
    assert data.endswith(COPY_TRAILER)
    at = len(COPY_HEADER)
    while at < len(data) - len(COPY_TRAILER):
        (fields,) = struct.unpack_from("!h", data, at)
        at += 2
        row: list[int | None] = []
        for _ in range(fields):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if size < 0 else struct.unpack_from(SIZES[size], data, at)[0])
            at += max(size, 0)
        yield tuple(row)


def expected(one: Dated) -> Iterator[tuple[int | None, ...]]:
    shift = one.first_at - EPOCH - timedelta(milliseconds=one.series.wall_ms)
    for sample in to_samples(one.series):
        at = (shift + timedelta(milliseconds=sample.at.wall_ms)) // timedelta(microseconds=1)
        measured = (getattr(sample, name) for name in COLUMNS)
        yield (at, one.station_id, sample.evse, sample.every_ms, *measured)


@given(
    st.lists(st.tuples(st.integers(1, 9), any_series(holes=False) | any_series()), max_size=8),
    st.sampled_from([1, 20, 32_768]),
)
def test_every_sample_is_packed_once_and_true(told: list[tuple[int, Series]], at_once: int) -> None:
    dated = [Dated(station, NOON, series) for station, series in told]
    with patch.object(columns, "_VALUES_AT_ONCE", at_once):
        packed = pack(dated)
    rows = [row for one in dated for row in expected(one)]
    key = repr
    assert sorted(read(packed.copy_data), key=key) == sorted(rows, key=key)
    assert packed.days == {(EPOCH + timedelta(microseconds=row[0] or 0)).date() for row in rows}


@pytest.mark.parametrize(
    ("series", "words"),
    [
        (series_of((0, 1000), energy_wh=(1,)), "energy_wh has 1 values for 2 samples"),
        (series_of((0, -1), power_w=(1, 1)), "times run forward"),
        (series_of((0, 500 * 86_400_000), power_w=(1, 1)), "times run forward"),
        (series_of((0, 1), power_w=(2**30, 2**30)), "power_w is out of bounds"),
        (series_of((0, 1), power_w=(None, 2**31)), "power_w is out of bounds"),
        (series_of((0,), energy_wh=(2**62,)), "energy_wh has a value that nothing measures"),
        (series_of((0,), more={"soc_percent": (1, 2)}), "soc_percent has 2 values for 1 samples"),
    ],
)
def test_what_no_row_can_hold_is_refused(series: Series, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        pack([Dated(1, NOON, series)])


def test_a_series_over_midnight_falls_on_both_days() -> None:
    late = NOON + timedelta(hours=11, minutes=59, seconds=59)
    packed = pack([Dated(1, late, series_of((0, 2000), energy_wh=(1, 1)))])
    assert len(packed.days) == 2
    assert packed.spans() == [(1, late, late + timedelta(seconds=2))]


def test_a_sparse_series_spans_only_what_it_touches() -> None:
    week = 7 * 86_400_000
    packed = pack([Dated(1, NOON, series_of((0, week, 1000), power_w=(1, 1, 1)))])
    assert sum((last - first for _, first, last in packed.spans()), timedelta()) <= timedelta(
        hours=6
    )
    assert {first for _, first, _ in packed.spans()} >= {NOON, NOON + timedelta(days=7)}
