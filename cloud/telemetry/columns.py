"""Series as rows in PostgreSQL's binary COPY format: pure, and the hot path of the ingester.

Series that measured the same columns without a hole are packed together with numpy, a column at a
time; the others row by row. Measured on messages of ten samples, packing one row after the other
costs three times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.agent_link import COLUMNS, LinkError, Series

Extra = tuple[datetime, int, int, str, int]
Span = tuple[int, datetime, datetime]
"""Station, first and last sample."""
Ints = NDArray[np.int64]

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER: Final = struct.pack("!h", -1)
FIELDS: Final = ("time", "station_id", "evse", "every_ms", *COLUMNS)
_WIDTHS: Final = dict(zip(FIELDS, (8, 4, 2, 4, 8, *(4,) * (len(COLUMNS) - 1)), strict=True))
_KINDS: Final = {2: ">i2", 4: ">i4", 8: ">i8"}
_CODES: Final = {2: "h", 4: "i", 8: "q"}
_NULL: Final = struct.pack("!i", -1)
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_DAY_US: Final = 86_400_000_000
_LARGEST_STEP: Final = 2**40
"""No register or measured value of a charger comes near; sums of such steps stay within 64 bits."""
_LONGEST_MS: Final = 400 * 86_400_000
"""Between a series' first and last sample."""
_ONE_SPAN: Final = timedelta(hours=6)
_columns = attrgetter(*COLUMNS)


class Dated(NamedTuple):
    """A series of a station, and when its first sample was."""

    station_id: int
    first_at: datetime
    series: Series


@dataclass
class Packed:
    """Samples ready for COPY, which days they fall on, and what each series spans."""

    parts: list[bytes] = field(default_factory=list)
    days: set[date] = field(default_factory=set)
    extras: list[Extra] = field(default_factory=list)
    _spans: dict[int, Span] = field(default_factory=dict)
    _apart: list[Span] = field(default_factory=list)

    def spans(self) -> list[Span]:
        """Where in time each station's samples lie, in stretches of some hours at most."""
        return [*self._spans.values(), *self._apart]

    def note_span(self, station_id: int, first: datetime, last: datetime) -> None:
        _, from_, to = self._spans.get(station_id, (station_id, first, last))
        from_, to = min(from_, first), max(to, last)
        if to - from_ <= _ONE_SPAN:
            self._spans[station_id] = (station_id, from_, to)
        else:
            self._apart.append((station_id, first, last))

    @property
    def copy_data(self) -> bytes:
        return b"".join((COPY_HEADER, *self.parts, COPY_TRAILER))


def pack(told: Iterable[Dated]) -> Packed:
    """Series as binary COPY rows of FIELDS.

    Raises LinkError for ragged columns, times that run back, and values that no row can hold.
    """
    packed = Packed()
    kinds: dict[tuple[bool, ...], list[Dated]] = {}
    for one in told:
        kinds.setdefault(_kind(one.series), []).append(one)
        _note(packed, one)
    for kind, alike in kinds.items():
        names = tuple(name for name, there in zip(COLUMNS, kind, strict=True) if there)
        try:
            packed.parts.append(_together(names, alike))
        except TypeError:  # a hole in a column
            packed.parts += [row for one in alike for row in _rows(one)]
    return packed


def _kind(series: Series) -> tuple[bool, ...]:
    """Which columns are there. Raises LinkError for one that is not as long as the series."""
    count = len(series.dt_ms)
    lengths = tuple(map(len, _columns(series)))
    for name, length in zip(COLUMNS, lengths, strict=True):
        if length not in (0, count):
            raise LinkError(f"{name} has {length} values for {count} samples")
    return tuple(map(bool, lengths))


def _note(packed: Packed, one: Dated) -> None:
    series, first = one.series, one.first_at
    span_ms = sum(series.dt_ms)
    if min(series.dt_ms) < 0 or span_ms > _LONGEST_MS:
        raise LinkError("a series' times run forward, by at most 400 days")
    last = first + timedelta(milliseconds=span_ms)
    if last - first <= _ONE_SPAN:
        packed.note_span(one.station_id, first, last)
    else:
        for at in _times(one):
            packed.note_span(one.station_id, at, at)
    if first.date() == last.date():
        packed.days.add(first.date())
    else:
        packed.days.update(at.date() for at in _times(one))
    if series.more:
        packed.extras += _extras(one)


# --------------------------------------------------------------------------- many at once


