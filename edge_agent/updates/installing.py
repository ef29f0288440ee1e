"""The port behind which images that are no agent's are put where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_agent.updates.messages import Component, Ready
from protocols.agent_link import UpdateState
from protocols.release import Kind


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an installation ended: Installed, InstallationFailed or InstallVerificationFailed."""

    state: UpdateState
    reason: str = ""


class Installer(Protocol):
    """Of one kind."""

    @property
    def kind(self) -> Kind: ...

    def takes(self) -> Sequence[Component]:
        """What there is to install releases on, and what is confirmed there."""
        ...

    async def install(self, ready: Ready, image: Path) -> Outcome:
        """Nobody charges, and EVSEs are out of service.

        It is cancelled when the agent ends, which may happen at any point without a word, too:
        the same call after the next start takes up what was begun.
        """
        ...

    def proving(self) -> bool:
        """Whether what was put in is on trial; everything else waits, and charging goes on."""
        ...

    def came_to(self, ready: Ready) -> Outcome | None:
        """How an installation ended that an earlier start began; None: it is to go on."""
        ...

    def behind(self) -> Ready | None:
        """What was installed and is not there any more, so that it is to be installed again."""
        ...

    def forbids(self) -> str:
        """Why nobody may charge as things stand; empty: nothing does."""
        ...

    def needed(self) -> frozenset[str]:
        """Images that are to stay, by their SHA-256."""
        ...

    def described(self) -> dict[str, Any]:
        """For `karvon agent status`."""
        ...

    def trouble(self) -> str:
        """What is wrong now; empty: nothing."""
        ...
