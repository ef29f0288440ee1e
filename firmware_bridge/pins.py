"""BOOT0 and reset of an STM32, where somebody wired them to a serial adapter's modem lines.

The outputs of an adapter are low when their line is set: wired straight, RTS set pulls BOOT0 low.
With a transistor between it is the other way round; then the name is written with a "!".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

RESET_S: Final = 0.05
Modem = Literal["rts", "dtr"]


class WiringError(ValueError):
    """The text says nothing of how the pins are wired."""


class ModemLines(Protocol):
    """What a serial port can set beside its data. Raises RefusedError where it cannot."""

    def set_modem(self, name: Modem, *, on: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin of the chip, and what drives it."""

    modem: Modem
    inverted: bool = False

    def on(self, *, high: bool) -> bool:
        """Whether the modem line is set for this level of the pin."""
        return high is self.inverted


@dataclass(frozen=True, slots=True)
class Wiring:
    """What drives BOOT0, and what drives reset."""

    boot0: Pin
    reset: Pin

    @classmethod
    def parse(cls, text: str) -> Wiring:
        """Such as "rts,dtr" or "!rts,!dtr". Raises WiringError."""
        pins = []
        for part in text.split(","):
            name = part.strip().removeprefix("!")
            if name not in {"rts", "dtr"}:
                raise WiringError(f"'{text}' is no wiring such as rts,dtr or !rts,!dtr")
            pins.append(Pin("rts" if name == "rts" else "dtr", part.strip().startswith("!")))
        if len(pins) != 2 or pins[0].modem == pins[1].modem:
            raise WiringError(f"'{text}' does not name one line for BOOT0 and one for reset")
        return cls(*pins)


class BootPins:
    """Drives both. Raises RefusedError where the port has no modem lines."""

    def __init__(
        self,
        lines: ModemLines,
        wiring: Wiring,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lines, self._wiring, self._pause = lines, wiring, pause

    def start(self, *, loader: bool) -> None:
        """Reset the chip, into its ROM or into its application."""
        self._drive(self._wiring.boot0, high=loader)
        self._drive(self._wiring.reset, high=False)
        self._pause(RESET_S)
        self._drive(self._wiring.reset, high=True)

    def _drive(self, pin: Pin, *, high: bool) -> None:
        self._lines.set_modem(pin.modem, on=pin.on(high=high))
