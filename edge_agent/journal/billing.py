"""The durable half of the journal: state that survives, billing facts, and their numbers.

A fact waits in its *lane* (its transaction, or a lane of its own). When a lane is sent, its oldest
facts become one numbered batch, and nothing behind that batch is sent before it is settled: so
events of a transaction leave strictly in order, while lanes do not wait for each other.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID, uuid4

import msgspec

from edge_agent.journal.files import (
    JournalBudget,
    Schema,
    give_back,
    is_damage,
    open_checked,
    salvage,
    set_aside,
    suspect,
    writing,
)
from edge_agent.journal.lanes import Lanes
from edge_agent.journal.ranges import contains, missing
from edge_agent.records import LocalList, Register, SiteLimit, Transaction
from protocols.agent_link import (
    BillingFact,
    CommandResult,
    Ranges,
    Stamp,
    StoppedReason,
    Stream,
    TransactionEvent,
    TransactionEventType,
)
from protocols.quantities import Milliseconds, WattHours

NAME: Final = "billing.sqlite"
BOOTS: Final = 16
SANE_MS: Final = 1_735_689_600_000
"""2025-01-01: a wall clock that shows less has not been set."""
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
MAX_FACTS: Final = 64
MAX_BATCH_BYTES: Final = 32_768
RESERVE: Final = 1000
"""Numbers of the state and telemetry streams are set apart in blocks: a crash skips, never
repeats one."""
COMMON_LANE: Final = ""
_TRANSACTION: Final = b'{"kind":"transaction",'
"""How the text of a transaction's event begins."""

SCHEMA: Final[Schema] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE kept (kind TEXT, key TEXT, sum INTEGER, body BLOB, PRIMARY KEY (kind, key))",
        (
            "CREATE TABLE fact (pos INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT NOT NULL,"
            " seq INTEGER, settled_ms INTEGER, sum INTEGER NOT NULL, body BLOB NOT NULL)"
        ),
        "CREATE INDEX fact_seq ON fact (seq, pos)",
        "CREATE INDEX fact_pending ON fact (lane, pos) WHERE settled_ms IS NULL",
        "CREATE TABLE answer (command TEXT PRIMARY KEY, kept_ms INTEGER NOT NULL, body BLOB)",
        (
            "CREATE TABLE session (id TEXT PRIMARY KEY, number INTEGER, kept_ms INTEGER NOT NULL,"
            " body BLOB)"
        ),
        "CREATE INDEX session_number ON session (number)",
        "CREATE TABLE unreadable (origin TEXT, key TEXT, body BLOB)",
    ),
    (
        (
            "CREATE TABLE refused (pos INTEGER PRIMARY KEY, lane TEXT, at_ms INTEGER, why TEXT,"
            " sum INTEGER, body BLOB)"
        ),
    ),
)
COLUMNS: Final = {
    "meta": ("name", "value"),
    "kept": ("kind", "key", "sum", "body"),
    "fact": ("pos", "lane", "seq", "settled_ms", "sum", "body"),
    "answer": ("command", "kept_ms", "body"),
    "session": ("id", "number", "kept_ms", "body"),
    "unreadable": ("origin", "key", "body"),
    "refused": ("pos", "lane", "at_ms", "why", "sum", "body"),
}

T = TypeVar("T")
Put = Transaction | Register | SiteLimit
_FACTS = msgspec.json.Decoder(BillingFact)
_RESULT = msgspec.json.Decoder(CommandResult)
_encode = msgspec.json.Encoder().encode


class SessionRecord(msgspec.Struct, frozen=True):
    """A charging session as a technician sees it; energy and `last` are as of the last event."""

    number: int
    """Ascending on this controller; page with `before`."""
    transaction: UUID
    evse: int
    started: Stamp
    last: Stamp
    ended: bool
    id_token: str | None
    energy_wh: WattHours
    meter_wh: WattHours
    duration_ms: Milliseconds
    reason: StoppedReason | None = None
    synced: bool = False
    """True when the cloud has committed, or the backend has taken, every event of it."""


