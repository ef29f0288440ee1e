"""A series' columns as rows for the table: pure, and the hot path of the ingester."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from protocols.agent_link import COLUMNS, LinkError, Series

Row = tuple[datetime, int, int, int, *tuple[int | None, ...]]
Extra = tuple[datetime, int, int, str, int]
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Rows:
    samples: list[Row]
    extras: list[Extra]


def _values(name: str, column: Sequence[int | None], count: int) -> Sequence[int | None]:
    """A column of differences as values. Raises LinkError when it is not as long as the series."""
    if not column:
        return (None,) * count
    if len(column) != count:
        raise LinkError(f"{name} has {len(column)} values for {count} samples")
    if None not in column:
        return list(accumulate(column))
    values: list[int | None] = []
    last = 0
    for step in column:
        if step is not None:
            last += step
        values.append(None if step is None else last)
    return values


def rows(series: Series, station_id: int, first_at: datetime) -> Rows:
    """The series' rows, its first sample at that time. Raises LinkError for ragged columns."""
    count = len(series.dt_ms)
    times = [first_at + elapsed * _MS for elapsed in accumulate(series.dt_ms)]
    columns = [_values(name, getattr(series, name), count) for name in COLUMNS]
    station, evse, every = (station_id,) * count, (series.evse,) * count, (series.every_ms,) * count
    samples: list[Row] = list(zip(times, station, evse, every, *columns, strict=True))
    extras = [
        (at, station_id, series.evse, name, value)
        for name, column in sorted(series.more.items())
        for at, value in zip(times, _values(name, column, count), strict=True)
        if value is not None
    ]
    return Rows(samples, extras)
