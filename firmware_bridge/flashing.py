"""The plan that puts an image into a board, and is taken up again after a cut at any point.

From erasing on, each phase is on the disk before it begins. Until the image is sealed the board
cannot start it, so what a cut leaves is a loader that waits. Then it begins again at erasing, since
AN3155 has no sessions. Where a loader does know what it has, as those of SMP and Modbus, it skips
that by itself. What was cut after the seal is asked first whether it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from firmware_bridge.journal import Entry, ImageStore, Journal, Phase
from firmware_bridge.loader import (
    BridgeError,
    FirmwareImage,
    Identified,
    Loader,
    RefusedError,
    Running,
    StoreError,
    TransferError,
    VerifyError,
)

logger = logging.getLogger(__name__)

TRIES: Final = 3
BLOCKS_A_NOTE: Final = 64
"""The disk is asked once for so many blocks: a memory card wears, and nothing resumes by block."""
START_S: Final = 20.0
ASK_EVERY_S: Final = 0.25


class Result(StrEnum):
    """How it ended."""

    INSTALLED = "installed"
    PREVIOUS = "previous"
    """The image was given up; the one before runs again."""
    FAULTED = "faulted"
    """Nothing runs on the board."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the board runs now, and why not what was wanted."""

    result: Result
    version: str | None
    reason: str = ""
    asked: bool = True
    """False: nobody here can ask the application, so that only the flash's content is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """For a bar: `done` of `total` blocks of this phase."""

    phase: Phase
    version: str
    done: int
    total: int


class WrongApplicationError(BridgeError):
    """It is whole and was started, and what answers is not what it should be."""


class Times(Protocol):
    """The clock of the plan; a fake makes it quick."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def sleep(self, seconds: float) -> None: ...