class SealedFacts(msgspec.Struct, frozen=True):
    """The content of one billing batch: the same number is the same facts for ever."""

    seq: int
    lane: str
    facts: tuple[BillingFact, ...]


def _open(path: Path) -> sqlite3.Connection:
    """Small pages: a commit touches five or six, and all of them go to the storage card."""
    return open_checked(path, SCHEMA, synchronous="FULL", page_size=1024)


def lane_of(fact: BillingFact) -> str:
    if isinstance(fact, TransactionEvent):
        return str(fact.transaction)
    if isinstance(fact, CommandResult):
        return str(fact.id)
    return COMMON_LANE


def read_sessions(db: sqlite3.Connection, limit: int, before: int | None) -> list[SessionRecord]:
    taken = "NOT EXISTS (SELECT 1 FROM fact WHERE lane = session.id AND settled_ms IS NULL)"
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refused'").fetchone():
        taken += " AND NOT EXISTS (SELECT 1 FROM refused WHERE lane = session.id)"
    rows = db.execute(
        f"SELECT number, body, {taken} FROM session WHERE number < ? ORDER BY number DESC LIMIT ?",
        (before if before is not None else 2**62, limit),
    ).fetchall()
    current = dict(_kept_rows(db, "transaction"))
    return [_session(number, body, bool(synced), current) for number, body, synced in rows]


def _session(number: int, body: bytes, synced: bool, current: dict[str, bytes]) -> SessionRecord:
    record = msgspec.json.decode(body, type=SessionRecord)
    checkpoint = current.get(str(record.transaction))
    if checkpoint is not None and not record.ended:
        now = msgspec.json.decode(checkpoint, type=Transaction)
        record = msgspec.structs.replace(
            record, energy_wh=now.energy_wh, duration_ms=now.duration_ms
        )
    return msgspec.structs.replace(record, number=number, synced=synced)


def _kept_rows(db: sqlite3.Connection, kind: str) -> list[tuple[str, bytes]]:
    query = "SELECT key, body FROM kept WHERE kind = ? ORDER BY key"
    return list(db.execute(query, (kind,)))


