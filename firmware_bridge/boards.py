"""Several boards of one charger: one version, or no charging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from firmware_bridge.flashing import Flasher, Outcome, Result
from firmware_bridge.journal import forget_unneeded
from firmware_bridge.loader import BridgeError, FirmwareImage, RefusedError, Running


@dataclass(kw_only=True)
class Boards:
    """All boards by name. `available` is told whether the charger may charge."""

    boards: Mapping[str, Flasher]
    available: Callable[[bool], None]

    def uniform(self) -> bool:
        """Whether each board runs, is well, and runs what all the others run."""
        seen = [_running(flasher) for flasher in self.boards.values()]
        well = all(one is not None and one.healthy for one in seen)
        return well and len({one.version for one in seen if one is not None}) == 1

    def install(self, image: FirmwareImage) -> dict[str, Outcome]:
        """One board after the other; if one of them cannot, those before it go back."""
        return self._bring(image, list(self.boards), together=True)

    def reconcile(self, image: FirmwareImage) -> dict[str, Outcome]:
        """At start: bring every board to what this agent wants, and leave alone those that have it.

        So a board follows an agent that was rolled back, a board that was swapped gets what its
        neighbours have, and what was cut is taken up. Raises nothing: a board that cannot be
        brought there keeps the charger unavailable, with its reason.
        """
        behind = [name for name, flasher in self.boards.items() if not _has(flasher, image)]
        return self._bring(image, behind, together=False)

    def _bring(
        self, image: FirmwareImage, names: list[str], *, together: bool
    ) -> dict[str, Outcome]:
        if names:
            self.available(False)
        outcomes: dict[str, Outcome] = {}
        for name in names:
            outcomes[name] = _installed(self.boards[name], image)
            if together and outcomes[name].result is not Result.INSTALLED:
                self._put_back(outcomes, because=name)
                break
        journals = [flasher.journal for flasher in self.boards.values()]
        for flasher in self.boards.values():
            forget_unneeded(journals, flasher.images)
        self.available(self.uniform())
        return outcomes

    def _put_back(self, outcomes: dict[str, Outcome], *, because: str) -> None:
        reason = f"board {because} could not be brought to it: {outcomes[because].reason}"
        for name, outcome in outcomes.items():
            if outcome.result is not Result.INSTALLED:
                continue
            before = self.boards[name].before()
            if before is None:
                text = f"{reason}; there is no previous image to put back"
                outcomes[name] = Outcome(
                    result=Result.INSTALLED, version=outcome.version, reason=text
                )
                continue
            back = _installed(self.boards[name], before)
            result = Result.PREVIOUS if back.result is Result.INSTALLED else Result.FAULTED
            outcomes[name] = Outcome(result=result, version=back.version, reason=reason)


def _has(flasher: Flasher, image: FirmwareImage) -> bool:
    seen = _running(flasher)
    return seen is not None and seen.healthy and seen.version == image.version


def _running(flasher: Flasher) -> Running | None:
    try:
        return flasher.loader.version()
    except BridgeError:
        return None


def _installed(flasher: Flasher, image: FirmwareImage) -> Outcome:
    """The outcome, also of what raises: other boards must get their turn."""
    try:
        return flasher.install(image)
    except RefusedError as error:
        seen = _running(flasher)
        result = Result.FAULTED if seen is None else Result.PREVIOUS
        version = None if seen is None else seen.version
        return Outcome(result=result, version=version, reason=str(error))
    except BridgeError as error:
        return Outcome(result=Result.FAULTED, version=None, reason=str(error))
