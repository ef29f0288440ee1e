"""Samples to columns and back: the telemetry payload of the agent link.

Neighbouring samples differ little, so a column of differences is mostly one-digit numbers, which
deflate packs to a fraction of a byte each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise

from protocols.agent_link import COLUMNS, LinkError, Sample, Series, Stamp
from protocols.quantities import Milliseconds

Column = tuple[int | None, ...]


def _differences(values: Iterable[int | None]) -> Column:
    out: list[int | None] = []
    last = 0
    for value in values:
        if value is None:
            out.append(None)
        else:
            out.append(value - last)
            last = value
    return tuple(out)


def _sums(column: Column) -> Iterator[int | None]:
    last = 0
    for step in column:
        if step is None:
            yield None
        else:
            last += step
            yield last


def _kind(sample: Sample) -> tuple[object, ...]:
    """Samples of one series share EVSE, boot, clock quality, resolution and clock offset."""
    at = sample.at
    return (sample.evse, at.boot, at.quality, sample.every_ms, at.wall_ms - at.mono_ms)


def to_series(samples: Iterable[Sample]) -> tuple[Series, ...]:
    """Samples, ordered by time within each EVSE, as columns."""
    ordered = sorted(samples, key=lambda s: (s.evse, str(s.at.boot), s.at.mono_ms))
    return tuple(_one_series(list(group)) for _, group in groupby(ordered, _kind))


def _one_series(samples: list[Sample]) -> Series:
    first = samples[0]
    times = [sample.at.mono_ms for sample in samples]
    columns: dict[str, Column] = {}
    for name in COLUMNS:
        values = [getattr(sample, name) for sample in samples]
        if any(value is not None for value in values):
            columns[name] = _differences(values)
    return Series(
        evse=first.evse,
        boot=first.at.boot,
        wall_ms=first.at.wall_ms,
        mono_ms=first.at.mono_ms,
        quality=first.at.quality,
        every_ms=first.every_ms,
        dt_ms=(0, *(b - a for a, b in pairwise(times))),
        **columns,  # type: ignore[arg-type]  # the names are Series' own columns
    )


def to_samples(series: Series) -> list[Sample]:
    """Columns as samples again; raises LinkError when a column's length is not the series'."""
    count = len(series.dt_ms)
    columns: dict[str, Iterator[int | None]] = {}
    for name in COLUMNS:
        column: Column = getattr(series, name)
        if column and len(column) != count:
            raise LinkError(f"{name} has {len(column)} values for {count} samples")
        if column:
            columns[name] = _sums(column)
    samples = []
    elapsed = 0
    for step in series.dt_ms:
        elapsed += step
        at = Stamp(
            Milliseconds(series.wall_ms + elapsed),
            Milliseconds(series.mono_ms + elapsed),
            series.boot,
            series.quality,
        )
        row = {name: next(column) for name, column in columns.items()}
        samples.append(Sample(evse=series.evse, at=at, every_ms=series.every_ms, **row))  # type: ignore[arg-type]  # as above
    return samples
