"""A look into a journal without disturbing the agent that runs on it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import msgspec

from edge_agent.journal import billing, telemetry
from edge_agent.journal.deliveries import RefusedFact, read_refused
from edge_agent.journal.files import JournalError, explain, size_of
from edge_agent.records import LocalList, Register, Transaction
from protocols.quantities import Milliseconds

ALL_SESSIONS: Final = 1_000_000


class Queue(msgspec.Struct, frozen=True):
    """What waits for the cloud."""

    station: str
    outbox: UUID
    billing_facts: int
    billing_batches_sent: int
    """Sealed and sent at least once, not acknowledged."""
    telemetry_samples: int
    telemetry_batches_sent: int
    oldest_sample_ms: Milliseconds | None
    """Wall time of the oldest sample at rest."""
    bytes_on_disk: int
    refused_facts: int = 0
    """Put apart because an OCPP backend refused them."""


class JournalView:
    """Reads the files as they are on disk; samples in the agent's memory are not seen."""

    def __init__(self, folder: Path) -> None:
        """Raises JournalError when there is no journal to read."""
        self.folder = folder
        self._open: list[sqlite3.Connection] = []
        try:
            self._billing = self._connect(folder / billing.NAME)
        except JournalError:
            self.close()
            raise

    def _connect(self, path: Path) -> sqlite3.Connection:
        if not path.exists():
            raise JournalError(
                "there is no journal to read",
                f"{path} does not exist",
                "Check `journal` in the agent's configuration; the agent makes it on first start",
            )
        try:
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
            self._open.append(db)
            db.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.Error as error:
            raise explain("the journal cannot be read", path, error) from error
        return db

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for db in self._open:
            db.close()

    def sessions(self, limit: int, before: int | None = None) -> list[billing.SessionRecord]:
        """Newest first; `before` is the `number` of the last one of the page before."""
        return billing.read_sessions(self._billing, limit, before)

    def _kept(self, kind: str) -> list[bytes]:
        query = "SELECT body FROM kept WHERE kind = ? ORDER BY key"
        return [body for (body,) in self._billing.execute(query, (kind,))]

    def transactions(self) -> list[Transaction]:
        return [msgspec.json.decode(body, type=Transaction) for body in self._kept("transaction")]

    def registers(self) -> dict[int, Register]:
        found = [msgspec.json.decode(body, type=Register) for body in self._kept("register")]
        return {register.evse: register for register in found}

    def refused(self) -> list[RefusedFact]:
        """What an OCPP backend refused for good, oldest first."""
        return read_refused(self._billing)

    def id_tokens(self) -> set[str]:
        """Every id token that the journal knows: of sessions, and of the local list."""
        found = {session.id_token for session in self.sessions(ALL_SESSIONS)}
        found |= {one.id_token.value for one in self.transactions() if one.id_token is not None}
        for body in self._kept("local_list"):
            for entry in msgspec.json.decode(body, type=LocalList).entries:
                found |= {entry.id_token.value, entry.group}
        return {token for token in found if token}

    def queue(self) -> Queue:
        """Raises JournalError when one of the files cannot be read."""
        waiting = self._connect(self.folder / telemetry.NAME)
        meta = dict(self._billing.execute("SELECT name, value FROM meta"))
        facts, sent = self._billing.execute(
            "SELECT count(*), count(DISTINCT seq) FROM fact WHERE settled_ms IS NULL"
        ).fetchone()
        at_rest, oldest = waiting.execute(
            "SELECT coalesce(sum(samples), 0), min(first_ms) FROM minute"
        ).fetchone()
        sealed, batches = waiting.execute(
            "SELECT coalesce(sum(samples), 0), count(*) FROM sealed"
        ).fetchone()
        return Queue(
            station=meta["station"],
            outbox=UUID(meta["outbox"]),
            billing_facts=facts,
            billing_batches_sent=sent,
            telemetry_samples=at_rest + sealed,
            telemetry_batches_sent=batches,
            oldest_sample_ms=oldest,
            bytes_on_disk=sum(
                size_of(self.folder / name) for name in (billing.NAME, telemetry.NAME)
            ),
            refused_facts=len(self.refused()),
        )
