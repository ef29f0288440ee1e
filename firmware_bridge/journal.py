"""What is remembered of a board, and the images themselves: both outlive a cut at any byte."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from firmware_bridge import whole_file
from firmware_bridge.loader import FLASH_BASE, FirmwareImage, StoreError

T = TypeVar("T")


class Phase(StrEnum):
    """How far the plan has come; what is written down is what is about to be done."""

    REACH = "reach"
    """Nothing of `image` was touched yet, in this try."""
    ERASE = "erase"
    WRITE = "write"
    VERIFY = "verify"
    SEAL = "seal"
    BOOT = "boot"
    CONFIRM = "confirm"
    INSTALLED = "installed"
    """Nothing is open; `image` runs."""
    FAULTED = "faulted"
    """Neither the new image nor the previous one could be made to run."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One board's journal. Images stand in it by their SHA-256."""

    phase: Phase
    image: str
    """What is being written, or runs."""
    wanted: str
    """What was asked for; another than `image` while the previous one is put back."""
    previous: str | None = None
    """The last image that ran and was confirmed."""
    block: int = 0
    failures: int = 0
    """Tries of `image` that failed; a cut is none."""
    hw_id: str | None = None
    """The board's own name, kept for the time when only its loader answers."""
    reason: str = ""
    """Why `wanted` was given up."""


class Journal:
    """One small file, replaced whole. Raises StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Entry | None:
        """None when this board was never flashed from here."""
        try:
            return _decoded(self.path, self.path.read_bytes(), Entry)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self.path, error) from error

    def store(self, entry: Entry) -> None:
        """On the disk when this returns."""
        _write(self.path, msgspec.json.encode(entry))


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside an image's octets."""

    version: str
    hw_ids: list[str]
    chips: list[int]
    protocol: int | None
    address: int = FLASH_BASE


class ImageStore:
    """Images by SHA-256 in a folder: the confirmed one and the previous stay until others are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, image: FirmwareImage) -> None:
        """On the disk when this returns; the label last, so that what has one is whole."""
        name = image.sha256
        with contextlib.suppress(StoreError):
            if self.get(name) == image:
                return
        label = Label(
            version=image.version,
            hw_ids=sorted(image.hw_ids),
            chips=sorted(image.chips),
            protocol=image.protocol,
            address=image.address,
        )
        _write(self.folder / f"{name}.bin", image.octets)
        _write(self._label(name), msgspec.json.encode(label))

    def get(self, name: str) -> FirmwareImage:
        """Raises StoreError for one that is not there, or is not what its name says."""
        try:
            octets = (self.folder / f"{name}.bin").read_bytes()
            label = _decoded(self._label(name), self._label(name).read_bytes(), Label)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        if hashlib.sha256(octets).hexdigest() != name:
            raise StoreError(
                f"the image {name[:12]} in {self.folder} is damaged; give the file again, or "
                "delete it there and flash another"
            )
        return FirmwareImage(
            octets=octets,
            version=label.version,
            hw_ids=frozenset(label.hw_ids),
            chips=frozenset(label.chips),
            protocol=label.protocol,
            address=label.address,
        )

    def forget_others(self, needed: set[str]) -> None:
        """Remove what no journal names any more."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix in {".bin", ".label"} and path.stem not in needed:
                    path.unlink(missing_ok=True)

    def _label(self, name: str) -> Path:
        return self.folder / f"{name}.label"


def _decoded(path: Path, octets: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(octets, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"{path} cannot be understood ({error}); it was written by a later version, or is "
            "damaged. Move it away, then flash the board again with the image given"
        ) from error


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot use {path}: {error.strerror or error}; is the disk full or read-only, and may you "
        "write there? Another folder is given with --state"
    )


def _write(path: Path, octets: bytes) -> None:
    """Raises StoreError."""
    try:
        whole_file.write(path, octets)
    except OSError as error:
        raise _unusable(path, error) from error


def forget_unneeded(journals: Iterable[Journal], images: ImageStore) -> None:
    """Remove images that no board runs, waits for, or would go back to.

    `journals`: of all boards whose images are there. Where one of them cannot be read, all stay.
    """
    needed: set[str] = set()
    with contextlib.suppress(StoreError):
        for journal in journals:
            entry = journal.load()
            if entry is not None:
                needed |= {entry.image, entry.wanted, entry.previous or entry.image}
        images.forget_others(needed)
