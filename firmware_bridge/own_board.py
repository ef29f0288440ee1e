"""A power board of our own, on the line that its loader is on, too (docs/serial-board.md).

Only what putting firmware into it needs: who it is, and that it should leave for its loader.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from firmware_bridge.loader import LoaderSilentError, Running
from firmware_bridge.port import Line, Parity
from protocols import serial_board as wire
from protocols.serial_board import BoardState, Command, FrameError, Identity, Message, Receiver

PATIENCE_S: Final = 0.3
TRIES: Final = 3
QUIET_S: Final = 0.02
"""After its own answer the board must have left the line before the next octet comes."""


class Changing(Line, Protocol):
    """A line whose speed and parity can be changed: the application and the ROM differ."""

    def retune(self, baudrate: int, parity: Parity) -> None: ...

    def tune_back(self) -> None: ...


class OwnBoard:
    """One address of a line; each method leaves the line as the loader wants it."""

    def __init__(self, line: Changing, address: int, baudrate: int) -> None:
        self._line, self._address, self._baudrate = line, address, baudrate
        self._sequence = 0

    def version(self) -> Running | None:
        """None when no application answers."""
        answer = self._ask(Command.IDENTITY)
        if answer is None or not answer.payload:
            return None
        try:
            told = Identity.decode(answer.payload[1:])
        except FrameError:
            return None
        if told.state is BoardState.LOADER:
            return None
        return Running(
            version=wire.dotted(told.firmware),
            protocol=told.protocol[0],
            hw_id=told.hw_id,
            healthy=told.evses > 0,
        )

    def enter(self) -> None:
        """Raises LoaderSilentError when it does not answer, or refuses."""
        answer = self._ask(Command.LOADER, wire.LOADER_KEY)
        if answer is None:
            raise LoaderSilentError(
                f"the board at address {self._address} answers neither as a loader nor as itself; "
                "is it switched on, and the address right?"
            )
        status = answer.payload[0] if answer.payload else None
        if status != wire.Status.DONE:
            raise LoaderSilentError(
                f"the board at address {self._address} does not leave for its loader (status "
                f"{status}); is a contactor closed? End the session first"
            )

    def _ask(self, command: Command, payload: bytes = b"") -> Message | None:
        self._line.retune(self._baudrate, "none")
        try:
            for _ in range(TRIES):
                answer = self._once(command, payload)
                if answer is not None:
                    return answer
            return None
        finally:
            self._line.tune_back()

    def _once(self, command: Command, payload: bytes) -> Message | None:
        self._sequence = self._sequence % 255 + 1
        asked = Message(self._address, command, self._sequence, payload)
        self._line.discard()
        self._line.write(wire.encode(asked))
        receiver, deadline = Receiver(), time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for found in receiver.feed(self._line.read(1, QUIET_S)):
                if found.answers and found.sequence == self._sequence:
                    time.sleep(QUIET_S)
                    return found
        return None