class BillingFile:
    """Every method either holds after a power cut or raises sqlite3.Error and has done nothing."""

    def __init__(self, db: sqlite3.Connection, path: Path, reports: list[str]) -> None:
        self.db = db
        self.path = path
        self.reports = reports
        self.lanes = Lanes()
        self.transactions: set[str] = set()
        """Those of the lanes that are transactions."""
        self.sealed: dict[int, str] = {}
        self.pending = 0
        self._maintained_ms = 0
        self.index()

    @classmethod
    def open(cls, folder: Path, station: str, reports: list[str]) -> BillingFile:
        """Raises sqlite3.Error or OSError when even an empty file cannot be made."""
        path = folder / NAME
        saved: dict[str, list[tuple[object, ...]]] = {}
        try:
            db = _open(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            copy = set_aside(path, "damaged")
            saved = {table: salvage(copy, table, names) for table, names in COLUMNS.items()}
            db = _open(path)
            reports.append(_damage_report(path, copy, error, saved))
        try:
            return cls._bound(db, path, station, reports, saved)
        except BaseException:
            db.close()
            raise

    @classmethod
    def _bound(
        cls,
        db: sqlite3.Connection,
        path: Path,
        station: str,
        reports: list[str],
        saved: Mapping[str, list[tuple[object, ...]]],
    ) -> BillingFile:
        if saved:
            _restore(db, saved)
        owner = _meta(db, "station")
        if owner is not None and owner != station:
            db.close()
            copy = set_aside(path, "other-station")
            reports.append(
                f"the journal belonged to station {owner!r}: set aside as {copy.name}; nothing of"
                f" it is sent for {station!r}. If the station was renamed, keep that file for the"
                " operator"
            )
            db = _open(path)
        with writing(db):
            _set_meta(db, {"station": station})
            if _meta(db, "outbox") is None:
                _set_meta(db, {"outbox": str(uuid4())})
        file = cls(db, path, reports)
        if saved:
            file.new_outbox()
        return file

    def close(self) -> None:
        self.db.close()

    def index(self) -> None:
        """Where each lane's pending facts begin, and which batches are out."""
        self.lanes = Lanes(
            self.db.execute("SELECT lane, min(pos) FROM fact WHERE settled_ms IS NULL GROUP BY 1")
        )
        query = "SELECT DISTINCT lane FROM fact WHERE settled_ms IS NULL AND substr(body, 1, ?) = ?"
        found = self.db.execute(query, (len(_TRANSACTION), _TRANSACTION))
        self.transactions = {lane for (lane,) in found}
        self.sealed = dict(
            self.db.execute(
                "SELECT seq, lane FROM fact WHERE settled_ms IS NULL AND seq IS NOT NULL GROUP BY 1"
            )
        )
        query = "SELECT count(*) FROM fact WHERE settled_ms IS NULL"
        (self.pending,) = self.db.execute(query).fetchone()

    # ------------------------------------------------------------------ identity

    @property
    def outbox(self) -> UUID:
        return UUID(_meta(self.db, "outbox") or "")

    def add_boot(self, boot: UUID) -> tuple[UUID, ...]:
        earlier = json.loads(_meta(self.db, "boots") or "[]")
        boots = [str(boot), *(old for old in earlier if old != str(boot))][:BOOTS]
        with writing(self.db):
            _set_meta(self.db, {"boots": json.dumps(boots)})
        return tuple(UUID(text) for text in boots)

    def next_of(self, stream: Stream) -> int:
        return int(_meta(self.db, f"next.{stream}") or 1)

    def reserve(self, stream: Stream) -> range:
        """A block of numbers that nobody else will ever use."""
        first = self.next_of(stream)
        with writing(self.db):
            _set_meta(self.db, {f"next.{stream}": str(first + RESERVE)})
        return range(first, first + RESERVE)

    # ------------------------------------------------------------------ state

    def kept(self, kind: str, shape: type[T]) -> list[T]:
        """What was put of a kind; a row that no longer reads is moved away and reported."""
        found = []
        query = "SELECT key, sum, body FROM kept WHERE kind = ? ORDER BY key"
        for key, total, body in self.db.execute(query, (kind,)).fetchall():
            try:
                found.append(msgspec.json.decode(_summed(body, total), type=shape))
            except msgspec.DecodeError as error:
                self._move_away("kept", f"{kind} {key}", body, str(error))
                with writing(self.db):
                    self.db.execute("DELETE FROM kept WHERE kind = ? AND key = ?", (kind, key))
        return found

    def _move_away(self, origin: str, key: str, body: bytes, why: str) -> None:
        self.db.execute(
            "INSERT INTO unreadable (origin, key, body) VALUES (?, ?, ?)", (origin, key, body)
        )
        self.reports.append(f"{self.path.name}: {origin} {key} does not read ({why}): put apart")

    def commit(
        self,
        facts: Sequence[BillingFact],
        put: Sequence[Put],
        ended: Sequence[UUID],
        lifted: Sequence[int],
        local_list: LocalList | None,
        availability: Mapping[int, bool] | None,
    ) -> None:
        """All of it in one durable transaction."""
        added: list[tuple[str, int]] = []
        with writing(self.db):
            for record in put:
                self.keep(*_key_of(record), record)
            for transaction in ended:
                self.drop("transaction", str(transaction))
            for evse in lifted:
                self.drop("limit", str(evse))
            for evse, operative in (availability or {}).items():
                self.keep("availability", str(evse), (evse, operative))
            if local_list is not None:
                self.keep("local_list", "", local_list)
            added.extend(self._append(fact) for fact in facts)
        for lane, pos in added:
            self.lanes.add(lane, pos)
        self.transactions |= {lane_of(one) for one in facts if isinstance(one, TransactionEvent)}
        self.pending += len(added)

    def keep_named(self, kind: str, records: Mapping[str, object | None]) -> None:
        """Durably put records by name, all together; None drops one."""
        with writing(self.db):
            for key, record in records.items():
                if record is None:
                    self.drop(kind, key)
                else:
                    self.keep(kind, key, record)

    def keep(self, kind: str, key: str, record: object) -> None:
        body = _encode(record)
        self.db.execute(
            "INSERT INTO kept (kind, key, sum, body) VALUES (?, ?, ?, ?) ON CONFLICT (kind, key)"
            " DO UPDATE SET sum = excluded.sum, body = excluded.body",
            (kind, key, zlib.crc32(body), body),
        )

    def drop(self, kind: str, key: str) -> None:
        self.db.execute("DELETE FROM kept WHERE kind = ? AND key = ?", (kind, key))

    def _append(self, fact: BillingFact) -> tuple[str, int]:
        lane, body = lane_of(fact), _encode(fact)
        pos = self.db.execute(
            "INSERT INTO fact (lane, sum, body) VALUES (?, ?, ?)", (lane, zlib.crc32(body), body)
        ).lastrowid
        if isinstance(fact, CommandResult):
            self.db.execute(
                "INSERT INTO answer (command, kept_ms, body) VALUES (?, 0, ?) ON CONFLICT (command)"
                " DO UPDATE SET kept_ms = 0, body = excluded.body",
                (str(fact.command), body),
            )
        elif isinstance(fact, TransactionEvent):
            self._note_session(fact)
        return lane, pos or 0

    def _note_session(self, event: TransactionEvent) -> None:
        ended = event.type is TransactionEventType.ENDED
        query = "SELECT 1 FROM session WHERE id = ?"
        known = self.db.execute(query, (str(event.transaction),)).fetchone()
        if known and not ended:
            return
        record = SessionRecord(
            number=0,
            transaction=event.transaction,
            evse=event.evse,
            started=event.started,
            last=event.at,
            ended=ended,
            id_token=event.id_token.value if event.id_token else None,
            energy_wh=event.energy_wh,
            meter_wh=event.meter_wh,
            duration_ms=event.duration_ms,
            reason=event.reason,
        )
        self.db.execute(
            "INSERT INTO session (id, number, kept_ms, body)"
            " SELECT ?, coalesce(max(number), 0) + 1, 0, ? FROM session"
            " WHERE true ON CONFLICT (id) DO UPDATE SET kept_ms = 0, body = excluded.body",
            (str(event.transaction), _encode(record)),
        )

    def result_of(self, command: UUID) -> CommandResult | None:
        query = "SELECT body FROM answer WHERE command = ?"
        row = self.db.execute(query, (str(command),)).fetchone()
        return _RESULT.decode(row[0]) if row else None

    # ------------------------------------------------------------------ outbox

    @property
    def position(self) -> int:
        """Where the newest fact stands; facts that come later stand higher."""
        (pos,) = self.db.execute("SELECT coalesce(max(pos), 0) FROM fact").fetchone()
        return int(pos)

    def batches(
        self, exclude: Collection[int], limit: int, after: int, *, transactions: bool = True
    ) -> list[SealedFacts]:
        """Up to `limit` batches that may be sent now beside those numbered in `exclude`.

        Only lanes whose oldest pending fact stands after position `after`; oldest lane first.
        Without `transactions` their lanes are left to another uplink.
        """
        busy = {self.sealed[seq] for seq in exclude if seq in self.sealed}
        busy |= set() if transactions else self.transactions
        ready = (lane for _, lane in self.lanes.after(after) if lane not in busy)
        lanes = list(islice(ready, limit))
        if not lanes:
            return []
        found: list[SealedFacts] = []
        fresh: dict[int, str] = {}
        with writing(self.db):
            number = first = self.next_of(Stream.BILLING)
            for lane in lanes:
                rows = self._head(lane)
                seq = rows[0][1]
                if seq is None:
                    seq, number = number, number + 1
                    fresh[seq] = lane
                    self.db.execute(
                        "UPDATE fact SET seq = ? WHERE lane = ? AND settled_ms IS NULL"
                        " AND pos BETWEEN ? AND ?",
                        (seq, lane, rows[0][0], rows[-1][0]),
                    )
                found.append(SealedFacts(seq, lane, self._decoded(rows)))
            if number > first:
                _set_meta(self.db, {f"next.{Stream.BILLING}": str(number)})
        self.sealed.update(fresh)
        for empty in (batch for batch in found if not batch.facts):
            del self.sealed[empty.seq]
            self.advance(empty.lane)
        return [batch for batch in found if batch.facts]

    def _head(self, lane: str) -> list[tuple[int, int | None, int, bytes]]:
        """The lane's oldest pending facts: one sealed batch, or what will become one."""
        rows = self.db.execute(
            "SELECT pos, seq, sum, body FROM fact WHERE lane = ? AND settled_ms IS NULL"
            " ORDER BY pos LIMIT ?",
            (lane, MAX_FACTS),
        ).fetchall()
        head: list[tuple[int, int | None, int, bytes]] = []
        room = MAX_BATCH_BYTES
        for row in rows:
            room -= len(row[3])
            if head and (row[1] != rows[0][1] or (room < 0 and row[1] is None)):
                break
            head.append(row)
        return head

    def _decoded(
        self, rows: Iterable[tuple[int, int | None, int, bytes]]
    ) -> tuple[BillingFact, ...]:
        """A row that does not read stays in its batch's number but is put apart and reported."""
        facts: list[BillingFact] = []
        for pos, _, total, body in rows:
            fact = self.readable(pos, total, body)
            if fact is not None:
                facts.append(fact)
        return tuple(facts)

    def readable(self, pos: int, total: int, body: bytes) -> BillingFact | None:
        """A row's fact; None for one that had to be put apart."""
        try:
            fact: BillingFact = _FACTS.decode(_summed(body, total))
        except msgspec.DecodeError as error:
            self._move_away("fact", str(pos), body, str(error))
            self.db.execute("UPDATE fact SET settled_ms = 0 WHERE pos = ?", (pos,))
            self.pending -= 1
            return None
        return fact

    def floor(self) -> int:
        return min(self.sealed, default=self.next_of(Stream.BILLING))

    def lowest_kept(self) -> int:
        (seq,) = self.db.execute("SELECT min(seq) FROM fact WHERE seq > 0").fetchone()
        return int(seq) if seq is not None else self.next_of(Stream.BILLING)

    def settle(self, ranges: Ranges) -> None:
        """Committed by the cloud. Not synced: after a power cut it is simply sent again."""
        done = [seq for seq in self.sealed if contains(ranges, seq)]
        if not done:
            return
        self.db.execute("PRAGMA synchronous = NORMAL")
        try:
            with writing(self.db):
                for seq in done:
                    self.pending -= self.db.execute(
                        "UPDATE fact SET settled_ms = 0 WHERE seq = ? AND settled_ms IS NULL",
                        (seq,),
                    ).rowcount
        finally:
            self.db.execute("PRAGMA synchronous = FULL")
        for lane in {self.sealed.pop(seq) for seq in done}:
            self.advance(lane)

    def taken(self, lane: str) -> None:
        """One fact of a lane was settled by itself."""
        self.pending -= 1
        self.advance(lane)
        out = [seq for seq, mine in self.sealed.items() if mine == lane]
        query = "SELECT 1 FROM fact WHERE seq = ? AND settled_ms IS NULL LIMIT 1"
        for seq in out:
            if self.db.execute(query, (seq,)).fetchone() is None:
                del self.sealed[seq]

    def advance(self, lane: str) -> None:
        query = "SELECT min(pos) FROM fact WHERE lane = ? AND settled_ms IS NULL"
        (pos,) = self.db.execute(query, (lane,)).fetchone()
        self.lanes.move(lane, pos)
        if pos is None:
            self.transactions.discard(lane)

    def reopen(self, committed: Ranges) -> int:
        """Make pending again what was settled but is not committed (the cloud was restored)."""
        count = 0
        with writing(self.db):
            for first, last in missing(committed, self.next_of(Stream.BILLING) - 1):
                count += self.db.execute(
                    "UPDATE fact SET settled_ms = NULL WHERE settled_ms IS NOT NULL"
                    " AND seq BETWEEN ? AND ?",
                    (first, last),
                ).rowcount
            if count and not contains(committed, 1):
                # A cloud from before this outbox: what was settled under an earlier id goes too.
                count += self.db.execute(
                    "UPDATE fact SET settled_ms = NULL WHERE settled_ms IS NOT NULL AND seq IS NULL"
                ).rowcount
        if count:
            self.index()
        return count

    def new_outbox(self) -> UUID:
        """Another identity; everything pending is numbered anew, from 1 and in order."""
        outbox = uuid4()
        with writing(self.db):
            self.db.execute("UPDATE fact SET seq = NULL WHERE seq > 0")
            _set_meta(self.db, {f"next.{stream}": "1" for stream in Stream})
            _set_meta(self.db, {"outbox": str(outbox)})
        self.index()
        return outbox

    # ------------------------------------------------------------------ upkeep

    def maintain(self, now_ms: int, budget: JournalBudget) -> None:
        """Date what was settled since, forget what is old enough; needs a clock that is set.

        Once an hour: each dating writes the rows again.
        """
        if now_ms < SANE_MS or abs(now_ms - self._maintained_ms) < HOUR_MS:
            return
        self._maintained_ms = now_ms
        with writing(self.db):
            for table, column, days in (
                ("fact", "settled_ms", budget.keep_days),
                ("answer", "kept_ms", budget.keep_answers_days),
                ("session", "kept_ms", budget.keep_sessions_days),
            ):
                self.db.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {column} < ?",
                    (now_ms, SANE_MS),
                )
                self.db.execute(
                    f"DELETE FROM {table} WHERE {column} < ?",
                    (now_ms - days * DAY_MS,),
                )
        give_back(self.db)

    def on_error(self, error: sqlite3.Error) -> None:
        if is_damage(error):
            suspect(self.path)


