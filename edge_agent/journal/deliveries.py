"""Billing facts for an uplink that takes them one by one and has no numbers for them (OCPP).

A fact goes to one uplink only: transactions to the one that has them, everything else to the agent
link where there is one. What was delivered here carries `ELSEWHERE` for a number, so that no cloud
on the agent link ever asks for it again.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection
from typing import Final
from uuid import UUID

import msgspec

from edge_agent.journal.billing import BillingFile
from edge_agent.journal.files import writing
from protocols.agent_link import (
    BillingFact,
    ClockCorrected,
    SecurityEvent,
    TransactionEvent,
    TransactionEventType,
)

ELSEWHERE: Final = -1
_ENCODE: Final = msgspec.json.Encoder().encode
_FACT: Final = msgspec.json.Decoder(BillingFact)
_CLOCK: Final = b'{"kind":"clock",'
_SECURITY: Final = b'{"kind":"security",'


class PendingFact(msgspec.Struct, frozen=True):
    """The oldest fact of a lane that nobody has taken yet."""

    pos: int
    lane: str
    fact: BillingFact


class RefusedFact(msgspec.Struct, frozen=True):
    """A fact that a backend refused for good: kept for the operator, never sent again by itself."""

    pos: int
    lane: str
    at_ms: int
    why: str
    fact: BillingFact


class Deliveries:
    """One by one, strictly in order per lane; as durable as the billing file."""

    def __init__(self, file: BillingFile) -> None:
        self._file = file

    def next(
        self, *, exclude: Collection[str], after: int, up_to: int, others: bool
    ) -> PendingFact | None:
        """The oldest lane's oldest fact with `after` < position <= `up_to`."""
        file = self._file
        while True:
            pos, lane = next(
                (
                    (pos, lane)
                    for pos, lane in file.lanes.after(after)
                    if lane not in exclude and (others or lane in file.transactions)
                ),
                (up_to + 1, ""),
            )
            if pos > up_to:
                return None
            query = "SELECT sum, body FROM fact WHERE pos = ?"
            total, body = file.db.execute(query, (pos,)).fetchone()
            fact = file.readable(pos, total, body)
            if fact is not None:
                return PendingFact(pos, lane, fact)
            file.advance(lane)

    def delivered(self, taken: PendingFact, number: int | None) -> None:
        """Settled; `number` is the backend's own for the transaction, kept until its end.

        What merely repeats itself after a power cut is not synced to the disk.
        """
        fact = taken.fact
        durable = number is not None
        if not durable:
            self._file.db.execute("PRAGMA synchronous = NORMAL")
        try:
            with writing(self._file.db) as db:
                if isinstance(fact, TransactionEvent):
                    self._number(fact, number)
                self._settle(db, taken.pos)
        finally:
            if not durable:
                self._file.db.execute("PRAGMA synchronous = FULL")
        self._file.taken(taken.lane)

    def _number(self, fact: TransactionEvent, number: int | None) -> None:
        if number is not None:
            self._file.keep("ocpp_number", str(fact.transaction), (fact.transaction, number))
        elif fact.type is TransactionEventType.ENDED:
            self._file.drop("ocpp_number", str(fact.transaction))

    @staticmethod
    def _settle(db: sqlite3.Connection, pos: int) -> None:
        db.execute("UPDATE fact SET settled_ms = 0, seq = ? WHERE pos = ?", (ELSEWHERE, pos))

    def refused(self, taken: PendingFact, why: str, at_ms: int) -> None:
        """Put apart, durably, with the reason; the lane goes on behind it."""
        body = _ENCODE(taken.fact)
        with writing(self._file.db) as db:
            db.execute(
                "INSERT OR REPLACE INTO refused (pos, lane, at_ms, why, sum, body)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (taken.pos, taken.lane, at_ms, why, zlib.crc32(body), body),
            )
            self._settle(db, taken.pos)
        self._file.taken(taken.lane)

    def again(self) -> int:
        """Everything that was refused is pending once more, in its old place."""
        with writing(self._file.db) as db:
            count = db.execute(
                "INSERT OR REPLACE INTO fact (pos, lane, sum, body)"
                " SELECT pos, lane, sum, body FROM refused"
            ).rowcount
            db.execute("DELETE FROM refused")
        self._file.index()
        return count

    def numbers(self) -> dict[UUID, int]:
        """The backend's numbers of transactions whose end it has not taken yet."""
        return dict(self._file.kept("ocpp_number", tuple[UUID, int]))

    def corrections(self) -> list[ClockCorrected]:
        """Every boot's wall time that became known, oldest first."""
        return [fact for fact in self._kind(_CLOCK) if isinstance(fact, ClockCorrected)]

    def security_events(self) -> list[SecurityEvent]:
        """Those of the last weeks, oldest first."""
        return [fact for fact in self._kind(_SECURITY) if isinstance(fact, SecurityEvent)]

    def _kind(self, begins: bytes) -> list[BillingFact]:
        """Facts whose text begins so; what does not read is put apart when its turn comes."""
        query = "SELECT body FROM fact WHERE substr(body, 1, ?) = ? ORDER BY pos"
        rows = self._file.db.execute(query, (len(begins), begins)).fetchall()
        return [fact for (body,) in rows if (fact := _read(body)) is not None]


def _read(body: bytes) -> BillingFact | None:
    try:
        fact: BillingFact = _FACT.decode(body)
    except msgspec.DecodeError:
        return None
    return fact


def read_refused(db: sqlite3.Connection) -> list[RefusedFact]:
    """Oldest first; none in a journal of an earlier release."""
    there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refused'").fetchone()
    if there is None:
        return []
    rows = db.execute("SELECT pos, lane, at_ms, why, body FROM refused ORDER BY pos").fetchall()
    return [
        RefusedFact(pos, lane, at_ms, why, fact)
        for pos, lane, at_ms, why, body in rows
        if (fact := _read(body)) is not None
    ]