def _together(names: Sequence[str], alike: Sequence[Dated]) -> bytes:
    """Series with the same columns, none with a hole."""
    counts = np.fromiter((len(one.series.dt_ms) for one in alike), np.int64, len(alike))
    rows = np.empty(int(counts.sum()), _layout(names))
    rows["fields"] = len(FIELDS)
    for name in FIELDS:
        rows[f"{name} size"] = _WIDTHS[name] if _is_there(name, names) else -1
    started = np.fromiter(((one.first_at - _POSTGRES_EPOCH) // _US for one in alike), np.int64)
    rows["time"] = np.repeat(started, counts) + 1000 * _sums("dt_ms", alike, counts)
    rows["station_id"] = np.repeat([one.station_id for one in alike], counts)
    rows["evse"] = np.repeat(_fitting("evse", [one.series.evse for one in alike]), counts)
    every = [one.series.every_ms for one in alike]
    rows["every_ms"] = np.repeat(_fitting("every_ms", every), counts)
    for name in names:
        rows[name] = _fitting(name, _sums(name, alike, counts))
    return rows.tobytes()


def _is_there(name: str, names: Sequence[str]) -> bool:
    return name in names or name not in COLUMNS


def _layout(names: Sequence[str]) -> np.dtype[Any]:
    """A row of binary COPY: a size before each value, -1 and no value for null."""
    layout = [("fields", ">i2")]
    for name in FIELDS:
        layout.append((f"{name} size", ">i4"))
        if _is_there(name, names):
            layout.append((name, _KINDS[_WIDTHS[name]]))
    return np.dtype(layout)


def _sums(name: str, alike: Sequence[Dated], counts: Ints) -> Ints:
    """A column of differences as values, each series from its own first."""
    column = attrgetter(name)
    steps = chain.from_iterable([column(one.series) for one in alike])
    try:
        found = np.fromiter(steps, np.int64, int(counts.sum()))
    except OverflowError:
        raise LinkError(f"{name} has a value that nothing measures") from None
    if max(-int(found.min()), int(found.max())) >= _LARGEST_STEP:
        raise LinkError(f"{name} has a value that nothing measures")
    sums: Ints = np.cumsum(found)
    before = np.concatenate(([0], sums[np.cumsum(counts)[:-1] - 1]))
    own: Ints = sums - np.repeat(before, counts)
    return own


def _fitting(name: str, values: Ints | Sequence[int]) -> Ints:
    """The values, if the column's integers hold them; numpy would cut them in silence."""
    limit = 1 << (8 * _WIDTHS[name] - 1)
    try:
        found = np.asarray(values, np.int64)
    except OverflowError:
        raise LinkError(f"{name} is out of bounds") from None
    if found.size and not -limit <= int(found.min()) <= int(found.max()) < limit:
        raise LinkError(f"{name} is out of bounds")
    return found


# --------------------------------------------------------------------------- one by one


def _rows(one: Dated) -> Iterator[bytes]:
    """A series with holes in its columns."""
    series = one.series
    count = len(series.dt_ms)
    started = (one.first_at - _POSTGRES_EPOCH) // _US
    times = [started + 1000 * ms for ms in accumulate(series.dt_ms)]
    columns = [_values(getattr(series, name), count) for name in COLUMNS]
    for at, *values in zip(times, *columns, strict=True):
        yield _row((at, one.station_id, series.evse, series.every_ms, *values))


def _values(column: Sequence[int | None], count: int) -> Sequence[int | None]:
    if not column:
        return (None,) * count
    values: list[int | None] = []
    last = 0
    for step in column:
        if step is not None:
            last += step
        values.append(None if step is None else last)
    return values


def _row(values: Sequence[int | None]) -> bytes:
    parts = [struct.pack("!h", len(FIELDS))]
    for (name, width), value in zip(_WIDTHS.items(), values, strict=True):
        if value is None:
            parts.append(_NULL)
            continue
        try:
            parts.append(struct.pack(f"!i{_CODES[width]}", width, value))
        except struct.error:
            raise LinkError(f"{name} is out of bounds: {value}") from None
    return b"".join(parts)


def _times(one: Dated) -> list[datetime]:
    return [one.first_at + timedelta(milliseconds=ms) for ms in accumulate(one.series.dt_ms)]


def _extras(one: Dated) -> Iterator[Extra]:
    series = one.series
    count = len(series.dt_ms)
    times = _times(one)
    for name, column in sorted(series.more.items()):
        if column and len(column) != count:
            raise LinkError(f"{name} has {len(column)} values for {count} samples")
        for at, value in zip(times, _values(column, count), strict=True):
            if value is not None:
                yield at, one.station_id, series.evse, name, value
