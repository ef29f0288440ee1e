"""The agent's own updates: fetch in a process apart, wait, commit, restart, prove, confirm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

from edge_agent import pulse
from edge_agent.loop import Loop
from edge_agent.rules.actions import Emit, Operative
from edge_agent.rules.station import RefusedError
from edge_agent.rules.update import (
    Action,
    Conditions,
    Expected,
    Fetch,
    Health,
    Hold,
    Install,
    LetGo,
    Phase,
    StopFetching,
    Tell,
    Trial,
    UpdateRefusedError,
    UpdateRules,
    Verdict,
)
from edge_agent.updates import images, launcher, slots
from edge_agent.updates.crashes import settle
from edge_agent.updates.floors import Floors, JournalError
from edge_agent.updates.installing import Installer, Outcome
from edge_agent.updates.messages import Component, Failure, Job, Message, Ready, Subject
from protocols.agent_link import ClockQuality, SecurityEvent, UpdateState, UpdateStatus
from protocols.release import Kind

log = logging.getLogger(__name__)
EVERY_S: Final = 1.0
LONGEST_STEP_S: Final = 240.0
"""Some steps write and check a whole slot on a slow card; then the supervision begins to count."""
SETTLED_MS: Final = 30_000
"""A start that has lived so long was no crash."""
POWER: Final = Path("/sys/class/power_supply")
PENDING: Final = "pending"
LAST: Final = "last"
FAILED: Final = "failed"
ABORTED: Final = "aborted"
LONGEST_LINE: Final = 256 * 1024
END_S: Final = 5.0
SECURITY: Final = {
    UpdateState.INSTALLED: "FirmwareUpdated",
    UpdateState.INVALID_SIGNATURE: "InvalidFirmwareSignature",
}
"""States that are OCPP security events, too."""
WORKER: Final = "edge_agent.updates.worker"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this agent's updates live, and what it is."""

    root: Path
    """Slots and boot record."""
    state: Path
    """Floors, metadata, downloads."""
    slot: str
    """The one that runs; empty: the factory's."""
    images_root: Path
    director_root: Path | None
    station: str
    hardware: str
    version: str
    url: str = ""
    ca: Path | None = None
    rate: int | None = None
    check_every_s: float = 6 * 3600
    hold_free: bool = True
    selftest: tuple[str, ...] = ()
    power: Path = POWER

    def job(
        self,
        folder: str,
        now_ms: int,
        others: tuple[Component, ...] = (),
        *,
        clock_trusted: bool,
    ) -> Job:
        """What the process that fetches is told."""
        return Job(
            root=str(self.root),
            state=str(self.state),
            images_root=str(self.images_root),
            director_root=None if self.director_root is None else str(self.director_root),
            station=self.station,
            hardware=self.hardware,
            version=self.version,
            running=self.slot,
            others=others,
            now_ms=now_ms,
            clock_trusted=clock_trusted,
            url=self.url,
            folder=folder,
            ca=None if self.ca is None else str(self.ca),
            rate=self.rate,
            selftest=self.selftest,
        )


class _Said(msgspec.Struct, frozen=True):
    """The last state that was told, as it is kept over restarts."""

    about: Subject
    state: UpdateState
    reason: str


