"""Settings from afar: kept on disk, tried, and put back by themselves when they do not do.

The configuration file is the controller's own and is never changed. What runs is the file with the
confirmed overlay on it; another one is taken up when nobody charges, and confirmed when the agent
with it is as well as it was before: boards answer, and so does the cloud if it did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.config import Config, ConfigError, checked
from edge_agent.loop import Loop
from edge_agent.pulse import beat
from edge_agent.rules.station import RefusedError
from edge_agent.rules.update import Expected, Health, Trial, Verdict
from edge_agent.updates.images import write
from protocols.agent_link import Configure, SettingsState, SettingsUse
from protocols.agent_settings import SettingsError, merged, settings_of

log = logging.getLogger(__name__)
NAME: Final = "remote.json"
TRIES: Final = 3
EVERY_S: Final = 1.0


class Given(msgspec.Struct, frozen=True):
    """A document as it was told."""

    version: int
    document: dict[str, Any]


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file, replaced whole at each step."""

    confirmed: Given | None = None
    waiting: Given | None = None
    trial: Given | None = None
    tries: int = 0
    """Starts that the trial still has; counted down before each."""
    expects: dict[str, Any] = {}
    told: int = 0
    state: SettingsState = SettingsState.APPLIED
    reason: str = ""


class RemoteSettings:
    """What holds from here until `reload` is asked for."""

    def __init__(self, own: Config, folder: Path) -> None:
        """Decides what runs: it is in `effective`."""
        self._own = own
        self._path = folder / NAME
        self._kept = self._load()
        self._trial: Trial | None = None
        self._version = 0
        self._reload: Callable[[], object] = lambda: None
        self.reloads = False
        """Whether it was asked to begin anew."""
        self.effective = self._decide()

    def _load(self) -> Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return Kept()
        except (OSError, msgspec.MsgspecError) as error:
            log.error("%s cannot be read (%s): the file alone holds", self._path, error)  # noqa: TRY400  # said
            return Kept(reason=f"what was kept cannot be read ({error})")

    def _keep(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self._kept, **changes)
        write(self._path, msgspec.json.encode(changed))
        self._kept = changed

    def _decide(self) -> Config:
        trial = self._kept.trial
        try:
            if trial is not None:
                found = self._tried(trial)
                if found is not None:
                    return found
        except OSError as error:  # who cannot count the starts of a trial must not begin it
            log.warning("settings from afar: %s cannot be written (%s)", self._path, error)
        return self._confirmed()

    def _tried(self, trial: Given) -> Config | None:
        """With the trial, which has one start less then; None when it is given up."""
        if self._kept.tries <= 0:
            self._give_up(f"it did not prove itself in {TRIES} starts")
            return None
        self._keep(tries=self._kept.tries - 1)
        try:
            found = overlaid(self._own, trial.document)
        except (SettingsError, ConfigError) as error:
            self._give_up(str(error))
            return None
        self._version = trial.version
        self._trial = Trial(Expected.of(self._kept.expects), 0)
        return found

    def _confirmed(self) -> Config:
        confirmed = self._kept.confirmed
        if confirmed is None:
            return self._own
        try:
            found = overlaid(self._own, confirmed.document)
        except (SettingsError, ConfigError) as error:
            text = f"the configuration file was changed, and now: {error}"
            log.error("settings from afar: %s", text)  # noqa: TRY400  # charging goes on without them
            self._kept = msgspec.structs.replace(
                self._kept, state=SettingsState.REFUSED, reason=text
            )
            return self._own
        self._version = confirmed.version
        return found

    def _give_up(self, why: str) -> None:
        trial = self._kept.trial
        log.error("settings %s: rolled back: %s", trial and trial.version, why)
        self._keep(trial=None, tries=0, state=SettingsState.ROLLED_BACK, reason=why)

    # ------------------------------------------------------------------ told

    def take(self, told: Configure) -> str:
        """The cloud's word; returns what follows. Raises RefusedError."""
        if told.version <= self._kept.told:
            return f"{self._kept.told} was told already"
        given = Given(told.version, told.document)
        try:
            overlaid(self._own, given.document)
        except (SettingsError, ConfigError) as error:
            self._say(told.version, SettingsState.REFUSED, str(error))
            raise RefusedError(str(error)) from error
        confirmed = self._kept.confirmed
        same = confirmed.document if confirmed is not None else {}
        if given.document == same:
            self._say(told.version, SettingsState.APPLIED, confirmed=given, waiting=None)
            self._version = told.version
            return "it is what runs"
        self._say(told.version, SettingsState.PENDING, waiting=given)
        return "taken up when nobody charges; then on trial"

    def _say(self, told: int, state: SettingsState, reason: str = "", **changes: Any) -> None:
        """Raises RefusedError when it cannot be kept."""
        try:
            self._keep(told=told, state=state, reason=reason, **changes)
        except OSError as error:
            raise RefusedError(f"{self._path} cannot be written ({error.strerror})") from error

    def use(self) -> SettingsUse:
        """For the station's status."""
        kept = self._kept
        return SettingsUse(self._version, kept.told, kept.state, kept.reason)

    # ------------------------------------------------------------------ the work

    async def run(
        self,
        loop: Loop,
        reload: Callable[[], object],
        cloud: Callable[[], bool],
        stuck: Callable[[], Sequence[str]],
    ) -> None:
        """For ever; `reload` ends the agent, to begin anew with what is `effective` then."""
        self._reload = reload
        if self._trial is not None:
            self._trial.began_ms = loop.clock.now().mono_ms
        while True:
            beat()
            try:
                self.tick(loop, cloud, stuck)
            except OSError as error:
                log.warning("settings from afar: %s cannot be written (%s)", self._path, error)
            await asyncio.sleep(EVERY_S)

    def tick(
        self, loop: Loop, cloud: Callable[[], bool], stuck: Callable[[], Sequence[str]]
    ) -> None:
        """One second's work. Raises OSError; nothing was decided then."""
        if self.reloads:
            return
        answering = [line.name for line in loop.lines if line.heard_ms and not line.trouble]
        if self._trial is not None:
            health = Health(loop.ledger.failure, stuck(), answering, cloud())
            self._judge(self._trial, health, loop.clock.now().mono_ms)
        elif self._kept.waiting is not None and not _busy(loop):
            expects = Expected(frozenset(answering), cloud()).plain()
            self._keep(
                trial=self._kept.waiting,
                waiting=None,
                tries=TRIES,
                expects=expects,
                state=SettingsState.TRIAL,
                reason="",
            )
            self._again()

    def _judge(self, trial: Trial, health: Health, now_ms: int) -> None:
        verdict = trial.judge(health, now_ms)
        if verdict is Verdict.FAIL:
            self._give_up(trial.why)
            self._again()
        elif verdict is Verdict.CONFIRM:
            tried = self._kept.trial
            self._keep(confirmed=tried, trial=None, tries=0, state=SettingsState.APPLIED)
            self._trial = None
            log.warning("settings %s are confirmed", tried and tried.version)

    def _again(self) -> None:
        self.reloads = True
        self._reload()

    def described(self) -> dict[str, Any]:
        """For `karvon agent status`."""
        return {**msgspec.to_builtins(self.use()), "on_trial": self._trial is not None}


def overlaid(own: Config, document: Mapping[str, Any]) -> Config:
    """The file's configuration with the document on it. Raises SettingsError, ConfigError."""
    settings = settings_of(document)
    plain = msgspec.to_builtins(msgspec.structs.replace(own, base=""))
    found = checked(merged(plain, settings), "settings from afar")
    return msgspec.structs.replace(found, base=own.base)


def _busy(loop: Loop) -> bool:
    states = [one.state for one in loop.station.connectors.values()]
    return any(state.session or state.waiting for state in states)
