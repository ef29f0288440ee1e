"""ABB Terra AC: its documented registers for firmware (TAC Modbus Communication v1.11).

Locked. The table says that each chunk carries a checksum of 32 bits and shows in a figure how it is
made; we have not verified it. A wrong guess might leave a charger with half an image, so nothing is
transferred until somebody who has the maker's document names the checksum.

The charger checks a signature inside the image and restarts by itself; it keeps what runs until
then. That its version changed is the only sign of success.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from firmware_bridge.loader import (
    FirmwareImage,
    Identified,
    LoaderSilentError,
    RefusedError,
    Running,
    Told,
    TransferError,
    unheard,
)
from firmware_bridge.registers import (
    ModbusExceptionError,
    NoAnswerError,
    Registers,
    to_octets,
    to_words,
)

SETTING: Final = "--terra-ac-checksum"
HW_ID: Final = "ABB Terra AC"
SERIAL_AT: Final = 0x4000
VERSION_AT: Final = 0x4004
HEADER_AT: Final = 0x410A
"""Version, length, CRC of the image, size of a chunk."""
BEGIN_AT: Final = 0x4111
CHUNKS_AT: Final = 0x4113
CHUNK_AT: Final = 0x4114
"""Number from 1, octets, checksum, data."""
HEADER: Final = struct.Struct(">4sIIH")
CHUNK: Final = struct.Struct(">HHI")
CHUNK_BYTES: Final = 200
BEGIN: Final = 3
TRIES: Final = 5
CHECKSUMS: Final[Mapping[str, Callable[[bytes], int]]] = {
    "crc32": zlib.crc32,
    "sum": lambda octets: sum(octets) & 0xFFFF_FFFF,
}
T = TypeVar("T")


class TerraAcLoader:
    """`checksum`: one of CHECKSUMS, by someone who has read the maker's document; None: locked."""

    def __init__(self, registers: Registers, *, checksum: str | None = None) -> None:
        self._registers = registers
        self._checksum = None if checksum is None else CHECKSUMS[checksum]

    def version(self) -> Running | None:
        try:
            octets = to_octets(self._surely(lambda: self._registers.read(VERSION_AT, 2)))
        except (TransferError, LoaderSilentError):
            return None
        return Running(version=".".join(map(str, octets[:3])), hw_id=HW_ID)

    def probe(self) -> bool:
        """Its application takes the firmware: there is no other mode."""
        return self.version() is not None

    def enter(self) -> None:
        raise LoaderSilentError(
            "no ABB Terra AC answers; is it on, Modbus enabled in its settings, and the unit "
            "address and speed right?"
        )

    def identify(self) -> Identified:
        self._surely(lambda: self._registers.read(SERIAL_AT, 4))
        return Identified(loader=HW_ID, hw_id=HW_ID)

    def check(self, image: FirmwareImage) -> None:
        if self._checksum is None:
            raise RefusedError(
                "writing firmware to an ABB Terra AC is locked: how the checksum of a chunk is "
                "made stands in a figure of ABB's document and was not verified; nothing was sent. "
                f"If you have the document, name it with {SETTING} ({' or '.join(CHECKSUMS)})"
            )
        if not 0 < len(image.octets) <= 0xFFFF * CHUNK_BYTES:
            raise RefusedError(
                f"an image of {len(image.octets)} bytes has no fitting number of chunks; nothing "
                "was sent. Is it the right file?"
            )
        _version(image)

    def blocks(self, image: FirmwareImage) -> int:
        return -(-len(image.octets) // CHUNK_BYTES)

    def erase(self, image: FirmwareImage) -> None:
        """Say what comes, and begin; the charger erases nothing that it still needs."""
        header = HEADER.pack(
            _version(image), len(image.octets), zlib.crc32(image.octets), CHUNK_BYTES
        )
        for address, words in (
            (HEADER_AT, to_words(header)),
            (CHUNKS_AT, (self.blocks(image),)),
            (BEGIN_AT, (BEGIN,)),
        ):
            self._write(address, words)

    def write(self, image: FirmwareImage, told: Told = unheard) -> None:
        self.check(image)
        checksum = CHECKSUMS["crc32"] if self._checksum is None else self._checksum
        for number in range(1, self.blocks(image) + 1):
            data = image.octets[(number - 1) * CHUNK_BYTES : number * CHUNK_BYTES]
            head = CHUNK.pack(number, len(data), checksum(data) & 0xFFFF_FFFF)
            self._write(CHUNK_AT, to_words(head + data))
            told(number)

    def verify(self, image: FirmwareImage, told: Told = unheard, *, sealed: bool = False) -> None:
        """Nothing can be read back: every chunk was acknowledged, the rest its signature shows."""
        del sealed
        told(self.blocks(image))

    def seal(self, image: FirmwareImage) -> None:
        """The charger does that itself."""

    def boot(self) -> None:
        """It does that too."""

    def confirm(self) -> None:
        """And this."""

    def _write(self, address: int, words: tuple[int, ...]) -> None:
        self._surely(lambda: self._registers.write(address, words))

    def _surely(self, ask: Callable[[], T]) -> T:
        for _ in range(TRIES):
            try:
                return ask()
            except (NoAnswerError, ModbusExceptionError) as error:
                trouble = error
        if isinstance(trouble, NoAnswerError):
            raise LoaderSilentError(
                "the charger does not answer any more; is it on and connected? Run the same "
                "command again"
            ) from trouble
        raise TransferError(
            f"the charger refused {TRIES} times, at last with {trouble}; it keeps what it has"
        ) from trouble


def _version(image: FirmwareImage) -> bytes:
    try:
        major, minor, patch = map(int, image.version.split("."))
        return bytes((major, minor, patch, 0))
    except ValueError as error:
        raise RefusedError(
            f"'{image.version}' is no version such as 1.8.21, which the charger wants; "
            "nothing was sent"
        ) from error