def _summed(body: object, total: int) -> bytes:
    """SQLite does not check what pages hold; raises DecodeError for a body that changed."""
    if not isinstance(body, bytes) or zlib.crc32(body) != total:
        raise msgspec.DecodeError("its checksum is wrong")
    return body


def _key_of(record: Put) -> tuple[str, str]:
    if isinstance(record, Transaction):
        return "transaction", str(record.id)
    kind = "register" if isinstance(record, Register) else "limit"
    return kind, str(record.evse)


def _meta(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def _set_meta(db: sqlite3.Connection, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        db.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            " WHERE value <> excluded.value",
            (name, value),
        )


def _restore(db: sqlite3.Connection, saved: Mapping[str, list[tuple[object, ...]]]) -> None:
    with writing(db):
        for table, rows in saved.items():
            places = ", ".join("?" * len(COLUMNS[table]))
            query = f"INSERT OR IGNORE INTO {table} VALUES ({places})"
            for row in rows:
                try:
                    db.execute(query, row)
                except sqlite3.IntegrityError:
                    continue  # a torn row; the copy still has it


def _damage_report(
    path: Path, copy: Path, error: sqlite3.Error, saved: Mapping[str, list[tuple[object, ...]]]
) -> str:
    counts = ", ".join(f"{len(saved[table])} {table} rows" for table in ("kept", "fact", "session"))
    return (
        f"{path.name} was damaged ({error}): kept as {copy.name}, rebuilt with {counts}. Check the"
        " storage card, and compare the last sessions with the vehicles' or the meter's figures"
    )
