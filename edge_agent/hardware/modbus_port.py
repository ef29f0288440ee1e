"""Modbus on a line of its own: a serial one, or a TCP connection.

A late answer is never taken for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import termios
import time
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType

from edge_agent.hardware.direction import Direction, SwitchedLine
from edge_agent.hardware.line import (
    AnsweredError,
    Job,
    LineOwner,
    Manners,
    NoAnswerError,
    UnitHealth,
    is_pseudo,
)
from protocols.modbus.binding import WriteRequest
from protocols.modbus.planning import Span
from protocols.modbus.profile import Limits, Profile, Rtu, Tcp
from protocols.modbus.values import Words

logger = logging.getLogger(__name__)

FAILURES_BEFORE_RECONNECT: Final = 2
SILENCE_CHARS: Final = 3.5
LEAST_SILENCE_S: Final = 0.00175
"""Between two frames on a serial line (MODBUS over Serial Line V1.02, 2.5.1.1)."""
BITS_A_CHAR: Final = 11
USUAL_BAUDRATE: Final = 9600
EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    6: "busy",
    10: "gateway path unavailable",
    11: "gateway target did not respond",
}
BUSY: Final = frozenset({4, 5, 6, 8, 10, 11})
"""Exceptions that say "not now" rather than "not so"."""


class ModbusLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a device is connected; what is None comes from its profile's transports."""

    kind: Literal["tcp", "rtu", "serial"] = "tcp"
    """serial: a board of our own language, docs/serial-board.md."""
    host: str = ""
    port: int | None = None
    device: str = ""
    baudrate: int | None = None
    parity: Literal["none", "even", "odd"] | None = None
    stopbits: Literal[1, 2] | None = None
    framing: Literal["rtu", "ascii"] | None = None
    unit: int | None = None
    timeout_s: float | None = None
    echo: bool = False
    """The adapter hears what it sends, and hands it back."""
    rts: Literal["none", "high", "low"] = "none"
    """The level of RTS that lets a transceiver send; none: the adapter switches by itself."""
    rts_before_ms: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """From switching RTS to the first octet."""
    rts_after_ms: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """From the last octet to switching back."""

    def completed(self, profile: Profile) -> ModbusLink:
        """The same link with the profile's defaults where it names nothing itself."""
        defaults = profile.transports.tcp or Tcp() if self.kind == "tcp" else profile.transports.rtu
        filled = {
            name: getattr(defaults or Rtu(), name)
            for name in (defaults or Rtu()).__struct_fields__
            if getattr(self, name) is None
        }
        filled["timeout_s"] = self.timeout_s or profile.limits.timeout_ms / 1000
        return msgspec.structs.replace(self, **filled)

    @property
    def line(self) -> str:
        """What identifies the shared medium."""
        return f"{self.host}:{self.port or 502}" if self.kind == "tcp" else self.device


