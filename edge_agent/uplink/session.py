"""The agent's side of the agent link without any I/O: what to send, when, and when to forget.

`handle(event, now)` takes what happened and the monotonic time in milliseconds, and returns what
to do. A connection starts with a hello; nothing else leaves before the cloud's welcome. Live data
goes first; the backlog follows as the line and the cloud keep up with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from edge_agent.journal.billing import SealedFacts
from edge_agent.journal.telemetry import SealedSeries
from edge_agent.records import LocalList, Transaction
from edge_agent.uplink.link import Connected, Disconnected, LinkChanged, LinkState, Tick
from edge_agent.uplink.pace import Pace
from protocols.agent_link import (
    LEAST_WATCH_EVERY_MS,
    MOST_WATCH_MS,
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
    UnknownCommand,
    Up,
    Verdict,
    Watch,
    Welcome,
    decode_down,
    encode,
)

log = logging.getLogger(__name__)
TRIES: Final = 3
"""So many sendings without an ack, and the agent greets again instead of sending on."""
MOST_BACKOFF: Final = 8
REFILL: Final = 3
"""The backlog in flight is filled up when it is down to so many parts of four: each filling is one
commit to the storage card, whatever it takes."""
LIVE_TELEMETRY: Final = 4
"""Unacknowledged live batches; what comes then waits on disk as backlog."""
NO_CLOUD: Final = "the broker is there, but the cloud does not answer; sending waits for it"


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What the agent says of itself, and its intervals (milliseconds)."""

    station: str
    agent_version: str
    evses: Callable[[], tuple[EvseDescription, ...]] = tuple
    """Asked at each hello: a board tells more of itself once it has answered."""
    in_flight: int = 64
    """Unacknowledged batches of the backlog at most; as many live ones may be out beside."""
    per_second: int = 500
    """Batches of the backlog."""
    welcome_ms: int = 10_000
    resend_ms: int = 10_000
    telemetry_ms: int = 60_000
    """How often live samples leave, all that there are in one batch."""
    state_ms: int = 500
    max_samples: int = 1200


# --------------------------------------------------------------------------- events and actions


@dataclass(frozen=True)
class Arrived:
    channel: Down
    payload: bytes


@dataclass(frozen=True)
class Watched:
    """Somebody looks at the station: live samples leave more often for a while."""

    watch: Watch


Event = Connected | Disconnected | Arrived | Tick | Watched


@dataclass(frozen=True)
class Send:
    channel: Up
    payload: bytes


@dataclass(frozen=True)
class Welcomed:
    welcome: Welcome


@dataclass(frozen=True)
class Commanded:
    command: Command | UnknownCommand


Action = Send | Welcomed | Commanded | LinkChanged


class Outbox(Protocol):
    """What the session needs of the journal."""

    @property
    def outbox(self) -> UUID: ...
    @property
    def boots(self) -> tuple[UUID, ...]: ...
    @property
    def position(self) -> int: ...
    @property
    def buffered(self) -> int: ...
    @property
    def backlog(self) -> int: ...
    def marks(self) -> dict[Stream, Mark]: ...
    def floor(self, stream: Stream) -> int: ...
    def transactions(self) -> list[Transaction]: ...
    def local_list(self) -> LocalList: ...
    def new_outbox(self) -> UUID: ...
    def settle(self, stream: Stream, ranges: Ranges) -> None: ...
    def reopen(self, committed: Ranges) -> int: ...
    def all_state_again(self) -> None: ...
    def state(self) -> tuple[int, tuple[StateFact, ...]] | None: ...
    def billing(
        self, *, exclude: Collection[int] = (), limit: int, after: int = 0
    ) -> list[SealedFacts]: ...
    def telemetry(self, *, exclude: Collection[int] = (), limit: int) -> list[SealedSeries]: ...
    def seal(self, *, live: bool, max_samples: int) -> SealedSeries | None: ...


@dataclass
class _Flight:
    """A batch that is out: the same bytes go again until it is acknowledged."""

    payload: bytes
    first_at: int
    sent_at: int
    live: bool
    tries: int = 1


