"""Which transaction a message of an OCPP station belongs to: pure rules.

2.x names its transactions. 1.6 names none when it starts one, is given a number, and may stop one
by a number that it never got, or that is none of its own (quirks S1, S2, S4, S5). `Sessions` holds
the transactions that a commit's messages may be about, and takes the messages one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from cloud.kernel.database import TenantId
from cloud.stations.api import Dated, to_ms
from cloud.transactions.native import (
    STOP_SEQ,
    NativeEvent,
    fingerprint,
    identified,
    stop_fingerprint,
    transaction_id,
)
from protocols.agent_link import TransactionEventType
from protocols.ocpp.messages import Meter, Status, Transaction
from protocols.quantities import Milliseconds, WattHours

OCPP_16: Final = "ocpp1.6"
OCPP_2: Final = "ocpp2.x"
SUPERSEDED: Final = "superseded"
_AROUND: Final = timedelta(minutes=1)
"""How far messages of one session may be dated out of its bounds."""
_MATCHED_WITHIN: Final = timedelta(days=8)
_MS: Final = timedelta(milliseconds=1)


@dataclass(slots=True)
class Session:
    """What routing has to know of a transaction; it goes on while messages are taken."""

    id: UUID
    tenant: TenantId
    station: int
    origin: str
    key: str
    incarnation: int
    number: int | None
    evse: int
    connector: int
    started_at: datetime
    ended_at: datetime | None
    concluded: bool
    start_seen: bool
    start_wh: int | None
    meter_wh: int
    seq_no: int
    last_at: datetime
    token: int | None
    new: bool = False

    def passed(self, seq_no: int, at: datetime) -> None:
        """An event of that number and time is one of it now."""
        self.seq_no, self.last_at = max(self.seq_no, seq_no), max(self.last_at, at)

    def covers(self, at: datetime) -> bool:
        return self.started_at - _AROUND <= at and (
            self.ended_at is None or at <= self.ended_at + _AROUND
        )


class Routed(NamedTuple):
    """An event with the transaction that it is one of."""

    session: Session
    event: NativeEvent
    at: Dated
    started: Dated
    token: int | None
    fact: bytes


class Told(NamedTuple):
    """A message with what must be known beside it."""

    station: int
    tenant: TenantId
    at: Dated
    """When it happened; of metered values, the newest."""
    begin: Dated | None
    """When the register was read that it tells of the beginning, if it does."""
    content: NativeEvent
    token: int | None = None


class Stranger(Exception):  # nobody's fault
    """No transaction of this station is meant."""


class Sessions:
    """The transactions that messages may be about, and those that the messages begin."""

    def __init__(self, held: Iterable[Session], numbers: Iterator[int]) -> None:
        """`numbers` are free numbers, for transactions of 1.6 that begin."""
        self._keys: dict[tuple[int, str], list[Session]] = {}
        self._numbers: dict[tuple[int, int], Session] = {}
        self._stations: dict[int, list[Session]] = {}
        self._free = numbers
        for session in held:
            self._add(session)

    def _add(self, session: Session) -> None:
        same = self._keys.setdefault((session.station, session.key), [])
        same.append(session)
        same.sort(key=lambda one: one.incarnation)
        if session.number is not None:
            self._numbers[session.station, session.number] = session
        self._stations.setdefault(session.station, []).append(session)

    # ------------------------------------------------------------------ transactions

    def transaction(self, told: Told, message: Transaction, *, foreign: bool) -> list[Routed]:
        """The event with its transaction, and the end of another one that it makes certain.

        `foreign`: its number is another station's. Raises Stranger then, unless it shows the token
        of a transaction that this station has: it counts by itself (S1).
        """
        if message.key is not None:
            session = self._named(told, message)
        elif message.event is TransactionEventType.STARTED:
            session = self._begun(told, message)
        else:
            session = self._numbered(told, message, foreign=foreign)
        begun = session.new and session.start_seen is False
        routed = [self._took(session, told)]
        if begun and message.event is TransactionEventType.STARTED:
            routed += self._superseded(session, told)
        return routed

    def _took(self, session: Session, told: Told) -> Routed:
        content = told.content
        event, fact = identified(session.id, content)
        session.passed(event.seq_no, told.at.at)
        session.evse = session.evse or content.evse
        if content.register_wh is not None:
            session.meter_wh = max(session.meter_wh, content.register_wh)
        if content.type is TransactionEventType.STARTED:
            session.start_seen = True
            session.started_at = told.at.at
            session.start_wh = content.begin_wh
            session.token = told.token
        elif content.type is TransactionEventType.ENDED and (
            session.ended_at is None or session.concluded
        ):
            session.ended_at, session.concluded = told.at.at, False
        return Routed(session, event, told.at, told.begin or told.at, told.token, fact)

    def _named(self, told: Told, message: Transaction) -> Session:
        """2.x: by its transactionId; one that is used again after its end is another one."""
        key = message.key or ""
        same = self._keys.get((told.station, key), [])
        if not same:
            return self._open(told, OCPP_2, key)
        last = same[-1]
        if message.event is TransactionEventType.STARTED and _begins_anew(last, told):
            return self._open(told, OCPP_2, key, incarnation=last.incarnation + 1)
        older = [one for one in same if one.started_at - _AROUND <= told.at.at]
        return older[-1] if older else same[0]

    def _begun(self, told: Told, message: Transaction) -> Session:
        """1.6's start: known by what it says, or the beginning of what was known by its stop."""
        key = fingerprint(message)
        same = self._keys.get((told.station, key))
        if same:
            return same[0]
        for session in self._stations.get(told.station, []):
            if _was_stopped(session, told):
                session.key, session.number = key, next(self._free)
                self._add_names(session)
                return session
        return self._open(told, OCPP_16, key, number=next(self._free))

    def _add_names(self, session: Session) -> None:
        self._keys[session.station, session.key] = [session]
        if session.number is not None:
            self._numbers[session.station, session.number] = session

    def _numbered(self, told: Told, message: Transaction, *, foreign: bool) -> Session:
        """1.6's stop: by its number, or by what it says when the number is none of ours."""
        number = message.number or 0
        session = self._numbers.get((told.station, number))
        if session is not None:
            # a station that counts by itself may come to a number that it was given once
            return (long_over(session, told) and self._stopped(told, strict=True)) or session
        if foreign:
            own = self._stopped(told, strict=True)
            if own is None:
                raise Stranger
            return own
        key = stop_fingerprint(message)
        same = self._keys.get((told.station, key))
        if same:
            return same[0]
        meant = self._stopped(told, strict=number > 0)
        return meant or self._open(told, OCPP_16, key)

    def _stopped(self, told: Told, *, strict: bool) -> Session | None:
        """The transaction that a stop without a number of ours most likely ends.

        A stop with a number of another system's must show the token of what it ends.
        """
        candidates = sorted(
            (
                one
                for one in self._stations.get(told.station, [])
                if one.origin == OCPP_16
                and one.started_at - _AROUND <= told.at.at
                and told.at.at - one.started_at <= _MATCHED_WITHIN
                and told.content.evse in {0, one.evse}
                and (told.token == one.token or (told.token is None and not strict))
                and _register_fits(one, told.content)
                and (one.ended_at is None or one.concluded or _ended_so(one, told))
            ),
            key=lambda one: (one.ended_at is None, one.started_at),
        )
        return candidates[-1] if candidates else None

    def _open(  # a session is made of these
        self,
        told: Told,
        origin: str,
        key: str,
        *,
        incarnation: int = 1,
        number: int | None = None,
    ) -> Session:
        content = told.content
        session = Session(
            id=transaction_id(told.station, key, incarnation),
            tenant=told.tenant,
            station=told.station,
            origin=origin,
            key=key,
            incarnation=incarnation,
            number=number,
            evse=content.evse,
            connector=content.connector,
            started_at=(told.begin or told.at).at,
            ended_at=None,
            concluded=False,
            start_seen=False,
            start_wh=content.begin_wh,
            meter_wh=0,
            seq_no=content.seq_no,
            last_at=told.at.at,
            token=told.token,
            new=True,
        )
        self._add(session)
        return session

    def _superseded(self, begun: Session, told: Told) -> Iterator[Routed]:
        """An EVSE has one transaction: where another begins, the one before is over (S5)."""
        for one in self._stations.get(told.station, []):
            if (
                one is begun
                or one.ended_at is not None
                or not begun.evse
                or one.evse != begun.evse
                or one.started_at > told.at.at
            ):
                continue
            one.ended_at, one.concluded = told.at.at, True
            content = conclusion(SUPERSEDED, told.at.at, told.content.begin_wh, final=True)
            end, fact = identified(one.id, content)
            yield Routed(one, end, told.at, told.at, None, fact)

    # ------------------------------------------------------------------ beside the numbered ones

    def meter(self, told: Told, message: Meter) -> Routed | None:
        """Metered values with the transaction that they belong to; None: with none (S3)."""
        content, session = told.content, None
        if message.number is not None:
            session = self._numbers.get((told.station, message.number))
        if message.evse > 0 and (session is None or long_over(session, told)):
            session = self._covering(told, message) or session
        if session is None:
            return None
        number = session.seq_no if session.origin != OCPP_16 else _by_time(session, told.at.at)
        session.passed(number, told.at.at)
        if content.register_wh is not None:
            session.meter_wh = max(session.meter_wh, content.register_wh)
        event, fact = identified(session.id, content, number)
        return Routed(session, event, told.at, told.begin or told.at, None, fact)

    def status(self, told: Told, message: Status) -> Routed | None:
        """How 1.6's connector stands with its open transaction; None: it has none.

        Clocks are read to the second: of several with one time, the one that came last stands last.
        """
        open_ = [
            one
            for one in self._stations.get(told.station, [])
            if one.origin == OCPP_16
            and one.evse == message.evse
            and one.ended_at is None
            and one.covers(told.at.at)
        ]
        if not open_:
            return None
        session = max(open_, key=lambda one: one.started_at)
        number = _by_time(session, told.at.at)
        if told.at.at >= session.last_at:
            number = max(number, session.seq_no + 1)
        session.passed(number, told.at.at)
        event, fact = identified(session.id, told.content, number)
        return Routed(session, event, told.at, told.at, None, fact)

    def _covering(self, told: Told, message: Meter) -> Session | None:
        at = told.at.at
        around = [
            one
            for one in self._stations.get(told.station, [])
            if one.evse == message.evse and one.covers(at)
        ]
        return max(around, key=lambda one: (one.started_at <= at, one.started_at), default=None)


