"""The language of a power board of our own on a plain serial line; see docs/serial-board.md.

A frame is a body and its CRC, byte-stuffed with COBS (Cheshire and Baker, 1997) and ended by a zero
octet. Zero occurs nowhere else, so whoever listens is in step again after the next one, whatever
came before. The body is: length of body and CRC, address, message, sequence number, payload. The
CRC is CRC-16/IBM-3740 (polynomial 1021h, from FFFFh, high octet first). Numbers are big-endian.

A request carries its command as message, a reply the same with ANSWER set: what an adapter echoes
of a request is never taken for a reply. A reply repeats the request's sequence number and starts
with a Status.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final

from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts

MAJOR: Final = 1
MINOR: Final = 0
ANSWER: Final = 0x80
HEAD: Final = struct.Struct(">BBBB")
CRC_BYTES: Final = 2
MAX_PAYLOAD: Final = 240
MAX_BODY: Final = HEAD.size + MAX_PAYLOAD + CRC_BYTES
MAX_FRAME: Final = MAX_BODY + 1
"""As stuffed, without the zero that ends it: below 254 octets COBS adds exactly one."""
ADDRESSES: Final = range(1, 248)
MOST_EVSES: Final = 4
MAGIC: Final = b"KPB1"
LOADER_KEY: Final = b"LOAD"
NOTHING_U32: Final = 0xFFFF_FFFF
NOTHING_S32: Final = -0x8000_0000
NOTHING_S16: Final = -0x8000
NOTHING_U64: Final = 0xFFFF_FFFF_FFFF_FFFF


class FrameError(ValueError):
    """The octets are no frame, or a payload is not what its message says; the text says why."""


class Command(IntEnum):
    """What can be asked of a board."""

    IDENTITY = 0x01
    ABILITIES = 0x02
    READ = 0x03
    LIMIT = 0x10
    CONTACTOR = 0x11
    FAILSAFE = 0x12
    LOADER = 0x20


class Status(IntEnum):
    """What a reply says of its request."""

    DONE = 0
    UNKNOWN_COMMAND = 1
    BAD_LENGTH = 2
    BAD_VALUE = 3
    NO_SUCH_EVSE = 4
    NOT_NOW = 5
    """Busy, or not while a contactor is closed: ask again later."""
    FAULT = 6
    """Not while the EVSE has a fault."""


class BoardState(IntEnum):
    """Which program of the board answers."""

    APPLICATION = 1
    TRIAL = 2
    """An application that was just installed and is not confirmed yet."""
    LOADER = 3


class Flag(IntFlag):
    """What is so with an EVSE at this moment."""

    CONTACTOR = 1
    AWAITS_RELEASE = 2
    """Nobody was authorized since this vehicle was plugged in."""
    FALLBACK = 4
    """The failsafe holds: nobody asked for too long."""
    RESTARTED = 8
    """Since the board's own restart its contactor was told nothing."""


class Ability(IntFlag):
    """What is true of every EVSE of a board, for ever."""

    ONE_PHASE = 1
    BILLING_GRADE = 2
    """Its meter is certified for billing."""


@dataclass(frozen=True, slots=True)
class Message:
    """One body: to or from the board at `address`."""

    address: int
    message: int
    sequence: int
    payload: bytes = b""

    @property
    def answers(self) -> bool:
        return bool(self.message & ANSWER)

    @property
    def command(self) -> int:
        return self.message & ~ANSWER


def crc16(octets: bytes | bytearray) -> int:
    """CRC-16/IBM-3740; of b"123456789" it is 29B1h."""
    crc = 0xFFFF
    for octet in octets:
        crc ^= octet << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def stuff(octets: bytes) -> bytes:
    """COBS: the same without zeros."""
    stuffed = bytearray()
    for part in octets.split(b"\0"):
        rest = part
        while len(rest) >= 254:
            stuffed += b"\xff" + rest[:254]
            rest = rest[254:]
        stuffed += bytes((len(rest) + 1,)) + rest
    return bytes(stuffed)


