"""An STM32 with the loader of AN3155 in its ROM, written from the document.

Strict: complements and checksums, only the erase command that this chip has, addresses and
alignment, programming only what is erased, everything but Get, Get Version and Get ID refused under
readout protection. It never gives up waiting for the rest of a frame, as the ROM does not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from firmware_bridge.loader import Running
from firmware_bridge.simulator.faults import Faults, Wire
from firmware_bridge.simulator.flash import Flash, look

ACK, NACK, BUSY, SYNC = 0x79, 0x1F, 0x76, 0x7F
FLASH_AT: Final = 0x0800_0000
RAM_AT: Final = 0x2000_0000
RAM_FREE_AT: Final = 0x2000_1000
"""Below lies what the loader itself uses."""
RAM_BYTES: Final = 20 * 1024
SYSTEM: Final = {0x1FFF_F000: 2048, 0x1FFF_F7E0: 2, 0x1FFF_F800: 16, 0x1FFF_7A20: 4}
"""Readable beside flash and RAM: the ROM, flash size, option bytes, as ones."""
WITHOUT_READING: Final = frozenset({0x00, 0x01, 0x02, 0x92})
KIB: Final = 1024
F4: Final = tuple(KIB * size for size in (16, 16, 16, 16, 64, *7 * (128,)))

Life = Generator[None, int, None]


class Stm32:
    """One chip and what is on its board. `feed` takes the host's octets and gives the answers."""

    def __init__(
        self,
        *,
        pid: int = 0x413,
        pages: tuple[int, ...] = F4,
        extended: bool = True,
        protected: bool = False,
        version: int = 0x31,
        file: Path | None = None,
        faults: Faults | None = None,
        boot0: bool = True,
    ) -> None:
        self.pid, self.extended, self.protected = pid, extended, protected
        self.rom_version = version
        self.flash = Flash(pages, file)
        self.ram = bytearray(RAM_BYTES)
        self.faults = faults or Faults()
        self.boot0 = boot0
        self.commands: list[int] = []
        self.erased: list[int] = []
        """Pages, in the order in which they were erased, since the start."""
        self.programmed: list[int] = []
        """Addresses of programmed blocks, likewise."""
        self.on = False
        self.in_loader = False
        self._in = Wire(self.faults.lose_in, self.faults.spoil_in)
        self._out = Wire(self.faults.lose_out, self.faults.spoil_out)
        self._pending = bytearray()
        self._life: Life = self._off()
        self.power_on()

    # -- the board ------------------------------------------------------------------------------

    def power_on(self) -> None:
        self.on = True
        blank = self.flash.octets[:4] == b"\xff" * 4
        self.in_loader = self.boot0 or blank
        self._begin(self._loader() if self.in_loader else self._application())

    def cut(self) -> None:
        """The power fails."""
        self.on = self.in_loader = False
        self._pending.clear()
        self._begin(self._off())

    def enter_loader(self) -> None:
        """What the application does when it is told to, or the reset pins with BOOT0."""
        if self.on:
            self.in_loader = True
            self._begin(self._loader())

    def running(self) -> Running | None:
        """What the application says, while it runs."""
        seen = look(self.flash.octets) if self.on and not self.in_loader else None
        if seen is None:
            return None
        version, hw_id, protocol, healthy = seen
        return Running(version=version, hw_id=hw_id, protocol=protocol, healthy=healthy)

    def feed(self, octets: bytes) -> bytes:
        for octet in self._in.through(octets):
            self._life.send(octet)
        answer = self._out.through(bytes(self._pending))
        self._pending.clear()
        return answer

    def _begin(self, life: Life) -> None:
        self._life = life
        next(life)

    def _off(self) -> Life:
        while True:
            yield

    def _application(self) -> Life:
        while True:
            yield

    # -- the loader -----------------------------------------------------------------------------

    def _loader(self) -> Life:
        while (yield) != SYNC:
            pass
        self._pending.append(ACK)
        known = self._known()
        while True:
            code = yield
            check = yield
            number = len(self.commands)
            self.commands.append(code)
            denied = self.protected and code not in WITHOUT_READING
            if check != code ^ 0xFF or code not in known or denied or number in self.faults.refuse:
                self._pending.append(NACK)
                continue
            self._acknowledge()
            yield from known[code]()
            if not self.on or not self.in_loader:
                yield from self._off() if not self.on else self._application()

    def _known(self) -> dict[int, Callable[[], Life]]:
        erase = (0x44, self._erase_extended) if self.extended else (0x43, self._erase)
        return dict(
            [
                (0x00, self._get),
                (0x01, self._get_version),
                (0x02, self._get_id),
                (0x11, self._read),
                (0x21, self._go),
                (0x31, self._write),
                erase,
                (0x92, self._unprotect),
            ]
        )

    def _acknowledge(self) -> None:
        self._pending += bytes((BUSY,)) * self.faults.busy
        self._pending.append(ACK)

    def _get(self) -> Life:
        codes = bytes(self._known())
        self._pending += bytes((len(codes), self.rom_version)) + codes + bytes((ACK,))
        yield from ()

    def _get_version(self) -> Life:
        self._pending += bytes((self.rom_version, 0, 0, ACK))
        yield from ()

    def _get_id(self) -> Life:
        self._pending += b"\x01" + self.pid.to_bytes(2, "big") + bytes((ACK,))
        yield from ()

    def _take(self, count: int) -> Generator[None, int, bytes]:
        octets = bytearray()
        for _ in range(count):
            octets.append((yield))
        return bytes(octets)

    def _address(self) -> Generator[None, int, int | None]:
        """None: it was refused, and the command is over."""
        octets = yield from self._take(5)
        address = int.from_bytes(octets[:4], "big")
        if not _sums_up(octets) or not self._room(address):
            self._pending.append(NACK)
            return None
        return address

    def _room(self, address: int) -> int:
        """How many octets follow there, in the same memory; 0: there is none."""
        if FLASH_AT <= address < FLASH_AT + len(self.flash.octets):
            return FLASH_AT + len(self.flash.octets) - address
        if RAM_AT <= address < RAM_AT + RAM_BYTES:
            return RAM_AT + RAM_BYTES - address
        for begin, size in SYSTEM.items():
            if begin <= address < begin + size:
                return begin + size - address
        return 0

    def _read(self) -> Life:
        address = yield from self._address()
        if address is None:
            return
        self._acknowledge()
        count, check = yield from self._take(2)
        if check != count ^ 0xFF or count + 1 > self._room(address):
            self._pending.append(NACK)
            return
        self._acknowledge()
        self._pending += self._memory(address, count + 1)

    def _memory(self, address: int, count: int) -> bytes:
        if address >= RAM_AT:
            at = address - RAM_AT
            return bytes(self.ram[at : at + count])
        if address >= FLASH_AT + len(self.flash.octets):
            return b"\xff" * count
        at = address - FLASH_AT
        return bytes(self.flash.octets[at : at + count])

    def _go(self) -> Life:
        address = yield from self._address()
        if address is None:
            return
        self._acknowledge()
        # A jump into RAM is what hosts use for a reset: both end the loader.
        self.boot0 = self.boot0 and address >= RAM_AT
        self.in_loader = False

    def _write(self) -> Life:
        address = yield from self._address()
        if address is None:
            return
        self._acknowledge()
        count = (yield) + 1
        octets = yield from self._take(count + 1)
        fits = count % 4 == 0 and address % 4 == 0 and count <= self._room(address)
        if not _sums_up(bytes((count - 1,)) + octets) or not fits:
            self._pending.append(NACK)
            return
        if self._programs(address, octets[:-1]):
            self._acknowledge()
        elif self.on:
            self._pending.append(NACK)

    def _programs(self, address: int, octets: bytes) -> bool:
        if address >= RAM_AT:
            at = address - RAM_AT
            if address >= RAM_FREE_AT:
                self.ram[at : at + len(octets)] = octets
            return address >= RAM_FREE_AT
        if address >= FLASH_AT + len(self.flash.octets):
            return False
        at = address - FLASH_AT
        if self.faults.silent_writes > 0:
            self.faults.silent_writes -= 1
            return True
        dies = self.faults.cut_at_block == len(self.programmed)
        self.programmed.append(address)
        if dies:
            self.flash.program(at, octets[: len(octets) // 2])
            self.cut()
            return False
        try:
            self.flash.program(at, octets)
        except ValueError:
            return False
        return True

    def _erase(self) -> Life:
        count = yield
        if count == 0xFF:
            check = yield
            self._finish_erase(range(len(self.flash.pages)), good=check == 0x00)
            return
        octets = yield from self._take(count + 2)
        good = _sums_up(bytes((count,)) + octets)
        self._finish_erase(octets[:-1], good=good)

    def _erase_extended(self) -> Life:
        head = yield from self._take(2)
        count = int.from_bytes(head, "big")
        if count >= 0xFFF0:
            check = yield
            good = count == 0xFFFF and check == 0x00
            self._finish_erase(range(len(self.flash.pages)), good=good)
            return
        octets = yield from self._take(2 * (count + 1) + 1)
        pages = [int.from_bytes(octets[i : i + 2], "big") for i in range(0, len(octets) - 1, 2)]
        self._finish_erase(pages, good=_sums_up(head + octets))

    def _finish_erase(self, pages: range | list[int] | bytes, *, good: bool) -> None:
        if not good or any(page >= len(self.flash.pages) for page in pages):
            self._pending.append(NACK)
            return
        for page in pages:
            self.flash.erase(page)
            self.erased.append(page)
            if self.faults.cut_at_erase == len(self.erased):
                self.cut()
                return
        self._acknowledge()

    def _unprotect(self) -> Life:
        """Takes the protection off and everything with it: whoever sends this has decided so."""
        for page in range(len(self.flash.pages)):
            self.flash.erase(page)
            self.erased.append(page)
        self.protected = False
        self._acknowledge()
        yield from ()


def _sums_up(octets: bytes) -> bool:
    check = 0
    for octet in octets:
        check ^= octet
    return check == 0
