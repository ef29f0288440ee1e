"""A chip's flash: erased by page to ones, programmed only from there, kept in a file if wanted."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Final

MARK: Final = b"\xa5KPBIMG\x5a"
LABEL: Final = struct.Struct("<8sI32s16s16sBB")
LABEL_AT: Final = 512
"""Beyond the first block, which holds the vectors."""


class Flash:
    """Pages of octets. Raises ValueError for what no flash does."""

    def __init__(self, pages: tuple[int, ...], file: Path | None = None) -> None:
        self.pages = pages
        self.octets = bytearray(b"\xff" * sum(pages))
        self._file = file
        if file is not None and file.exists():
            kept = file.read_bytes()
            if len(kept) != len(self.octets):
                raise ValueError(f"{file} holds {len(kept)} bytes, this chip {len(self.octets)}")
            self.octets[:] = kept
        elif file is not None:
            file.write_bytes(self.octets)

    def erase(self, page: int) -> None:
        at = sum(self.pages[:page])
        self._put(at, b"\xff" * self.pages[page])

    def program(self, at: int, octets: bytes) -> None:
        if at < 0 or at + len(octets) > len(self.octets):
            raise ValueError(f"{len(octets)} bytes at {at:#x} are not all in the flash")
        before = self.octets[at : at + len(octets)]
        for old, new in zip(before, octets, strict=True):
            if old != 0xFF and new not in {old, 0xFF}:
                raise ValueError(f"the flash at {at:#x} is not erased")
        self._put(at, bytes(old & new for old, new in zip(before, octets, strict=True)))

    def _put(self, at: int, octets: bytes) -> None:
        self.octets[at : at + len(octets)] = octets
        if self._file is not None:
            with self._file.open("r+b") as file:
                file.seek(at)
                file.write(octets)


def make_image(
    size: int,
    version: str,
    *,
    hw_id: str = "",
    protocol: int = 1,
    healthy: bool = True,
    seed: int = 1,
) -> bytes:
    """An application for the simulated boards: it says what it is, and notices what is missing."""
    stream = hashlib.shake_128(f"{seed} {version} {size}".encode()).digest(size)
    octets = bytearray(stream)
    octets[:8] = struct.pack("<II", 0x2000_5000, 0x0800_0401)
    octets[LABEL_AT : LABEL_AT + LABEL.size] = bytes(LABEL.size)
    digest = hashlib.sha256(octets).digest()
    octets[LABEL_AT : LABEL_AT + LABEL.size] = LABEL.pack(
        MARK, size, digest, version.encode(), hw_id.encode(), protocol, healthy
    )
    return bytes(octets)


def look(octets: bytes | bytearray) -> tuple[str, str, int, bool] | None:
    """Version, hardware, protocol and self-test of the application there; None: it cannot run."""
    if len(octets) < LABEL_AT + LABEL.size:
        return None
    mark, size, digest, version, hw_id, protocol, healthy = LABEL.unpack_from(octets, LABEL_AT)
    if mark != MARK or size > len(octets):
        return None
    whole = bytearray(octets[:size])
    whole[LABEL_AT : LABEL_AT + LABEL.size] = bytes(LABEL.size)
    if hashlib.sha256(whole).digest() != digest:
        return None
    return version.rstrip(b"\0").decode(), hw_id.rstrip(b"\0").decode(), protocol, bool(healthy)
