"""Where WebSocket frames begin and end, and whole text messages read and written (RFC 6455, 5.2).

A station's message is nearly always one masked frame and its answer another. To find, unmask and
write those costs a tenth of what websockets' protocol takes for them (docs/benchmarks.md); every
other frame is the protocol's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # compiled where it can be

_TEXT: Final = 0x81
"""FIN, and the opcode of text."""
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127
_MASK: Final = 4


def text_frame(message: bytes) -> bytes:
    """A server's text message in one frame."""
    length = len(message)
    if length < _TWO_BYTES:
        return bytes((_TEXT, length)) + message
    if length < 1 << 16:
        return bytes((_TEXT, _TWO_BYTES)) + length.to_bytes(2) + message
    return bytes((_TEXT, _EIGHT_BYTES)) + length.to_bytes(8) + message


def text_of(frame: bytes) -> bytes | None:
    """What a whole frame of a client says, if it is a text message of one frame; not yet UTF-8."""
    if frame[0] != _TEXT or not frame[1] & _MASKED:
        return None
    start = _payload(frame[1])
    return apply_mask(frame[start:], frame[start - _MASK : start])


class TooLong(Exception):
    """A frame is longer than may be; `rest` begins with it."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(rest)
        self.rest = rest


class Cutter:
    """Cuts what arrives into frames; keeps at most one unfinished frame of `longest` bytes."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept = bytearray()
        self._needed = 0
        """So many bytes must be here before there is anything new to see."""

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now. Raises TooLong after those before such a frame."""
        if self._kept:
            self._kept += data
            if len(self._kept) < self._needed:
                return
            data = bytes(self._kept)
            self._kept.clear()
        at = 0
        while (end := self._end(data, at)) <= len(data):
            yield data[at:end]
            at = end
            if at == len(data):
                return
        self._needed = end - at
        self._kept += data[at:]

    def _end(self, data: bytes, at: int) -> int:
        """Where the frame that begins at `at` ends, or how far one must see to tell."""
        if len(data) < at + 2:
            return at + 2
        start = at + _payload(data[at + 1])
        length = data[at + 1] & _LENGTH
        if length >= _TWO_BYTES:
            size_end = at + (4 if length == _TWO_BYTES else 10)
            if len(data) < size_end:
                return size_end
            length = int.from_bytes(data[at + 2 : size_end])
        if length > self._longest:
            raise TooLong(data[at:])
        return start + length


def _payload(head: int) -> int:
    """Where the payload of a frame begins, whose second byte this is."""
    length = head & _LENGTH
    size = 2 if length == _TWO_BYTES else 8 if length == _EIGHT_BYTES else 0
    return 2 + size + (_MASK if head & _MASKED else 0)
