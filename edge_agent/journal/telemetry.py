"""The bounded half of the journal: samples in memory, packed minutes on disk, sealed batches.

At rest telemetry has no number, so that it can be thinned; it gets one when it is sealed to be
sent, and from then on it does not change. The file is synced by checkpoints only: a power cut may
take the last minutes, never the structure.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

from edge_agent.journal.files import (
    JournalBudget,
    Schema,
    give_back,
    is_damage,
    open_checked,
    remove,
    set_aside,
    size_of,
    writing,
)
from edge_agent.journal.ranges import contains
from edge_agent.journal.thinning import coarser, thin
from protocols.agent_link import LinkError, Ranges, Sample, Series, SeriesGap
from protocols.quantities import Milliseconds
from protocols.series import to_samples, to_series

NAME: Final = "telemetry.sqlite"
MAX_BUFFER: Final = 3600
"""Samples in memory while the disk takes none; older ones are given up, with a gap."""
CHUNK_SAMPLES: Final = 900
CHUNK_ROWS: Final = 64
LOW_WATER: Final = 0.9

SCHEMA: Final[Schema] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        (
            "CREATE TABLE minute (id INTEGER PRIMARY KEY, evse INTEGER NOT NULL,"
            " every_ms INTEGER NOT NULL, samples INTEGER NOT NULL, first_ms INTEGER NOT NULL,"
            " last_ms INTEGER NOT NULL, body BLOB NOT NULL)"
        ),
        "CREATE INDEX minute_step ON minute (every_ms, id)",
        (
            "CREATE TABLE sealed (seq INTEGER PRIMARY KEY, samples INTEGER NOT NULL,"
            " body BLOB NOT NULL)"
        ),
    ),
)
_SERIES = msgspec.json.Decoder(tuple[Series, ...])
_INSERT: Final = (
    "INSERT INTO minute (id, evse, every_ms, samples, first_ms, last_ms, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_FILE_TROUBLE = (sqlite3.Error, OSError)


class SealedSeries(msgspec.Struct, frozen=True):
    """The content of one telemetry batch: the same number is the same series for ever."""

    seq: int
    series: tuple[Series, ...]


class Removed(msgspec.Struct, frozen=True):
    """Samples that are about to go, per EVSE and cause."""

    evse: int
    first_ms: int
    last_ms: int
    samples: int
    cause: str

    def gap(self, outbox: UUID) -> SeriesGap:
        """Its fact; the same removal gives the same id, so that a repeated one counts once."""
        name = f"{outbox}/{self.evse}/{self.first_ms}/{self.last_ms}/{self.cause}"
        return SeriesGap(
            id=uuid5(NAMESPACE_OID, name),
            evse=self.evse,
            first_ms=Milliseconds(self.first_ms),
            last_ms=Milliseconds(self.last_ms),
            samples=self.samples,
            cause=self.cause,
        )


def _open(path: Path) -> sqlite3.Connection:
    return open_checked(path, SCHEMA, synchronous="NORMAL", page_size=2048)


def _pack(series: tuple[Series, ...]) -> bytes:
    return zlib.compress(msgspec.json.encode(series), 6)


def _unpack(body: bytes) -> tuple[Series, ...]:
    """Raises LinkError for a body that does not read."""
    try:
        return _SERIES.decode(zlib.decompress(body))
    except (zlib.error, msgspec.DecodeError) as error:
        raise LinkError(str(error)) from None


def _span(series: Series) -> tuple[int, int]:
    return series.wall_ms, series.wall_ms + sum(series.dt_ms)


def _row(series: Series, at: int | None = None) -> tuple[object, ...]:
    first, last = _span(series)
    count = len(series.dt_ms)
    return (at, series.evse, series.every_ms, count, first, last, _pack((series,)))


class TelemetryFile:
    """Never raises for trouble with its file: telemetry yields, and `reports` says so."""

    def __init__(
        self, db: sqlite3.Connection, path: Path, budget: JournalBudget, reports: list[str]
    ) -> None:
        self.db = db
        self.path = path
        self.budget = budget
        self.reports = reports
        self.buffer: list[Sample] = []
        self.lost: list[Removed] = []
        """Given up already, for want of room; the journal makes gap facts of them."""
        self._index()

    @classmethod
    def open(
        cls, folder: Path, station: str, outbox: UUID, budget: JournalBudget, reports: list[str]
    ) -> TelemetryFile:
        """Raises sqlite3.Error or OSError when even an empty file cannot be made."""
        path = folder / NAME
        try:
            db = _open(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            copy = set_aside(path, "damaged")
            reports.append(f"{NAME} was damaged ({error}): kept as {copy.name}, begun anew")
            db = _open(path)
        meta = dict(db.execute("SELECT name, value FROM meta"))
        if meta.get("station", station) != station:
            db.close()
            set_aside(path, "other-station")
            db, meta = _open(path), {}
        file = cls(db, path, budget, reports)
        if meta.get("outbox") != str(outbox):
            file.bind(station, outbox)
        return file

    def _index(self) -> None:
        self.sealed: dict[int, int] = dict(self.db.execute("SELECT seq, samples FROM sealed"))
        query = "SELECT coalesce(sum(samples), 0) FROM minute"
        self.at_rest = int(self.db.execute(query).fetchone()[0])

    def bind(self, station: str, outbox: UUID) -> None:
        """Give the file to an outbox; what another one had sealed loses its number."""
        with writing(self.db):
            for _, series in self._sealed_rows():
                self.db.executemany(_INSERT, [_row(one) for one in series])
            self.db.execute("DELETE FROM sealed")
            for name, value in (("station", station), ("outbox", str(outbox))):
                self.db.execute(
                    "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value)
                )
        self._index()

    def close(self) -> None:
        self.flush()
        self.db.close()

    # ------------------------------------------------------------------ writing

    @property
    def pending(self) -> int:
        return len(self.buffer) + self.at_rest + sum(self.sealed.values())

    def add(self, samples: Sequence[Sample]) -> None:
        self.buffer.extend(samples)
        oldest, newest = self.buffer[0].at, self.buffer[-1].at
        if newest.mono_ms - oldest.mono_ms >= self.budget.flush_ms or newest.boot != oldest.boot:
            self.flush()
        while len(self.buffer) > MAX_BUFFER:
            self._give_up(self.buffer[:CHUNK_SAMPLES], "no room on the disk")
            del self.buffer[:CHUNK_SAMPLES]

    def _give_up(self, samples: Iterable[Sample], cause: str) -> None:
        by_evse = sorted(samples, key=lambda s: (s.evse, s.at.wall_ms))
        for evse, group in groupby(by_evse, lambda s: s.evse):
            rows = list(group)
            self._lose(Removed(evse, rows[0].at.wall_ms, rows[-1].at.wall_ms, len(rows), cause))

    def _lose(self, removed: Removed) -> None:
        """Neighbouring removals are one: a long trouble leaves few gaps."""
        for index, old in enumerate(self.lost):
            if (old.evse, old.cause) == (removed.evse, removed.cause):
                self.lost[index] = Removed(
                    old.evse,
                    min(old.first_ms, removed.first_ms),
                    max(old.last_ms, removed.last_ms),
                    old.samples + removed.samples,
                    old.cause,
                )
                return
        self.lost.append(removed)

    def flush(self) -> None:
        """Write what is in memory; it stays there when the file does not take it."""
        if not self.buffer:
            return
        try:
            with writing(self.db):
                self.db.executemany(_INSERT, [_row(one) for one in to_series(self.buffer)])
        except _FILE_TROUBLE as error:
            self._trouble("telemetry is kept in memory only", error)
            return
        self.at_rest += len(self.buffer)
        self.buffer.clear()

    def _trouble(self, what: str, error: sqlite3.Error | OSError) -> None:
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self._begin_anew(error)
            return
        text = f"{what}: {self.path.name}: {error}"
        if text not in self.reports[-8:]:
            self.reports.append(text)

    def _begin_anew(self, error: sqlite3.Error) -> None:
        samples = self.at_rest + sum(self.sealed.values())
        self.db.close()
        copy = set_aside(self.path, "damaged")
        self.reports.append(
            f"{NAME} was damaged ({error}): kept as {copy.name}, begun anew without {samples}"
            " samples. Check the storage card"
        )
        self.db = _open(self.path)
        self._index()

    def wipe(self, station: str, outbox: UUID) -> None:
        """Give all room on disk to billing; raises sqlite3.Error or OSError."""
        for evse, first, last, samples in self.db.execute(
            "SELECT evse, min(first_ms), max(last_ms), sum(samples) FROM minute GROUP BY evse"
        ).fetchall():
            self._lose(Removed(evse, first, last, samples, "disk full"))
        self.db.close()
        remove(self.path)
        self.db = _open(self.path)
        self.bind(station, outbox)

    # ------------------------------------------------------------------ sealing

    def seal_live(self, seq: int, max_samples: int) -> SealedSeries | None:
        """Everything in memory, the newest there is, as batch `seq`; older goes to disk first."""
        if len(self.buffer) > max_samples:
            rest, self.buffer = self.buffer[-max_samples:], self.buffer[:-max_samples]
            self.flush()
            self.buffer += rest
        if not self.buffer:
            return None
        series = to_series(self.buffer[-max_samples:])
        batch = self._write_seal(seq, series, ())
        if batch is not None:
            del self.buffer[-max_samples:]
        return batch

    def seal_backlog(self, seq: int, max_samples: int) -> SealedSeries | None:
        """The oldest minutes on disk as batch `seq`."""
        try:
            rows = self._oldest("SELECT id, samples, body FROM minute ORDER BY id", max_samples)
            samples, good = self._read(rows)
            if not good:
                return None
            batch = self._write_seal(seq, to_series(samples), good)
        except _FILE_TROUBLE as error:
            self._trouble("telemetry cannot be read", error)
            return None
        if batch is not None:
            self.at_rest -= len(samples)
        return batch

    def _oldest(self, query: str, most: int) -> list[tuple[int, int, bytes]]:
        rows: list[tuple[int, int, bytes]] = []
        room = most
        for row in self.db.execute(f"{query} LIMIT {CHUNK_ROWS}").fetchall():
            room -= row[1]
            if rows and room < 0:
                break
            rows.append(row)
        return rows

    def _read(self, rows: Iterable[tuple[int, int, bytes]]) -> tuple[list[Sample], list[int]]:
        """The samples of rows and the rows that gave them; a row that does not read is dropped."""
        samples: list[Sample] = []
        good: list[int] = []
        for row, count, body in rows:
            try:
                samples += [sample for one in _unpack(body) for sample in to_samples(one)]
                good.append(row)
            except LinkError as error:
                self.reports.append(f"{NAME}: {count} samples do not read ({error}): dropped")
                query = "DELETE FROM minute WHERE id = ? RETURNING evse, first_ms, last_ms, samples"
                for evse, first, last, lost in self.db.execute(query, (row,)).fetchall():
                    self._lose(Removed(evse, first, last, lost, "damaged"))
                    self.at_rest -= lost
        return samples, good

    def _write_seal(
        self, seq: int, series: tuple[Series, ...], rows: Sequence[int]
    ) -> SealedSeries | None:
        count = sum(len(one.dt_ms) for one in series)
        try:
            with writing(self.db):
                self.db.execute(
                    "INSERT INTO sealed (seq, samples, body) VALUES (?, ?, ?)",
                    (seq, count, _pack(series)),
                )
                self.db.executemany("DELETE FROM minute WHERE id = ?", [(row,) for row in rows])
        except _FILE_TROUBLE as error:
            self._trouble("telemetry cannot be sent", error)
            return None
        self.sealed[seq] = count
        return SealedSeries(seq, series)

    def _sealed_rows(self) -> list[tuple[int, tuple[Series, ...]]]:
        found = []
        for seq, body in self.db.execute("SELECT seq, body FROM sealed ORDER BY seq").fetchall():
            try:
                found.append((seq, _unpack(body)))
            except LinkError as error:
                self.reports.append(f"{NAME}: batch {seq} does not read ({error}): dropped")
        return found

    def unsettled(self, exclude: Collection[int], limit: int) -> list[SealedSeries]:
        """Sealed batches that are not in `exclude`, oldest first."""
        wanted = [seq for seq in sorted(self.sealed) if seq not in exclude][:limit]
        found: list[SealedSeries] = []
        for seq in wanted:
            query = "SELECT body FROM sealed WHERE seq = ?"
            try:
                (body,) = self.db.execute(query, (seq,)).fetchone()
                found.append(SealedSeries(seq, _unpack(body)))
            except LinkError as error:
                self.reports.append(f"{NAME}: batch {seq} does not read ({error}): dropped")
                self.settle(((seq, seq),))
            except _FILE_TROUBLE as error:
                self._trouble("telemetry cannot be read", error)
                break
        return found

    def settle(self, ranges: Ranges) -> None:
        done = [seq for seq in self.sealed if contains(ranges, seq)]
        if not done:
            return
        try:
            with writing(self.db):
                self.db.executemany("DELETE FROM sealed WHERE seq = ?", [(seq,) for seq in done])
        except _FILE_TROUBLE as error:
            self._trouble("acknowledged telemetry stays on disk", error)
        for seq in done:
            self.sealed.pop(seq, None)

    # ------------------------------------------------------------------ the budget

    def used_bytes(self) -> int:
        (pages,) = self.db.execute("PRAGMA page_count").fetchone()
        (free,) = self.db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self.db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def size_bytes(self) -> int:
        return size_of(self.path)

    def oldest_finest(self) -> tuple[list[int], Removed, int] | None:
        """What to thin next: rows of one EVSE, what will go of them, and their resolution."""
        head = self.db.execute("SELECT min(every_ms) FROM minute").fetchone()[0]
        if head is None:
            return None
        rows = self.db.execute(
            "SELECT id, evse, samples, first_ms, last_ms FROM minute WHERE every_ms = ?"
            " ORDER BY id LIMIT ?",
            (head, 4 * CHUNK_ROWS),
        ).fetchall()
        mine = [row for row in rows if row[1] == rows[0][1]]
        chosen = mine[:1]
        for row in mine[1:]:
            if sum(one[2] for one in chosen) + row[2] > CHUNK_SAMPLES:
                break
            chosen.append(row)
        step = coarser(head)
        cause = f"thinned to {step // 60_000} min" if step else "evicted"
        removed = Removed(
            rows[0][1],
            min(row[3] for row in chosen),
            max(row[4] for row in chosen),
            sum(row[2] for row in chosen),
            cause,
        )
        return [row[0] for row in chosen], removed, head

    def thin_rows(self, ids: Sequence[int], every_ms: int) -> None:
        """Replace rows by coarser ones, or drop them; raises sqlite3.Error or OSError."""
        step = coarser(every_ms)
        places = ", ".join("?" * len(ids))
        query = f"SELECT id, samples, body FROM minute WHERE id IN ({places}) ORDER BY id"
        samples, good = self._read(self.db.execute(query, list(ids)).fetchall())
        kept = to_series(thin(samples, step)) if step else ()
        with writing(self.db):
            self.db.executemany("DELETE FROM minute WHERE id = ?", [(row,) for row in good])
            for at, one in zip([*good, *[None] * len(kept)], kept, strict=False):
                self.db.execute(_INSERT, _row(one, at))
        self.at_rest += sum(len(one.dt_ms) for one in kept) - len(samples)

    def free_space(self) -> None:
        """Raises sqlite3.Error."""
        give_back(self.db)
