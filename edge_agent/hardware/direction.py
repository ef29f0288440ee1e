"""RTS as the direction of an RS-485 transceiver that does not switch by itself.

The kernel switches best, right after the last stop bit; where it cannot (most USB adapters), it is
done here, by the time that the octets take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from serial.rs485 import RS485Settings

log = logging.getLogger(__name__)
BITS_PER_OCTET: Final = 11


class Wired(Protocol):
    """What of a link's configuration is used here."""

    @property
    def line(self) -> str: ...

    @property
    def rts(self) -> Literal["none", "high", "low"]: ...

    @property
    def rts_before_ms(self) -> int: ...

    @property
    def rts_after_ms(self) -> int: ...


class Transceiver(Protocol):
    """What of a serial line is used here."""

    rts: bool
    rs485_mode: RS485Settings | None


@dataclass(slots=True)
class Direction:
    """Of one open line, switched from here."""

    line: Transceiver
    level: bool
    """Of RTS while we send."""
    baudrate: int
    before_s: float = 0.0
    """From switching to the first octet: what the transceiver needs."""
    after_s: float = 0.0
    """From the last octet to switching back: what an adapter holds in its buffer."""
    _sending: bool = field(default=False, init=False)

    @classmethod
    def of(cls, line: Transceiver, link: Wired, baudrate: int) -> Direction | None:
        """None: nothing is to be switched here."""
        if link.rts == "none":
            return None
        level = link.rts == "high"
        before_s, after_s = link.rts_before_ms / 1000, link.rts_after_ms / 1000
        try:
            line.rs485_mode = RS485Settings(
                rts_level_for_tx=level,
                rts_level_for_rx=not level,
                delay_before_tx=before_s or None,
                delay_before_rx=after_s or None,
            )
        except (ValueError, OSError):
            pass
        else:
            return None
        try:
            line.rts = not level
        except OSError as error:
            log.warning("%s: has no RTS (%s); sending without", link.line, error.strerror)
            return None
        return cls(line, level, baudrate, before_s, after_s)

    async def to_send(self) -> None:
        """Ready for the first octet. Raises OSError."""
        self.line.rts = self.level
        self._sending = True
        if self.before_s:
            await asyncio.sleep(self.before_s)

    def takes_s(self, octets: int) -> float:
        """Until so many octets, handed over now, are out."""
        return octets * BITS_PER_OCTET / self.baudrate + self.after_s

    def to_listen(self) -> None:
        """Nothing where it listens already. Raises OSError."""
        if self._sending:
            self._sending = False
            self.line.rts = not self.level


class SwitchedLine:
    """A serial line whose writer does not know of directions: it listens once all is out."""

    def __init__(self, line: Any, direction: Direction) -> None:
        self._line, self._direction = line, direction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)

    def write(self, octets: bytes) -> int:
        """How many were taken; the writer comes again with the rest."""
        taken = int(self._line.write(octets) or 0)
        if taken == len(octets):
            delay_s = self._direction.takes_s(taken)
            asyncio.get_running_loop().call_later(delay_s, self._listen)
        return taken

    def _listen(self) -> None:
        # A line that is gone meanwhile has no direction; who reads it finds that out.
        with contextlib.suppress(OSError):
            self._direction.to_listen()
