"""The serial shell: octets to and from a line, and a conversation held on it."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import serial

from firmware_bridge.an3155 import Ask
from firmware_bridge.loader import LineError, RefusedError
from firmware_bridge.pins import Modem, Wiring

BITS: Final = {"none": 10, "even": 11, "odd": 11}
"""On the wire for one octet: start, eight of data, parity, one stop."""
Parity = Literal["none", "even", "odd"]
T = TypeVar("T")


class Line(Protocol):
    """A way to octets; a fake of it needs no time."""

    @property
    def octet_s(self) -> float:
        """How long one octet takes on the wire."""
        ...

    def write(self, octets: bytes) -> None: ...

    def read(self, count: int, patience_s: float) -> bytes:
        """Up to `count` octets: fewer when the rest did not come in time."""
        ...

    def discard(self) -> None:
        """Forget what came unasked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSettings:
    """AN3155 wants 8E1; adapters and boards between may want otherwise."""

    device: str
    baudrate: int = 115_200
    parity: Parity = "even"

    @property
    def octet_s(self) -> float:
        return BITS[self.parity] / self.baudrate


def is_pseudo(device: str) -> bool:
    """A pseudo terminal has no parity, and Linux refuses to set any."""
    return Path(device).resolve().is_relative_to("/dev/pts")


class SerialLine:
    """A serial port that is ours alone while it is open. Raises LineError.

    To open it raises RTS and DTR, as with any program; with `wiring` they are set so that the
    board they are wired to runs on as it does.
    """

    def __init__(self, settings: LineSettings, wiring: Wiring | None = None) -> None:
        self.settings = settings
        parity = "N" if is_pseudo(settings.device) else settings.parity[0].upper()
        try:
            self._port = serial.Serial(
                baudrate=settings.baudrate, parity=parity, timeout=0, exclusive=True
            )
            self._port.port = settings.device
            if wiring is not None:
                for pin, high in ((wiring.boot0, False), (wiring.reset, True)):
                    setattr(self._port, pin.modem, pin.on(high=high))
            self._port.open()
            # A USB adapter otherwise keeps a lone octet for up to 16 ms, and each ACK is one. Not
            # every port can be told.
            with contextlib.suppress(OSError, ValueError, NotImplementedError):
                self._port.set_low_latency_mode(low_latency_settings=True)
            self._fd: int = self._port.fileno()
        except (OSError, ValueError, termios.error) as error:
            raise LineError(
                f"cannot open {settings.device}: {error}; is it plugged in, the name right, no "
                "other program on it (the agent holds the lines of its boards), and may you use it?"
            ) from error

    @property
    def octet_s(self) -> float:
        return self.settings.octet_s

    def close(self) -> None:
        self._port.close()

    def write(self, octets: bytes) -> None:
        try:
            while octets:
                select.select([], [self._fd], [])
                octets = octets[os.write(self._fd, octets) :]
        except OSError as error:
            raise self._gone(error) from error

    def read(self, count: int, patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s + count * self.settings.octet_s
        octets = b""
        try:
            while len(octets) < count:
                left = deadline - time.monotonic()
                ready, _, _ = select.select([self._fd], [], [], max(0.0, left))
                if not ready:
                    break
                came = os.read(self._fd, count - len(octets))
                if not came:
                    raise self._gone("the other end is closed")
                octets += came
        except OSError as error:
            raise self._gone(error) from error
        return octets

    def discard(self) -> None:
        try:
            self._port.reset_input_buffer()
        except (OSError, termios.error) as error:
            raise self._gone(error) from error

    def retune(self, baudrate: int, parity: Parity) -> None:
        """For somebody else on the same line."""
        try:
            self._port.baudrate = baudrate
            if not is_pseudo(self.settings.device):
                self._port.parity = parity[0].upper()
        except (OSError, ValueError, termios.error) as error:
            raise self._gone(error) from error

    def tune_back(self) -> None:
        self.retune(self.settings.baudrate, self.settings.parity)

    def set_modem(self, name: Modem, *, on: bool) -> None:
        """Raises RefusedError where the port has no modem lines."""
        try:
            setattr(self._port, name, on)
        except (OSError, termios.error) as error:
            raise RefusedError(
                f"{self.settings.device} has no {name.upper()} to set ({error}); leave out --pins, "
                "and set BOOT0 and reset by hand"
            ) from error

    def _gone(self, why: object) -> LineError:
        device = self.settings.device
        return LineError(
            f"{device} went away in the middle: {why}; plug the adapter in again and run the same "
            "command, the board waits in its loader"
        )


def hold(talk: Generator[Ask, bytes, T], line: Line) -> T:
    """Hold the conversation to its end. Raises what the conversation and the line raise."""
    try:
        ask = next(talk)
        while True:
            if ask.fresh:
                line.discard()
            if ask.send:
                line.write(ask.send)
            octets = line.read(ask.want, ask.patience_s + len(ask.send) * line.octet_s)
            ask = talk.send(octets)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # a generator's value is untyped here