class WallTimes:
    """The true one."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def unwatched(progress: Progress) -> None:
    """For those who show nothing."""


@dataclass(kw_only=True)
class Flasher:
    """One board: its loader, its journal, the images, and what the agent can speak with."""

    loader: Loader
    journal: Journal
    images: ImageStore
    protocols: frozenset[int] | None = None
    """Major versions of the board's protocol that this host speaks; None: any."""
    hw_id: str | None = None
    """The board's name where a person vouches for it, because only its loader answers."""
    asks: bool = True
    """Whether anybody here can ask the application; else a sealed, verified flash has to do."""
    watch: Callable[[Progress], None] = unwatched
    times: Times = WallTimes()  # noqa: RUF009 - it holds nothing

    def install(self, image: FirmwareImage, previous: FirmwareImage | None = None) -> Outcome:
        """Put it there, or the previous one if it does not work: the last that was confirmed, or
        the one given.

        Raises RefusedError before anything is erased, LoaderSilentError, LineError and StoreError;
        whatever was begun then is taken up by the next `install` or `recover`.
        """
        self._refuse_unmade(image)
        entry = self.journal.load()
        seen = self.loader.version() if self.asks else None
        hw_id = (seen.hw_id if seen else None) or self.hw_id or (entry.hw_id if entry else None)
        self._refuse_wrong(image, Identified(loader="", hw_id=hw_id))
        self.images.keep(image)
        wanted = image.sha256
        before = None if entry is None else _confirmed(entry, but=wanted)
        if before is None and previous is not None:
            self.images.keep(previous)
            before = previous.sha256
        if entry is None or entry.wanted != wanted or entry.phase in SETTLED:
            entry = Entry(phase=Phase.REACH, image=wanted, wanted=wanted, previous=before)
        return self._settle(msgspec.structs.replace(entry, hw_id=hw_id))

    def running(self) -> FirmwareImage | None:
        """The image that was confirmed last. Raises StoreError."""
        entry = self.journal.load()
        name = None if entry is None else _confirmed(entry, but="")
        return None if name is None else self.images.get(name)

    def before(self) -> FirmwareImage | None:
        """The image that is put back when the one that runs turns out bad. Raises StoreError."""
        entry = self.journal.load()
        return None if entry is None or entry.previous is None else self.images.get(entry.previous)

    def recover(self) -> Outcome | None:
        """Take up what was cut; None when nothing was. Raises as `install` does."""
        entry = self.journal.load()
        if entry is None or entry.phase is Phase.INSTALLED:
            return None
        if entry.phase is Phase.FAULTED:
            entry = msgspec.structs.replace(
                entry, phase=Phase.REACH, image=entry.wanted, failures=0, reason=""
            )
        return self._settle(entry)

    # -- the plan -------------------------------------------------------------------------------

    def _settle(self, entry: Entry) -> Outcome:
        """The image, tries of it, the previous one, tries of that."""
        if entry.phase in {Phase.BOOT, Phase.CONFIRM} and self._runs(self.images.get(entry.image)):
            return self._installed(entry)
        while True:
            image = self.images.get(entry.image)
            try:
                entry = self._attempt(entry, image)
            except (TransferError, VerifyError) as error:
                entry = self._failed(entry, str(error))
            except WrongApplicationError as error:
                # Writing the same octets again would not make another application of them.
                entry = self._given_up(entry, str(error))
            else:
                return self._installed(entry)
            entry = self._note(entry, entry.phase)
            if entry.phase is Phase.FAULTED:
                return Outcome(result=Result.FAULTED, version=None, reason=entry.reason)
            if entry.image != entry.wanted and self._runs(self.images.get(entry.image)):
                # A board that keeps two images may have gone back by itself.
                return self._installed(entry)

    def _attempt(self, entry: Entry, image: FirmwareImage) -> Entry:
        self._reach(image, entry.hw_id)
        total = self.loader.blocks(image)
        entry = msgspec.structs.replace(entry, phase=Phase.ERASE, block=0)
        # The one note that must be on the disk: without it nobody would know of a half image.
        self.journal.store(entry)
        self._told(entry, image, 0, total)
        self.loader.erase(image)
        entry = self._note(entry, Phase.WRITE)
        self.loader.write(image, lambda done: self._wrote(entry, image, done, total))
        entry = self._note(entry, Phase.VERIFY)
        self.loader.verify(image, lambda done: self._told(entry, image, done, total))
        entry = self._note(entry, Phase.SEAL)
        self.loader.seal(image)
        self._told(entry := self._note(entry, Phase.BOOT), image, total, total)
        self.loader.boot()
        self._await_application(image)
        return entry

    def _reach(self, image: FirmwareImage, hw_id: str | None) -> None:
        """Its loader, whatever state the board is in; and only if the image is made for it."""
        entered = not self.loader.probe()
        if entered:
            self.loader.enter()
        try:
            self._refuse_wrong(image, self.loader.identify(), known=hw_id)
            self.loader.check(image)
        except RefusedError:
            # What ran before we came is still there.
            if entered:
                with suppress(BridgeError):
                    self.loader.boot()
            raise

    def _await_application(self, image: FirmwareImage) -> None:
        if not self.asks:
            return
        deadline = self.times.now() + START_S
        while (seen := self.loader.version()) is None:
            if self.times.now() > deadline:
                raise WrongApplicationError(
                    f"{image.version} was written and started, and nothing answered within "
                    f"{START_S:g} s"
                )
            self.times.sleep(ASK_EVERY_S)
        self._refuse_application(image, seen)

    def _refuse_application(self, image: FirmwareImage, seen: Running) -> None:
        if seen.version != image.version:
            raise WrongApplicationError(
                f"{image.version} was written and started, and {seen.version} answers"
            )
        if not seen.healthy:
            raise WrongApplicationError(f"{image.version} runs, and its self-test fails")
        spoken = self.protocols
        if spoken is not None and seen.protocol is not None and seen.protocol not in spoken:
            ours = ", ".join(map(str, sorted(spoken)))
            raise WrongApplicationError(
                f"{image.version} speaks version {seen.protocol} of the board's protocol, and this "
                f"agent speaks {ours}"
            )

    def _runs(self, image: FirmwareImage) -> bool:
        """Whether what a cut left after the seal is already what it should be."""
        seen = self.loader.version() if self.asks else None
        if seen is None:
            return False
        try:
            self._refuse_application(image, seen)
        except WrongApplicationError:
            return False
        return True

    def _installed(self, entry: Entry) -> Outcome:
        image = self.images.get(entry.image)
        entry = self._note(entry, Phase.CONFIRM)
        self.loader.confirm()
        back = entry.image != entry.wanted
        before = entry.previous if entry.previous != entry.image else None
        done = msgspec.structs.replace(
            entry, phase=Phase.INSTALLED, wanted=entry.image, previous=before, failures=0, block=0
        )
        self.journal.store(done)
        result = Result.PREVIOUS if back else Result.INSTALLED
        return Outcome(result=result, version=image.version, reason=entry.reason, asked=self.asks)

    # -- failures -------------------------------------------------------------------------------

    def _failed(self, entry: Entry, why: str) -> Entry:
        failures = entry.failures + 1
        if failures < TRIES:
            return msgspec.structs.replace(entry, phase=Phase.REACH, failures=failures, block=0)
        return self._given_up(entry, f"{TRIES} tries failed, at last: {why}")

    def _given_up(self, entry: Entry, why: str) -> Entry:
        """The previous image, or none if it was that, or there is none."""
        reason = f"{entry.reason}; then the previous image: {why}" if entry.reason else why
        if entry.image == entry.previous or entry.previous is None:
            return msgspec.structs.replace(entry, phase=Phase.FAULTED, block=0, reason=reason)
        return msgspec.structs.replace(
            entry, phase=Phase.REACH, image=entry.previous, failures=0, block=0, reason=reason
        )

    def _refuse_unmade(self, image: FirmwareImage) -> None:
        if not image.hw_ids and not image.chips:
            raise RefusedError(
                "the image does not say what hardware it is made for; nothing was erased. Name it: "
                "the board's hardware id, or its chip"
            )

    def _refuse_wrong(
        self, image: FirmwareImage, found: Identified, known: str | None = None
    ) -> None:
        """Before anything is erased: the chip and the board must be those it is made for."""
        hw_id = found.hw_id or known
        if found.chip is not None and image.chips and found.chip not in image.chips:
            made = ", ".join(f"{chip:#05x}" for chip in sorted(image.chips))
            raise RefusedError(
                f"the board has the chip {found.chip:#05x} ({found.chip_name or 'unknown'}) and "
                f"{image.version} is made for {made}; nothing was erased. Is it the right image?"
            )
        if hw_id is not None and image.hw_ids and hw_id not in image.hw_ids:
            made = ", ".join(sorted(image.hw_ids))
            raise RefusedError(
                f"the board is a {hw_id} and {image.version} is made for {made}; nothing was "
                "erased. Is it the right image?"
            )
        if found.loader and image.hw_ids and hw_id is None:
            raise RefusedError(
                f"{image.version} is made for {', '.join(sorted(image.hw_ids))}, and only the "
                "loader answers, which does not know its board; nothing was erased. Read the "
                "name on the board and vouch for it with --hw-id"
            )

    # -- notes ----------------------------------------------------------------------------------

    def _note(self, entry: Entry, phase: Phase, block: int = 0) -> Entry:
        """How far it is. A disk that is full now must not leave the board with half an image: what
        stands in the journal then, an earlier phase, is taken up just as well.
        """
        entry = msgspec.structs.replace(entry, phase=phase, block=block)
        try:
            self.journal.store(entry)
        except StoreError as error:
            logger.warning("%s", error)
        return entry

    def _wrote(self, entry: Entry, image: FirmwareImage, done: int, total: int) -> None:
        if done % BLOCKS_A_NOTE == 0:
            self._note(entry, Phase.WRITE, done)
        self._told(entry, image, done, total)

    def _told(self, entry: Entry, image: FirmwareImage, done: int, total: int) -> None:
        self.watch(Progress(phase=entry.phase, version=image.version, done=done, total=total))


SETTLED: Final = frozenset({Phase.INSTALLED, Phase.FAULTED})


def _confirmed(entry: Entry, *, but: str) -> str | None:
    """The last image that ran, for when the next one does not."""
    last = entry.image if entry.phase is Phase.INSTALLED else entry.previous
    return last if last != but else entry.previous
