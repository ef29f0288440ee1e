"""What an MCUboot image says of itself: header and hash, as MCUboot's own header file has them."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

MAGIC: Final = 0x96F3_B83D
HEADER: Final = struct.Struct("<IIHHIIBBHI4x")
"""Magic, load address, sizes of header, protected area and image, flags, version."""
AREA: Final = struct.Struct("<HH")
AREA_MAGIC: Final = 0x6907
ENTRY: Final = struct.Struct("<HH")
SHA256: Final = 0x10
NON_BOOTABLE: Final = 0x10


class ImageError(ValueError):
    """The octets are no image that MCUboot would start; the text says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """`hash` is how SMP names the image."""

    version: str
    hash: bytes


def said(octets: bytes) -> Said:
    """Reads the header, and compares the hash. Signatures are MCUboot's to verify, on the board.

    Raises ImageError.
    """
    if len(octets) < HEADER.size:
        raise ImageError("it is too short")
    magic, _, header, protected, size, flags, major, minor, revision, build = HEADER.unpack_from(
        octets
    )
    if magic != MAGIC:
        raise ImageError("it does not begin as an MCUboot image does")
    if flags & NON_BOOTABLE:
        raise ImageError("it is marked as not bootable")
    end = header + size + protected
    found = _entry(octets, end, SHA256)
    if hashlib.sha256(octets[:end]).digest() != found:
        raise ImageError("its content has another SHA-256 than it says: the file is damaged")
    version = f"{major}.{minor}.{revision}"
    return Said(f"{version}.{build}" if build else version, found)


def _entry(octets: bytes, at: int, wanted: int) -> bytes:
    if at + AREA.size > len(octets):
        raise ImageError("it ends before its hash")
    magic, total = AREA.unpack_from(octets, at)
    if magic != AREA_MAGIC or at + total > len(octets):
        raise ImageError("where its hash should be is something else")
    end, at = at + total, at + AREA.size
    while at + ENTRY.size <= end:
        kind, length = ENTRY.unpack_from(octets, at)
        if kind == wanted and at + ENTRY.size + length <= end:
            return octets[at + ENTRY.size : at + ENTRY.size + length]
        at += ENTRY.size + length
    raise ImageError("it carries no SHA-256")
