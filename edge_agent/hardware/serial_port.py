"""A plain serial line with boards of our own on it, as protocols/serial_board has it.

Replies carry the number of their request: a late or doubled one is known as such and dropped, and
what the adapter echoes of a request is none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from serial import PARITY_EVEN, PARITY_NONE, PARITY_ODD, Serial, SerialException

from edge_agent.hardware.direction import BITS_PER_OCTET, Direction, Transceiver
from edge_agent.hardware.line import (
    AnsweredError,
    Job,
    LineOwner,
    Manners,
    NoAnswerError,
    UnitHealth,
    is_pseudo,
)
from edge_agent.hardware.modbus_port import ModbusLink
from protocols.serial_board import ANSWER, MAX_FRAME, Command, Message, Receiver, Status, encode

log = logging.getLogger(__name__)
BAUDRATE: Final = 115_200
THINKING_S: Final = 0.15
"""What a board may take to begin its reply, with what a busy controller adds to it."""
READ_BYTES: Final = 4096
WRITES: Final = frozenset({Command.LIMIT, Command.CONTACTOR, Command.FAILSAFE, Command.LOADER})
PARITIES: Final = {None: PARITY_NONE, "none": PARITY_NONE, "even": PARITY_EVEN, "odd": PARITY_ODD}


class RefusedError(AnsweredError):
    """The board answered with another status than done."""

    def __init__(self, status: int, what: str) -> None:
        known = status in set(Status)
        name = Status(status).name.lower().replace("_", " ") if known else f"status {status}"
        super().__init__(f"{what}: {name}")
        self.status = status


class SerialDevice(Transceiver, Protocol):
    """What of a serial line is used here."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A command to the board that the job names."""

    command: Command
    payload: bytes = b""


@dataclass(slots=True)
class Waiting:
    """For the reply to one message."""

    sent: Message
    reply: asyncio.Future[bytes]


class SerialPort(LineOwner[Question, bytes]):
    """The owner of one line with boards of our own."""

    failed_exchange = (TimeoutError, NoAnswerError, OSError)
    # SerialException is an OSError; termios.error is none: a speed that the adapter cannot do.
    failed_dial = (TimeoutError, OSError, termios.error)

    def __init__(
        self,
        link: ModbusLink,
        clock: Callable[[], float] = time.monotonic,
        dial: Callable[[ModbusLink], SerialDevice] | None = None,
    ) -> None:
        super().__init__(link.line, "serial", log, clock)
        self.link = link
        self._new_device = dial or open_serial
        self._device: SerialDevice | None = None
        self._receiver = Receiver()
        self._waiting: Waiting | None = None
        self._sequence = 0
        self._direction: Direction | None = None
        self.strays = 0
        """Replies that nobody waited for: late, doubled, or to somebody else's request."""

    @property
    def spoiled(self) -> int:
        """Frames that were none, since the line was opened."""
        return self._receiver.spoiled

    async def request(self, address: int, command: Command, payload: bytes = b"") -> bytes:
        """What the reply carries after its status. Raises BoardUnreachableError, RefusedError."""
        name = command.name.lower()
        return await self.ask(
            address,
            name,
            Question(command, payload),
            writes=command in WRITES,
            manners=Manners(),
            timeout_s=self.link.timeout_s or THINKING_S + 2 * self._seconds(MAX_FRAME),
        )

    def _seconds(self, octets: int) -> float:
        return octets * BITS_PER_OCTET / (self.link.baudrate or BAUDRATE)

    # ------------------------------------------------------------------------------- the exchange

    async def _exchange(self, job: Job[Question, bytes], patience: float) -> bytes:
        self._sequence = (self._sequence + 1) % 256
        question = job.request
        message = Message(job.unit, question.command, self._sequence, question.payload)
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting = Waiting(message, reply)
        try:
            async with asyncio.timeout(patience):
                await self._send(encode(message))
                payload = await reply
        finally:
            self._waiting = None
        if not payload:
            raise NoAnswerError("a reply without a status")
        if payload[0] != Status.DONE:
            raise RefusedError(payload[0], job.what)
        return payload[1:]

    async def _send(self, frame: bytes) -> None:
        device = self._device
        if device is None:
            raise OSError("the line is closed")
        direction = self._direction
        if direction is None:
            self._put(device, frame)
            return
        try:
            await direction.to_send()
            self._put(device, frame)
            await asyncio.sleep(direction.takes_s(len(frame)))
        finally:
            direction.to_listen()

    def _put(self, device: SerialDevice, frame: bytes) -> None:
        """The frame as a whole; an adapter that takes none or half of it is opened anew."""
        try:
            sent = os.write(device.fileno(), frame)
        except OSError:
            self._forget_device()
            raise
        if sent != len(frame):
            self._forget_device()
            raise OSError(f"the adapter took {sent} of {len(frame)} octets")

    def _readable(self) -> None:
        if self._device is None:
            return
        try:
            octets = os.read(self._device.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(error)
            return
        if not octets:
            self._gone(OSError("the adapter is gone"))
            return
        for message in self._receiver.feed(octets):
            self._heard(message)

    def _heard(self, message: Message) -> None:
        if not message.answers:
            return  # the echo of what was asked
        waiting = self._waiting
        expected = (
            None
            if waiting is None or waiting.reply.done()
            else (waiting.sent.address, waiting.sent.message | ANSWER, waiting.sent.sequence)
        )
        if waiting is None or (message.address, message.message, message.sequence) != expected:
            self.strays += 1
            return
        waiting.reply.set_result(message.payload)

    # ------------------------------------------------------------------------------ the line itself

    @property
    def _connected(self) -> bool:
        return self._device is not None

    async def _dial(self) -> bool:
        self._device = self._new_device(self.link)
        self._receiver = Receiver()
        baudrate = self.link.baudrate or BAUDRATE
        self._direction = Direction.of(self._device, self.link, baudrate)
        asyncio.get_running_loop().add_reader(self._device.fileno(), self._readable)
        return True

    def _gone(self, error: OSError) -> None:
        self._forget_device()
        waiting = self._waiting
        if waiting is not None and not waiting.reply.done():
            waiting.reply.set_exception(error)

    async def _hang_up(self) -> None:
        self._forget_device()

    def _forget_device(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            asyncio.get_running_loop().remove_reader(device.fileno())
            device.close()

    async def _settle(self, health: UnitHealth, patience: float) -> None:
        """Nothing to wait for: a late reply is known by its number."""

    def _worn_out(self) -> bool:
        return self._adapter_is_dead()

    @property
    def _hint(self) -> str:
        return "is it plugged in?"


def open_serial(link: ModbusLink) -> SerialDevice:
    """Raises SerialException (an OSError), termios.error."""
    parity = PARITY_NONE if is_pseudo(link.device) else PARITIES[link.parity]
    try:
        return Serial(
            link.device,
            baudrate=link.baudrate or BAUDRATE,
            parity=parity,
            stopbits=link.stopbits or 1,
            timeout=0,
            write_timeout=0,
        )
    except ValueError as error:
        raise SerialException(f"{link.device}: {error}") from error
