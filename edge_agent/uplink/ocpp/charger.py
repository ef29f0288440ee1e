"""The station's port on the real agent: its desk, its loop, its journal."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from edge_agent.agent import Agent
from edge_agent.journal import JournalError
from edge_agent.loop import as_sample
from edge_agent.private import write_private
from edge_agent.records import LocalList
from edge_agent.rules.actions import Operative, Reserved, StopAsked
from edge_agent.rules.authorization import Heard, Standing
from edge_agent.rules.charging_profiles import Profile, Profiles
from edge_agent.rules.reservation import Reservation
from edge_agent.rules.station import RefusedError
from edge_agent.uplink.ocpp import upload
from edge_agent.uplink.ocpp.device import DeviceModel
from edge_agent.uplink.ocpp.port import (
    CancelReservation,
    Deed,
    Done,
    LogKind,
    Outcome,
    Reserve,
    Restart,
    SetOperative,
    Start,
    Stop,
    Upload,
)
from edge_agent.uplink.ocpp.station import Transferred
from protocols.agent_link import (
    ClockQuality,
    EvseDescription,
    EvseStatus,
    IdToken,
    LocalListEntry,
    RemoteStart,
    RemoteStop,
    Sample,
    Stamp,
    StoppedReason,
    Trigger,
    escape,
)
from protocols.ocpp.sampling import iso

log = logging.getLogger(__name__)
PROFILES, TOKENS, RESERVATIONS = "ocpp_profile", "ocpp_token", "ocpp_reservation"
BOOT: Final = "ocpp_boot"
WIND_UP_S: Final = 30.0
"""So long a restart waits for transactions to end and to be told."""
MOST_SESSIONS: Final = 200
NEVER_MS: Final = 10 * 365 * 86_400_000


class AgentCharger:
    """See `edge_agent.uplink.ocpp.port.Charger`; deeds are done by `perform`."""

    def __init__(
        self,
        agent: Agent,
        station: str,
        *,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._agent = agent
        self._journal = agent.journal
        self._loop = agent.loop
        self._rules = agent.loop.station
        self.station = station
        self.version = agent.version
        self.authorize: Callable[[IdToken], Awaitable[Heard | None]]
        """Asks the backend; None where it cannot be asked. Set later, as `device` is."""
        self.device: DeviceModel
        self.renewed: Callable[[], None] = lambda: None
        """Called when the password was changed."""
        self.tell: Callable[[Transferred], None] = lambda _: None
        """How an upload goes."""
        self._password_file = password_file
        self._ca_file = ca_file
        self._restart = restart
        connectors = self._rules.connectors.values()
        self._event_ms = next((one.settings.event_ms for one in connectors), NEVER_MS)
        self._spacing_ms = 0
        self._offsets = {one.boot: one.offset_ms for one in self._journal.corrections()}
        self._profiles_to_come: dict[int, Profile] = {}
        self._restarting: asyncio.Task[None] | None = None
        self._uploading: asyncio.Task[None] | None = None
        self._recall()

    def _recall(self) -> None:
        """What a backend set in earlier lives holds on, without it."""
        now = self.now()
        self._rules.profiles = Profiles(tuple(self._journal.named(PROFILES, Profile)))
        for token in self._journal.named(TOKENS, LocalListEntry):
            heard = Heard(
                accepted=not token.blocked, why="", expires_ms=token.expires_ms, group=token.group
            )
            self._rules.authorizer.remember(token.id_token, heard)
        for kept in self._journal.named(RESERVATIONS, Reservation):
            if kept.evse in self._rules.connectors and not kept.over(now):
                self._rules.reservations[kept.evse] = kept
                connector = self._rules.connectors[kept.evse]
                connector.state = replace(connector.state, reserved=kept.holds(now))

    # ------------------------------------------------------------------ looking

    def now(self) -> Stamp:
        return self._loop.clock.now()

    def when(self, stamp: Stamp) -> int:
        if stamp.quality is not ClockQuality.UNSET:
            return stamp.wall_ms
        rules = self._loop.clock.rules
        known = rules.offset_ms if stamp.boot == rules.boot else self._offsets.get(stamp.boot)
        return stamp.wall_ms if known is None else stamp.mono_ms + known

    def evses(self) -> tuple[EvseDescription, ...]:
        return self._agent.evses()

    def statuses(self) -> Mapping[int, EvseStatus]:
        return self._loop.told

    def operative(self, evse: int) -> bool:
        return self._rules.connectors[evse].state.operative

    def latest(self, evse: int) -> Sample | None:
        connector = self._rules.connectors.get(evse)
        if connector is None:
            return None
        reading, read_at = connector.state.reading, connector.state.read_at
        if reading is None or read_at is None:
            return None
        return as_sample(reading, read_at, connector.state)

    def started(self, transaction: UUID) -> int | None:
        for connector in self._rules.connectors.values():
            running = connector.state.session
            if running is not None and running.record.id == transaction:
                return self.when(running.record.started)
        return None

    def waits(self, transaction: UUID | None) -> bool:
        return self._journal.waits(transaction)

    def reservation(self, transaction: UUID) -> int | None:
        for kept in self._rules.reservations.values():
            if transaction == (kept.transaction or self._user(kept)):
                return kept.id
        return None

    def _user(self, kept: Reservation) -> UUID | None:
        """The transaction that an EVSE was kept for, once it has begun."""
        state = self._rules.connectors[kept.evse].state
        if state.reserved:
            return None
        if state.session is not None:
            return state.session.record.id
        return state.over[-1] if state.over else None

    def local_list(self) -> LocalList:
        return self._rules.authorizer.local

    def profiles(self) -> Profiles:
        return self._rules.profiles

    # ------------------------------------------------------------------ keeping

    def set_local_list(self, local: LocalList) -> None:
        self._journal.commit(local_list=local)
        self._rules.authorizer = self._rules.authorizer.with_list(local)

    def clear_cache(self) -> None:
        cached = self._rules.authorizer.cached
        self._journal.keep(TOKENS, {_name(one.id_token): None for one in cached})
        self._rules.authorizer.forget_cache()

    def remember(self, token: IdToken, heard: Heard) -> None:
        before = {_name(one.id_token): one for one in self._rules.authorizer.cached}
        self._rules.authorizer.remember(token, heard)
        after = {_name(one.id_token): one for one in self._rules.authorizer.cached}
        changed = {name: one for name, one in after.items() if before.get(name) != one}
        gone = dict.fromkeys(before.keys() - after.keys())
        if changed or gone:
            self._journal.keep(TOKENS, {**changed, **gone})

    def set_profiles(self, profiles: Profiles) -> None:
        before = {str(one.id): one for one in self._rules.profiles.held}
        after = {str(one.id): one for one in profiles.held}
        changed = {name: one for name, one in after.items() if before.get(name) != one}
        gone = dict.fromkeys(before.keys() - after.keys())
        self._journal.keep(PROFILES, {**changed, **gone})
        self._rules.profiles = profiles

    def configured(self, component: str, variable: str, value: str) -> None:
        match component, variable:
            case "TxCtrlr", "EVConnectionTimeOut":
                self._set_connectors(connection_timeout_ms=int(value) * 1000)
            case "SampledDataCtrlr", "TxUpdatedInterval":
                self._event_ms = int(value) * 1000 or NEVER_MS
                self._space_events()
            case "AuthCtrlr", "OfflineTxForUnknownIdEnabled":
                policy = replace(self._rules.authorizer.policy, allow_unknown=value == "true")
                self._rules.authorizer.policy = policy
            case "SecurityCtrlr", "BasicAuthPassword":
                self._set_password(value)

    def thin(self, spacing_ms: int) -> None:
        """Periodic events of transactions come no closer together than this; 0: as configured.

        They are made more seldom, not left out: 2.x numbers a transaction's events, and a number
        that is missing looks like a loss. Beginning, changes and end are events all the same.
        """
        if spacing_ms != self._spacing_ms:
            self._spacing_ms = spacing_ms
            self._space_events()

    def _space_events(self) -> None:
        self._set_connectors(event_ms=max(self._event_ms, self._spacing_ms))

    def _set_connectors(self, **settings: int) -> None:
        for connector in self._rules.connectors.values():
            connector.settings = replace(connector.settings, **settings)  # type: ignore[arg-type]  # numbers all

    def _set_password(self, value: str) -> None:
        if self._password_file is None:
            raise JournalError(
                "the password is not changed",
                "the station uses none",
                "Set `uplink.ocpp.password` first",
            )
        try:
            write_private(self._password_file, value.encode() + b"\n")
        except OSError as error:
            raise JournalError(
                "the password is not changed", str(error), "Let the agent's user write it"
            ) from error
        self.renewed()

    # ------------------------------------------------------------------ asking

    async def ask(self, token: IdToken) -> Heard | None:
        """For the desk: what the backend says of a card; None: the agent's own rules decide."""
        local = self._rules.authorizer.decide(token, self.now())
        known = local.allowed and local.standing is Standing.ACCEPTED
        if known and self.device.truth("AuthCtrlr", "LocalPreAuthorize"):
            return None
        heard = await self.authorize(token)
        if heard is not None:
            self._remember_if_possible(token, heard)
            return heard
        if self.device.truth("AuthCtrlr", "LocalAuthorizeOffline"):
            return None
        return Heard(
            accepted=False,
            why="the backend cannot be asked, and LocalAuthorizeOffline"
            " forbids to decide without it",
        )

    def _remember_if_possible(self, token: IdToken, heard: Heard) -> None:
        try:
            self.remember(token, heard)
        except JournalError as error:
            log.warning("the token is not kept for offline use: %s", error)

    # ------------------------------------------------------------------ deeds

    async def perform(self, deed: Deed) -> Done:
        """Do what a backend asks for."""
        try:
            if isinstance(deed, Start):
                return await self._start(deed)
            if isinstance(deed, Stop):
                stop = self._rules.remote_stop(RemoteStop(deed.transaction), None)
                await self._loop.tell(*stop)
                return Done(Outcome.ACCEPTED)
            if isinstance(deed, SetOperative):
                return await self._set_operative(deed)
            if isinstance(deed, Reserve):
                return await self._reserve(deed)
            if isinstance(deed, CancelReservation):
                return await self._cancel(deed)
            if isinstance(deed, Upload):
                return self._upload(deed)
            return self._begin_restart(deed)
        except (RefusedError, JournalError) as error:
            log.warning("%s is refused: %s", type(deed).__name__, error)
            return Done(Outcome.REJECTED, str(error))

    async def _start(self, deed: Start) -> Done:
        if self._restarting is not None:
            raise RefusedError("the station restarts")
        ledger = self._loop.ledger
        if ledger.failure and not ledger.retry():
            raise RefusedError(f"the journal cannot be written: {ledger.failure}")
        evse = self._rules.target(deed.evse)
        if deed.authorize:
            heard = await self.ask(deed.id_token)
            decision = self._rules.authorizer.decide(deed.id_token, self.now(), heard)
            if not decision.allowed:
                raise RefusedError(f"id token {deed.id_token.value}: {decision.why}")
        command = None if deed.remote_id is None else UUID(int=deed.remote_id)
        start = self._rules.remote_start(RemoteStart(evse, deed.id_token), command, self.now())
        if deed.profile is not None:
            self._profiles_to_come[evse] = msgspec.structs.replace(deed.profile, evse=evse)
        await self._loop.tell(*start)
        return Done(Outcome.ACCEPTED)

    async def _set_operative(self, deed: SetOperative) -> Done:
        evses = self._rules.concerned(deed.evse)
        self._journal.commit(availability=dict.fromkeys(evses, deed.operative))
        busy = any(self._rules.connectors[evse].state.session for evse in evses)
        for evse in evses:
            await self._loop.tell(evse, Operative(deed.operative))
        scheduled = busy and not deed.operative
        return Done(Outcome.SCHEDULED if scheduled else Outcome.ACCEPTED)

    async def deauthorize(self, transaction: UUID, why: str) -> None:
        """The backend refused a transaction that runs already."""
        for evse, connector in self._rules.connectors.items():
            running = connector.state.session
            if running is not None and running.record.id == transaction:
                log.warning("EVSE %s: stopped, %s", evse, why)
                stop = StopAsked(reason=StoppedReason.DEAUTHORIZED, trigger=Trigger.DEAUTHORIZED)
                await self._loop.tell(evse, stop)

    async def cloud_time(self, now_ms: int) -> None:
        await self._agent.desk.corrected(self._loop.clock.cloud_time(now_ms))

    # ------------------------------------------------------------------ reservations

    async def _reserve(self, deed: Reserve) -> Done:
        evse = self._rules.target(deed.evse)
        state, now = self._rules.connectors[evse].state, self.now()
        if state.lost or state.fault:
            return Done(Outcome.FAULTED, state.lost or state.fault)
        if not state.operative:
            return Done(Outcome.UNAVAILABLE)
        kept = self._rules.reservations.get(evse)
        held = kept is not None and kept.holds(now) and kept.id != deed.id
        if state.session is not None or state.plugged or held:
            return Done(Outcome.OCCUPIED)
        fresh = Reservation(
            id=deed.id,
            evse=evse,
            id_token=deed.id_token,
            group=deed.group,
            until_wall_ms=deed.until_wall_ms,
        )
        if fresh.over(now):
            raise RefusedError("it has expired already")
        moved = [one for one in self._rules.reservations.values() if one.id == deed.id]
        for old in moved:
            await self._drop(old)
        await self._keep(fresh, holds=True)
        return Done(Outcome.ACCEPTED)

    async def _cancel(self, deed: CancelReservation) -> Done:
        for kept in list(self._rules.reservations.values()):
            if kept.id == deed.id and kept.transaction is None:
                await self._drop(kept)
                return Done(Outcome.ACCEPTED)
        raise RefusedError(f"there is no reservation {deed.id}")

    async def _keep(self, kept: Reservation, *, holds: bool) -> None:
        self._journal.keep(RESERVATIONS, {str(kept.evse): kept})
        self._rules.reservations[kept.evse] = kept
        await self._loop.tell(kept.evse, Reserved(holds))

    async def _drop(self, kept: Reservation) -> None:
        self._journal.keep(RESERVATIONS, {str(kept.evse): None})
        self._rules.reservations.pop(kept.evse, None)
        await self._loop.tell(kept.evse, Reserved(reserved=False))

    # ------------------------------------------------------------------ upkeep

    async def upkeep(self) -> None:
        """What time and transactions change, connected or not. Raises JournalError."""
        now = self.now()
        for kept in list(self._rules.reservations.values()):
            user = self._user(kept)
            if kept.transaction is None and user is not None:
                await self._keep(msgspec.structs.replace(kept, transaction=user), holds=False)
            elif kept.over(now) and not self.waits(kept.transaction or UUID(int=0)):
                await self._drop(kept)
        self._tend_profiles(now)

    def _tend_profiles(self, now: Stamp) -> None:
        running = {evse: self._rules.running(evse) for evse in self._rules.connectors}
        held = self._rules.profiles
        for evse, profile in list(self._profiles_to_come.items()):
            begun = running.get(evse)
            if begun is not None:
                held = held.put(msgspec.structs.replace(profile, transaction=begun.id))
                del self._profiles_to_come[evse]
        held = held.current((one.id for one in running.values() if one), now.wall_ms)
        if held != self._rules.profiles:
            self.set_profiles(held)

    # ------------------------------------------------------------------ logs

    def _upload(self, deed: Upload) -> Done:
        try:
            upload.address(deed.location)
        except upload.UploadError as error:
            raise RefusedError(str(error)) from error
        if self._uploading is not None and not self._uploading.done():
            raise RefusedError("another upload is under way; ask again when it is over")
        moment = iso(self.when(self.now()))[:19].replace(":", "")
        name = f"{escape(self.station)}-{deed.kind.value}-{moment}Z.json.gz"
        content = upload.packed(self._log(deed))
        self._uploading = asyncio.create_task(self._bring(deed, name, content), name="upload")
        return Done(Outcome.ACCEPTED, name)

    def _log(self, deed: Upload) -> dict[str, Any]:
        """What is asked for, as of now. Raises JournalError."""

        def within(stamp: Stamp) -> bool:
            at = self.when(stamp)
            early = deed.since_ms is not None and at < deed.since_ms
            return not early and (deed.until_ms is None or at < deed.until_ms)

        if deed.kind is LogKind.SECURITY:
            told = [one for one in self._journal.security_events() if within(one.at)]
            return {"station": self.station, "security_events": told}
        sessions = self._journal.sessions(MOST_SESSIONS)
        settings = {
            ".".join(filter(None, (one.component, one.name, one.instance))): (
                self.device.value(one)
            )
            for one in self.device
            if not one.secret
        }
        return {
            "station": self.station,
            "status": self._agent.status(),
            "sessions": [one for one in sessions if within(one.started)],
            "refused": self._journal.refused,
            "settings": settings,
            "profiles": self.profiles(),
        }

    async def _bring(self, deed: Upload, name: str, content: bytes) -> None:
        """Try as often as is asked, and tell how it goes."""
        self.tell(Transferred(deed.request_id, "Uploading"))
        for left in range(deed.retries, -1, -1):
            try:
                await asyncio.to_thread(self._put, deed.location, name, content)
            except (upload.UploadError, OSError) as error:
                log.warning("upload of %s: %s (%s attempts left)", name, error, left)
            else:
                self.tell(Transferred(deed.request_id, "Uploaded"))
                return
            if left:
                await asyncio.sleep(deed.interval_s)
        self.tell(Transferred(deed.request_id, "UploadFailure"))

    def _put(self, location: str, name: str, content: bytes) -> None:
        context = ssl.create_default_context(cafile=self._ca_file)
        upload.put(location, name, content, context)

    # ------------------------------------------------------------------ restarting

    def _begin_restart(self, deed: Restart) -> Done:
        busy = any(one.state.session for one in self._rules.connectors.values())
        if self._restarting is None:
            self._restarting = asyncio.create_task(self._wind_up(deed), name="restart")
        return Done(Outcome.SCHEDULED if busy and deed.idle else Outcome.ACCEPTED)

    async def _wind_up(self, deed: Restart) -> None:
        """Transactions end and are told, as far as that is possible in time."""
        if deed.idle:
            await self._wait(self._idle, None)
        stop = StopAsked(reason=StoppedReason.OTHER, trigger=Trigger.RESET)
        for evse, connector in self._rules.connectors.items():
            if connector.state.session is not None:
                await self._loop.tell(evse, stop)
        await self._wait(self._idle, WIND_UP_S)
        if not deed.immediate:
            await self._wait(lambda: self._journal.pending_billing == 0, WIND_UP_S)
        await asyncio.sleep(1)  # for the answer that is still on its way
        with suppress(JournalError):  # then the backend is told of a power-up
            self._journal.keep(BOOT, {"reason": ("RemoteReset",)})
        log.warning("restarting, as the backend asked")
        self._restart()

    def _idle(self) -> bool:
        return all(one.state.session is None for one in self._rules.connectors.values())

    @staticmethod
    async def _wait(condition: Callable[[], bool], seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.2)
        except TimeoutError:
            return


def _name(token: IdToken) -> str:
    return f"{token.type}:{token.value}".casefold()
