"""Settings from afar: kept on disk, tried, and put back by themselves when they do not do.

The configuration file is the controller's own and is never changed. What runs is the file with the
confirmed overlay on it: a signed release of settings and device profiles below, what the cloud
tells this station above. Another one is taken up when nobody charges, and confirmed when the agent
with it is as well as it was before: boards answer, and so does the cloud if it did.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent import faultpoints
from edge_agent.config import Config, ConfigError, Device, checked
from edge_agent.hardware.registry import profile_names
from edge_agent.loop import Loop
from edge_agent.pulse import beat
from edge_agent.rules.station import RefusedError
from edge_agent.rules.update import Expected, Health, Trial, Verdict
from edge_agent.updates.archive import ImageError, sha256
from edge_agent.updates.settings_image import SettingsImage, over, read_image
from firmware_bridge.whole_file import write
from protocols.agent_link import Configure, SettingsState, SettingsUse
from protocols.agent_settings import SettingsError, merged, settings_of

log = logging.getLogger(__name__)
NAME: Final = "remote.json"
FOLDER: Final = "settings"
"""Below the journal's: images of settings releases, and their profiles for the registry."""
TRIES: Final = 3
EVERY_S: Final = 1.0


class Given(msgspec.Struct, frozen=True, omit_defaults=True):
    """A document as it was told, and the settings release below it."""

    version: int
    document: dict[str, Any]
    image: str = ""
    """Its SHA-256; empty: none."""


class Failed(msgspec.Struct, frozen=True):
    """A settings release that was put back."""

    image: str
    reason: str


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
    failed: Failed | None = None
    """Until it is told, or tried anew."""

    @property
    def image(self) -> str:
        """Of the release that is confirmed."""
        return "" if self.confirmed is None else self.confirmed.image

    @property
    def tries_image(self) -> bool:
        """Whether what is on trial is a release, and not the cloud's word."""
        return self.trial is not None and self.trial.image != self.image