def _by_time(session: Session, at: datetime) -> int:
    """The number of what 1.6 tells between start and stop."""
    return min(max(1, 1 + (at - session.started_at) // _MS), STOP_SEQ - 2)


def conclusion(
    reason: str, at: datetime, register_wh: int | None = None, *, final: bool = False
) -> NativeEvent:
    """An end that we hold to be so."""
    return NativeEvent(
        type=TransactionEventType.ENDED,
        seq_no=STOP_SEQ,
        at_ms=Milliseconds(to_ms(at)),
        trigger="AbnormalCondition",
        register_wh=None if register_wh is None else WattHours(register_wh),
        reason=reason,
        concluded=True,
        final=final,
    )


def long_over(session: Session, told: Told) -> bool:
    """Whether the station itself ended it well before this: it cannot mean this one."""
    return (
        session.ended_at is not None
        and not session.concluded
        and told.at.quality.trusted
        and told.at.at > session.ended_at + _AROUND
    )


def _begins_anew(last: Session, told: Told) -> bool:
    """Whether a start is another one than that of the session that had its key before.

    With a clock that is not trusted it is a repeat unless the register says otherwise.
    """
    if last.ended_at is None or not last.start_seen or told.at.at <= last.ended_at + _AROUND:
        return False
    return told.at.quality.trusted or told.content.begin_wh not in {None, last.start_wh}


def _was_stopped(session: Session, told: Told) -> bool:
    """Whether this start is that of a transaction of which only the stop is known (S1)."""
    start = told.content
    return (
        not session.start_seen
        and session.origin == OCPP_16
        and session.number is None
        and session.ended_at is not None
        and told.at.at <= session.ended_at + _AROUND
        and session.ended_at - told.at.at <= _MATCHED_WITHIN
        and session.evse in {0, start.evse}
        and session.token in {None, told.token}
        and (start.begin_wh is None or start.begin_wh <= session.meter_wh)
    )


def _register_fits(session: Session, stop: NativeEvent) -> bool:
    if stop.register_wh is None or session.start_wh is None:
        return True
    return stop.register_wh >= session.start_wh


def _ended_so(session: Session, told: Told) -> bool:
    """Whether it ended with just this stop, which is a repeat then."""
    stop = told.content
    same_register = stop.register_wh is None or stop.register_wh == session.meter_wh
    return same_register and (session.ended_at == told.at.at or not told.at.quality.trusted)
