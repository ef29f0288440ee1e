"""The port behind which every kind of loader looks alike, and what goes through it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

FLASH_BASE: Final = 0x0800_0000


class BridgeError(Exception):
    """Firmware could not be put into a board; the text says what happened, why, and what to do."""


class LineError(BridgeError):
    """The serial port cannot be opened, or it went away."""


class LoaderSilentError(BridgeError):
    """Nobody answers as a loader would."""


class RefusedError(BridgeError):
    """The image must not go into this board. Nothing was erased."""


class ProtectedError(RefusedError):
    """The chip's readout protection is set."""


class TransferError(BridgeError):
    """The loader was there, and then every repeat of a request failed."""


class VerifyError(BridgeError):
    """The board does not hold what was written."""


class StoreError(BridgeError):
    """The folder that keeps the journal and the images cannot be read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareImage:
    """The octets for a board's flash, and what was said about them when they were built."""

    octets: bytes
    version: str
    hw_ids: frozenset[str] = frozenset()
    """Boards it is made for, by the name that the board itself tells."""
    chips: frozenset[int] = frozenset()
    """Product ids of the chips it is made for, as AN3155's Get ID tells them."""
    protocol: int | None = None
    """Major version of the board's protocol that its application speaks."""
    address: int = FLASH_BASE
    """Where it begins in the chip's memory; only loaders that are given addresses heed it."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.octets).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What a loader says of the hardware it runs on; None is what it cannot tell."""

    loader: str
    """The loader's kind and version, for people."""
    chip: int | None = None
    chip_name: str = ""
    hw_id: str | None = None
    flash_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What an application says of itself."""

    version: str
    protocol: int | None = None
    hw_id: str | None = None
    healthy: bool = True
    """Its self-test passed."""


Told = Callable[[int], None]
"""Called with the number of blocks that are done."""


def unheard(done: int) -> None:
    """For those who do not ask how far it is."""


class Loader(Protocol):
    """One board's loader. Each method raises BridgeError; only what its docstring names is usual.

    The order is the plan's: reach (`probe`, else `enter`), `identify`, `check`, `erase`, `write`,
    `verify`, `seal`, `boot`, ask `version`, `confirm`. Until `seal` the board must not start the
    new image, so that a cut before it always leaves a loader that can be reached.
    """

    def version(self) -> Running | None:
        """What the application says; None when none answers, or nobody here can ask it."""
        ...

    def probe(self) -> bool:
        """Whether a loader answers now. Changes nothing on the board."""
        ...

    def enter(self) -> None:
        """Bring the board from its application into the loader. Raises LoaderSilentError."""
        ...

    def identify(self) -> Identified:
        """Raises ProtectedError where nothing may be read or written."""
        ...

    def check(self, image: FirmwareImage) -> None:
        """Raises RefusedError for an image that this board cannot hold; changes nothing."""
        ...

    def blocks(self, image: FirmwareImage) -> int:
        """How many blocks `write` and `verify` count."""
        ...

    def erase(self, image: FirmwareImage) -> None:
        """Make room where the image goes, and only there; what makes it start goes first."""
        ...

    def write(self, image: FirmwareImage, told: Told = unheard) -> None:
        """Everything but what makes it start."""
        ...

    def verify(self, image: FirmwareImage, told: Told = unheard, *, sealed: bool = False) -> None:
        """Raises VerifyError where the board holds another; `sealed`: also of what starts."""
        ...

    def seal(self, image: FirmwareImage) -> None:
        """Make it startable; it is whole, `verify` said so."""
        ...

    def boot(self) -> None:
        """Leave the loader for the application."""
        ...

    def confirm(self) -> None:
        """The application is good: keep it, also through the next restart."""
        ...