class RemoteSettings:
    """What holds from here until `reload` is asked for."""

    def __init__(self, own: Config, folder: Path) -> None:
        """Decides what runs: it is in `effective`."""
        self._own = own
        self._path = folder / NAME
        self._images = folder / FOLDER
        self._kept = self._load()
        self._trial: Trial | None = None
        self._runs = Given(0, {})
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
        faultpoints.reach(faultpoints.SETTINGS_STEP)
        write(self._path, msgspec.json.encode(changed))
        faultpoints.reach(faultpoints.SETTINGS_KEPT)
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
            found = self._laid(trial)
        except (SettingsError, ConfigError, ImageError) as error:
            self._give_up(str(error))
            return None
        self._runs = trial
        self._trial = Trial(Expected.of(self._kept.expects), 0)
        return found

    def _confirmed(self) -> Config:
        confirmed = self._kept.confirmed
        if confirmed is None:
            return self._own
        try:
            found = self._laid(confirmed)
        except (SettingsError, ConfigError, ImageError, OSError) as error:
            text = f"what was confirmed does not go with the configuration file any more: {error}"
            log.error("settings from afar: %s", text)  # noqa: TRY400  # charging goes on without them
            self._kept = msgspec.structs.replace(
                self._kept, state=SettingsState.REFUSED, reason=text
            )
            return self._own
        self._runs = confirmed
        return found

    def _give_up(self, why: str) -> None:
        trial = self._kept.trial
        if trial is not None and self._kept.tries_image:
            log.error("settings release %s: rolled back: %s", trial.image[:12], why)
            self._keep(trial=None, tries=0, failed=Failed(trial.image, why))
            return
        log.error("settings %s: rolled back: %s", trial and trial.version, why)
        self._keep(trial=None, tries=0, state=SettingsState.ROLLED_BACK, reason=why)

    def _laid(self, given: Given) -> Config:
        """The file with it on top. Raises SettingsError, ConfigError, ImageError, OSError."""
        if not given.image:
            return overlaid(self._own, given.document)
        image = self._image(given.image)
        found = overlaid(self._own, over(image.document, given.document))
        folder = self._images / given.image
        shipped = set(profile_names())  # the file alone must do, too, so it names no others
        profiles = {name: text for name, text in image.profiles.items() if name in shipped}
        for name, text in profiles.items():
            path = folder / f"{name}.yaml"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write(path, text.encode())
        return profiled(found, {name: str(folder / f"{name}.yaml") for name in profiles})

    def _image(self, name: str) -> SettingsImage:
        """Raises ImageError."""
        try:
            content = self._image_path(name).read_bytes()
        except OSError as error:
            text = f"the settings release {name[:12]} cannot be read: {error.strerror}"
            raise ImageError(text) from error
        if sha256(content) != name:
            raise ImageError(f"the settings release {name[:12]} on the disk is damaged")
        return read_image(content)

    def _image_path(self, name: str) -> Path:
        return self._images / f"{name}.tar"

    # ------------------------------------------------------------------ told

    def take(self, told: Configure) -> str:
        """The cloud's word; returns what follows. Raises RefusedError."""
        if told.version <= self._kept.told:
            return f"{self._kept.told} was told already"
        given = Given(told.version, told.document, self._kept.image)
        try:
            self._laid(given)
        except (SettingsError, ConfigError, ImageError, OSError) as error:
            self._say(told.version, SettingsState.REFUSED, str(error))
            raise RefusedError(str(error)) from error
        confirmed = self._kept.confirmed
        same = confirmed.document if confirmed is not None else {}
        if given.document == same and self._kept.trial is None:
            self._say(told.version, SettingsState.APPLIED, confirmed=given, waiting=None)
            self._runs = given
            return "it is what runs"
        self._say(told.version, SettingsState.PENDING, waiting=given)
        return "taken up when nobody charges; then on trial"

    def _say(self, told: int, state: SettingsState, reason: str = "", **changes: Any) -> None:
        """Raises RefusedError when it cannot be kept."""
        try:
            self._keep(told=told, state=state, reason=reason, **changes)
        except OSError as error:
            raise RefusedError(f"{self._path} cannot be written ({error.strerror})") from error

    # ------------------------------------------------------------------ releases

    @property
    def image(self) -> str:
        """Of the settings release that is confirmed and runs; empty: none."""
        return "" if self._trial is not None else self._runs.image

    @property
    def busy(self) -> bool:
        """Whether something is on trial, or about to be."""
        return self._kept.trial is not None or self.reloads

    def failed(self, image: str) -> str:
        """Why this release was put back; empty: it was not."""
        failed = self._kept.failed
        return failed.reason if failed is not None and failed.image == image else ""

    def told(self) -> None:
        """That it was put back is known now. Raises OSError."""
        if self._kept.failed is not None:
            self._keep(failed=None)

    def with_image(self, content: bytes) -> Config:
        """What would run with it; on the disk. Raises the errors of a bad one, and OSError."""
        name = sha256(content)
        write(self._image_path(name), content)
        return self._laid(self._under(name))

    def _under(self, image: str) -> Given:
        confirmed = self._kept.confirmed or Given(0, {})
        return msgspec.structs.replace(confirmed, image=image)

    def try_image(self, image: str, expects: Expected) -> None:
        """Put it on trial and begin anew. Raises OSError; nothing has changed then."""
        self._keep(trial=self._under(image), tries=TRIES, expects=expects.plain(), failed=None)
        self._again()

    def expected(self, loop: Loop, *, cloud: bool) -> Expected:
        """What is well now."""
        return Expected(frozenset(_answering(loop)), cloud)

    def collect(self) -> None:
        """Remove releases that neither hold nor are tried. Raises OSError."""
        trial = self._kept.trial
        needed = {self._kept.image, "" if trial is None else trial.image}
        for path in self._images.glob("*"):
            if path.stem not in needed:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ how it stands

    def use(self) -> SettingsUse:
        """For the station's status."""
        kept = self._kept
        return SettingsUse(self._runs.version, kept.told, kept.state, kept.reason)

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
        if self._trial is not None:
            health = Health(loop.ledger.failure, stuck(), _answering(loop), cloud())
            self._judge(self._trial, health, loop.clock.now().mono_ms)
        elif self._kept.waiting is not None and not _busy(loop):
            expects = self.expected(loop, cloud=cloud()).plain()
            self._keep(
                trial=msgspec.structs.replace(self._kept.waiting, image=self._kept.image),
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
            said = {} if self._kept.tries_image else {"state": SettingsState.APPLIED}
            self._keep(confirmed=tried, trial=None, tries=0, **said)
            self._trial = None
            log.warning("settings %s are confirmed", tried and (tried.image[:12] or tried.version))

    def _again(self) -> None:
        self.reloads = True
        self._reload()

    def described(self) -> dict[str, Any]:
        """For `karvon agent status`."""
        return {
            **msgspec.to_builtins(self.use()),
            "on_trial": self._trial is not None,
            "release": self._runs.image,
        }


def overlaid(own: Config, document: Mapping[str, Any]) -> Config:
    """The file's configuration with the document on it. Raises SettingsError, ConfigError."""
    settings = settings_of(document)
    plain = msgspec.to_builtins(msgspec.structs.replace(own, base=""))
    found = checked(merged(plain, settings), "settings from afar")
    return msgspec.structs.replace(found, base=own.base)


def profiled(config: Config, profiles: Mapping[str, str]) -> Config:
    """With these files in the place of shipped profiles of the same names."""

    def found(name: str) -> str:
        return profiles.get(name, name)

    def metered(meter: Device | None) -> Device | None:
        if meter is None:
            return None
        return msgspec.structs.replace(meter, profile=found(meter.profile))

    replace, site = msgspec.structs.replace, config.site
    boards = tuple(
        replace(part, profile=found(part.profile), meter=metered(part.meter))
        for part in config.boards
    )
    if site is not None:
        site = replace(site, meter=metered(site.meter))
    return replace(config, boards=boards, site=site)


def _answering(loop: Loop) -> list[str]:
    return [line.name for line in loop.lines if line.heard_ms and not line.trouble]


def _busy(loop: Loop) -> bool:
    states = [one.state for one in loop.station.connectors.values()]
    return any(state.session or state.waiting for state in states)