class Session:
    """One agent's dialogue with the cloud, over any number of connections."""

    def __init__(
        self, settings: SessionSettings, outbox: Outbox, stamp: Callable[[], Stamp]
    ) -> None:
        self.settings = settings
        self.cloud: UUID | None = None
        """Of the welcome that holds; None while there is none."""
        self.thinned: int | None = 1
        """Live telemetry leaves so many times as seldom; None: no telemetry leaves at all."""
        self._outbox = outbox
        self._stamp = stamp
        self._connected = False
        self._link = LinkState()
        self._greeted_at = 0
        self._greetings = 0
        self._renewed = False
        self._live_from = 0
        self._state_at = self._telemetry_at = self._backlog_at = 0
        self._watch_ms = self._watched_until = 0
        self._flights: dict[tuple[Stream, int], _Flight] = {}
        self._pace = Pace(settings.in_flight, settings.per_second)

    def handle(self, event: Event, now: int) -> list[Action]:
        """What to do about an event at monotonic time `now`, in order.

        Raises JournalError when the journal cannot be read or written; the same may be tried
        again with a later Tick.
        """
        if isinstance(event, Connected):
            self._connected = True
            self._greetings = 0
            self._renewed = False
            self._pace.connected()
            return self._greet(now)
        if isinstance(event, Disconnected):
            self._connected = False
            self.cloud = None
            self._flights.clear()
            return [*self._link.changed(up=False, reason=event.reason)]
        if isinstance(event, Watched):
            self._watch_ms = max(event.watch.every_ms, LEAST_WATCH_EVERY_MS)
            self._watched_until = now + min(event.watch.valid_ms, MOST_WATCH_MS)
            return []
        if not self._connected:
            return []
        return self._arrived(event, now) if isinstance(event, Arrived) else self._tick(now)

    # ------------------------------------------------------------------ greeting

    def _greet(self, now: int) -> list[Action]:
        self.cloud = None
        self._flights.clear()
        self._greeted_at = now
        self._greetings += 1
        hello = Hello(
            outbox=self._outbox.outbox,
            boots=self._outbox.boots,
            sent=self._stamp(),
            marks=self._outbox.marks(),
            agent_version=self.settings.agent_version,
            evses=self.settings.evses(),
            open_transactions=tuple(one.id for one in self._outbox.transactions()),
            local_list_version=self._outbox.local_list().version,
        )
        return [Send(Up.HELLO, encode(hello))]

    def _greeting_overdue(self, now: int) -> bool:
        doublings = max(0, self._greetings - 1)
        patience = self.settings.welcome_ms * min(1 << doublings, MOST_BACKOFF)
        return now - self._greeted_at >= patience

    def _welcomed(self, welcome: Welcome, now: int) -> list[Action]:
        if self.cloud is not None or welcome.outbox != self._outbox.outbox:
            return []
        if welcome.verdict is Verdict.NEW_OUTBOX:
            return self._renew(now)
        for stream, ranges in welcome.committed.items():
            self._outbox.settle(stream, ranges)
        again = self._outbox.reopen(welcome.committed.get(Stream.BILLING, ()))
        if again:
            log.warning("the cloud lacks %d facts that it had acknowledged: sent again", again)
        self._outbox.all_state_again()
        self.cloud = welcome.cloud
        self._greetings = 0
        self._live_from = self._outbox.position
        self._state_at = self._telemetry_at = now - self.settings.telemetry_ms
        up = self._link.changed(up=True, reason="welcomed by the cloud")
        return [Welcomed(welcome), *up, *self._drain(now)]

    def _renew(self, now: int) -> list[Action]:
        """Become a new outbox, once per connection: two of them must not chase each other."""
        if self._renewed:
            return []
        self._renewed = True
        before = self._outbox.outbox
        log.warning(
            "the cloud knows outbox %s from another journal: now %s",
            before,
            self._outbox.new_outbox(),
        )
        return self._greet(now)

    # ------------------------------------------------------------------ what arrives

    def _arrived(self, event: Arrived, now: int) -> list[Action]:
        try:
            message = decode_down(event.channel, event.payload)
        except LinkError as error:
            log.warning("a %s that does not read was ignored: %s", event.channel, error)
            return []
        if isinstance(message, Welcome):
            return self._welcomed(message, now)
        if isinstance(message, Ack):
            return self._acknowledged(message, now)
        return [Commanded(message)] if isinstance(message, Command | UnknownCommand) else []

    def _acknowledged(self, ack: Ack, now: int) -> list[Action]:
        if self.cloud is None or ack.outbox != self._outbox.outbox:
            return []
        if ack.cloud != self.cloud or not ack.ranges:
            return self._greet(now)
        self._outbox.settle(ack.stream, ack.ranges)
        for key in [key for key in self._flights if _covers(ack, key)]:
            flight = self._flights.pop(key)
            if flight.tries == 1:
                self._pace.acknowledged(now - flight.first_at, now)
        return self._drain(now)

    # ------------------------------------------------------------------ what leaves

    def _tick(self, now: int) -> list[Action]:
        if self.cloud is not None:
            return self._drain(now)
        if not self._greeting_overdue(now):
            return []
        return [*self._link.changed(up=False, reason=NO_CLOUD), *self._greet(now)]

    def _drain(self, now: int) -> list[Action]:
        late = [f for f in self._flights.values() if now - f.sent_at >= self._patience(f)]
        if any(flight.tries >= TRIES for flight in late):
            return [*self._link.changed(up=False, reason=NO_CLOUD), *self._greet(now)]
        actions = self._again(now)
        actions += self._state(now)
        actions += self._billing(now, live=True, limit=self._live_room())
        actions += self._live_telemetry(now)
        actions += self._backlog(now)
        return actions

    def _patience(self, flight: _Flight) -> int:
        return self.settings.resend_ms * min(1 << (flight.tries - 1), MOST_BACKOFF)

    def _again(self, now: int) -> list[Action]:
        actions: list[Action] = []
        for (stream, _), flight in self._flights.items():
            if now - flight.sent_at >= self._patience(flight):
                flight.tries += 1
                flight.sent_at = now
                actions.append(Send(Up(stream), flight.payload))
        if actions:
            self._pace.slower(now)
        return actions

    def _fly(
        self,
        stream: Stream,
        batch: BillingBatch | StateBatch | TelemetryBatch,
        now: int,
        live: bool,
    ) -> Action:
        payload = encode(batch)
        self._flights[stream, batch.seq] = _Flight(payload, now, now, live)
        return Send(Up(stream), payload)

    def _out(self, stream: Stream) -> list[int]:
        return [seq for kind, seq in self._flights if kind is stream]

    def _live_room(self) -> int:
        out = sum(1 for flight in self._flights.values() if flight.live)
        return max(0, self.settings.in_flight - out)

    def _state(self, now: int) -> list[Action]:
        if now - self._state_at < self.settings.state_ms:
            return []
        taken = self._outbox.state()
        if taken is None:
            return []
        self._state_at = now
        for seq in self._out(Stream.STATE):
            del self._flights[Stream.STATE, seq]  # superseded: the new one has all of it
        number, facts = taken
        floor = self._outbox.floor(Stream.STATE)
        batch = StateBatch(self._outbox.outbox, number, floor, self._stamp(), facts)
        return [self._fly(Stream.STATE, batch, now, live=True)]

    def _billing(self, now: int, *, live: bool, limit: int) -> list[Action]:
        if limit <= 0:
            return []
        found = self._outbox.billing(
            exclude=self._out(Stream.BILLING), limit=limit, after=self._live_from if live else 0
        )
        if not found:
            return []
        floor, sent = self._outbox.floor(Stream.BILLING), self._stamp()
        return [
            self._fly(
                Stream.BILLING,
                BillingBatch(self._outbox.outbox, one.seq, floor, sent, one.facts),
                now,
                live,
            )
            for one in found
        ]

    def _live_telemetry(self, now: int) -> list[Action]:
        every = self._telemetry_every(now)
        due = now - self._telemetry_at >= every
        out = sum(1 for (s, _), f in self._flights.items() if s is Stream.TELEMETRY and f.live)
        if self.thinned is None or not due or not self._outbox.buffered or out >= LIVE_TELEMETRY:
            return []
        self._telemetry_at = max(self._telemetry_at + every, now - every)
        sealed = self._outbox.seal(live=True, max_samples=self.settings.max_samples)
        return self._telemetry([sealed] if sealed else [], now, live=True)

    def _telemetry_every(self, now: int) -> int:
        if now < self._watched_until and self.thinned == 1:
            return min(self._watch_ms, self.settings.telemetry_ms)
        return self.settings.telemetry_ms * (self.thinned or 1)

    def _telemetry(self, batches: Iterable[SealedSeries], now: int, *, live: bool) -> list[Action]:
        return [
            self._fly(
                Stream.TELEMETRY,
                TelemetryBatch(
                    self._outbox.outbox,
                    one.seq,
                    self._outbox.floor(Stream.TELEMETRY),
                    self._stamp(),
                    one.series,
                ),
                now,
                live,
            )
            for one in batches
        ]

    def _telemetry_backlog_due(self, now: int) -> bool:
        """While thinned, what went to disk meanwhile leaves as seldom as live telemetry does."""
        if self.thinned is None:
            return False
        if self.thinned == 1:
            return True
        due = now - self._backlog_at >= self._telemetry_every(now)
        self._backlog_at = now if due else self._backlog_at
        return due

    def _backlog(self, now: int) -> list[Action]:
        """Billing first, then telemetry from its oldest, as far as the pace allows."""
        in_flight = sum(1 for flight in self._flights.values() if not flight.live)
        room = self._pace.room(in_flight, now)
        if in_flight > room * REFILL:
            return []
        actions = self._billing(now, live=False, limit=room)
        if not self._telemetry_backlog_due(now):
            self._pace.spent(len(actions))
            return actions
        if len(actions) < room:
            sealed = self._outbox.telemetry(
                exclude=self._out(Stream.TELEMETRY), limit=room - len(actions)
            )
            actions += self._telemetry(sealed, now, live=False)
        while len(actions) < room and self._outbox.backlog:
            fresh = self._outbox.seal(live=False, max_samples=self.settings.max_samples)
            if fresh is None:
                break
            actions += self._telemetry([fresh], now, live=False)
        self._pace.spent(len(actions))
        return actions


def _covers(ack: Ack, key: tuple[Stream, int]) -> bool:
    stream, seq = key
    return stream is ack.stream and any(first <= seq <= last for first, last in ack.ranges)
