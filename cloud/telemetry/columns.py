"""Series as rows in PostgreSQL's binary COPY format: pure, and the hot path of the ingester.

Series that measured the same columns equally often, without a hole, become one matrix and are
packed together with numpy; the others row by row. Measured on messages of ten samples, packing one
row after the other costs five times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
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
Row = tuple[Any, ...]

FEW: Final = 100
"""Samples at most that one statement takes; COPY costs four turns to the server."""

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER: Final = struct.pack("!h", -1)
FIELDS: Final = ("time", "station_id", "evse", "every_ms", *COLUMNS)
_WIDTHS: Final = dict(zip(FIELDS, (8, 4, 2, 4, 8, *(4,) * (len(COLUMNS) - 1)), strict=True))
_KINDS: Final = {2: ">i2", 4: ">i4", 8: ">i8"}
KINDS: Final = tuple("timestamptz" if name == "time" else f"int{w}" for name, w in _WIDTHS.items())
"""The fields' types in PostgreSQL."""
_CODES: Final = {2: "h", 4: "i", 8: "q"}
_NULL: Final = struct.pack("!i", -1)
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_DAY_US: Final = 86_400_000_000
_LARGEST_STEP: Final = 2**40
"""No register or measured value of a charger comes near; sums of such steps stay within 64 bits."""
_LONGEST_MS: Final = 400 * 86_400_000
"""Between a series' first and last sample."""
_VALUES_AT_ONCE: Final = 32_768
"""So many stay in the processor's cache, and hold the interpreter's lock for about 2 ms."""
_ONE_SPAN_US: Final = 6 * 3_600_000_000
_columns = attrgetter("dt_ms", *COLUMNS)


class Dated(NamedTuple):
    """A series of a station, and when its first sample was."""

    station_id: int
    first_at: datetime
    series: Series


