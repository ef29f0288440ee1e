"""The durable side of the loop: one commit per step, and what to do when the disk says no.

A start that cannot be persisted does not happen. Everything else about a running transaction is
kept in memory in its order and goes to disk with the next commit that succeeds: the board's
register is cumulative, so a session that ends meanwhile costs no energy even if the agent dies.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

from edge_agent import faultpoints
from edge_agent.journal import JournalError
from edge_agent.records import LocalList, Register, SiteLimit, Transaction
from edge_agent.rules.actions import Durable, Emit, Forget, Keep
from protocols.agent_link import (
    BillingFact,
    CommandResult,
    Sample,
    StateFact,
    TransactionEvent,
    TransactionEventType,
)

log = logging.getLogger(__name__)
MOST_PENDING: Final = 5000
"""Actions kept in memory; a disk that is broken for days must not end in an exhausted memory."""


class Store(Protocol):
    """What the loop needs of the journal."""

    def transactions(self) -> list[Transaction]: ...

    def registers(self) -> dict[int, Register]: ...

    def limits(self) -> list[SiteLimit]: ...

    def local_list(self) -> LocalList: ...

    def availability(self) -> dict[int, bool]: ...

    def commit(
        self,
        *,
        facts: Sequence[BillingFact] = (),
        put: Sequence[Transaction | Register | SiteLimit] = (),
        ended: Sequence[UUID] = (),
        lifted: Sequence[int] = (),
        local_list: LocalList | None = None,
        availability: Mapping[int, bool] | None = None,
    ) -> None: ...

    def result_of(self, command: UUID) -> CommandResult | None: ...

    def put_state(self, fact: StateFact) -> None: ...

    def add(self, samples: Sequence[Sample]) -> None: ...


class Ledger:
    """Commits to a store; `failure` says what is wrong with it, "" while all is well."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failure = ""
        self.spacing_ms = 0
        self.keeps_samples = True
        """False where nobody will ever ask for them: they would only wear the storage."""
        self._pending: list[Durable] = []
        self._sampled: dict[int, int] = {}

    def write(self, durable: Sequence[Durable], **settings: Any) -> bool:
        """Persist, with what is still pending; False when the journal could not.

        `settings` are those of `Store.commit`: put, lifted, local_list, availability.
        """
        actions = [*self._pending, *durable]
        if not actions and not settings:
            return True
        commit = _as_commit(actions)
        commit["put"] += settings.pop("put", ())
        faultpoints.reach(faultpoints.BEFORE_PERSIST)
        try:
            self.store.commit(**commit, **settings)
        except JournalError as error:
            self._failed(error)
            return False
        faultpoints.reach(faultpoints.AFTER_PERSIST)
        self._pending.clear()
        self._recovered()
        return True

    def write_later(self, durable: Sequence[Durable]) -> None:
        """Keep in memory what could not be persisted and has happened all the same."""
        self._pending += durable
        del self._pending[:-MOST_PENDING]

    @property
    def retry_due(self) -> bool:
        return bool(self.failure or self._pending)

    def retry(self) -> bool:
        """Try to persist what is pending; True when the journal takes it again."""
        try:
            known = () if self._pending else tuple(self.store.registers().values())
        except JournalError as error:
            self._failed(error)
            return False
        return self.write([Keep(register) for register in known])

    def report(self, fact: StateFact) -> None:
        self.store.put_state(fact)

    def sample(self, samples: Sequence[Sample]) -> None:
        """Telemetry; of each EVSE at most one sample in `spacing_ms`."""
        if not self.keeps_samples:
            return
        kept = [sample for sample in samples if self._spaced(sample)]
        if kept:
            self.store.add(kept)

    def _spaced(self, sample: Sample) -> bool:
        last = self._sampled.get(sample.evse)
        if last is not None and sample.at.mono_ms - last < self.spacing_ms:
            return False
        self._sampled[sample.evse] = sample.at.mono_ms
        return True

    def _failed(self, error: JournalError) -> None:
        if not self.failure:
            log.error("journal cannot be written: %s", error)
        self.failure = str(error)

    def _recovered(self) -> None:
        if self.failure:
            log.warning("journal is written again")
        self.failure = ""


def starts(durable: Sequence[Durable]) -> bool:
    """Whether a transaction begins with these: then they must be on disk first."""
    return any(
        isinstance(action, Emit)
        and isinstance(action.fact, TransactionEvent)
        and action.fact.type is TransactionEventType.STARTED
        for action in durable
    )


def _as_commit(actions: Sequence[Durable]) -> dict[str, Any]:
    """Actions in order as one commit: of records only the last of each counts."""
    records: dict[object, Transaction | Register] = {}
    facts: list[BillingFact] = []
    ended: list[UUID] = []
    for action in actions:
        if isinstance(action, Emit):
            facts.append(action.fact)
        elif isinstance(action, Forget):
            records.pop(action.transaction, None)
            ended.append(action.transaction)
        elif isinstance(action, Keep):
            records[_key(action.record)] = action.record
    return {"facts": facts, "put": list(records.values()), "ended": ended}


def _key(record: Transaction | Register) -> object:
    return record.id if isinstance(record, Transaction) else record.evse