def unstuff(octets: bytes) -> bytes:
    """What was stuffed. Raises FrameError."""
    plain = bytearray()
    at = 0
    while at < len(octets):
        code = octets[at]
        block = octets[at + 1 : at + code]
        if code == 0 or len(block) != code - 1:
            raise FrameError("a block that is cut short")
        plain += block
        at += code
        if code < 0xFF and at < len(octets):
            plain.append(0)
    return bytes(plain)


def encode(message: Message) -> bytes:
    """The octets on the wire, a zero first: it ends whatever noise was there before."""
    if message.address not in ADDRESSES or len(message.payload) > MAX_PAYLOAD:
        raise FrameError(f"no frame for address {message.address}, {len(message.payload)} octets")
    length = HEAD.size + len(message.payload) + CRC_BYTES
    body = HEAD.pack(length, message.address, message.message, message.sequence) + message.payload
    return b"\0" + stuff(body + crc16(body).to_bytes(CRC_BYTES, "big")) + b"\0"


def decode(stuffed: bytes) -> Message:
    """What stood between two zeros. Raises FrameError."""
    if len(stuffed) > MAX_FRAME:
        raise FrameError("longer than any frame")
    body = unstuff(stuffed)
    if len(body) < HEAD.size + CRC_BYTES or body[0] != len(body):
        raise FrameError("another length than it says")
    if crc16(body[:-CRC_BYTES]) != int.from_bytes(body[-CRC_BYTES:], "big"):
        raise FrameError("a wrong CRC")
    _, address, message, sequence = HEAD.unpack_from(body)
    return Message(address, message, sequence, body[HEAD.size : -CRC_BYTES])


class Receiver:
    """Takes octets as they come and gives whole messages; what is none is counted and dropped."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._overlong = False
        self.spoiled = 0

    def feed(self, octets: bytes) -> list[Message]:
        found = []
        *ended, last = octets.split(b"\0")
        for part in ended:
            self._add(part)
            message = self._take()
            if message is not None:
                found.append(message)
        self._add(last)
        return found

    def _add(self, octets: bytes) -> None:
        """Never more than a frame is kept, whatever is on the line."""
        room = MAX_FRAME - len(self._rest)
        self._overlong = self._overlong or len(octets) > room
        self._rest += octets[: max(0, room)]

    def _take(self) -> Message | None:
        stuffed, overlong = bytes(self._rest), self._overlong
        self._rest.clear()
        self._overlong = False
        if not stuffed:
            return None
        if overlong:
            self.spoiled += 1
            return None
        try:
            return decode(stuffed)
        except FrameError:
            self.spoiled += 1
            return None


# ------------------------------------------------------------------------------------- identity

VERSION: Final = struct.Struct(">BBH")
IDENTITY: Final = struct.Struct(">4sBBBB12s4s8s4s16s")
IDENTITY_BYTES: Final = IDENTITY.size + CRC_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a board is; the same block from its application and from its loader."""

    state: BoardState
    hw_id: str
    """The hardware that a firmware must be made for: up to 12 ASCII characters."""
    firmware: tuple[int, int, int]
    build: bytes
    """The first 8 octets of the SHA-256 of the image that is installed."""
    loader: tuple[int, int, int]
    serial: str = ""
    """Up to 16 ASCII characters."""
    evses: int = 1
    """0 in the loader."""
    protocol: tuple[int, int] = (MAJOR, MINOR)

    def encode(self) -> bytes:
        block = IDENTITY.pack(
            MAGIC,
            *self.protocol,
            self.state,
            self.evses,
            _padded(self.hw_id, 12),
            VERSION.pack(*self.firmware),
            self.build,
            VERSION.pack(*self.loader),
            _padded(self.serial, 16),
        )
        return block + crc16(block).to_bytes(CRC_BYTES, "big")

    @classmethod
    def decode(cls, block: bytes) -> Identity:
        """Raises FrameError. Later minor versions may append; what is appended is not read."""
        if len(block) < IDENTITY_BYTES or not block.startswith(MAGIC):
            raise FrameError("no identity block of a power board")
        known = block[: IDENTITY.size]
        if crc16(known) != int.from_bytes(block[IDENTITY.size : IDENTITY_BYTES], "big"):
            raise FrameError("an identity block with a wrong CRC")
        fields = IDENTITY.unpack(known)
        _, major, minor, state, evses, hw_id, firmware, build, loader, serial = fields
        if state not in set(BoardState):
            raise FrameError(f"an identity block with the unknown state {state}")
        return cls(
            state=BoardState(state),
            hw_id=_text(hw_id),
            firmware=VERSION.unpack(firmware),
            build=build,
            loader=VERSION.unpack(loader),
            serial=_text(serial),
            evses=evses,
            protocol=(major, minor),
        )


def dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _padded(text: str, size: int) -> bytes:
    octets = text.encode("ascii")
    if len(octets) > size:
        raise FrameError(f"'{text}' is longer than {size} characters")
    return octets.ljust(size, b"\0")


def _text(octets: bytes) -> str:
    text = octets.rstrip(b"\0").decode("ascii", "replace")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


# -------------------------------------------------------------------------- abilities and readings

ABILITIES: Final = struct.Struct(">BIIHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a board can do, on each of its EVSEs (mA per phase, s)."""

    flags: Ability
    min_current: MilliAmperes
    max_current: MilliAmperes
    shortest_timeout_s: int
    longest_timeout_s: int
    """What its failsafe takes; 0 always switches it off."""

    def encode(self) -> bytes:
        return ABILITIES.pack(
            self.flags,
            self.min_current,
            self.max_current,
            self.shortest_timeout_s,
            self.longest_timeout_s,
        )

    @classmethod
    def decode(cls, block: bytes) -> Abilities:
        """Raises FrameError."""
        flags, low, high, shortest, longest = _unpacked(ABILITIES, block)
        return cls(
            flags=Ability(flags & 0b11),
            min_current=MilliAmperes(low),
            max_current=MilliAmperes(high),
            shortest_timeout_s=shortest,
            longest_timeout_s=longest,
        )


READING: Final = struct.Struct(">BcBHIIIIIIiQhI")
PLACES: Final = (
    ("state", 1, 1, ""),
    ("flags", 2, 1, ""),
    ("fault", 3, 2, ""),
    ("current_l1", 5, 4, "mA"),
    ("current_l2", 9, 4, "mA"),
    ("current_l3", 13, 4, "mA"),
    ("voltage_l1", 17, 4, "mV"),
    ("voltage_l2", 21, 4, "mV"),
    ("voltage_l3", 25, 4, "mV"),
    ("power", 29, 4, "W"),
    ("energy", 33, 8, "Wh"),
    ("temperature", 41, 2, "0.1 °C"),
    ("applied_limit", 43, 4, "mA"),
)
"""Name, offset, octets and unit of each field of a reading, for people."""
LETTERS: Final = b"ABCDEF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One EVSE as it is now; None is what the board cannot tell."""

    evse: int
    state: str
    """A to F, as IEC 61851-1 has it."""
    flags: Flag
    fault: int
    """0: none; others are the board's own codes."""
    current: tuple[MilliAmperes | None, ...]
    voltage: tuple[MilliVolts | None, ...]
    power: Watts | None
    energy: WattHours | None
    """Of its whole life; it never starts again, also through a restart."""
    temperature: int | None
    """Tenths of a degree Celsius, inside."""
    applied_limit: MilliAmperes
    """What holds now: as set, or the fallback, 0 while paused."""

    def encode(self) -> bytes:
        return READING.pack(
            self.evse,
            self.state.encode("ascii"),
            self.flags,
            self.fault,
            *(NOTHING_U32 if one is None else one for one in (*self.current, *self.voltage)),
            NOTHING_S32 if self.power is None else self.power,
            NOTHING_U64 if self.energy is None else self.energy,
            NOTHING_S16 if self.temperature is None else self.temperature,
            self.applied_limit,
        )

    def named(self) -> dict[str, int | str | None]:
        """Each field by its name in PLACES."""
        phases = zip(("l1", "l2", "l3"), self.current, self.voltage, strict=True)
        measured: dict[str, int | str | None] = {}
        for phase, current, voltage in phases:
            measured |= {f"current_{phase}": current, f"voltage_{phase}": voltage}
        return measured | {
            "state": self.state,
            "flags": (self.flags.name or "none").lower(),
            "fault": self.fault,
            "power": self.power,
            "energy": self.energy,
            "temperature": self.temperature,
            "applied_limit": self.applied_limit,
        }

    @classmethod
    def decode(cls, block: bytes) -> Reading:
        """Raises FrameError."""
        evse, state, flags, fault, *numbers = _unpacked(READING, block)
        if state not in LETTERS:
            raise FrameError(f"the unknown vehicle state {state!r}")
        phases, (power, energy, temperature, applied) = numbers[:6], numbers[6:]
        return cls(
            evse=evse,
            state=state.decode("ascii"),
            flags=Flag(flags & 0b1111),
            fault=fault,
            current=tuple(None if one == NOTHING_U32 else MilliAmperes(one) for one in phases[:3]),
            voltage=tuple(None if one == NOTHING_U32 else MilliVolts(one) for one in phases[3:]),
            power=None if power == NOTHING_S32 else Watts(power),
            energy=None if energy == NOTHING_U64 else WattHours(energy),
            temperature=None if temperature == NOTHING_S16 else temperature,
            applied_limit=MilliAmperes(applied),
        )


def readings(block: bytes) -> tuple[Reading, ...]:
    """All EVSEs of a board. Raises FrameError."""
    size = READING.size
    if not block or len(block) % size or len(block) > MOST_EVSES * size:
        raise FrameError(f"{len(block)} octets of readings, each has {size}")
    return tuple(Reading.decode(block[at : at + size]) for at in range(0, len(block), size))


# ----------------------------------------------------------------------------------------- writes

LIMIT: Final = struct.Struct(">BI")
CONTACTOR: Final = struct.Struct(">BB")
FAILSAFE: Final = struct.Struct(">HI")


def _unpacked(form: struct.Struct, block: bytes) -> tuple[Any, ...]:
    if len(block) != form.size:
        raise FrameError(f"{len(block)} octets, not {form.size}")
    return form.unpack(block)


def limit(evse: int, milliamperes: int) -> bytes:
    """As it is asked, and as it is answered with what is applied."""
    return LIMIT.pack(evse, milliamperes)


def limit_of(block: bytes) -> tuple[int, MilliAmperes]:
    """Raises FrameError."""
    evse, milliamperes = _unpacked(LIMIT, block)
    return evse, MilliAmperes(milliamperes)


def contactor(evse: int, *, released: bool) -> bytes:
    """As it is asked, and as it is answered."""
    return CONTACTOR.pack(evse, released)


def contactor_of(block: bytes) -> tuple[int, bool]:
    """Raises FrameError."""
    evse, released = _unpacked(CONTACTOR, block)
    if released not in {0, 1}:
        raise FrameError(f"a contactor that is told {released!r}")
    return evse, bool(released)


def failsafe(timeout_s: int, fallback: int) -> bytes:
    """As it is asked, and as it is answered with what is kept; 0 s switches it off."""
    return FAILSAFE.pack(timeout_s, fallback)


def failsafe_of(block: bytes) -> tuple[int, MilliAmperes]:
    """Raises FrameError."""
    timeout_s, fallback = _unpacked(FAILSAFE, block)
    return timeout_s, MilliAmperes(fallback)
