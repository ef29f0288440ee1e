"""Do simulator, agent and cloud tell the same story? Pure; the referee is the simulator's meter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.quantities import WattHours

WH_IN_MWH: Final = 1000


@dataclass(frozen=True)
class Truth:
    """A charging session as it was, exact to the milliwatt-hour."""

    energy_mwh: int
    over: bool


@dataclass(frozen=True)
class Kept:
    """A session in the agent's journal."""

    transaction: str
    energy_wh: WattHours
    over: bool


@dataclass(frozen=True)
class Booked:
    """A transaction in the cloud, with the numbers of the events it was made from."""

    transaction: str
    energy_wh: WattHours
    over: bool
    seq_nos: tuple[int, ...]


def within_step(truth_mwh: int, energy_wh: int, step_wh: int) -> bool:
    """Whether an energy is the true one, to 1 Wh or the register's step where that is coarser."""
    return abs(truth_mwh - energy_wh * WH_IN_MWH) <= max(1, step_wh) * WH_IN_MWH


def complaints(
    truth: Sequence[Truth],
    kept: Sequence[Kept],
    booked: Sequence[Booked],
    *,
    step_wh: int = 1,
    journal_lost: bool = False,
) -> list[str]:
    """What does not agree, as sentences; all in the order in which the sessions began.

    What moved no whole watt-hour is no session to anybody: an agent that comes back may have to try
    whether the vehicle is still the same one.

    With `journal_lost` (the agent's disk was replaced or put back) its journal may know fewer
    sessions than the cloud, and events that never left it may be missing.
    """
    truth = [true for true in truth if true.energy_mwh >= WH_IN_MWH]
    booked = [book for book in booked if book.energy_wh > 0]
    kept = [session for session in kept if session.energy_wh > 0]
    found = list(_of_counts(truth, booked))
    for number, (true, book) in enumerate(zip(truth, booked, strict=False), 1):
        found += _of_session(number, true, book, step_wh)
    if not journal_lost:
        found += (line for book in booked for line in _of_events(book))
    found += _of_journal(kept, booked, complete=not journal_lost)
    return found


def _of_counts(truth: Sequence[Truth], booked: Sequence[Booked]) -> Iterator[str]:
    if len(truth) != len(booked):
        yield f"{len(truth)} sessions took place, {len(booked)} are in the cloud"
    for transaction, count in Counter(book.transaction for book in booked).items():
        if count > 1:
            yield f"transaction {transaction} is in the cloud {count} times"


def _of_session(number: int, true: Truth, book: Booked, step_wh: int) -> Iterator[str]:
    if true.over != book.over:
        says = "over" if book.over else "open"
        yield f"session {number}: the cloud says {says}, which it is not ({book.transaction})"
    if not within_step(true.energy_mwh, book.energy_wh, step_wh):
        yield (
            f"session {number}: {true.energy_mwh / WH_IN_MWH:.3f} Wh flowed,"
            f" {book.energy_wh} Wh are in the cloud ({book.transaction})"
        )


def _of_events(book: Booked) -> Iterator[str]:
    missing = sorted(set(range(max(book.seq_nos, default=0) + 1)) - set(book.seq_nos))
    if missing:
        yield f"transaction {book.transaction}: events {missing} are not in the cloud"


def _of_journal(kept: Sequence[Kept], booked: Sequence[Booked], *, complete: bool) -> Iterator[str]:
    in_cloud = {book.transaction: book for book in booked}
    for session in kept:
        book = in_cloud.get(session.transaction)
        if book is None:
            yield f"session {session.transaction} is in the journal, but not in the cloud"
        elif (session.energy_wh, session.over) != (book.energy_wh, book.over):
            yield (
                f"session {session.transaction}: the journal has {session.energy_wh} Wh"
                f" (over: {session.over}), the cloud {book.energy_wh} Wh (over: {book.over})"
            )
    missing = in_cloud.keys() - {session.transaction for session in kept}
    if complete and missing:
        yield f"transactions {sorted(missing)} are in the cloud, but not in the journal"