@dataclass
class Packed:
    """Samples ready for COPY, which days they fall on, and what each series spans.

    Times are microseconds since 2000 here, as PostgreSQL counts them.
    """

    parts: list[bytes] = field(default_factory=list)
    extras: list[Extra] = field(default_factory=list)
    _days: set[int] = field(default_factory=set)
    _spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    _apart: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def days(self) -> set[date]:
        return {(_POSTGRES_EPOCH + timedelta(days=day)).date() for day in self._days}

    def spans(self) -> list[Span]:
        """Where in time each station's samples lie, in stretches of some hours at most."""
        together = [(station, *span) for station, span in self._spans.items()]
        return [(station, _at(first), _at(last)) for station, first, last in together + self._apart]

    def note(self, stations: Iterable[int], times: Ints) -> None:
        """That these stations have a series each, at these times (a row each)."""
        first, last = int(times.min()) // _DAY_US, int(times.max()) // _DAY_US
        self._days.update((first,) if first == last else np.unique(times // _DAY_US).tolist())
        ends = zip(stations, times[:, 0].tolist(), times[:, -1].tolist(), strict=True)
        for row, (station, began, ended) in enumerate(ends):
            if ended - began <= _ONE_SPAN_US:
                self._note_span(station, began, ended)
            else:
                for at in times[row].tolist():
                    self._note_span(station, at, at)

    def _note_span(self, station: int, first: int, last: int) -> None:
        from_, to = self._spans.get(station, (first, last))
        from_, to = min(from_, first), max(to, last)
        if to - from_ <= _ONE_SPAN_US:
            self._spans[station] = (from_, to)
        else:
            self._apart.append((station, first, last))

    @property
    def copy_data(self) -> bytes:
        return b"".join((COPY_HEADER, *self.parts, COPY_TRAILER))


def _at(us: int) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=us)


def pack(told: Iterable[Dated]) -> Packed:
    """Series as binary COPY rows of FIELDS.

    Raises LinkError for ragged columns, times that run back, and values that no row can hold.
    """
    packed = Packed()
    kinds: dict[tuple[int, ...], list[Dated]] = {}
    for one in told:
        kinds.setdefault(tuple(map(len, _columns(one.series))), []).append(one)
        if one.series.more:
            packed.extras += _extras(one)
    for lengths, alike in kinds.items():
        names = _measured(*lengths)
        some = max(1, _VALUES_AT_ONCE // sum(lengths))
        for first in range(0, len(alike), some):
            _append(packed, names, alike[first : first + some])
    return packed


def _append(packed: Packed, names: tuple[str, ...], alike: Sequence[Dated]) -> None:
    try:
        _together(packed, names, alike)
    except TypeError:  # a hole in a column
        whole = [one for one in alike if not _has_hole(one.series)]
        if whole:
            _together(packed, names, whole)
        for one in alike:
            if _has_hole(one.series):
                _alone(packed, one)


def _measured(count: int, *lengths: int) -> tuple[str, ...]:
    """Which columns are there. Raises LinkError for one that is not as long as the series."""
    for name, length in zip(COLUMNS, lengths, strict=True):
        if length not in (0, count):
            raise LinkError(f"{name} has {length} values for {count} samples")
    return tuple(name for name, length in zip(COLUMNS, lengths, strict=True) if length)


def _has_hole(series: Series) -> bool:
    return any(None in column for column in _columns(series))


# --------------------------------------------------------------------------- many at once


def _together(packed: Packed, names: tuple[str, ...], alike: Sequence[Dated]) -> None:
    """Series with the same columns of one length, none with a hole."""
    values = _values_of(names, alike)
    stations = [one.station_id for one in alike]
    started = [(one.first_at - _POSTGRES_EPOCH) // _US for one in alike]
    times: Ints = np.array(started, np.int64)[:, None] + 1000 * values[:, 0]
    rows = np.full(times.shape, _row_of(names))
    rows["time"] = times
    rows["station_id"] = np.array(stations)[:, None]
    for name in ("evse", "every_ms"):
        rows[name] = _fitting(name, [getattr(one.series, name) for one in alike])[:, None]
    for at, name in enumerate(names, 1):
        rows[name] = values[:, at]
    packed.note(stations, times)
    packed.parts.append(rows.tobytes())


def _values_of(names: tuple[str, ...], alike: Sequence[Dated]) -> Ints:
    """By series, column (the first is the time in it) and sample: what the differences add up to.

    Raises TypeError for a hole.
    """
    every = ("dt_ms", *names)
    count = len(alike[0].series.dt_ms)
    told = attrgetter(*every) if names else lambda series: (series.dt_ms,)
    steps = chain.from_iterable(chain.from_iterable(told(one.series) for one in alike))
    shape = (len(alike), len(every), count)
    try:
        found = np.fromiter(steps, np.int64, len(alike) * len(every) * count).reshape(shape)
    except OverflowError:
        raise LinkError("a column has a value that nothing measures") from None
    least, most = _extremes(found)
    for name, low, high in zip(every, least, most, strict=True):
        if not -_LARGEST_STEP < low <= high < _LARGEST_STEP:
            raise LinkError(f"{name} has a value that nothing measures")
    values: Ints = found.cumsum(axis=2)
    if least[0] < 0 or values[:, 0, -1].max() > _LONGEST_MS:
        raise LinkError("a series' times run forward, by at most 400 days")
    for name, low, high in zip(names, *(ends[1:] for ends in _extremes(values)), strict=True):
        _check(name, low, high)
    return values


def _extremes(values: Ints) -> tuple[list[int], list[int]]:
    """The smallest and the largest of each column."""
    series, columns, count = values.shape
    flat = values.reshape(series, columns * count)
    least, most = flat.min(axis=0), flat.max(axis=0)
    return (
        least.reshape(columns, count).min(axis=1).tolist(),
        most.reshape(columns, count).max(axis=1).tolist(),
    )


@lru_cache(maxsize=1024)
def _row_of(names: tuple[str, ...]) -> NDArray[Any]:
    """A row of binary COPY without values: a size before each, -1 and no value for null."""
    there = {name: name in names or name not in COLUMNS for name in FIELDS}
    layout = [("fields", ">i2")]
    for name in FIELDS:
        layout.append((f"{name} size", ">i4"))
        if there[name]:
            layout.append((name, _KINDS[_WIDTHS[name]]))
    row = np.zeros((), np.dtype(layout))
    row["fields"] = len(FIELDS)
    for name in FIELDS:
        row[f"{name} size"] = _WIDTHS[name] if there[name] else -1
    return row


def _fitting(name: str, values: Sequence[int]) -> Ints:
    """The values, if the column's integers hold them; numpy would cut them in silence."""
    try:
        found = np.array(values, np.int64)
    except OverflowError:
        raise LinkError(f"{name} is out of bounds") from None
    _check(name, int(found.min()), int(found.max()))
    return found


def _check(name: str, low: int, high: int) -> None:
    limit = 1 << (8 * _WIDTHS[name] - 1)
    if not -limit <= low <= high < limit:
        raise LinkError(f"{name} is out of bounds")


# --------------------------------------------------------------------------- one by one


def _alone(packed: Packed, one: Dated) -> None:
    """A series with holes in its columns."""
    rows = list(_rows(one))
    packed.note([one.station_id], np.array([[row[0] for row in rows]], np.int64))
    packed.parts += [_row(row) for row in rows]


def _rows(one: Dated) -> Iterator[Row]:
    series = one.series
    elapsed = list(accumulate(series.dt_ms))
    if min(series.dt_ms) < 0 or elapsed[-1] > _LONGEST_MS:
        raise LinkError("a series' times run forward, by at most 400 days")
    started = (one.first_at - _POSTGRES_EPOCH) // _US
    _measured(*map(len, _columns(series)))
    columns = [_values(column, len(elapsed)) for column in _columns(series)[1:]]
    for ms, *values in zip(elapsed, *columns, strict=True):
        yield (started + 1000 * ms, one.station_id, series.evse, series.every_ms, *values)


class Few(NamedTuple):
    """Samples so few that one statement with all of them costs less than COPY's four turns."""

    rows: list[Row]
    """FIELDS, with the time in microseconds since 2000."""
    extras: list[Extra]

    @property
    def days(self) -> set[date]:
        return {(_POSTGRES_EPOCH + timedelta(days=row[0] // _DAY_US)).date() for row in self.rows}

    def times(self) -> list[datetime]:
        return [_at(row[0]) for row in self.rows]


def few(told: Sequence[Dated]) -> Few | None:
    """The same as `pack` has, for FEW samples at most; None for more, or none.

    Raises LinkError as that does.
    """
    if not 0 < sum(len(one.series.dt_ms) for one in told) <= FEW:
        return None
    rows = [row for one in told for row in _rows(one)]
    extras = [extra for one in told if one.series.more for extra in _extras(one)]
    for values, name in zip(zip(*rows, strict=True), FIELDS, strict=True):
        there = [value for value in values if value is not None]
        if there:
            _check(name, min(there), max(there))
    return Few(rows, extras)


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
