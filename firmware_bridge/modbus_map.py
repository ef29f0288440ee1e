"""The registers of a board's Modbus loader; docs/firmware-bridge.md has them as a table.

All are holding registers, high octet first. The identity can be read from the application and from
the loader alike, at the same unit address.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

IDENTITY_AT: Final = 0xF000
COMMAND_AT: Final = 0xF040
STATUS_AT: Final = 0xF070
BLOCK_AT: Final = 0xF080

MAGIC: Final = b"KMBL"
LAYOUT: Final = 1
IDENTITY: Final = struct.Struct(">4sHH12s4s4sBBHI8sH16x")
"""Magic, layout, mode, hardware, loader, application, protocol, block, flash, build, health."""
COMMAND: Final = struct.Struct(">HI")
HEADER: Final = struct.Struct(">12s4sIHH32s")
"""Hardware, version, length, blocks, octets of a block, SHA-256."""
STATUS: Final = struct.Struct(">HHHI6x")
BLOCK: Final = struct.Struct(">HIH")
"""Index, session, CRC; the data follow."""
VERSION: Final = struct.Struct(">BBH")
MOST_BLOCK_BYTES: Final = 2 * 123 - BLOCK.size


class Mode(IntEnum):
    """Which program answers."""

    APPLICATION = 1
    LOADER = 3


class Command(IntEnum):
    """What can be written to COMMAND_AT; all but ENTER are the loader's."""

    START = 1
    END = 2
    BOOT = 3
    ABORT = 4
    ENTER = 5


class State(IntEnum):
    """Where a session stands."""

    IDLE = 0
    RECEIVING = 1
    ERASING = 2
    COMPLETE = 3
    """The whole image was compared and marked valid."""
    FAILED = 4


class Fault(IntEnum):
    """Why the last request was refused."""

    NONE = 0
    WRONG_HARDWARE = 1
    TOO_LARGE = 2
    BAD_CRC = 3
    GAP = 4
    """Not the next block, and not one that is there already."""
    WRONG_SESSION = 5
    MISMATCH = 6
    """The image's SHA-256 is another."""
    FLASH = 7
    BAD_STATE = 8


class MapError(ValueError):
    """These registers are no loader's; the text says why."""


def crc16(octets: bytes) -> int:
    """CRC-16/XMODEM (polynomial 1021h, from 0); of b"123456789" it is 31C3h."""
    return binascii.crc_hqx(octets, 0)


def pack_version(version: str) -> bytes:
    """Raises MapError for what is no major.minor.patch of fitting size."""
    try:
        major, minor, patch = map(int, version.split("."))
        return VERSION.pack(major, minor, patch)
    except (ValueError, struct.error) as error:
        raise MapError(f"'{version}' is no version such as 1.4.0") from error


def unpack_version(octets: bytes) -> str:
    return ".".join(map(str, VERSION.unpack(octets)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who answers."""

    mode: Mode
    hw_id: str
    loader: str
    version: str
    """Of the application; 0.0.0 where there is none that is valid."""
    protocol: tuple[int, int]
    block_bytes: int
    flash_bytes: int
    build: bytes
    """The first 8 octets of the SHA-256 of what is installed."""
    healthy: bool = True

    def encode(self) -> bytes:
        block = IDENTITY.pack(
            MAGIC,
            LAYOUT,
            self.mode,
            self.hw_id.encode("ascii"),
            pack_version(self.loader),
            pack_version(self.version),
            *self.protocol,
            self.block_bytes,
            self.flash_bytes,
            self.build,
            self.healthy,
        )
        return block + crc16(block).to_bytes(2, "big")

    @classmethod
    def decode(cls, octets: bytes) -> Identity:
        """Raises MapError."""
        block = octets[: IDENTITY.size]
        if len(octets) != IDENTITY.size + 2 or not octets.startswith(MAGIC):
            raise MapError("no identity block of a board with a Modbus loader")
        if crc16(block) != int.from_bytes(octets[IDENTITY.size :], "big"):
            raise MapError("an identity block with a wrong CRC")
        _, layout, mode, hw_id, loader, version, major, minor, size, flash, build, health = (
            IDENTITY.unpack(block)
        )
        if layout != LAYOUT or mode not in set(Mode):
            raise MapError(f"an identity block of layout {layout}, mode {mode}; known is {LAYOUT}")
        if size % 2 or not 0 < size <= MOST_BLOCK_BYTES:
            raise MapError(f"a loader that wants blocks of {size} bytes")
        return cls(
            mode=Mode(mode),
            hw_id=hw_id.rstrip(b"\0").decode("ascii", "replace"),
            loader=unpack_version(loader),
            version=unpack_version(version),
            protocol=(major, minor),
            block_bytes=size,
            flash_bytes=flash,
            build=build,
            healthy=bool(health),
        )


IDENTITY_WORDS: Final = (IDENTITY.size + 2) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What START says of the image."""

    hw_id: str
    version: str
    length: int
    block_bytes: int
    sha256: bytes

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_bytes)

    def encode(self) -> bytes:
        block = HEADER.pack(
            self.hw_id.encode("ascii"),
            pack_version(self.version),
            self.length,
            self.blocks,
            self.block_bytes,
            self.sha256,
        )
        return block + crc16(block).to_bytes(2, "big")

    @classmethod
    def decode(cls, octets: bytes) -> Header:
        """Raises MapError."""
        block = octets[: HEADER.size]
        if len(octets) != HEADER.size + 2 or crc16(block) != int.from_bytes(octets[-2:], "big"):
            raise MapError("a header with a wrong CRC")
        hw_id, version, length, _, size, sha256 = HEADER.unpack(block)
        return cls(
            hw_id=hw_id.rstrip(b"\0").decode("ascii", "replace"),
            version=unpack_version(version),
            length=length,
            block_bytes=size,
            sha256=sha256,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a session is."""

    state: State
    following: int
    """The index of the block that is wanted next."""
    fault: Fault
    session: int

    def encode(self) -> bytes:
        return STATUS.pack(self.state, self.following, self.fault, self.session)

    @classmethod
    def decode(cls, octets: bytes) -> Status:
        """Raises MapError."""
        state, following, fault, session = STATUS.unpack(octets)
        if state not in set(State) or fault not in set(Fault):
            raise MapError(f"the unknown state {state} or fault {fault}")
        return cls(state=State(state), following=following, fault=Fault(fault), session=session)


def block(index: int, session: int, data: bytes) -> bytes:
    """The octets that one request writes to BLOCK_AT."""
    check = crc16(struct.pack(">HI", index, session) + data)
    return BLOCK.pack(index, session, check) + data
