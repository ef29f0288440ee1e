"""The installer of settings releases: checked as a whole, then on trial like settings from afar."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edge_agent.config import Config, ConfigError
from edge_agent.loop import Loop
from edge_agent.remote import RemoteSettings
from edge_agent.updates.archive import ImageError
from edge_agent.updates.installing import Outcome
from edge_agent.updates.messages import Component, Ready
from protocols.agent_link import UpdateState
from protocols.agent_settings import SettingsError
from protocols.release import Kind

log = logging.getLogger(__name__)


class SettingsInstaller:
    """An Installer of kind settings."""

    kind: Final = Kind.SETTINGS

    def __init__(
        self,
        remote: RemoteSettings,
        loop: Loop,
        *,
        name: str,
        hardware: str,
        cloud: Callable[[], bool],
        proven: Callable[[Config], object],
    ) -> None:
        """`proven` raises ConfigError for what no board or meter could be made of."""
        self._remote = remote
        self._loop = loop
        self._name, self._hardware = name, hardware
        self._cloud = cloud
        self._proven = proven

    def takes(self) -> tuple[Component, ...]:
        hw_ids, running = (self._hardware,), self._remote.image
        return (Component(kind=Kind.SETTINGS, name=self._name, hw_ids=hw_ids, running=running),)

    async def install(self, ready: Ready, image: Path) -> Outcome:
        if not self._remote.busy:
            outcome = self.came_to(ready) or self._refused(image) or self._begun(ready)
            if outcome is not None:
                return outcome
        # the agent begins anew, which ends this: into this trial, or one of the cloud's own word
        never: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        return await never

    def _begun(self, ready: Ready) -> Outcome | None:
        expects = self._remote.expected(self._loop, cloud=self._cloud())
        try:
            self._remote.try_image(ready.slot, expects)
        except OSError as error:
            return _failed(f"{error.strerror}; repair the disk")
        log.warning("update: settings %s are on trial", ready.about.version)
        return None

    def _refused(self, image: Path) -> Outcome | None:
        try:
            self._proven(self._remote.with_image(image.read_bytes()))
        except (ImageError, SettingsError, ConfigError) as error:
            return _failed(f"refused: {error}")
        except OSError as error:
            return _failed(f"{error.strerror}; repair the disk")
        return None

    def proving(self) -> bool:
        return self._remote.busy

    def came_to(self, ready: Ready) -> Outcome | None:
        with contextlib.suppress(OSError):  # it is done once more, or with the next release
            self._remote.collect()
        if self._remote.image == ready.slot:
            return Outcome(UpdateState.INSTALLED)
        why = self._remote.failed(ready.slot)
        if not why:
            return None
        with contextlib.suppress(OSError):  # tried anew, it may fail anew
            self._remote.told()
        return Outcome(UpdateState.INSTALL_VERIFICATION_FAILED, f"rolled back: {why}")

    def behind(self) -> Ready | None:
        """They lie where the agent's own settings do, and do not get lost apart from them."""
        return None

    def forbids(self) -> str:
        return ""

    def needed(self) -> frozenset[str]:
        """None: what holds was copied to the journal."""
        return frozenset()

    def described(self) -> dict[str, Any]:
        return {"release": self._remote.image, "on_trial": self._remote.busy}

    def trouble(self) -> str:
        return ""


def _failed(why: str) -> Outcome:
    return Outcome(UpdateState.INSTALLATION_FAILED, why)
