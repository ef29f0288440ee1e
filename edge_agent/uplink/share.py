"""The agent link's share of the journal, where another uplink has the transactions.

| carried        | what leaves over the agent link                                            |
|----------------|----------------------------------------------------------------------------|
| `transactions` | transaction events; the cloud starts and stops them and keeps the list     |
| `status`       | what EVSEs and the station are now                                         |
| `telemetry`    | every sample                                                               |

Command results, security events, gaps and clock corrections always leave over the agent link.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from edge_agent.journal import Journal
from edge_agent.journal.billing import SealedFacts
from edge_agent.journal.telemetry import SealedSeries
from edge_agent.records import LocalList, Transaction
from protocols.agent_link import Mark, Ranges, StateFact, Stream


class Share:
    """A journal of which only a part is seen; see `edge_agent.uplink.session.Outbox`."""

    def __init__(self, journal: Journal, carries: Collection[str]) -> None:
        self._journal = journal
        self._transactions = "transactions" in carries
        self._status = "status" in carries
        self._telemetry = "telemetry" in carries

    @property
    def outbox(self) -> UUID:
        return self._journal.outbox

    @property
    def boots(self) -> tuple[UUID, ...]:
        return self._journal.boots

    @property
    def position(self) -> int:
        return self._journal.position

    @property
    def buffered(self) -> int:
        return self._journal.buffered if self._telemetry else 0

    @property
    def backlog(self) -> int:
        return self._journal.backlog if self._telemetry else 0

    def marks(self) -> dict[Stream, Mark]:
        return self._journal.marks()

    def floor(self, stream: Stream) -> int:
        return self._journal.floor(stream)

    def transactions(self) -> list[Transaction]:
        return self._journal.transactions() if self._transactions else []

    def local_list(self) -> LocalList:
        return self._journal.local_list()

    def new_outbox(self) -> UUID:
        return self._journal.new_outbox()

    def settle(self, stream: Stream, ranges: Ranges) -> None:
        self._journal.settle(stream, ranges)

    def reopen(self, committed: Ranges) -> int:
        return self._journal.reopen(committed)

    def all_state_again(self) -> None:
        self._journal.all_state_again()

    def state(self) -> tuple[int, tuple[StateFact, ...]] | None:
        return self._journal.state() if self._status else None

    def billing(
        self, *, exclude: Collection[int] = (), limit: int, after: int = 0
    ) -> list[SealedFacts]:
        wanted: dict[str, Any] = {"exclude": exclude, "limit": limit, "after": after}
        return self._journal.billing(**wanted, transactions=self._transactions)

    def telemetry(self, *, exclude: Collection[int] = (), limit: int) -> list[SealedSeries]:
        if not self._telemetry:
            return []
        return self._journal.telemetry(exclude=exclude, limit=limit)

    def seal(self, *, live: bool, max_samples: int) -> SealedSeries | None:
        return self._journal.seal(live=live, max_samples=max_samples)
