"""The journal as the agent's loop and uplink use it: one object, synchronous, one thread."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

from edge_agent.journal import billing, telemetry
from edge_agent.journal.billing import BillingFile, Put, SealedFacts, SessionRecord
from edge_agent.journal.deliveries import Deliveries, PendingFact, RefusedFact, read_refused
from edge_agent.journal.files import (
    JournalBudget,
    JournalError,
    explain,
    is_full,
    sync_folder,
)
from edge_agent.journal.telemetry import LOW_WATER, SealedSeries, TelemetryFile
from edge_agent.records import LocalList, Register, SiteLimit, Transaction
from protocols.agent_link import (
    BillingFact,
    ClockCorrected,
    CommandResult,
    EvseStatus,
    Mark,
    Ranges,
    Sample,
    SecurityEvent,
    StateFact,
    StationStatus,
    Stream,
    UpdateStatus,
)

T = TypeVar("T")
LOCK: Final = "lock"
RESERVE_FILE: Final = "reserve"
_NOT_WRITTEN: Final = "the journal could not be written"
_KEYS: Final[dict[type, int]] = {StationStatus: -1, UpdateStatus: -2}
"""Beside the EVSEs' numbers, where the state of what has no number is kept."""


def _lock(folder: Path) -> int:
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise JournalError(
            "the journal is in use",
            f"another agent holds {folder / LOCK}",
            "Stop it first (systemctl stop karvon-agent), or give this one a folder of its own",
        ) from error
    return handle


