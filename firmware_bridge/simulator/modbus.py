"""Boards that take firmware over Modbus RTU: one with our loader, and an ABB Terra AC.

The framing is written from the specification (MODBUS over Serial Line V1.02), so that it checks the
host's.
"""

from __future__ import annotations

import abc
import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from typing import Final, NoReturn

from firmware_bridge.modbus_map import (
    BLOCK,
    BLOCK_AT,
    COMMAND,
    COMMAND_AT,
    IDENTITY_AT,
    STATUS_AT,
    Command,
    Fault,
    Header,
    Identity,
    MapError,
    Mode,
    State,
    Status,
    block,
)
from firmware_bridge.registers import (
    ModbusExceptionError,
    NoAnswerError,
    Words,
    to_octets,
    to_words,
)
from firmware_bridge.simulator.faults import Faults, Wire
from firmware_bridge.simulator.flash import Flash, look

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, DEVICE_BUSY = 1, 2, 3, 4, 6
BLOCK_BYTES: Final = 224
PAGE: Final = 1024
SILENCE_S: Final = 0.2
"""Ends a frame that lost an octet: 3.5 characters on a wire, more on a machine that has others."""
VALID: Final = b"\x4b\x4d\x56\x21"


class RefusedRequest(Exception):
    """Answered with this exception."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ModbusUnit(abc.ABC):
    """The framing of a unit with holding registers; what they hold is a board's matter."""

    def __init__(self, unit: int, faults: Faults | None) -> None:
        self.unit = unit
        self.faults = faults or Faults()
        self.on = True
        self.requests = 0
        self._heard = bytearray()
        self._heard_at = 0.0
        self._in = Wire(self.faults.lose_in, self.faults.spoil_in)
        self._out = Wire(self.faults.lose_out, self.faults.spoil_out)

    @abc.abstractmethod
    def read(self, address: int, count: int) -> Words:
        """Its registers. Raises RefusedRequest."""

    @abc.abstractmethod
    def write(self, address: int, octets: bytes) -> None:
        """Take what is written. Raises RefusedRequest."""

    def feed(self, octets: bytes) -> bytes:
        now = time.monotonic()
        if now - self._heard_at > SILENCE_S:
            self._heard.clear()
        self._heard_at = now
        self._heard += self._in.through(octets)
        answers = b""
        while (request := _take(self._heard)) is not None:
            unit, pdu = request
            reply = self.reply(pdu) if unit == self.unit else None
            if reply is not None:
                answers += _framed(unit, reply)
        return self._out.through(answers)

    def reply(self, pdu: bytes) -> bytes | None:
        """None: silence."""
        if not self.on:
            return None
        number = self.requests
        self.requests += 1
        try:
            answer = self._carried_out(pdu, number)
        except RefusedRequest as refused:
            answer = bytes((pdu[0] | 0x80, refused.code))
        return None if number in self.faults.lose_replies or not self.on else answer

    def _carried_out(self, pdu: bytes, number: int) -> bytes:
        if number in self.faults.refuse:
            raise RefusedRequest(DEVICE_BUSY)
        if pdu[0] == 3 and len(pdu) == 5:
            address, count = struct.unpack(">HH", pdu[1:])
            if not 1 <= count <= 125:
                raise RefusedRequest(ILLEGAL_VALUE)
            octets = to_octets(self.read(address, count))
            return bytes((3, len(octets))) + octets
        if pdu[0] == 16 and len(pdu) >= 8:
            address, count, size = struct.unpack(">HHB", pdu[1:6])
            if size != 2 * count or len(pdu) != 6 + size or not 1 <= count <= 123:
                raise RefusedRequest(ILLEGAL_VALUE)
            self.write(address, pdu[6:])
            return pdu[:5]
        raise RefusedRequest(ILLEGAL_FUNCTION)


class DirectRegisters:
    """A unit's registers without a line and without time."""

    def __init__(self, unit: ModbusUnit) -> None:
        self._unit = unit

    def read(self, address: int, count: int) -> Words:
        return to_words(self._asked(struct.pack(">BHH", 3, address, count))[2:])

    def write(self, address: int, words: Words) -> None:
        head = struct.pack(">BHHB", 16, address, len(words), 2 * len(words))
        self._asked(head + to_octets(words))

    def _asked(self, pdu: bytes) -> bytes:
        reply = self._unit.reply(pdu)
        if reply is None:
            raise NoAnswerError
        if reply[0] & 0x80:
            raise ModbusExceptionError(reply[1])
        return reply


