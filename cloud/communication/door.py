"""The door: asks the database and the rules who may connect over OCPP, and notes what was shown.

A gateway calls `admit` for each upgrade request, and lets `watch` tell it whom to cut off because
something was changed under his connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from cloud.communication import security_store as store
from cloud.communication.admission import (
    Admit,
    Check,
    Policy,
    Profile,
    Proof,
    Reason,
    Refuse,
    Request,
    Session,
    Standing,
    StationFacts,
    decide,
    entered,
    overdue,
)
from cloud.communication.api import Resident, StationRegister
from cloud.communication.passwords import Match, Passwords
from cloud.communication.security_store import AtTheDoor, OcppStation
from cloud.communication.throttle import Guesses, Handshakes, network_of, retry_after
from cloud.kernel import events
from cloud.kernel.database import Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.gathering import Gathering
from cloud.kernel.limiter import Limiter

logger = logging.getLogger(__name__)

EVEN_S: Final = 0.3
"""When a refusal goes out, whatever it took to find: time does not tell who is known."""
SWEEP_S: Final = 60.0
"""How often every connection is looked at, should a notification have been lost."""
ONE_REPORT: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class _Known:
    """What the database says of an identity."""

    resident: Resident | None = None
    kept: OcppStation | None = None
    other: AtTheDoor | None = None

    def facts(self) -> StationFacts | None:
        if self.resident is None or self.kept is None or self.other is None:
            return None
        wished = self.kept.pending_profile
        return StationFacts(
            self.resident.id,
            self.resident.tenant_id,
            waiting=self.resident.standing == "pending",
            profile=Profile(self.kept.security_profile),
            pending_profile=None if wished is None else Profile(wished),
            has_password=self.kept.password is not None,
            has_agent=self.other.has_agent,
            allow_no_subprotocol=self.kept.allow_no_subprotocol,
            certificate_revoked=self.other.certificate_revoked,
        )


_Shown = tuple[str, str | None]
"""An identity, and the fingerprint of the certificate that it came with."""


class Door:
    """One per gateway process."""

    def __init__(
        self,
        database: Database,
        register: StationRegister,
        policy: Policy,
        clock: Callable[[], datetime],
        *,
        passwords: Passwords | None = None,
        handshakes: Handshakes | None = None,
        guesses: Guesses | None = None,
        even_s: float = EVEN_S,
    ) -> None:
        self._database = database
        self._register = register
        self._policy = policy
        self._clock = clock
        self._passwords = passwords or Passwords()
        self._handshakes = handshakes or Handshakes()
        self._guesses = guesses or Guesses()
        self._even_s = even_s
        self._reports = Limiter(1, ONE_REPORT)
        self._looking_up = Gathering[_Shown, _Known](self._known)
        self._taking_in = Gathering[tuple[str, str], Resident](self._enter)

    def close(self) -> None:
        """Let the hashing threads go."""
        self._passwords.close()

    async def admit(self, request: Request) -> Admit | Refuse:
        """What to answer an upgrade request; never raises for what the other side has sent."""
        loop = asyncio.get_running_loop()
        who, source = request.identity or "", network_of(request.source)
        busy = self._handshakes.enter(source, who or request.source, self._clock())
        if busy is not None:
            return busy
        begun = loop.time()
        try:
            answer = await self._judge(request)
            if isinstance(answer, Refuse) and answer.status != 503:
                await asyncio.sleep(max(0.0, begun + self._even_s - loop.time()))
        except Unavailable as error:
            logger.warning("a station waits at the door: %s", error)
            return Refuse(503, Reason.UNAVAILABLE, retry_after(who))
        else:
            return answer
        finally:
            self._handshakes.leave(source)

    async def _judge(self, request: Request) -> Admit | Refuse:
        known = await self._look_up(request)
        station = known.facts()
        if station is None and not self._may_be_unknown(request):
            return self._too_often(request, Reason.TOO_MANY_STRANGERS)
        answer = decide(request, station, self._policy, self._clock())
        match = None
        if isinstance(answer, Check):
            assert known.kept is not None
            found = await self._verify(request, answer.password, known.kept.passwords())
            if isinstance(found, Refuse):
                answer = found
            else:
                match = found
                proof = Proof.WRONG if match is None else Proof.RIGHT
                answer = decide(request, station, self._policy, self._clock(), proof)
        assert not isinstance(answer, Check)
        if isinstance(answer, Admit):
            answer = await self._let_in(request, answer, known, match)
        if isinstance(answer, Refuse):
            await self._report(request, station, answer)
        return answer

    def _may_be_unknown(self, request: Request) -> bool:
        """Where everybody is let in, strangers find nothing out."""
        if self._policy.registration == "open":
            return True
        return self._guesses.may_be_unknown(request.source, self._clock())

    async def _look_up(self, request: Request) -> _Known:
        if request.identity is None:
            return _Known()
        shown = request.certificate.fingerprint if request.certificate else None
        return await self._looking_up.ask((request.identity, shown)) or _Known()

    async def _known(self, asked: Sequence[_Shown]) -> dict[_Shown, _Known]:
        """What is known of each identity, and of the certificate it came with."""
        async with self._database.glance() as cursor:
            residents = await self._register.residents(cursor, {one[0] for one in asked})
            ids = [resident.id for resident in residents.values()]
            kept = await store.ocpp_stations(cursor, ids)
            agents = await store.with_agents(cursor, ids)
            prints = {shown for _, shown in asked if shown is not None}
            revoked = await store.revoked_of(cursor, prints) if prints else set()
        return {
            (identity, shown): _Known(
                resident,
                kept.get(resident.id, OcppStation(resident.id)),
                AtTheDoor(resident.id in agents, shown in revoked),
            )
            for identity, shown in asked
            if (resident := residents.get(identity)) is not None
        }

    async def _verify(
        self, request: Request, password: bytes, stored: Collection[str]
    ) -> Match | Refuse | None:
        """A password that is right at once is never held up by somebody else's guesses."""
        identity, kept = request.identity or "", list(stored)
        match = self._passwords.at_once(password, kept)
        if match is not None:
            return match
        if not self._guesses.may_guess(identity, request.source, self._clock()):
            return self._too_often(request, Reason.TOO_MANY_GUESSES)
        match = await self._passwords.verify(password, kept)
        if match is not None:
            self._guesses.right(identity, request.source)
        return match

    def _too_often(self, request: Request, reason: Reason) -> Refuse:
        return Refuse(429, reason, 30 + retry_after(request.identity or ""))

    # ------------------------------------------------------------------ what was shown

    async def _let_in(
        self, request: Request, answer: Admit, known: _Known, match: Match | None
    ) -> Admit | Refuse:
        if answer.station is None:
            return await self._take_in(request, answer)
        await self._note(answer, known, match)
        if answer.profile is Profile.OPEN and self._may_report(f"{answer.identity} open"):
            logger.warning("station %r connects without any credentials", answer.identity)
        return answer

    async def _take_in(self, request: Request, answer: Admit) -> Admit | Refuse:
        resident = await self._taking_in.ask((answer.identity, request.source))
        if resident is None:
            return Refuse(503, Reason.PENDING_FULL, 60 + retry_after(answer.identity))
        logger.warning(
            "a station that nobody announced calls itself %r from %s: %s",
            answer.identity,
            request.source,
            answer.standing,
        )
        return entered(answer, resident.id, resident.tenant_id)

    async def _enter(self, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Resident]:
        """Strangers, each with the address it came from."""
        async with self._database.commit_unit() as cursor:
            made = await self._register.enter_unannounced(cursor, {one[0] for one in asked})
            entered_ = {one: made[one[0]] for one in asked if one[0] in made}
            await events.append(
                cursor,
                [
                    _event(resident, identity, "ocpp.stranger_admitted",
                           {"source": source, "standing": resident.standing})
                    for (identity, source), resident in entered_.items()
                ],
            )  # fmt: skip
        return entered_

    async def _note(self, answer: Admit, known: _Known, match: Match | None) -> None:
        """Write down what this connection has shown, if it is new."""
        resident, kept = known.resident, known.kept
        assert resident is not None
        assert kept is not None
        settles = match is not None and match.place == 0 and kept.previous_password is not None
        form = match.form if match is not None and match.form != kept.key_form else None
        if not (settles or form or answer.raise_to):
            return
        happened = []
        async with self._database.commit_unit() as cursor:
            if form:
                await store.note_form(cursor, resident.id, form)
            if (
                settles
                and kept.password is not None
                and await store.settle_password(cursor, resident.id, kept.password)
            ):
                happened.append(_event(resident, answer.identity, "ocpp.password_in_use", {}))
            if answer.raise_to is not None and await store.raise_profile(
                cursor, resident.id, answer.raise_to, self._clock()
            ):
                data = {"from": kept.security_profile, "to": int(answer.raise_to)}
                happened.append(_event(resident, answer.identity, "ocpp.profile_raised", data))
            await events.append(cursor, happened)

    async def _report(
        self, request: Request, station: StationFacts | None, refused: Refuse
    ) -> None:
        """An event for a station of ours, a line for the rest; once a minute, however often."""
        who = request.identity if station is not None else network_of(request.source)
        if not self._may_report(f"{who} {refused.reason}"):
            return
        logger.warning(
            "refused %r from %s: %s %s",
            request.identity,
            request.source,
            refused.status,
            refused.reason,
        )
        if station is None:
            return
        data = {"reason": str(refused.reason), "source": request.source, "status": refused.status}
        tenant = TenantId(station.tenant_id)
        event = Event(tenant, "ocpp.refused", station.id, request.identity or "", data)
        async with self._database.commit_unit() as cursor:
            await events.append(cursor, [event])

    def _may_report(self, what: str) -> bool:
        return self._reports.allow(what, self._clock())

    # ------------------------------------------------------------------ while it lasts

    async def standing(self, session: Session) -> Standing | None:
        """How a BootNotification is to be answered now; None: cut it off."""
        async with self._database.glance() as cursor:
            found = (await self._register.residents(cursor, [session.identity])).get(
                session.identity
            )
        if found is None or found.id != session.station_id:
            return None
        return Standing.PENDING if found.standing == "pending" else Standing.ACCEPTED

    async def overdue(self, sessions: Collection[Session]) -> list[tuple[Session, Reason]]:
        """Those that would not be let in any more as they are, and why."""
        async with self._database.glance() as cursor:
            residents = await self._register.residents(cursor, {one.identity for one in sessions})
            kept = await store.ocpp_stations(cursor, {one.station_id for one in sessions})
            shown = {one.certificate.fingerprint for one in sessions if one.certificate}
            revoked = await store.revoked_of(cursor, shown) if shown else set()
        found = []
        for session in sessions:
            resident = residents.get(session.identity)
            known = _Known(
                resident,
                None if resident is None else kept.get(resident.id, OcppStation(resident.id)),
                AtTheDoor(
                    has_agent=False,
                    certificate_revoked=session.certificate is not None
                    and session.certificate.fingerprint in revoked,
                ),
            )
            reason = overdue(session, known.facts(), self._policy)
            if reason is not None:
                found.append((session, reason))
        return found

    async def watch(
        self,
        sessions: Callable[[], Collection[Session]],
        cut: Callable[[Session, Reason], Awaitable[None]],
    ) -> None:
        """For ever: cut off who may not stay, within seconds of the change that says so."""
        changes = _Changes()
        listening = asyncio.create_task(self._listen(changes), name="listen at the door")
        try:
            while True:
                concerned = await changes.take()
                judged = [one for one in sessions() if concerned(one)]
                try:
                    for session, reason in await self.overdue(judged) if judged else []:
                        logger.warning("cut off %r: %s", session.identity, reason)
                        await cut(session, reason)
                except Unavailable as error:
                    changes.everybody = True
                    logger.warning("connections could not be looked at: %s", error)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, changes: _Changes) -> None:
        while True:
            try:
                async with self._database.listener() as connection:
                    for channel in (store.STATION_CHANNEL, store.CERTIFICATE_CHANNEL):
                        await connection.execute(f"LISTEN {channel}")
                    changes.everybody = True
                    changes.wake.set()
                    async for notice in connection.notifies():
                        changes.stations.add(int(notice.payload))
                        changes.wake.set()
            except psycopg.Error:
                await asyncio.sleep(1)


@dataclass
class _Changes:
    """Whose connections have to be looked at."""

    stations: set[int] = field(default_factory=set)
    everybody: bool = False
    """Notifications may have been lost."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self) -> Callable[[Session], bool]:
        """Wait for the next change, or for the next sweep; whether it concerns a session."""
        try:
            async with asyncio.timeout(SWEEP_S):
                await self.wake.wait()
        except TimeoutError:
            self.everybody = True
        self.wake.clear()
        everybody, stations = self.everybody, self.stations
        self.everybody, self.stations = False, set()
        return lambda session: everybody or session.station_id in stations


def _event(resident: Resident, identity: str, kind: str, data: dict[str, Any]) -> Event:
    return Event(resident.tenant_id, kind, resident.id, identity, data)


def session_of(admitted: Admit, request: Request) -> Session:
    """What a gateway keeps of a connection for `watch`."""
    assert admitted.station is not None
    return Session(admitted.identity, admitted.station.id, admitted.profile, request.certificate)