class DeviceExceptionError(AnsweredError):
    """The device answered with a Modbus exception."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: {EXCEPTIONS.get(code, 'exception')} (exception {code})")
        self.code = code


class ModbusPort(LineOwner[Span | WriteRequest, Words]):
    """The owner of one line that speaks Modbus."""

    failed_exchange = (TimeoutError, NoAnswerError, ModbusException, OSError)
    # termios.error is no OSError: a port that cannot be set to this speed or parity.
    failed_dial = (TimeoutError, OSError, termios.error)

    def __init__(
        self,
        link: ModbusLink,
        clock: Callable[[], float] = time.monotonic,
        direction: Callable[[Any, ModbusLink, int], Direction | None] = Direction.of,
    ) -> None:
        super().__init__(link.line, link.kind, logger, clock)
        self.link = link
        self._client: Any = None
        self._direction_of = direction
        self._direction: Direction | None = None
        # One line per poll would bury what matters; this port says "lost" and "restored" itself.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

    async def request(
        self, request: Span | WriteRequest, limits: Limits, timeout_s: float
    ) -> Words:
        """The registers (or coils as 0/1) read, or () for a write.

        Raises BoardUnreachableError, DeviceExceptionError.
        """
        writes = isinstance(request, WriteRequest)
        gap = max(limits.gap_ms, limits.write_gap_ms if writes else 0)
        manners = Manners(gap_s=gap / 1000, repeat_first_request=limits.repeat_first_request)
        return await self.ask(
            request.unit,
            describe(request),
            request,
            writes=writes,
            manners=manners,
            timeout_s=timeout_s,
        )

    async def _exchange(self, job: Job[Span | WriteRequest, Words], patience: float) -> Words:
        direction = self._direction
        async with asyncio.timeout(patience):
            if direction is None:
                reply = await self._send(job.request)
            else:
                try:
                    await direction.to_send()
                    reply = await self._send(job.request)
                finally:
                    direction.to_listen()
        if reply.isError():
            code = getattr(reply, "exception_code", 0)
            raise DeviceExceptionError(code, job.what)
        return _checked(job.request, reply)

    def _send(self, request: Span | WriteRequest) -> Any:
        client, unit = self._client, request.unit
        if isinstance(request, Span):
            read = {
                1: client.read_coils,
                2: client.read_discrete_inputs,
                3: client.read_holding_registers,
                4: client.read_input_registers,
            }[request.function]
            return read(request.address, count=request.count, device_id=unit)
        words = list(request.words)
        if request.function == 5:
            return client.write_coil(request.address, bool(words[0]), device_id=unit)
        if request.function == 6:
            return client.write_register(request.address, words[0], device_id=unit)
        return client.write_registers(request.address, words, device_id=unit)

    async def _settle(self, health: UnitHealth, patience: float) -> None:
        if self.link.kind == "rtu":
            # A serial reply carries no number: let a late one pass before this unit is asked again.
            # Others are told apart by their own, so they need not wait.
            health.free_at = self._clock() + patience
        elif self._alone_or_all_dead():
            await self._hang_up()

    @property
    def _silence(self) -> float:
        if self.link.kind == "tcp":
            return 0.0
        return max(
            LEAST_SILENCE_S, SILENCE_CHARS * BITS_A_CHAR / (self.link.baudrate or USUAL_BAUDRATE)
        )

    def _alone_or_all_dead(self) -> bool:
        """A half-open connection looks like silence: only a new one tells."""
        return self._misses >= FAILURES_BEFORE_RECONNECT

    @property
    def _connected(self) -> bool:
        return self._client is not None and bool(self._client.connected)

    async def _dial(self) -> bool:
        self._client = self._new_client()
        if not await self._client.connect():
            return False
        if self.link.kind == "rtu":
            self._direct(self._client.ctx.transport)
        return True

    def _direct(self, transport: Any) -> None:
        """Pymodbus writes when it comes to it: switching back goes by its writing."""
        line = transport.sync_serial
        baudrate = self.link.baudrate or USUAL_BAUDRATE
        self._direction = self._direction_of(line, self.link, baudrate)
        if self._direction is not None:
            transport.sync_serial = SwitchedLine(line, self._direction)

    def _worn_out(self) -> bool:
        return self.link.kind == "rtu" and self._adapter_is_dead()

    @property
    def _hint(self) -> str:
        return "is it plugged in?" if self.link.kind == "rtu" else "is it on and in this network?"

    def _new_client(self) -> Any:
        link = self.link
        if link.kind == "tcp":
            return AsyncModbusTcpClient(
                link.host, port=link.port or 502, timeout=60, retries=0, reconnect_delay=0
            )
        return AsyncModbusSerialClient(
            link.device,
            framer=FramerType.ASCII if link.framing == "ascii" else FramerType.RTU,
            baudrate=link.baudrate or USUAL_BAUDRATE,
            parity="N" if is_pseudo(link.device) else (link.parity or "none")[0].upper(),
            stopbits=link.stopbits or 1,
            handle_local_echo=link.echo,
            timeout=60,
            retries=0,
            reconnect_delay=0,
        )

    async def _hang_up(self) -> None:
        client, self._client, self._direction = self._client, None, None
        if client is not None:
            client.close()
            await asyncio.sleep(0)


def describe(request: Span | WriteRequest) -> str:
    """The request as a technician would say it."""
    verb = "write" if isinstance(request, WriteRequest) else "read"
    count = len(request.words) if isinstance(request, WriteRequest) else request.count
    return f"{verb} {count} from {request.address:#06x} (function {request.function})"


def _checked(request: Span | WriteRequest, reply: Any) -> Words:
    """Only the answer to this very request; a stray one is a missing one."""
    if reply.function_code != request.function:
        raise NoAnswerError("an answer to another request")
    if isinstance(request, WriteRequest):
        if reply.address != request.address:
            raise NoAnswerError("an answer to another request")
        return ()
    words = reply.bits if request.function in {1, 2} else reply.registers
    if len(words) < request.count or (request.function in {3, 4} and len(words) > request.count):
        raise NoAnswerError("an answer of another length")
    return tuple(int(word) for word in words[: request.count])


Port = TypeVar("Port", bound=LineOwner[Any, Any])


class PortPool:
    """The lines of one agent: devices on the same line get the same owner."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: dict[str, LineOwner[Any, Any]] = {}

    def port(self, link: ModbusLink) -> ModbusPort:
        """`link` is completed by its profile; its serial settings are those of the first user."""
        return self.shared(link.line, ModbusPort, lambda: ModbusPort(link, self._clock))

    def shared(self, line: str, kind: type[Port], make: Callable[[], Port]) -> Port:
        """The owner of that line. Raises ValueError where another language has it already."""
        owner = self._owners.get(line)
        if owner is None:
            owner = self._owners[line] = make()
        if isinstance(owner, kind):
            return owner
        raise ValueError(f"{line} has devices of another kind already; use another line")