class ModbusBoard(ModbusUnit):
    """A board with our loader: register windows, one session, a valid mark behind the flash."""

    def __init__(
        self,
        *,
        unit: int = 1,
        hw_id: str = "KPB-22",
        pages: int = 16,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(unit, faults)
        self.hw_id = hw_id
        self.flash = Flash(pages * (PAGE,))
        self.valid = b"\xff" * 4
        self.build = bytes(8)
        self.erased: list[int] = []
        self.programmed: list[int] = []
        self.mode = Mode.LOADER
        self._forget()
        self.power_on()

    # -- the board ------------------------------------------------------------------------------

    def power_on(self) -> None:
        self.on = True
        self._forget()
        starts = self.valid == VALID and look(self.flash.octets) is not None
        self.mode = Mode.APPLICATION if starts else Mode.LOADER

    def cut(self) -> None:
        self.on = False
        self._heard.clear()

    def _forget(self) -> None:
        self._header: Header | None = None
        self._session = self._following = 0
        self._state, self._fault = State.IDLE, Fault.NONE

    # -- registers ------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> Words:
        windows = {IDENTITY_AT: self._identity}
        if self.mode is Mode.LOADER:
            windows[STATUS_AT] = self._status
        for begin, window in windows.items():
            words = to_words(window())
            if begin <= address and address + count <= begin + len(words):
                return words[address - begin : address - begin + count]
        raise RefusedRequest(ILLEGAL_ADDRESS)

    def write(self, address: int, octets: bytes) -> None:
        if address == COMMAND_AT and len(octets) >= COMMAND.size:
            self._command(octets)
        elif address == BLOCK_AT and self.mode is Mode.LOADER and len(octets) > BLOCK.size:
            self._take_block(octets)
        else:
            raise RefusedRequest(ILLEGAL_ADDRESS)

    def _identity(self) -> bytes:
        seen = look(self.flash.octets) if self.valid == VALID else None
        version, _, protocol, healthy = seen or ("0.0.0", "", 0, True)
        return Identity(
            mode=self.mode,
            hw_id=self.hw_id,
            loader="1.0.0",
            version=version,
            protocol=(protocol, 0),
            block_bytes=BLOCK_BYTES,
            flash_bytes=len(self.flash.octets),
            build=self.build if self.valid == VALID else bytes(8),
            healthy=healthy,
        ).encode()

    def _status(self) -> bytes:
        return Status(
            state=self._state,
            following=self._following,
            fault=self._fault,
            session=self._session,
        ).encode()

    def _command(self, octets: bytes) -> None:
        code, session = COMMAND.unpack_from(octets)
        if self.mode is Mode.APPLICATION:
            if code != Command.ENTER:
                raise RefusedRequest(DEVICE_FAILURE)
            self.mode = Mode.LOADER
            return
        match code:
            case Command.START:
                self._start(session, octets[COMMAND.size :])
            case Command.END:
                self._end(session)
            case Command.BOOT:
                self.power_on()
            case Command.ABORT:
                self._forget()
            case Command.ENTER:
                return
            case _:
                raise RefusedRequest(ILLEGAL_VALUE)

    def _start(self, session: int, octets: bytes) -> None:
        try:
            header = Header.decode(octets)
        except MapError:
            self._refuse(Fault.BAD_CRC)
        if header.hw_id != self.hw_id:
            self._refuse(Fault.WRONG_HARDWARE)
        if header.length > len(self.flash.octets) or header.block_bytes != BLOCK_BYTES:
            self._refuse(Fault.TOO_LARGE)
        self._forget()
        self.valid = b"\xff" * 4
        for page in range(-(-header.length // PAGE)):
            self.flash.erase(page)
            self.erased.append(page)
            if self.faults.cut_at_erase == len(self.erased):
                self.cut()
                return
        self._header, self._session, self._state = header, session, State.RECEIVING

    def _take_block(self, octets: bytes) -> None:
        index, session, _ = BLOCK.unpack_from(octets)
        data = octets[BLOCK.size :]
        header = self._header
        if header is None or self._state is not State.RECEIVING:
            self._refuse(Fault.BAD_STATE)
        if session != self._session:
            self._refuse(Fault.WRONG_SESSION)
        if block(index, session, data) != octets or len(data) != BLOCK_BYTES:
            self._refuse(Fault.BAD_CRC)
        if index > self._following or index >= header.blocks:
            self._refuse(Fault.GAP)
        self._fault = Fault.NONE
        if index < self._following:
            return  # it is there; its reply was lost
        self._program(index, data[: header.length - index * BLOCK_BYTES])

    def _program(self, index: int, data: bytes) -> None:
        dies = self.faults.cut_at_block == len(self.programmed)
        self.programmed.append(index)
        if dies:
            self.flash.program(index * BLOCK_BYTES, data[: len(data) // 2])
            self.cut()
            return
        if self.faults.silent_writes > 0:
            self.faults.silent_writes -= 1
        else:
            self.flash.program(index * BLOCK_BYTES, data)
        self._following += 1

    def _end(self, session: int) -> None:
        header = self._header
        if header is None or session != self._session:
            self._refuse(Fault.WRONG_SESSION)
        if self._state is State.COMPLETE:
            return
        if self._following != header.blocks:
            self._refuse(Fault.GAP)
        if hashlib.sha256(self.flash.octets[: header.length]).digest() != header.sha256:
            self._state = State.FAILED
            self._refuse(Fault.MISMATCH)
        self.valid, self.build = VALID, header.sha256[:8]
        self._state = State.COMPLETE

    def _refuse(self, fault: Fault) -> NoReturn:
        self._fault = fault
        raise RefusedRequest(DEVICE_FAILURE)


class TerraAc(ModbusUnit):
    """An ABB Terra AC as its register table has it; how it sums up a chunk is given: a guess."""

    def __init__(
        self,
        version: tuple[int, int, int] = (1, 8, 0),
        *,
        unit: int = 1,
        checksum: Callable[[bytes], int] = zlib.crc32,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(unit, faults)
        self.version = version
        self.written: list[int] = []
        """Addresses, in the order in which they were written."""
        self._checksum = checksum
        self._said: dict[int, bytes] = {}
        self._image = bytearray()
        self._chunk = 0

    def read(self, address: int, count: int) -> Words:
        if (address, count) == (0x4004, 2):
            return to_words(bytes((*self.version, 0)))
        if (address, count) == (0x4000, 4):
            return to_words(b"\x01\x00\x21\x11\x01\x00\x22\x54")
        raise RefusedRequest(ILLEGAL_ADDRESS)

    def write(self, address: int, octets: bytes) -> None:
        self.written.append(address)
        if address == 0x4114:
            self._take_chunk(octets)
        elif address in {0x410A, 0x4111, 0x4113}:
            self._said[address] = octets
            if address == 0x4111 and octets == b"\0\3":
                self._image, self._chunk = bytearray(), 0
        else:
            raise RefusedRequest(ILLEGAL_ADDRESS)

    def _take_chunk(self, octets: bytes) -> None:
        number, size, check = struct.unpack_from(">HHI", octets)
        data = octets[8 : 8 + size]
        if self._said.get(0x4111) != b"\0\3" or self._checksum(data) & 0xFFFF_FFFF != check:
            raise RefusedRequest(ILLEGAL_VALUE)
        if number == self._chunk:
            return  # sent again, because its reply was lost
        if number != self._chunk + 1:
            raise RefusedRequest(ILLEGAL_VALUE)
        self._chunk = number
        self._image += data
        if number == int.from_bytes(self._said[0x4113], "big"):
            self._install()

    def _install(self) -> None:
        version, length, check = struct.unpack_from(">4sII", self._said[0x410A])
        whole = len(self._image) == length and zlib.crc32(self._image) == check
        if whole and look(self._image) is not None:
            self.version = (version[0], version[1], version[2])


def _crc(octets: bytes) -> bytes:
    crc = 0xFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc.to_bytes(2, "little")


def _framed(unit: int, pdu: bytes) -> bytes:
    frame = bytes((unit,)) + pdu
    return frame + _crc(frame)


def _take(heard: bytearray) -> tuple[int, bytes] | None:
    """One request off what was heard; noise before it is dropped octet by octet."""
    while len(heard) >= 8:
        length = {3: 8, 16: 9 + heard[6]}.get(heard[1])
        if length is not None and len(heard) < length:
            return None
        if length is not None and _crc(bytes(heard[: length - 2])) == heard[length - 2 : length]:
            frame = bytes(heard[:length])
            del heard[:length]
            return frame[0], frame[1:-2]
        del heard[0]
    return None
