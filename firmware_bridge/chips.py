"""Flash geometry of STM32 chips by product id, from ST's reference manuals and AN2606.

A loader tells a chip's id and nothing of its flash: what is not in this table is refused, never
guessed. Sizes are of the largest chip with that id; the loader refuses what a smaller one lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from firmware_bridge.loader import FLASH_BASE

KIB: Final = 1024
SECTORS_F4: Final = (16, 16, 16, 16, 64, *7 * (128,))


@dataclass(frozen=True, slots=True)
class Chip:
    """One product id: its name and the sizes of its pages (ST calls the F4's sectors), in bytes."""

    pid: int
    name: str
    pages: tuple[int, ...]

    @property
    def flash_bytes(self) -> int:
        return sum(self.pages)

    def touched(self, address: int, size: int) -> tuple[int, ...]:
        """Numbers of the pages that these octets lie in; the first is the one at `address`."""
        begins = (FLASH_BASE + begin for begin in accumulate(self.pages, initial=0))
        return tuple(
            number
            for number, (begin, length) in enumerate(zip(begins, self.pages, strict=False))
            if begin < address + size and begin + length > address
        )


def _even(pid: int, name: str, kib: int, page_kib: int) -> Chip:
    return Chip(pid, name, (kib // page_kib) * (page_kib * KIB,))


def _sectored(pid: int, name: str, kib: int) -> Chip:
    ends = accumulate(SECTORS_F4)
    sizes = tuple(size for size, end in zip(SECTORS_F4, ends, strict=True) if end <= kib)
    return Chip(pid, name, tuple(size * KIB for size in sizes))


CHIPS: Final = {
    chip.pid: chip
    for chip in (
        _even(0x410, "STM32F10x medium density", 128, 1),
        _even(0x412, "STM32F10x low density", 32, 1),
        _even(0x414, "STM32F10x high density", 512, 2),
        _even(0x415, "STM32L47x/L48x", 1024, 2),
        _even(0x435, "STM32L43x/L44x", 256, 2),
        _even(0x440, "STM32F05x/F030x8", 64, 1),
        _even(0x448, "STM32F07x", 128, 2),
        _even(0x460, "STM32G07x/G08x", 128, 2),
        _even(0x466, "STM32G03x/G04x", 64, 2),
        _even(0x468, "STM32G431/G441", 128, 2),
        _sectored(0x413, "STM32F405/F407/F415/F417", 1024),
        Chip(0x419, "STM32F42x/F43x", 2 * tuple(size * KIB for size in SECTORS_F4)),
        _sectored(0x423, "STM32F401xB/C", 256),
        _sectored(0x431, "STM32F411", 512),
        _sectored(0x433, "STM32F401xD/E", 512),
    )
}
