"""A cloud in memory, for tests of whatever speaks the agent link upward."""

from __future__ import annotations

import copy
from typing import Any
from uuid import UUID, uuid4

from protocols.agent_link import (
    Ack,
    BillingBatch,
    Down,
    EvseStatus,
    Hello,
    StateBatch,
    Stream,
    TelemetryBatch,
    TransactionEvent,
    Up,
    Verdict,
    Welcome,
    decode_up,
    encode,
)
from protocols.quantities import Milliseconds
from protocols.series import to_samples


class ModelCloud:
    """Commits each number once, answers with what it holds; judges hellos as the link demands.

    What it committed is in `facts` (by id), `order` (transaction events as they first came),
    `samples` (EVSE and monotonic time) and `state` (offered current per EVSE).
    """

    def __init__(self, now_ms: int = 1_790_000_000_000) -> None:
        self.now_ms = now_ms
        self.identity = uuid4()
        self.committed: dict[tuple[UUID, Stream], set[int]] = {}
        self.last_boot: dict[UUID, UUID] = {}
        self.facts: dict[UUID, Any] = {}
        self.order: list[TransactionEvent] = []
        self.samples: set[tuple[int, int]] = set()
        self.state: dict[int, int | None] = {}
        self.state_seq: dict[UUID, int] = {}

    def restarted(self) -> ModelCloud:
        """A copy under another identity: after a restart, or as a backup to go back to."""
        again = copy.deepcopy(self)
        again.identity = uuid4()
        return again

    def receive(self, channel: Up, payload: bytes) -> tuple[Down, bytes] | None:
        """Take a message; returns the answer to publish, if it asks for one."""
        message = decode_up(channel, payload)
        if isinstance(message, Hello):
            return Down.WELCOME, encode(self._greet(message))
        if not isinstance(message, BillingBatch | StateBatch | TelemetryBatch):
            return None
        if message.outbox not in self.last_boot:
            return Down.ACK, encode(Ack(self.identity, message.outbox, Stream(channel), ()))
        numbers = self.committed.setdefault((message.outbox, Stream(channel)), set())
        if message.seq not in numbers:
            numbers.add(message.seq)
            self._commit(message)
        ranges = ((message.seq, message.seq),)
        return Down.ACK, encode(Ack(self.identity, message.outbox, Stream(channel), ranges))

    def _greet(self, hello: Hello) -> Welcome:
        known = self.last_boot.get(hello.outbox)
        held = {s: n for (o, s), n in self.committed.items() if o == hello.outbox}
        ahead = any(max(n, default=0) >= hello.marks[s].next for s, n in held.items())
        if (known is not None and known not in hello.boots) or ahead:
            return self._welcome(hello, Verdict.NEW_OUTBOX, {})
        self.last_boot[hello.outbox] = hello.boots[0]
        return self._welcome(hello, Verdict.GO_ON, held)

    def _welcome(self, hello: Hello, verdict: Verdict, held: dict[Stream, set[int]]) -> Welcome:
        committed = {s: tuple((n, n) for n in sorted(numbers)) for s, numbers in held.items()}
        return Welcome(self.identity, hello.outbox, verdict, Milliseconds(self.now_ms), committed)

    def _commit(self, batch: BillingBatch | StateBatch | TelemetryBatch) -> None:
        if isinstance(batch, BillingBatch):
            for fact in batch.facts:
                if fact.id not in self.facts and isinstance(fact, TransactionEvent):
                    self.order.append(fact)
                self.facts[fact.id] = fact
        elif isinstance(batch, TelemetryBatch):
            for series in batch.series:
                self.samples |= {(s.evse, s.at.mono_ms) for s in to_samples(series)}
        elif batch.seq > self.state_seq.get(batch.outbox, 0):
            self.state_seq[batch.outbox] = batch.seq
            statuses = [fact for fact in batch.facts if isinstance(fact, EvseStatus)]
            self.state |= {status.evse: status.offered_ma for status in statuses}
