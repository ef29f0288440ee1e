"""Serves a simulated device over TCP or a pseudo terminal, with the faults of real lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edge_agent.serving import Connections
from karvon.simulator import frames
from karvon.simulator.bank import ILLEGAL_FUNCTION, ILLEGAL_VALUE, RefusedError, RegisterBank
from protocols.modbus.planning import Span
from protocols.modbus.profile import Profile
from protocols.modbus.values import Words

logger = logging.getLogger(__name__)


class Device(Protocol):
    """What is served: a simulated charger or meter."""

    profile: Profile
    bank: RegisterBank

    def read(self, span: Any, now: float) -> Words: ...

    def write(self, unit: int, function: int, address: int, words: Words, now: float) -> None: ...

    def advance(self, now: float) -> None: ...

    def status(self) -> dict[str, Any]: ...


class Answers:
    """Turns requests into replies, or into none: pauses, silence and noise included."""

    def __init__(self, device: Device, clock: Callable[[], float]) -> None:
        self.device, self.clock = device, clock
        self.silent_until = 0.0
        self.noisy = 0
        self.late: list[float] = []
        self.requests = self.gap_violations = 0
        self._answered_at = float("-inf")
        self._gap = 0.0
        self._heard_at = float("-inf")
        rtu = device.profile.transports.rtu
        ascii_framing = rtu is not None and rtu.framing == "ascii"
        self._take = frames.take_ascii if ascii_framing else frames.take_rtu
        self._put = frames.put_ascii if ascii_framing else frames.put_rtu
        self._buffer = bytearray()

    def hear(self, octets: bytes) -> list[bytes]:
        """What is said on a serial line, as it comes in; the frames that answer it."""
        self._buffer += octets
        answers = []
        while (request := self._take(self._buffer)) is not None:
            unit, pdu = request
            answer = self.reply(unit, pdu)
            if answer is not None:
                answers.append(self.spoiled(self._put(unit, answer)))
        return answers

    def reply(self, unit: int, pdu: bytes) -> bytes | None:
        """The reply PDU; None: the device does not answer."""
        now = self.clock()
        if now < self.silent_until or unit not in self.device.bank.units or not pdu:
            return None
        self.requests += 1
        if self._asleep(now) or self._too_soon(now):
            return None
        try:
            answer = self._execute(unit, pdu, now)
        except RefusedError as error:
            answer = bytes((pdu[0] | 0x80, error.code))
        limits = self.device.profile.limits
        written = pdu[0] in {5, 6, 15, 16}
        self._gap = max(limits.gap_ms, limits.write_gap_ms if written else 0) / 1000
        self._answered_at = now
        return answer

    def spoiled(self, frame: bytes) -> bytes:
        """The frame with noise on it, while noise lasts."""
        if self.noisy <= 0:
            return frame
        self.noisy -= 1
        middle = len(frame) // 2
        return frame[:middle] + bytes((frame[middle] ^ 0x5A,)) + frame[middle + 1 :]

    def _asleep(self, now: float) -> bool:
        """Some devices do not hear the frame that wakes them."""
        deaf = self.device.profile.limits.repeat_first_request and now - self._heard_at > 1.0
        self._heard_at = now
        return deaf

    def _too_soon(self, now: float) -> bool:
        # A tenth off: clocks on both sides tick differently.
        if now - self._answered_at >= self._gap * 0.9:
            return False
        self.gap_violations += 1
        return True

    def _execute(self, unit: int, pdu: bytes, now: float) -> bytes:
        function = pdu[0]
        if function in {1, 2, 3, 4} and len(pdu) == 5:
            address, count = struct.unpack(">HH", pdu[1:])
            words = self.device.read(Span(unit, function, address, count), now)
            return bytes((function,)) + _counted(function, words)
        if function in {5, 6} and len(pdu) == 5:
            address, value = struct.unpack(">HH", pdu[1:])
            word = int(value == 0xFF00) if function == 5 else value
            self.device.write(unit, function, address, (word,), now)
            return pdu
        if function == 16 and len(pdu) >= 8:
            address, count, size = struct.unpack(">HHB", pdu[1:6])
            if size != 2 * count or len(pdu) != 6 + size:
                raise RefusedError(ILLEGAL_VALUE)
            words = struct.unpack(f">{count}H", pdu[6:])
            self.device.write(unit, function, address, words, now)
            return pdu[:5]
        raise RefusedError(ILLEGAL_FUNCTION)


def _counted(function: int, words: Words) -> bytes:
    if function in {3, 4}:
        return struct.pack(f">B{len(words)}H", 2 * len(words), *words)
    octets = bytearray((len(words) + 7) // 8)
    for i, bit in enumerate(words):
        octets[i // 8] |= bit << i % 8
    return bytes((len(octets),)) + bytes(octets)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """The last thing that a connection's task does: being cancelled in it changes nothing."""
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()


