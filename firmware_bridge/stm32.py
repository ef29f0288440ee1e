"""The loader in every STM32's ROM (AN3155) behind the port.

It knows nothing of sessions: a board whose flashing was cut is erased and written anew. It does not
know the board either, only the chip; and the application speaks a language of its own. So how to
bring the board into the ROM, and how to ask its application who it is, are given from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from firmware_bridge import an3155
from firmware_bridge.an3155 import Abilities, Nacked, Talk, Trouble
from firmware_bridge.chips import CHIPS, Chip
from firmware_bridge.loader import (
    FLASH_BASE,
    FirmwareImage,
    Identified,
    LoaderSilentError,
    ProtectedError,
    RefusedError,
    Running,
    Told,
    TransferError,
    VerifyError,
    unheard,
)
from firmware_bridge.pins import BootPins
from firmware_bridge.port import Line, hold

T = TypeVar("T")
PAGES_AT_ONCE: Final = 8
"""A request that is lost costs no more than erasing so many pages."""
START_S: Final = 0.5
"""What a board may take from reset until its loader hears."""


def no_way_in() -> None:
    """For a board that nobody here can reset or ask."""
    raise LoaderSilentError(
        "no STM32 loader answers, and nothing here can bring the board into it; set BOOT0, reset "
        "the board (or switch it off and on), and run the same command again"
    )


def nobody_asks() -> Running | None:
    """For an application that nobody here can speak with."""
    return None


class Stm32Loader:
    """AN3155 on one line. `enter` asks the application to bring the board into its ROM.

    `pins`, where they are wired, do that if it does not help, and start the application afterwards:
    a reset is cleaner than Go, which leaves the chip as the ROM used it.
    """

    def __init__(
        self,
        line: Line,
        *,
        enter: Callable[[], None] = no_way_in,
        version: Callable[[], Running | None] = nobody_asks,
        hw_id: str | None = None,
        pins: BootPins | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pins = pins
        self._line = line
        self._enter = enter
        self._version = version
        self._hw_id = hw_id
        self._pause = pause
        self._abilities: Abilities | None = None
        self._chip: Chip | None = None
        self._start = FLASH_BASE

    def version(self) -> Running | None:
        return self._version()

    def probe(self) -> bool:
        if self._version() is not None:
            return False  # the application answers: that is quicker known than the ROM's silence
        try:
            self._hold(an3155.sync())
            self._hold(an3155.surely("asking for its abilities", an3155.get))
        except (LoaderSilentError, TransferError):
            return False
        return True

    def enter(self) -> None:
        try:
            self._enter()
            self._pause(START_S)
            self._hold(an3155.sync())
        except LoaderSilentError:
            if self._pins is None:
                raise
            self._pins.start(loader=True)
            self._pause(START_S)
            self._hold(an3155.sync())

    def identify(self) -> Identified:
        abilities = self._hold(an3155.agreed("asking for its abilities", an3155.get))
        pid = self._hold(an3155.agreed("asking for its chip", an3155.get_id))
        self._abilities, self._chip = abilities, CHIPS.get(pid)
        if self._hold(an3155.protected(FLASH_BASE)):
            raise ProtectedError(
                "the chip lets nobody read or write its flash: readout protection is set. It is "
                "never taken off from here, because that erases the whole chip with its loader, "
                "calibration and keys; if that is what you want, do it with the maker's tool"
            )
        major, minor = divmod(abilities.version, 16)
        return Identified(
            loader=f"STM32 ROM loader {major}.{minor}",
            chip=pid,
            chip_name=self._chip.name if self._chip else "",
            hw_id=self._hw_id,
            flash_bytes=self._chip.flash_bytes if self._chip else None,
        )

    def check(self, image: FirmwareImage) -> None:
        chip = self._known()
        end = FLASH_BASE + chip.flash_bytes
        inside = image.address >= FLASH_BASE and image.address + len(image.octets) <= end
        if not image.octets or not inside:
            raise RefusedError(
                f"{len(image.octets)} bytes at {image.address:#010x} do not fit the flash of "
                f"{chip.name} (0x08000000 to {end:#010x}); nothing was erased. Is it the right "
                "file, and its address?"
            )
        if image.address % an3155.ALIGNMENT:
            raise RefusedError(
                f"the address {image.address:#010x} is no multiple of {an3155.ALIGNMENT}; nothing "
                "was erased. Give the address that the image was linked for"
            )
        first = chip.touched(image.address, 1)[0]
        if chip.touched(image.address - 1, 1) == (first,):
            raise RefusedError(
                f"the address {image.address:#010x} lies inside a page, and erasing it would take "
                "what lies before; nothing was erased. Give the address the image was linked for"
            )

    def blocks(self, image: FirmwareImage) -> int:
        return len(_blocks(image))

    def erase(self, image: FirmwareImage) -> None:
        """The first page alone and first: from then on nothing half-erased can be started."""
        pages = self._known().touched(image.address, len(image.octets))
        extended = an3155.EXTENDED_ERASE in self._asked().commands
        groups = [pages[:1]]
        groups += [pages[at : at + PAGES_AT_ONCE] for at in range(1, len(pages), PAGES_AT_ONCE)]
        for group in groups:
            what = f"erasing the pages {group[0]} to {group[-1]}"
            self._hold(an3155.surely(what, partial(an3155.erase, group, extended=extended)))

    def write(self, image: FirmwareImage, told: Told = unheard) -> None:
        for done, (address, octets) in enumerate(_blocks(image)[1:], 1):
            self._hold(an3155.write_surely(address, octets))
            told(done)

    def verify(self, image: FirmwareImage, told: Told = unheard, *, sealed: bool = False) -> None:
        (first, octets), *rest = _blocks(image)
        self._compare(first, octets if sealed else b"\xff" * len(octets))
        for done, block in enumerate(rest, 1):
            self._compare(*block)
            told(done)

    def seal(self, image: FirmwareImage) -> None:
        """With the first block come the stack pointer and the way in: only now can it start."""
        address, octets = _blocks(image)[0]
        self._start = address
        self._hold(an3155.write_surely(address, octets))
        self._compare(address, octets)

    def boot(self) -> None:
        """Go. Its ACK may be lost with the loader itself; whether it runs, its application says."""
        if self._pins is not None:
            self._pins.start(loader=False)
            return
        try:
            self._hold(an3155.go(self._start))
        except Nacked as error:
            raise TransferError(
                "the loader refused to start the application; reset the board with BOOT0 low"
            ) from error
        except Trouble:
            return

    def confirm(self) -> None:
        """The ROM starts what is in the flash, now and always."""

    def _compare(self, address: int, octets: bytes) -> None:
        found = self._hold(an3155.differing(address, octets))
        if found is None:
            return
        wrong = next(
            i for i, pair in enumerate(zip(found, octets, strict=True)) if len({*pair}) > 1
        )
        raise VerifyError(
            f"the flash holds {found[wrong]:02x} at {address + wrong:#010x}, where "
            f"{octets[wrong]:02x} was written: a page is write-protected, or the flash is worn out"
        )

    def _known(self) -> Chip:
        if self._chip is None:
            self._asked()
            raise RefusedError(
                "the chip's id is not in our table, so the layout of its flash is unknown; nothing "
                "was erased. Is it the right board? A new chip needs a line in "
                "firmware_bridge/chips.py"
            )
        return self._chip

    def _asked(self) -> Abilities:
        if self._abilities is None:
            raise RefusedError("the board was not identified yet; nothing was erased")
        return self._abilities

    def _hold(self, talk: Talk[T]) -> T:
        return hold(talk, self._line)


def _blocks(image: FirmwareImage) -> list[tuple[int, bytes]]:
    """Where each block goes, filled up with FFh to what every chip can program."""
    size = an3155.BLOCK
    octets = image.octets + b"\xff" * (-len(image.octets) % an3155.ALIGNMENT)
    return [(image.address + at, octets[at : at + size]) for at in range(0, len(octets), size)]
