"""What two others say on a serial line: RTU frames out of a stream of bytes, with nobody's help.

A listener sees no direction and, through a USB adapter, no exact gaps. So a frame is what its
length by function and its CRC agree on; a read's answer is told from its request by what was asked
before. What fits nothing is noise, shown as it came.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from protocols.modbus.binding import Binding, ForbiddenError
from protocols.modbus.frames import COIL_ON, WRITE_COIL, crc16
from protocols.modbus.profile import Profile, Write
from protocols.modbus.values import Value, Words

READS: Final = frozenset({1, 2, 3, 4})
REGISTER_READS: Final = frozenset({3, 4})
SINGLE_WRITES: Final = frozenset({5, 6})
MULTIPLE_WRITES: Final = frozenset({15, 16})
OTHERS: Final = frozenset({7, 8, 11, 12, 17, 20, 21, 22, 23, 24, 43})
"""Functions whose frames end only where the line falls silent."""
EXCEPTION_BIT: Final = 0x80
FIXED: Final = 8
SHORTEST: Final = 4
LONGEST: Final = 256


class Kind(StrEnum):
    """What a piece of the stream is."""

    REQUEST = "request"
    RESPONSE = "response"
    EXCEPTION = "exception"
    NOISE = "noise"
    """Its CRC fits no frame that could begin here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One frame or piece of noise; `at_s` is when its last byte was read."""

    at_s: float
    gap_s: float | None
    """Since the last byte before it; None for the first."""
    kind: Kind
    raw: bytes
    unit: int | None = None
    function: int | None = None
    address: int | None = None
    count: int | None = None
    words: Words = ()
    exception: int | None = None

    @property
    def crc_fits(self) -> bool:
        return self.kind is not Kind.NOISE


@dataclass(slots=True)
class Sniffer:
    """Feed it what was read, and tell it when the line has been idle."""

    _buffer: bytearray = field(default_factory=bytearray)
    _noise: bytearray = field(default_factory=bytearray)
    _asked: Seen | None = None
    _last_s: float | None = None

    def feed(self, octets: bytes, at_s: float) -> list[Seen]:
        """What became complete by these bytes."""
        self._buffer += octets
        return self._taken(at_s, final=False)

    def idle(self, at_s: float) -> list[Seen]:
        """No byte came for longer than a frame may pause: what is left will not be completed."""
        return self._taken(at_s, final=True)

    def _taken(self, at_s: float, *, final: bool) -> list[Seen]:
        found: list[Seen] = []
        while self._buffer:
            length = self._length(final=final)
            if length is None:
                break
            if length == 0:
                self._noise.append(self._buffer.pop(0))
                continue
            found += self._drop_noise(at_s)
            raw = bytes(self._buffer[:length])
            del self._buffer[:length]
            found.append(self._frame(raw, at_s))
        if final or len(self._noise) >= LONGEST:
            found += self._drop_noise(at_s)
        return found

    def _length(self, *, final: bool) -> int | None:
        """Of the frame that begins here; 0: none does; None: more bytes may tell."""
        wait = False
        for length in self._lengths():
            if length is None:
                wait = wait or len(self._buffer) <= LONGEST
            elif length > len(self._buffer):
                wait = True
            elif fits(self._buffer[:length]):
                return length
        if final and SHORTEST <= len(self._buffer) <= LONGEST and fits(self._buffer):
            return len(self._buffer)
        return None if wait and not final else 0

    def _lengths(self) -> list[int | None]:
        """What a frame that begins here may have; None: it is not told yet."""
        buffer = self._buffer
        if len(buffer) < 3:
            return [None]
        function = buffer[1]
        if function & EXCEPTION_BIT:
            return [5]
        if function in READS:
            return [5 + buffer[2], FIXED] if self._plausible_answer() else [FIXED]
        if function in SINGLE_WRITES:
            return [FIXED]
        if function in MULTIPLE_WRITES:
            return [FIXED, 9 + buffer[6] if len(buffer) > 6 else None]
        return [None] if function in OTHERS else []

    def _plausible_answer(self) -> bool:
        count = self._buffer[2]
        whole = self._buffer[1] not in REGISTER_READS or count % 2 == 0
        return 0 < count <= LONGEST - 5 and whole

    def _drop_noise(self, at_s: float) -> list[Seen]:
        if not self._noise:
            return []
        seen = Seen(at_s=at_s, gap_s=self._gap(at_s), kind=Kind.NOISE, raw=bytes(self._noise))
        self._noise.clear()
        self._asked, self._last_s = None, at_s
        return [seen]

    def _gap(self, at_s: float) -> float | None:
        return None if self._last_s is None else at_s - self._last_s

    def _frame(self, raw: bytes, at_s: float) -> Seen:
        function = raw[1]
        seen = Seen(
            at_s=at_s,
            gap_s=self._gap(at_s),
            kind=Kind.REQUEST,
            raw=raw,
            unit=raw[0],
            function=function & ~EXCEPTION_BIT,
        )
        self._last_s = at_s
        if function & EXCEPTION_BIT:
            seen = self._answer(replace(seen, kind=Kind.EXCEPTION, exception=raw[2]))
        elif self._answers(seen):
            seen = self._answer(replace(seen, kind=Kind.RESPONSE))
        else:
            self._asked = seen = _as_request(seen)
        return seen

    def _answers(self, seen: Seen) -> bool:
        """Whether this is what was asked for: by length, and by what a write repeats."""
        asked, raw = self._asked, seen.raw
        if seen.function in READS and len(raw) != FIXED:
            return True
        if asked is None or (asked.unit, asked.function) != (seen.unit, seen.function):
            return False
        if seen.function in READS:
            return asked.count is not None and _octets(asked) == raw[2] == len(raw) - 5
        if seen.function in MULTIPLE_WRITES:
            return len(raw) == FIXED and raw[2:6] == asked.raw[2:6]
        return raw == asked.raw

    def _answer(self, seen: Seen) -> Seen:
        asked, self._asked = self._asked, None
        if asked is not None and (asked.unit, asked.function) == (seen.unit, seen.function):
            seen = replace(seen, address=asked.address, count=asked.count)
        if seen.kind is Kind.RESPONSE and seen.function in READS:
            return replace(seen, words=_values(seen))
        if seen.kind is Kind.RESPONSE and seen.function in SINGLE_WRITES | MULTIPLE_WRITES:
            return replace(seen, words=asked.words if asked else ())
        return seen


def fits(octets: bytes | bytearray) -> bool:
    """Whether the last two bytes are the checksum of the others."""
    (told,) = struct.unpack_from("<H", octets, len(octets) - 2)
    return bool(told == crc16(memoryview(octets)[:-2]))


def _octets(asked: Seen) -> int:
    count = asked.count or 0
    return 2 * count if asked.function in REGISTER_READS else (count + 7) // 8


def _as_request(seen: Seen) -> Seen:
    raw = seen.raw
    if seen.function not in READS | SINGLE_WRITES | MULTIPLE_WRITES:
        return seen
    address, second = struct.unpack_from(">HH", raw, 2)
    if seen.function in READS:
        return replace(seen, address=address, count=second)
    if seen.function in SINGLE_WRITES:
        return replace(seen, address=address, count=1, words=(second,))
    words = struct.unpack_from(f">{second}H", raw, 7) if len(raw) == 9 + 2 * second else ()
    return replace(seen, address=address, count=second, words=words)


def _values(seen: Seen) -> Words:
    """Registers, or coils as 0 and 1."""
    data = seen.raw[3:-2]
    if seen.function in REGISTER_READS:
        return struct.unpack(f">{len(data) // 2}H", data)
    bits = [octet >> bit & 1 for octet in data for bit in range(8)]
    return tuple(bits[: seen.count])


def named(seen: Seen, binding: Binding, evses: Iterable[int]) -> list[tuple[int, str, Value]]:
    """The fields of a profile that an answered read shows: EVSE, name, value."""
    if seen.kind is not Kind.RESPONSE or seen.function not in READS or seen.address is None:
        return []
    found = []
    for evse in evses:
        for name, each in binding.fields().items():
            if each.scale_from is not None:
                continue  # its power of ten stands in another register, perhaps of another read
            span = binding.span(each, evse)
            start = span.address - seen.address
            same = (span.unit, span.function) == (seen.unit, seen.function)
            if same and start >= 0 and start + span.count <= len(seen.words):
                words = seen.words[start : start + span.count]
                found.append((evse, name, binding.decode(each, words)))
    return found


def named_write(seen: Seen, binding: Binding, evses: Iterable[int]) -> list[tuple[int, str]]:
    """What a write is in the profile: EVSE, and what the agent would write there."""
    if seen.address is None or seen.function not in SINGLE_WRITES | MULTIPLE_WRITES:
        return []
    return [
        (evse, name)
        for evse in evses
        for name, write in _writes(binding.profile)
        if _meant(seen, binding, write, evse)
    ]


def _meant(seen: Seen, binding: Binding, write: Write, evse: int) -> bool:
    try:
        request = binding.raw(write, write.value or 0, evse)
    except ForbiddenError:
        return False
    place = (request.unit, request.function, request.address)
    same = place == (seen.unit, seen.function, seen.address)
    coil_on = request.function == WRITE_COIL and request.words == (1,)
    fixed = (COIL_ON,) if coil_on else request.words
    return same and (write.value is None or fixed == seen.words)


def _writes(profile: Profile) -> list[tuple[str, Write]]:
    """Every register that a profile lets the agent write, by what it does."""
    found: list[tuple[str, Write | None]] = []
    if profile.setpoint is not None:
        found.append(("limit", profile.setpoint.write))
        found += [("pause", each) for each in profile.setpoint.pause.write]
        found += [("resume", each) for each in profile.setpoint.pause.resume]
    found += [("release", each) for each in profile.release]
    found += [("withhold", each) for each in profile.withhold]
    block = profile.failsafe
    if block is not None:
        found.append(("failsafe_timeout", block.timeout.write))
        found.append(("failsafe_fallback", block.fallback.write))
        found += [("failsafe_enable", each) for each in block.enable]
        found.append(("life", block.fed_by.life))
    return [(name, write) for name, write in found if write is not None]