class Journal:
    """Everything that survives on the controller; see the methods for what each promises."""

    def __init__(
        self,
        folder: Path,
        station: str,
        boot: UUID,
        budget: JournalBudget,
        reports: list[str],
        lock: int,
    ) -> None:
        self.folder = folder
        self.station = station
        self.budget = budget
        self.reports = reports
        self._lock: int | None = lock
        self._missing_beside_telemetry()
        self._billing = BillingFile.open(folder, station, reports)
        self._deliveries = Deliveries(self._billing)
        try:
            self.boots = self._billing.add_boot(boot)
            self.outbox = self._billing.outbox
            self._telemetry = TelemetryFile.open(folder, station, self.outbox, budget, reports)
        except BaseException:
            self._billing.close()
            raise
        self._numbers: dict[Stream, Iterator[int]] = {}
        self._next: dict[Stream, int] = {
            stream: self._billing.next_of(stream) for stream in (Stream.STATE, Stream.TELEMETRY)
        }
        self._state: dict[int, StateFact] = {}
        self._dirty: set[int] = set()
        self._unsettled_state: tuple[int, set[int]] | None = None

    @classmethod
    def open(cls, folder: Path, *, station: str, boot: UUID, budget: JournalBudget) -> Journal:
        """The journal in `folder`, made where there is none; raises JournalError.

        `reports` says what had to be set aside: another station's journal, a damaged file.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(folder)
        except OSError as error:
            raise explain("the journal cannot be opened", folder, error) from error
        try:
            journal = cls(folder, station, boot, budget, [], lock)
        except (sqlite3.Error, OSError) as error:
            os.close(lock)
            raise explain("the journal cannot be opened", folder, error) from error
        except BaseException:
            os.close(lock)
            raise
        journal._set_reserve()
        return journal

    def _missing_beside_telemetry(self) -> None:
        main, other = self.folder / billing.NAME, self.folder / telemetry.NAME
        empty = not main.exists() or main.stat().st_size == 0
        if empty and other.exists() and other.stat().st_size > 0:
            self.reports.append(
                f"{billing.NAME} is missing or empty beside an older {telemetry.NAME}: open"
                " transactions and lifetime registers are lost. Compare the meters"
            )

    def close(self) -> None:
        """Write what is in memory and let the folder go; closing again does nothing."""
        if self._lock is None:
            return
        self._telemetry.close()
        self._billing.close()
        os.close(self._lock)
        self._lock = None

    # ------------------------------------------------------------------ room on the disk

    def _set_reserve(self) -> None:
        path = self.folder / RESERVE_FILE
        wanted = self.budget.reserve_bytes
        if path.exists() and path.stat().st_size == wanted:
            return
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, wanted)
            sync_folder(self.folder)
        except OSError:
            path.unlink(missing_ok=True)

    def _make_room(self) -> bool:
        """Free disk space for billing: the reserve first, then all telemetry on disk."""
        reserve = self.folder / RESERVE_FILE
        if reserve.exists():
            reserve.unlink()
            self.reports.append("the disk is full: the journal's reserve is in use. Free space")
            return True
        if self._telemetry.at_rest or self._telemetry.sealed:
            self._telemetry.wipe(self.station, self.outbox)
            self.reports.append("the disk is full: telemetry was dropped for billing. Free space")
            return True
        return False

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._billing.on_error(error)
            raise explain(what, self._billing.path, error) from error
        except OSError as error:
            raise explain(what, self._billing.path, error) from error

    def _durably(self, deed: Callable[[], T], what: str = _NOT_WRITTEN) -> T:
        """Do it, making room where the disk is full; raises JournalError, nothing done then."""
        with self._explained(what):
            while True:
                try:
                    return deed()
                except sqlite3.OperationalError as error:
                    if not is_full(error) or not self._make_room():
                        raise

    # ------------------------------------------------------------------ state that survives

    def _kept(self, kind: str, shape: type[T]) -> list[T]:
        with self._explained("the journal could not be read"):
            return self._billing.kept(kind, shape)

    def transactions(self) -> list[Transaction]:
        """Open transactions as of their last checkpoint."""
        return self._kept("transaction", Transaction)

    def registers(self) -> dict[int, Register]:
        return {register.evse: register for register in self._kept("register", Register)}

    def limits(self) -> list[SiteLimit]:
        return self._kept("limit", SiteLimit)

    def local_list(self) -> LocalList:
        return next(iter(self._kept("local_list", LocalList)), LocalList())

    def availability(self) -> dict[int, bool]:
        return dict(self._kept("availability", tuple[int, bool]))

    def commit(
        self,
        *,
        facts: Sequence[BillingFact] = (),
        put: Sequence[Put] = (),
        ended: Sequence[UUID] = (),
        lifted: Sequence[int] = (),
        local_list: LocalList | None = None,
        availability: Mapping[int, bool] | None = None,
    ) -> None:
        """One durable transaction: state and facts together, after a power cut both or neither.

        Raises JournalError (disk full, read-only, storage error); nothing is kept then, and the
        caller goes to its safe state.
        """
        self._durably(
            lambda: self._billing.commit(facts, put, ended, lifted, local_list, availability)
        )

    def result_of(self, command: UUID) -> CommandResult | None:
        """The latest answer to a command of the last days; None for one not seen."""
        with self._explained("the journal could not be read"):
            return self._billing.result_of(command)

    def sessions(self, limit: int, before: int | None = None) -> list[SessionRecord]:
        """Newest first; `before` is the `number` of the last one of the page before."""
        with self._explained("the journal could not be read"):
            return billing.read_sessions(self._billing.db, limit, before)

    # ------------------------------------------------------------------ outbox: all streams

    def marks(self) -> dict[Stream, Mark]:
        """For the hello: next free number, and the lowest that can still be sent."""
        with self._explained("the journal could not be read"):
            following = self._billing.next_of(Stream.BILLING)
            return {
                Stream.BILLING: Mark(following, self._billing.lowest_kept()),
                Stream.STATE: Mark(self._next[Stream.STATE], self.floor(Stream.STATE)),
                Stream.TELEMETRY: Mark(self._next[Stream.TELEMETRY], self.floor(Stream.TELEMETRY)),
            }

    def floor(self, stream: Stream) -> int:
        """Every number below it is settled here."""
        if stream is Stream.BILLING:
            return self._billing.floor()
        if stream is Stream.TELEMETRY:
            return min(self._telemetry.sealed, default=self._next[stream])
        return self._unsettled_state[0] if self._unsettled_state else self._next[stream]

    def _take_number(self, stream: Stream) -> int:
        number = next(self._numbers.get(stream, iter(())), None)
        if number is None:
            block = self._durably(lambda: self._billing.reserve(stream))
            self._numbers[stream] = iter(block)
            number = next(self._numbers[stream])
        self._next[stream] = number + 1
        return number

    def settle(self, stream: Stream, ranges: Ranges) -> None:
        """The cloud has committed these numbers; billing facts are kept on, marked."""
        if stream is Stream.BILLING:
            self._durably(lambda: self._billing.settle(ranges))
        elif stream is Stream.TELEMETRY:
            self._telemetry.settle(ranges)
        elif self._unsettled_state and any(a <= self._unsettled_state[0] <= b for a, b in ranges):
            self._unsettled_state = None

    def reopen(self, committed: Ranges) -> int:
        """Billing facts still kept whose number is not in `committed` are pending again."""
        return self._durably(lambda: self._billing.reopen(committed))

    def new_outbox(self) -> UUID:
        """Become another outbox (this journal was cloned or restored): numbers start at 1."""
        self.outbox = self._durably(self._billing.new_outbox)
        self._numbers.clear()
        self._next = {Stream.STATE: 1, Stream.TELEMETRY: 1}
        self._unsettled_state = None
        self._dirty = set(self._state)
        with self._explained(_NOT_WRITTEN):
            self._telemetry.bind(self.station, self.outbox)
        return self.outbox

    # ------------------------------------------------------------------ outbox: billing

    @property
    def position(self) -> int:
        """Where the newest billing fact stands; give it to `billing` for what comes later."""
        return self._billing.position

    def billing(
        self,
        *,
        exclude: Collection[int] = (),
        limit: int,
        after: int = 0,
        transactions: bool = True,
    ) -> list[SealedFacts]:
        """Batches that may be sent now, beside those in flight (`exclude`); oldest first.

        At most one batch of a transaction is ever out. With `after`, only transactions with
        nothing pending up to that position (the live lane). Without `transactions` none of them:
        another uplink has them.
        """
        return self._durably(
            lambda: self._billing.batches(exclude, limit, after, transactions=transactions)
        )

    # ------------------------------------------------------------------ facts, one by one

    def next_fact(
        self,
        *,
        exclude: Collection[str] = (),
        after: int = 0,
        up_to: int = 2**62,
        others: bool = True,
    ) -> PendingFact | None:
        """The oldest that may be delivered now beside the lanes in `exclude`; None: nothing.

        Only from lanes whose oldest pending fact stands after `after` and not after `up_to`.
        Without `others` only transactions.
        """
        return self._durably(
            lambda: self._deliveries.next(exclude=exclude, after=after, up_to=up_to, others=others)
        )

    def delivered(self, taken: PendingFact, number: int | None = None) -> None:
        """A backend has taken it; `number` is what it calls the transaction from now on."""
        self._durably(lambda: self._deliveries.delivered(taken, number))

    def refuse(self, taken: PendingFact, why: str, at_ms: int) -> None:
        """A backend refused it for good: it is put apart, and shown."""
        self._durably(lambda: self._deliveries.refused(taken, why, at_ms))

    def refused_again(self) -> int:
        """What was put apart is pending again; returns how many facts."""
        return self._durably(self._deliveries.again)

    def waits(self, transaction: UUID | None) -> bool:
        """Whether events of it (None: of any transaction) have not been taken yet."""
        lanes = self._billing.transactions
        return bool(lanes) if transaction is None else str(transaction) in lanes

    def numbers(self) -> dict[UUID, int]:
        """What a backend calls the transactions that it does not know to be over."""
        with self._explained("the journal could not be read"):
            return self._deliveries.numbers()

    def corrections(self) -> list[ClockCorrected]:
        """Wall times of boots as they became known, oldest first."""
        with self._explained("the journal could not be read"):
            return self._deliveries.corrections()

    def security_events(self) -> list[SecurityEvent]:
        """Those of the last weeks, oldest first."""
        with self._explained("the journal could not be read"):
            return self._deliveries.security_events()

    def named(self, kind: str, shape: type[T]) -> list[T]:
        """What `keep` has put of a kind, by name."""
        return self._kept(kind, shape)

    def keep(self, kind: str, records: Mapping[str, object | None]) -> None:
        """Durably put records of a kind by name, all together; None drops one."""
        self._durably(lambda: self._billing.keep_named(kind, records))

    @property
    def refused(self) -> list[RefusedFact]:
        """What a backend refused for good, oldest first."""
        with self._explained("the journal could not be read"):
            return read_refused(self._billing.db)

    # ------------------------------------------------------------------ outbox: state

    def put_state(self, fact: StateFact) -> None:
        """The latest of an EVSE, the station or its update; in memory, replaces what was there."""
        key = fact.evse if isinstance(fact, EvseStatus) else _KEYS[type(fact)]
        self._state[key] = fact
        self._dirty.add(key)

    def all_state_again(self) -> None:
        """On a new connection everything is told once more."""
        self._dirty = set(self._state)

    def state(self) -> tuple[int, tuple[StateFact, ...]] | None:
        """A number and what changed; takes the place of an unacknowledged earlier batch."""
        if not self._dirty:
            return None
        keys = self._dirty | (self._unsettled_state[1] if self._unsettled_state else set())
        number = self._take_number(Stream.STATE)
        self._dirty = set()
        self._unsettled_state = (number, keys)
        return number, tuple(self._state[key] for key in sorted(keys))

    # ------------------------------------------------------------------ outbox: telemetry

    def add(self, samples: Sequence[Sample]) -> None:
        """Samples in the order of time; written once per flush interval. Never raises."""
        if samples:
            self._telemetry.add(samples)

    def flush(self) -> None:
        self._telemetry.flush()

    @property
    def buffered(self) -> int:
        """Samples in memory: what `seal(live=True)` would send."""
        return len(self._telemetry.buffer)

    @property
    def backlog(self) -> int:
        """Samples on disk that have no number yet."""
        return self._telemetry.at_rest

    def seal(self, *, live: bool, max_samples: int) -> SealedSeries | None:
        """Give a number to the newest samples (live) or to the oldest on disk; None: nothing."""
        if not (self._telemetry.buffer if live else self._telemetry.at_rest):
            return None
        number = self._take_number(Stream.TELEMETRY)
        if live:
            return self._telemetry.seal_live(number, max_samples)
        return self._telemetry.seal_backlog(number, max_samples)

    def telemetry(self, *, exclude: Collection[int] = (), limit: int) -> list[SealedSeries]:
        """Sealed batches that are not settled and not in flight, oldest first."""
        return self._telemetry.unsettled(exclude, limit)

    # ------------------------------------------------------------------ upkeep

    def maintain(self, now_ms: int, steps: int = 8) -> None:
        """Keep the budget; call it about once a minute. At most `steps` chunks are thinned.

        Raises JournalError only when billing cannot be written.
        """
        self._durably(lambda: self._billing.maintain(now_ms, self.budget))
        self._record_lost()
        with self._telemetry_trouble():
            target = int(self.budget.telemetry_bytes * LOW_WATER)
            over = self._telemetry.used_bytes() > self.budget.telemetry_bytes
            while over and steps > 0 and self._telemetry.used_bytes() > target:
                if not self._thin_one():
                    break
                steps -= 1
            self._telemetry.free_space()
        self._set_reserve()

    @contextmanager
    def _telemetry_trouble(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._telemetry._trouble("the telemetry budget is not kept", error)  # noqa: SLF001  # one module in three files

    def _thin_one(self) -> bool:
        choice = self._telemetry.oldest_finest()
        if choice is None:
            return False
        rows, removed, every_ms = choice
        # The gap first: after a crash between the two files it is repeated, never missing.
        self.commit(facts=(removed.gap(self.outbox),))
        self._telemetry.thin_rows(rows, every_ms)
        return True

    def _record_lost(self) -> None:
        lost = self._telemetry.lost
        if lost:
            self.commit(facts=tuple(one.gap(self.outbox) for one in lost))
            lost.clear()

    @property
    def size_bytes(self) -> int:
        """Both files as they lie on disk, the reserve not counted."""
        return self._telemetry.size_bytes() + sum(
            path.stat().st_size for path in self.folder.glob(f"{billing.NAME}*")
        )

    @property
    def pending_billing(self) -> int:
        """Billing facts that the cloud has not committed."""
        return self._billing.pending

    @property
    def pending_telemetry(self) -> int:
        """Samples that the cloud has not committed."""
        return self._telemetry.pending
