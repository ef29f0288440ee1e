"""Which fact of the journal goes next, how often it is tried, and when it is put apart (pure).

Transactions do not wait for each other: one that a backend refuses holds up only itself. Within
one the order is strict. What came while connected goes before what waited, which is paced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_agent.journal import PendingFact
from edge_agent.uplink.ocpp.port import Store
from edge_agent.uplink.pace import Pace

TEMPORARY: Final = frozenset({"InternalError", "GenericError", "SecurityError", ""})
"""Codes that may be the backend's trouble of an hour, not this message's."""
LONGEST_WAIT_MS: Final = 3_600_000


@dataclass
class _Trouble:
    failures: int
    again_ms: int
    delivered: int
    """How many facts had been delivered when it began."""


class Delivery:
    """The journal's facts on their way to one backend."""

    def __init__(
        self, store: Store, *, per_second: int, others: bool, transactions: bool = True
    ) -> None:
        self._store = store
        self._takes = transactions or others
        self._others = others
        self._pace = Pace(1, per_second)
        self._trouble: dict[str, _Trouble] = {}
        self._delivered = 0
        self.live_from = 0
        """Facts behind this position came while connected."""

    def connected(self) -> None:
        """The backend takes facts from now on."""
        self.live_from = self._store.position

    def live(self, now: int) -> PendingFact | None:
        """The next fact of a transaction that has come up since the backend takes facts."""
        if not self._takes:
            return None
        return self._store.next_fact(
            exclude=self._waiting(now), after=self.live_from, others=self._others
        )

    def backlog(self, now: int) -> PendingFact | None:
        """The next fact that waited, when it is time for one."""
        if not self._takes or self._pace.room(0, now) < 1:
            return None
        return self._store.next_fact(
            exclude=self._waiting(now), up_to=self.live_from, others=self._others
        )

    def waited(self, fact: PendingFact) -> bool:
        """Whether it was made before the backend took facts."""
        return fact.pos <= self.live_from

    def sent(self, fact: PendingFact) -> None:
        if self.waited(fact):
            self._pace.spent(1)

    def _waiting(self, now: int) -> set[str]:
        return {lane for lane, one in self._trouble.items() if one.again_ms > now}

    def delivered(self, fact: PendingFact, number: int | None = None) -> None:
        """The backend has it. Raises JournalError: then it is sent once more."""
        self._store.delivered(fact, number)
        self._delivered += 1
        self._trouble.pop(fact.lane, None)

    def skip(self, fact: PendingFact) -> None:
        """Nothing of it is told to this backend."""
        self._store.delivered(fact)
        self._trouble.pop(fact.lane, None)

    def put_apart(self, fact: PendingFact, why: str, at_ms: int) -> None:
        self._store.refuse(fact, why, at_ms)
        self._trouble.pop(fact.lane, None)

    def late(self, fact: PendingFact, now: int, interval_ms: int) -> None:
        """No answer came: again after a while, for ever."""
        self._wait(fact, now, interval_ms)

    def failed(
        self, fact: PendingFact, code: str, now: int, *, attempts: int, interval_ms: int
    ) -> bool:
        """The backend refused it; True when it has been tried often enough.

        A refusal that may be temporary counts only if others get through meanwhile: a backend
        that is ill must not make an agent give up its sessions.
        """
        trouble = self._wait(fact, now, interval_ms)
        if trouble.failures < attempts:
            return False
        return code not in TEMPORARY or self._delivered > trouble.delivered

    def _wait(self, fact: PendingFact, now: int, interval_ms: int) -> _Trouble:
        known = self._trouble.get(fact.lane)
        trouble = known or _Trouble(0, 0, self._delivered)
        trouble.failures += 1
        trouble.again_ms = now + min(interval_ms * trouble.failures, LONGEST_WAIT_MS)
        self._trouble[fact.lane] = trouble
        return trouble
