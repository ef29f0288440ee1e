"""One connection's conversation with the cloud, sans-IO: what to send now, what an answer means.

Hello and welcome come first; then everything goes in numbered batches that are sent again until the
cloud acknowledges them. Two lanes share the line: what is new goes out at once, and what piled up
while the link was away follows at a bounded rate, so that live data is not late behind a replay.
The shell in `mqtt.py` moves the bytes and tells the time (monotonic seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from edge_agent.journal.billing import SealedFacts
from edge_agent.journal.telemetry import SealedSeries
from protocols.agent_link import (
    Ack,
    BillingBatch,
    Command,
    Down,
    EvseDescription,
    Hello,
    LinkError,
    Mark,
    Ranges,
    Stamp,
    StateBatch,
    StateFact,
    Stream,
    TelemetryBatch,
    Up,
    Verdict,
    Welcome,
    decode_down,
    encode,
)

LIVE_WINDOW: Final = 32
SERIES_WINDOW: Final = 4
"""Telemetry batches in flight, of each lane: they are the large ones."""
LIVE_SAMPLES: Final = 3000
BACKLOG_SAMPLES: Final = 2000


class LinkSilentError(Exception):
    """The cloud did not welcome us in time; the connection is to be made anew."""


class Outbox(Protocol):
    """What the session needs of the journal."""

    outbox: UUID
    boots: tuple[UUID, ...]

    @property
    def position(self) -> int: ...
    @property
    def buffered(self) -> int: ...
    def marks(self) -> dict[Stream, Mark]: ...
    def floor(self, stream: Stream) -> int: ...
    def settle(self, stream: Stream, ranges: Ranges) -> None: ...
    def reopen(self, committed: Ranges) -> int: ...
    def new_outbox(self) -> UUID: ...
    def billing(
        self, *, exclude: Collection[int] = (), limit: int, after: int = 0
    ) -> list[SealedFacts]: ...
    def all_state_again(self) -> None: ...
    def state(self) -> tuple[int, tuple[StateFact, ...]] | None: ...
    def seal(self, *, live: bool, max_samples: int) -> SealedSeries | None: ...
    def telemetry(self, *, exclude: Collection[int] = (), limit: int) -> list[SealedSeries]: ...


@dataclass(frozen=True, slots=True)
class Description:
    """What a hello says of the station."""

    agent_version: str
    evses: tuple[EvseDescription, ...]
    open_transactions: tuple[UUID, ...]
    local_list_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast and how patiently (seconds, messages)."""

    telemetry_every_s: float = 60.0
    """How often what was measured goes out while all is well."""
    welcome_s: float = 15.0
    ack_s: float = 10.0
    """After this long without acknowledgement a batch is sent again."""
    backlog_window: int = 64
    backlog_per_s: float = 200.0


@dataclass(frozen=True, slots=True)
class Send:
    """Publish this."""

    channel: Up
    payload: bytes


@dataclass(slots=True)
class _InFlight:
    send: Send
    at: float
    backlog: bool


Heard = Welcome | Command
"""What the rest of the agent must hear of; everything else the session settles itself."""
Key = tuple[Stream, int]