class Updates:
    """Runs beside the loop; everything it decides is decided by the rules."""

    def __init__(
        self,
        place: Place,
        loop: Loop,
        *,
        restart: Callable[[], object],
        cloud: Callable[[], bool] = lambda: False,
        stuck: Callable[[], Sequence[str]] = list,
        installers: Sequence[Installer] = (),
    ) -> None:
        """Raises JournalError when the floors cannot be opened."""
        self.place = place
        self.loop = loop
        self.rules = UpdateRules(hold_free=place.hold_free)
        self._restart = restart
        self._cloud = cloud
        self._stuck = stuck
        self._floors = Floors(place.state)
        self._installers = {one.kind: one for one in installers}
        self._fetching: asyncio.Task[None] | None = None
        self._installing: asyncio.Task[None] | None = None
        self._guarded = ""
        """Why nobody may charge."""
        self._caught_up: set[Kind] = set()
        self._begun: Ready | None = None
        """What an earlier start has put in, and its outcome is not told."""
        self._todo: list[Action] = []
        self._held: set[int] = set()
        self._trial: Trial | None = None
        self._began_ms = loop.clock.now().mono_ms
        self._look_at_ms = 0
        self._settled = False
        self._failure = ""
        self._instead = ""
        self._last: _Said | None = None

    # ------------------------------------------------------------------ asked from outside

    def asked(self, request: UUID) -> str:
        """The cloud's command. Raises RefusedError."""
        return self._ask(request, "", "looking for it")

    def from_folder(self, folder: str) -> str:
        """A technician's stick. Raises RefusedError."""
        if folder and not Path(folder).is_dir():
            raise RefusedError(f"{folder} is no folder here; name the one with ota/ in it")
        return self._ask(None, folder, "looking there; see: karvon agent status")

    def _ask(self, request: UUID | None, folder: str, text: str) -> str:
        if self._trial is not None:
            raise RefusedError("a new version is on trial here; ask again when it is over")
        if not folder and not self.place.url:
            raise RefusedError("no cloud shows releases here (updates.url); give a folder: --from")
        aborted = self.rules.aborted
        try:
            self._todo += self.rules.asked(request, folder)
            if aborted is not None and self.rules.aborted is None:
                self._floors.keep_note(ABORTED, b"")  # asked for anew, also after a restart
        except UpdateRefusedError as error:
            raise RefusedError(str(error)) from error
        except JournalError as error:
            self._failure = str(error)
        return text

    def abort(self) -> str:
        """A technician ends what is under way. Raises RefusedError."""
        try:
            self._todo += self.rules.abort("aborted by a technician")
            self._floors.keep_note(ABORTED, str(self.rules.aborted or "").encode())
        except UpdateRefusedError as error:
            raise RefusedError(str(error)) from error
        except JournalError as error:
            self._failure = str(error)
        return "aborted; it is not gone on with before it is asked for anew"

    def described(self) -> dict[str, Any]:
        """For `karvon agent status`."""
        ready = self.rules.ready
        return {
            "slot": self.place.slot or launcher.FACTORY,
            "phase": "trial" if self._trial is not None else self.rules.phase,
            "version": "" if ready is None else ready.about.version,
            "last": None if self._last is None else str(self._last.state),
            "trouble": self.trouble(),
            **{str(kind): one.described() for kind, one in self._installers.items()},
        }

    def trouble(self) -> str:
        """What is wrong with updates now; empty: nothing."""
        reports = "; ".join(self._floors.reports)
        trial = self._trial.why if self._trial is not None else ""
        others = [one.trouble() for one in self._installers.values()]
        texts = (self._failure, self._instead, self.rules.trouble, trial, reports, *others)
        text = "; ".join(each for each in texts if each)
        return f"updates: {text}" if text else ""

    # ------------------------------------------------------------------ the work

    async def run(self) -> None:
        """For ever."""
        self.rules.lost()
        self.reconcile()
        self._look_at_ms = self._next_check()
        try:
            while True:
                pulse.beat(LONGEST_STEP_S)
                await self.tick()
                if self._trial is None and self.loop.clock.now().mono_ms >= self._look_at_ms:
                    self._look_at_ms = self._next_check()
                    await self._check()
                await asyncio.sleep(EVERY_S)
        finally:
            await self._stop_fetching()
            await _stopped(self._installing)

    def _next_check(self) -> int:
        """With up to half as much again by chance: a fleet does not ask as one."""
        wait_s = self.place.check_every_s * (1 + random.random() / 2)  # noqa: S311  # no secret
        return self.loop.clock.now().mono_ms + round(wait_s * 1000)

    async def _check(self) -> None:
        if self.place.url:
            with contextlib.suppress(UpdateRefusedError):  # it is busy with one; asked again later
                await self._do(self.rules.asked(None))

    async def tick(self) -> None:
        """One second's work."""
        if self._trial is not None:
            self._judge(self._trial)
        self._settle()
        await self._guard()
        await self._take_up()
        self._catch_up()
        todo, self._todo = self._todo, []
        await self._do(todo)
        await self._do(self.rules.tick(self._conditions()))

    async def _guard(self) -> None:
        """Where an installer says that nobody may charge, nobody begins."""
        why = next(filter(None, (one.forbids() for one in self._installers.values())), "")
        if why and not self._guarded:
            log.error("update: nobody may charge: %s", why)
            await self._hold()
        elif self._guarded and not why and not self.rules.holds:
            self._guarded = ""
            await self._let_go()
        self._guarded = why

    async def _take_up(self) -> None:
        """What an earlier start had begun has come to its end, or goes on."""
        begun = self._begun
        if begun is None:
            return
        installer = self._installers.get(begun.kind)
        if installer is not None and installer.proving():
            await self._do(self.rules.proves(begun))
            return
        self._begun = None
        outcome = None if installer is None else installer.came_to(begun)
        if outcome is None:
            await self._do(self.rules.resumed(begun))
        else:
            await self._do(self.rules.proves(begun))
            await self._ended(begun, outcome)

    def _catch_up(self) -> None:
        """What was installed and is not there any more is installed again, once each time."""
        if self.rules.phase is not Phase.IDLE or self._trial is not None:
            return
        for kind, one in self._installers.items():
            ready = one.behind()
            if ready is None:
                self._caught_up.discard(kind)
            elif kind not in self._caught_up:
                self._caught_up.add(kind)
                self._todo += self.rules.resumed(ready)
                return

    def _conditions(self) -> Conditions:
        return Conditions(
            wall_ms=self.loop.clock.now().wall_ms, busy=self._busy(), forbidden=self._forbidden()
        )

    def _busy(self) -> tuple[int, ...]:
        states = {evse: one.state for evse, one in self.loop.station.connectors.items()}
        used = [evse for evse, state in states.items() if state.session or state.waiting]
        return tuple(sorted(used))

    def _forbidden(self) -> str:
        if self.loop.ledger.failure:
            return f"the journal cannot be written ({self.loop.ledger.failure})"
        if any(one.proving() for one in self._installers.values()):
            return "settings are on trial"
        return "it runs on battery" if on_battery(self.place.power) else ""

    async def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Tell):
                self._tell(action)
            elif isinstance(action, Hold):
                await self._hold()
            elif isinstance(action, LetGo):
                await self._let_go()
            elif isinstance(action, StopFetching):
                await self._stop_fetching()
            elif isinstance(action, Fetch):
                await self._stop_fetching()
                self._fetching = asyncio.create_task(self._fetch(action), name="update fetch")
            else:
                await self._do(self._install(action))

    # ------------------------------------------------------------------ EVSEs

    async def _hold(self) -> None:
        """In memory only: a restart puts them back into service by itself."""
        for evse, connector in self.loop.station.connectors.items():
            if connector.state.operative:
                self._held.add(evse)
                await self.loop.tell(evse, Operative(False))

    async def _let_go(self) -> None:
        if self._guarded:
            return
        wanted: dict[int, bool] = {}
        with contextlib.suppress(JournalError):  # what was held was in service then
            wanted = self.loop.ledger.store.availability()
        for evse in sorted(self._held):
            if wanted.get(evse, True):
                await self.loop.tell(evse, Operative(True))
        self._held.clear()

    # ------------------------------------------------------------------ fetching

    async def _fetch(self, asked: Fetch) -> None:
        """One run of the process that fetches; its messages go to the rules as they come."""
        try:
            last, code = await self._worked(asked)
        except (OSError, msgspec.DecodeError) as error:
            text = f"updates cannot be fetched: {error}"
            await self._do(self.rules.heard(Failure(UpdateState.DOWNLOAD_FAILED, text), asked))
            return
        if last is None or not final(last):
            text = f"the process that fetches updates ended with {code}; see its log"
            await self._do(self.rules.heard(Failure(UpdateState.DOWNLOAD_FAILED, text), asked))

    async def _worked(self, asked: Fetch) -> tuple[Message | None, int]:
        """Its last message, and how it ended. Raises OSError, msgspec.DecodeError."""
        last: Message | None = None
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-B", "-m", WORKER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise OSError("a process without the pipes that were asked for")
            now = self.loop.clock.now()
            synced = now.quality is ClockQuality.SYNCED  # the cloud's word moves no floor
            others = tuple(
                component for one in self._installers.values() for component in one.takes()
            )
            job = self.place.job(asked.folder, now.wall_ms, others, clock_trusted=synced)
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
            async for line in process.stdout:
                last = msgspec.json.decode(line, type=Message)
                await self._do(self.rules.heard(last, asked))
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return last, code

    async def _stop_fetching(self) -> None:
        task, self._fetching = self._fetching, None
        if task is not asyncio.current_task():
            await _stopped(task)

    # ------------------------------------------------------------------ committing

    def _install(self, action: Install) -> list[Action]:
        """From the last look to the record on disk nothing else runs: no session slips between."""
        ready, busy = action.ready, self._busy()
        forced = ready.force and ready.kind is Kind.AGENT
        if busy and not forced:
            return self.rules.interrupted(f"EVSE {', '.join(map(str, busy))} in use")
        if ready.kind is not Kind.AGENT:
            return self._begin(ready)
        if not launcher.usable(self.place.root, ready.slot):
            return self.rules.given_up("the prepared slot is gone")
        standing = launcher.read(self.place.root) or launcher.Record(confirmed=self.place.slot)
        request = "" if ready.about.request is None else str(ready.about.request)
        record = replace(
            standing,
            confirmed=self.place.slot,
            previous=standing.previous if standing.confirmed == self.place.slot else "",
            trial=ready.slot,
            tries=launcher.TRIES,
            request=request,
            expects=self._expected().plain(),
            failed=None,
        )
        try:
            self._floors.keep_note(PENDING, msgspec.json.encode(ready))
            self._tell(Tell(ready.about, UpdateState.INSTALL_REBOOTING))
            launcher.write(self.place.root, record)
        except (OSError, JournalError) as error:
            return self.rules.given_up(f"{error}; repair the disk")
        log.warning("update: restarting into %s (%s)", ready.about.version, ready.slot[:12])
        self._restart()
        return []

    def _begin(self, ready: Ready) -> list[Action]:
        """Something else than the agent, which goes on."""
        installer = self._installers.get(ready.kind)
        if installer is None:
            return self.rules.given_up(f"nothing here takes a release of kind {ready.kind}")
        if not images.usable(self.place.root, ready.slot):
            return self.rules.given_up("the prepared image is gone")
        try:
            self._floors.keep_note(PENDING, msgspec.json.encode(ready))
        except JournalError as error:
            return self.rules.given_up(f"{error}; repair the disk")
        work = self._put_in(installer, ready)
        self._installing = asyncio.create_task(work, name=f"update {ready.kind}")
        return []

    async def _put_in(self, installer: Installer, ready: Ready) -> None:
        try:
            outcome = await installer.install(ready, images.path_of(self.place.root, ready.slot))
        except Exception as error:  # the task's root: whatever it was, EVSEs must be let go
            log.exception("update: %s could not be installed", ready.about.target)
            outcome = Outcome(UpdateState.INSTALLATION_FAILED, f"a fault of the agent: {error!r}")
        await self._ended(ready, outcome)

    async def _ended(self, ready: Ready, outcome: Outcome) -> None:
        try:
            self._settle_image(ready, outcome)
        except (JournalError, OSError) as error:
            self._failure = str(error)
        well = outcome.state is UpdateState.INSTALLED
        if not well:
            self._secure("FirmwareUpdateFailed", f"{ready.about.target} {outcome.reason}")
        told = self.rules.ended(outcome.state, outcome.reason)
        if well and (self.rules.folder or self.place.url):
            self._todo += self.rules.again()  # before anything else can begin meanwhile
        await self._do(told)

    def _settle_image(self, ready: Ready, outcome: Outcome) -> None:
        """Raises JournalError, OSError."""
        if outcome.state is UpdateState.INSTALLED:
            self._floors.raise_counter(ready.component, ready.counter)
        else:
            note = f"{FAILED} {ready.kind}"
            self._floors.keep_note(note, msgspec.json.encode(ready))
        self._floors.keep_note(PENDING, b"")
        needed = [one.needed() for one in self._installers.values()]
        images.collect(self.place.root, frozenset().union(*needed))

    def _expected(self) -> Expected:
        return Expected(frozenset(self._answering()), self._cloud())

    def _answering(self) -> list[str]:
        return [line.name for line in self.loop.lines if line.heard_ms and not line.trouble]

    # ------------------------------------------------------------------ after the restart

    def reconcile(self) -> None:
        """What the start before this one has left: a trial, one given up, or one confirmed."""
        record = launcher.read(self.place.root)
        pending = self._pending()
        last = self._floors.note(LAST)
        if last is not None:
            self._report(msgspec.json.decode(last, type=_Said))
        self.rules.failed = self._failed_before()
        aborted = self._floors.note(ABORTED)
        self.rules.aborted = UUID(aborted.decode()) if aborted else None
        if pending is not None and pending.kind is not Kind.AGENT:
            self._begun, pending = pending, None
        if record is None:
            return
        if record.trial and record.trial == self.place.slot:
            self._trial = Trial(Expected.of(record.expects), self.loop.clock.now().mono_ms)
        elif record.failed is not None:
            self._gave_up(record, record.failed, pending)
        elif pending is not None and record.confirmed == pending.slot == self.place.slot:
            self._confirmed(pending)
        elif pending is not None:
            text = "the restart came before it began; ask again"
            self._tell(Tell(pending.about, UpdateState.INSTALLATION_FAILED, text))
            self._floors.keep_note(PENDING, b"")
        if not record.trial and record.confirmed != self.place.slot:
            self._instead = "what is confirmed cannot be started; an earlier version runs"

    def _failed_before(self) -> dict[str, UUID | None]:
        notes = (FAILED, *(f"{FAILED} {kind}" for kind in self._installers))
        kept = [failed for name in notes if (failed := self._ready(name)) is not None]
        return {failed.slot: failed.about.request for failed in kept}

    def _pending(self) -> Ready | None:
        return self._ready(PENDING)

    def _ready(self, name: str) -> Ready | None:
        content = self._floors.note(name)
        if content is None or content == b"":
            return None
        try:
            return msgspec.json.decode(content, type=Ready)
        except msgspec.DecodeError:
            return None  # of a later release, which was rolled back

    def _gave_up(
        self, record: launcher.Record, failed: launcher.Failed, pending: Ready | None
    ) -> None:
        if pending is not None and pending.slot == failed.slot:
            reason = f"rolled back: {failed.why}"
            self._tell(Tell(pending.about, UpdateState.INSTALLATION_FAILED, reason))
            self._floors.keep_note(FAILED, msgspec.json.encode(pending))
            self._floors.keep_note(PENDING, b"")
            self.rules.failed[pending.slot] = pending.about.request
        with contextlib.suppress(OSError):  # it is told once more after the next start
            launcher.write(self.place.root, replace(record, failed=None))

    def _judge(self, trial: Trial) -> None:
        health = Health(
            journal=self.loop.ledger.failure,
            stuck=self._stuck(),
            boards=self._answering(),
            cloud=self._cloud(),
        )
        verdict = trial.judge(health, self.loop.clock.now().mono_ms)
        if verdict is Verdict.FAIL:
            log.error("update: this version is not well (%s); restarting", trial.why)
            self._trial = None
            self._restart()
        elif verdict is Verdict.CONFIRM:
            self._confirm()

    def _confirm(self) -> None:
        """The record first: what is confirmed there stays, whatever is still to be told."""
        record, pending = launcher.read(self.place.root), self._pending()
        if record is None or record.trial != self.place.slot:
            return
        confirmed = replace(
            record,
            confirmed=record.trial,
            previous=record.confirmed,
            trial="",
            tries=0,
            request="",
            expects={},
        )
        try:
            launcher.write(self.place.root, confirmed)
        except OSError as error:
            self._failure = f"the boot record cannot be written ({error})"
            return
        self._trial, self._failure = None, ""
        self._look_at_ms = 0  # a release for its boards may have waited for this version
        log.warning("update: %s is confirmed", self.place.version)
        if pending is not None:
            self._confirmed(pending)
        with contextlib.suppress(OSError):  # old slots cost space alone; the next one collects
            slots.collect(self.place.root, confirmed, self.place.slot)

    def _confirmed(self, pending: Ready) -> None:
        self._floors.raise_counter(pending.component, pending.counter)
        self._tell(Tell(pending.about, UpdateState.INSTALLED))
        self._floors.keep_note(PENDING, b"")

    def _settle(self) -> None:
        """Who lives is no part of a crash loop."""
        lived = self.loop.clock.now().mono_ms - self._began_ms
        if self._settled or lived < SETTLED_MS or self._trial is not None:
            return
        self._settled = True
        settle(self.place.root)

    # ------------------------------------------------------------------ telling

    def _tell(self, tell: Tell) -> None:
        said = _Said(tell.about, tell.state, tell.reason)
        try:
            self._floors.keep_note(LAST, msgspec.json.encode(said))
            self._failure = ""
        except JournalError as error:
            self._failure = str(error)
        log.info("update: %s %s %s", tell.about.version, tell.state, tell.reason)
        self._report(said)
        if tell.state in SECURITY:
            self._secure(SECURITY[tell.state], f"{tell.about.version} {tell.reason}".strip())

    def _secure(self, kind: str, text: str) -> None:
        """For those who watch over security: it is not forgotten before the cloud has it."""
        event = SecurityEvent(id=uuid4(), at=self.loop.clock.now(), type=kind, text=text)
        if not self.loop.ledger.write([Emit(event)]):
            self.loop.ledger.write_later([Emit(event)])
        self.loop.wake()

    def _report(self, said: _Said) -> None:
        self._last = said
        status = UpdateStatus(
            request=said.about.request,
            target=said.about.target,
            version=said.about.version,
            state=said.state,
            at=self.loop.clock.now(),
            reason=said.reason,
        )
        self.loop.ledger.report(status)
        self.loop.wake()

    def close(self) -> None:
        with contextlib.suppress(JournalError):  # what counts was committed before it was told
            self._floors.close()


async def _stopped(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task], timeout=END_S)


def final(message: Message) -> bool:
    """Whether the fetching process says nothing after it."""
    return message.__struct_config__.tag != "progress"


def on_battery(folder: Path = POWER) -> bool:
    """Whether there is a mains supply, and it is off."""
    mains = []
    for supply in sorted(folder.glob("*")):
        try:
            if (supply / "type").read_text(encoding="ascii").strip() == "Mains":
                mains.append((supply / "online").read_text(encoding="ascii").strip() == "1")
        except OSError:
            continue
    return bool(mains) and not any(mains)