class TcpServer:
    """Modbus TCP on a loopback address; obeys the profile's number of clients and idle time."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.address = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()
        self._connections = Connections(self._serve)

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._connections.enter, host, port)
        name = self._server.sockets[0].getsockname()
        self.address = f"{name[0]}:{name[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._connections.end()
        if self._server is not None:
            await self._server.wait_closed()

    def freeze(self) -> None:
        """Half-open: the present connections stay and are dead; new ones work."""
        self._frozen |= self._writers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits = self.answers.device.profile.limits
        if limits.max_clients and len(self._writers - self._frozen) >= limits.max_clients:
            await hang_up(writer)
            return
        self._writers.add(writer)
        buffer = bytearray()
        try:
            while True:
                async with asyncio.timeout(limits.idle_close_s):
                    octets = await reader.read(1024)
                if not octets:
                    break
                buffer += octets
                while (request := frames.take_tcp(buffer)) is not None:
                    await self._answer(writer, *request)
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError) as error:
            # the peer left, spoke no Modbus, or idled: a device just closes
            logger.debug("closing a connection: %s", str(error) or type(error).__name__)
        finally:
            self._writers.discard(writer)
            self._frozen.discard(writer)
            await hang_up(writer)

    async def _answer(
        self, writer: asyncio.StreamWriter, transaction: int, unit: int, pdu: bytes
    ) -> None:
        if writer in self._frozen:
            return
        answer = self.answers.reply(unit, pdu)
        if answer is None:
            return
        if self.answers.late:
            await asyncio.sleep(self.answers.late.pop(0))
        writer.write(self.answers.spoiled(frames.put_tcp(transaction, unit, answer)))
        with contextlib.suppress(OSError):
            await writer.drain()


class PtyServer:
    """A serial line on a pseudo terminal, reachable by a stable symlink; several may share it."""

    def __init__(self, *devices: Answers, echo: bool = False) -> None:
        self.devices, self.echo = devices, echo
        self.address = ""
        self._master = self._slave = -1
        self._link: Path | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, link: str) -> None:
        # The far end stays open here: a client that closes it must not hang up the line.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave, termios.TCSANOW)
        os.set_blocking(self._master, False)
        self._link = Path(link)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(os.ttyname(self._slave))
        self.address = link
        asyncio.get_running_loop().add_reader(self._master, self._readable)

    async def close(self) -> None:
        if self._master < 0:
            return
        asyncio.get_running_loop().remove_reader(self._master)
        for task in list(self._tasks):
            task.cancel()
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1
        if self._link is not None:
            self._link.unlink(missing_ok=True)

    def _readable(self) -> None:
        try:
            octets = os.read(self._master, 1024)
        except OSError:
            return
        if self.echo:
            self._write(octets)
        for device in self.devices:
            for frame in device.hear(octets):
                self._send(frame, device.late)

    def _send(self, frame: bytes, late: list[float]) -> None:
        if not late:
            self._write(frame)
            return
        task = asyncio.ensure_future(self._send_late(frame, late.pop(0)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_late(self, frame: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, frame)