@dataclass(slots=True)
class Session:
    """One connection. Make a new one for each; `greet` is its first output."""

    journal: Outbox
    describe: Callable[[], Description]
    stamp: Callable[[], Stamp]
    pace: Pace
    cloud: UUID | None = None
    welcomed: bool = False
    _greeted_at: float = 0.0
    _in_flight: dict[Key, _InFlight] = field(default_factory=dict)
    _mark: int = 0
    _tokens: float = 0.0
    _stepped_at: float = 0.0
    _series_at: float = 0.0

    def greet(self, now: float) -> Send:
        """Say hello; nothing else goes out before the welcome."""
        self.welcomed = False
        self._greeted_at = now
        self._in_flight.clear()
        told = self.describe()
        hello = Hello(
            outbox=self.journal.outbox,
            boots=self.journal.boots,
            sent=self.stamp(),
            marks=self.journal.marks(),
            agent_version=told.agent_version,
            evses=told.evses,
            open_transactions=told.open_transactions,
            local_list_version=told.local_list_version,
        )
        return Send(Up.HELLO, encode(hello))

    # ------------------------------------------------------------------ hearing

    def received(
        self, channel: Down, payload: bytes, now: float
    ) -> tuple[list[Send], Heard | None]:
        """Take a message of the cloud; raises LinkError for one that cannot be read."""
        message = decode_down(channel, payload)
        if isinstance(message, Ack):
            return self._acknowledged(message, now), None
        if isinstance(message, Welcome):
            return self._welcome(message, now)
        if isinstance(message, Command):
            return [], message
        raise LinkError(f"unexpected message on {channel}")

    def _welcome(self, welcome: Welcome, now: float) -> tuple[list[Send], Heard | None]:
        if welcome.outbox != self.journal.outbox or self.welcomed:
            return [], None  # the answer to an earlier hello
        if welcome.verdict is Verdict.NEW_OUTBOX:
            self.journal.new_outbox()
            return [self.greet(now)], None
        for stream, ranges in welcome.committed.items():
            self.journal.settle(stream, ranges)
        self.journal.reopen(welcome.committed.get(Stream.BILLING, ()))
        self.journal.all_state_again()
        self.cloud = welcome.cloud
        self.welcomed = True
        self._mark = self.journal.position
        self._stepped_at = self._series_at = now
        self._tokens = 1.0
        return [], welcome

    def _acknowledged(self, ack: Ack, now: float) -> list[Send]:
        if ack.outbox != self.journal.outbox:
            return []
        self.journal.settle(ack.stream, ack.ranges)
        for stream, seq in list(self._in_flight):
            if stream is ack.stream and any(first <= seq <= last for first, last in ack.ranges):
                del self._in_flight[stream, seq]
        if self.welcomed and ack.cloud != self.cloud:
            return [self.greet(now)]  # it started anew, perhaps from a backup
        return []

    # ------------------------------------------------------------------ sending

    def step(self, now: float) -> list[Send]:
        """All that may go out now; raises LinkSilentError when the welcome is overdue."""
        if not self.welcomed:
            if now - self._greeted_at > self.pace.welcome_s:
                raise LinkSilentError(
                    f"the cloud has not answered the hello for {self.pace.welcome_s:g} s"
                )
            return []
        passed, self._stepped_at = now - self._stepped_at, now
        self._tokens = min(
            self._tokens + passed * self.pace.backlog_per_s, float(self.pace.backlog_window)
        )
        return [
            *self._overdue(now),
            *self._state(now),
            *self._live_billing(now),
            *self._live_series(now),
            *self._backlog(now),
        ]

    def _overdue(self, now: float) -> list[Send]:
        again = [f for f in self._in_flight.values() if now - f.at >= self.pace.ack_s]
        for flight in again:
            flight.at = now
        return [flight.send for flight in again]

    def _state(self, now: float) -> list[Send]:
        changed = self.journal.state()
        if changed is None:
            return []
        for key in [key for key in self._in_flight if key[0] is Stream.STATE]:
            del self._in_flight[key]
        seq, facts = changed
        batch = StateBatch(
            outbox=self.journal.outbox,
            seq=seq,
            floor=self.journal.floor(Stream.STATE),
            sent=self.stamp(),
            facts=facts,
        )
        return [self._fly(Stream.STATE, seq, Send(Up.STATE, encode(batch)), now, backlog=False)]

    def _live_billing(self, now: float) -> list[Send]:
        room = LIVE_WINDOW - self._count(Stream.BILLING, backlog=False)
        return self._billing(now, room, self._mark, backlog=False)

    def _billing(self, now: float, room: int, after: int, *, backlog: bool) -> list[Send]:
        if room <= 0:
            return []
        busy = self._numbers(Stream.BILLING)
        sends = []
        for sealed in self.journal.billing(exclude=busy, limit=room, after=after):
            batch = BillingBatch(
                outbox=self.journal.outbox,
                seq=sealed.seq,
                floor=self.journal.floor(Stream.BILLING),
                sent=self.stamp(),
                facts=sealed.facts,
            )
            send = Send(Up.BILLING, encode(batch))
            sends.append(self._fly(Stream.BILLING, sealed.seq, send, now, backlog=backlog))
        return sends

    def _live_series(self, now: float) -> list[Send]:
        due = now - self._series_at >= self.pace.telemetry_every_s
        if not due or self._count(Stream.TELEMETRY, backlog=False) >= SERIES_WINDOW:
            return []
        self._series_at = now
        sealed = self.journal.seal(live=True, max_samples=LIVE_SAMPLES)
        return [self._series(sealed, now, backlog=False)] if sealed else []

    def _series(self, sealed: SealedSeries, now: float, *, backlog: bool) -> Send:
        batch = TelemetryBatch(
            outbox=self.journal.outbox,
            seq=sealed.seq,
            floor=self.journal.floor(Stream.TELEMETRY),
            sent=self.stamp(),
            series=sealed.series,
        )
        send = Send(Up.TELEMETRY, encode(batch))
        return self._fly(Stream.TELEMETRY, sealed.seq, send, now, backlog=backlog)

    def _backlog(self, now: float) -> list[Send]:
        room = min(
            int(self._tokens),
            self.pace.backlog_window - sum(f.backlog for f in self._in_flight.values()),
        )
        sends = self._billing(now, room, 0, backlog=True)
        if len(sends) < room:
            sends += self._old_series(now, room - len(sends))
        self._tokens -= len(sends)
        return sends

    def _old_series(self, now: float, room: int) -> list[Send]:
        room = min(room, SERIES_WINDOW - self._count(Stream.TELEMETRY, backlog=True))
        if room <= 0:
            return []
        busy = self._numbers(Stream.TELEMETRY)
        found = self.journal.telemetry(exclude=busy, limit=room)
        while len(found) < room:
            sealed = self.journal.seal(live=False, max_samples=BACKLOG_SAMPLES)
            if sealed is None:
                break
            found.append(sealed)
        return [self._series(sealed, now, backlog=True) for sealed in found]

    # ------------------------------------------------------------------ in flight

    def _fly(self, stream: Stream, seq: int, send: Send, now: float, *, backlog: bool) -> Send:
        self._in_flight[stream, seq] = _InFlight(send, now, backlog)
        return send

    def _numbers(self, stream: Stream) -> set[int]:
        return {seq for other, seq in self._in_flight if other is stream}

    def _count(self, stream: Stream, *, backlog: bool) -> int:
        return sum(
            key[0] is stream and flight.backlog is backlog
            for key, flight in self._in_flight.items()
        )

    def delay(self, now: float) -> float:
        """Seconds until `step` has something to do by time alone (an answer may come sooner)."""
        if not self.welcomed:
            return max(0.0, self._greeted_at + self.pace.welcome_s - now) + 0.01
        due = [flight.at + self.pace.ack_s for flight in self._in_flight.values()]
        due.append(self._series_at + self.pace.telemetry_every_s)
        soonest = max(0.0, min(due) - now)
        if self._tokens < 1.0:
            soonest = min(soonest, (1.0 - self._tokens) / self.pace.backlog_per_s)
        return min(soonest + 0.005, 1.0)
