"""One owner per serial line or TCP connection: all who share it queue here.

Writes go ahead of reads; each unit gets its pauses, in which others are served; a unit that is dead
among others costs them one timeout, then is left alone for a while; a late answer is never taken
for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType

from edge_agent.hardware.board import BoardUnreachableError
from protocols.modbus.binding import WriteRequest
from protocols.modbus.planning import Span
from protocols.modbus.profile import Limits, Profile, Rtu, Tcp
from protocols.modbus.values import Words

logger = logging.getLogger(__name__)

FAILURES_BEFORE_LOST: Final = 3
FAILURES_BEFORE_RECONNECT: Final = 2
MAX_BACKOFF_S: Final = 15.0
MAX_TIMEOUT_S: Final = 5.0
SILENCE_CHARS: Final = 3.5
LEAST_SILENCE_S: Final = 0.00175
"""Between two frames on a serial line (MODBUS over Serial Line V1.02, 2.5.1.1)."""
BITS_A_CHAR: Final = 11
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

    kind: Literal["tcp", "rtu"] = "tcp"
    host: str = ""
    port: int | None = None
    device: str = ""
    baudrate: int | None = None
    parity: Literal["none", "even", "odd"] | None = None
    stopbits: Literal[1, 2] | None = None
    framing: Literal["rtu", "ascii"] | None = None
    unit: int | None = None
    timeout_s: float | None = None

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


class DeviceExceptionError(Exception):
    """The device answered with a Modbus exception."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: {EXCEPTIONS.get(code, 'exception')} (exception {code})")
        self.code = code


@dataclass(order=True, slots=True)
class Job:
    """One request in the queue; writes have the lower rank and go first."""

    rank: int
    number: int
    request: Span | WriteRequest = field(compare=False)
    limits: Limits = field(compare=False)
    timeout_s: float = field(compare=False)
    answer: asyncio.Future[Words] = field(compare=False)


@dataclass(slots=True)
class UnitHealth:
    """What the port knows of one unit (monotonic seconds)."""

    free_at: float = 0.0
    """Not asked before: its pause, or the time in which a late answer of it may still come."""
    failures: int = 0
    lost_at: float | None = None
    quarantined_until: float = 0.0
    slowest: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineHealth:
    """How a line is doing, as far as its owner knows."""

    line: str
    kind: Literal["tcp", "rtu"]
    open: bool
    """Connected, or the serial line is held."""
    refused: bool
    """The last attempt to open it failed. Closed alone says less: a silent device on TCP is
    dialled anew after every few misses."""
    failures: dict[int, int]
    """Unit -> requests in a row that stayed without an answer."""
    requests: int
    """Since the start, answered or not."""
    missed: int
    """How many of them stayed without an answer."""
    waiting: int
    age_s: float | None
    """Since the last answer of any unit."""


class ModbusPort:
    """The owner of one line. `request` may be called from any task; answers come in order."""

    def __init__(self, link: ModbusLink, clock: Callable[[], float] = time.monotonic) -> None:
        self.link = link
        self._clock = clock
        self._queue: list[Job] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._users = 0
        self._client: Any = None
        self._units: dict[int, UnitHealth] = {}
        self._misses = 0
        self._connect_at = 0.0
        self._backoff = 0.0
        self._requests = self._missed_ever = 0
        self._heard_at: float | None = None
        self._quiet_until = 0.0
        # One line per poll would bury what matters; this port says "lost" and "restored" itself.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

    def health(self) -> LineHealth:
        return LineHealth(
            line=self.link.line,
            kind=self.link.kind,
            open=self._connected,
            refused=self._backoff > 0,
            failures={unit: health.failures for unit, health in sorted(self._units.items())},
            requests=self._requests,
            missed=self._missed_ever,
            waiting=len(self._queue),
            age_s=None if self._heard_at is None else self._clock() - self._heard_at,
        )

    def attach(self) -> None:
        """Called by each device that shares the port."""
        self._users += 1

    async def detach(self) -> None:
        """The last one to leave closes the line."""
        self._users -= 1
        if self._users > 0 or self._owner is None:
            return
        owner, self._owner = self._owner, None
        owner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await owner
        await self._disconnect()
        self._fail_all("the port was closed")

    async def request(
        self, request: Span | WriteRequest, limits: Limits, timeout_s: float
    ) -> Words:
        """The registers (or coils as 0/1) read, or () for a write.

        Raises BoardUnreachableError, DeviceExceptionError.
        """
        if self._owner is None:
            self._owner = asyncio.create_task(self._own(), name=f"modbus {self.link.line}")
        loop = asyncio.get_running_loop()
        rank = 0 if isinstance(request, WriteRequest) else 1
        job = Job(rank, next(self._numbers), request, limits, timeout_s, loop.create_future())
        self._queue.append(job)
        self._wake.set()
        return await job.answer

    async def _own(self) -> None:
        while True:
            job = self._take()
            if job is None:
                await self._wait()
                continue
            outcome = await self._outcome(job)
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)

    def _take(self) -> Job | None:
        """The first in the queue whose unit may be asked now, off the queue; None: nobody."""
        self._queue = [job for job in self._queue if not job.answer.done()]
        now = self._clock()
        ready = (job for job in self._queue if self._free_at(job) <= now)
        first = min(ready, default=None)
        if first is not None:
            self._queue.remove(first)
        return first

    def _free_at(self, job: Job) -> float:
        health = self._units.get(job.request.unit)
        if health is None or self._left_alone(job, health) > 0:
            return 0.0  # the answer is ready
        return health.free_at

    def _left_alone(self, job: Job, health: UnitHealth) -> float:
        """Seconds for which this unit is not read; what makes it safe is tried all the same."""
        return 0.0 if job.rank == 0 else health.quarantined_until - self._clock()

    async def _wait(self) -> None:
        """Until somebody asks for something, or a unit that is asked for has had its pause."""
        self._wake.clear()
        free = min((self._free_at(job) for job in self._queue), default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if free is None else free - self._clock()):
                await self._wake.wait()

    async def _outcome(self, job: Job) -> Words | Exception:
        try:
            return await self._serve(job)
        except (BoardUnreachableError, DeviceExceptionError) as error:
            return error
        except asyncio.CancelledError:
            # Closing the port must not look to the asker as if it were cancelled itself.
            if not job.answer.done():
                job.answer.set_exception(self._unreachable(job, "the port was closed"))
            raise
        except Exception as error:
            # The root of this loop: whatever a driver throws, the line must live on.
            logger.exception("%s: request failed", self._name(job.request.unit))
            await self._disconnect()
            return self._unreachable(job, repr(error))

    async def _serve(self, job: Job) -> Words:
        health = self._units.setdefault(job.request.unit, UnitHealth())
        wait = self._left_alone(job, health)
        if wait > 0:
            raise self._unreachable(job, f"left alone for {wait:.0f} s more")
        await self._connect(job)
        silence = self._quiet_until - self._clock()
        if silence > 0:
            await asyncio.sleep(silence)
        started = self._clock()
        try:
            words = await self._attempt(job, health)
        except DeviceExceptionError:
            self._answered(job, health, started)
            raise
        self._answered(job, health, started)
        return words

    async def _attempt(self, job: Job, health: UnitHealth) -> Words:
        timeout = min(max(job.timeout_s, 3 * health.slowest), MAX_TIMEOUT_S)
        try:
            return await self._exchange(job, timeout)
        except (TimeoutError, ModbusException, OSError) as error:
            if job.limits.repeat_first_request and self._connected:
                with contextlib.suppress(TimeoutError, ModbusException, OSError):
                    return await self._exchange(job, timeout)
            await self._missed(job, health, timeout)
            why = f"no answer within {timeout:.1f} s" if isinstance(error, TimeoutError) else error
            raise self._unreachable(job, f"{why} ({health.failures} in a row)") from error

    async def _exchange(self, job: Job, patience: float) -> Words:
        async with asyncio.timeout(patience):
            reply = await self._send(job.request)
        if reply.isError():
            code = getattr(reply, "exception_code", 0)
            raise DeviceExceptionError(code, describe(job.request))
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

    def _answered(self, job: Job, health: UnitHealth, started: float) -> None:
        now = self._heard_at = self._clock()
        self._requests += 1
        self._quiet_until = now + self._silence
        written = isinstance(job.request, WriteRequest)
        gap = max(job.limits.gap_ms, job.limits.write_gap_ms if written else 0)
        health.free_at = now + gap / 1000
        health.slowest = max(now - started, health.slowest * 0.9)
        health.failures = self._misses = 0
        health.quarantined_until = 0.0
        if health.lost_at is not None:
            away = now - health.lost_at
            logger.warning("%s: restored after %.0f s", self._name(job.request.unit), away)
            health.lost_at = None

    async def _missed(self, job: Job, health: UnitHealth, patience: float) -> None:
        health.failures += 1
        self._misses += 1
        self._requests += 1
        self._missed_ever += 1
        now = self._clock()
        if health.failures >= FAILURES_BEFORE_LOST and len(self._units) > 1:
            doubled = 2.0 ** (health.failures - FAILURES_BEFORE_LOST)
            health.quarantined_until = now + min(doubled, MAX_BACKOFF_S)
        if health.failures == FAILURES_BEFORE_LOST:
            health.lost_at = now
            logger.warning("%s: lost, no answer %d times", self._name(job.request.unit), 3)
        if self.link.kind == "rtu":
            # A serial reply carries no number: let a late one pass before this unit is asked again.
            # Others are told apart by their own, so they need not wait.
            health.free_at = now + patience
        elif self._alone_or_all_dead():
            await self._disconnect()

    @property
    def _silence(self) -> float:
        """Seconds that must lie between an answer and the next request."""
        if self.link.kind == "tcp":
            return 0.0
        return max(LEAST_SILENCE_S, SILENCE_CHARS * BITS_A_CHAR / (self.link.baudrate or 9600))

    def _alone_or_all_dead(self) -> bool:
        """A half-open connection looks like silence: only a new one tells."""
        return self._misses >= FAILURES_BEFORE_RECONNECT

    @property
    def _connected(self) -> bool:
        return self._client is not None and bool(self._client.connected)

    async def _connect(self, job: Job) -> None:
        if self._connected and not (self.link.kind == "rtu" and self._line_is_dead()):
            return
        if self._clock() < self._connect_at:
            raise self._unreachable(job, "the line is down")
        await self._disconnect()
        self._client = self._new_client()
        opened = False
        # termios.error is no OSError: a port that cannot be set to this speed or parity.
        with contextlib.suppress(TimeoutError, OSError, termios.error):
            async with asyncio.timeout(job.timeout_s):
                opened = await self._client.connect()
        if opened:
            self._backoff = self._connect_at = 0.0
            self._misses = 0
            return
        await self._disconnect()
        self._backoff = min(max(0.25, 2 * self._backoff), MAX_BACKOFF_S / 3)
        self._connect_at = self._clock() + self._backoff
        self._note_down(job)
        hint = "is it plugged in?" if self.link.kind == "rtu" else "is it on and in this network?"
        raise self._unreachable(job, f"cannot open {self.link.line}; {hint}")

    def _note_down(self, job: Job) -> None:
        health = self._units.setdefault(job.request.unit, UnitHealth())
        health.failures += 1
        if health.lost_at is None and health.failures >= FAILURES_BEFORE_LOST:
            health.lost_at = self._clock()
            logger.warning("%s: lost, cannot be opened", self._name(job.request.unit))

    def _line_is_dead(self) -> bool:
        """A USB adapter can die silently: after a row of misses open it anew, now and then."""
        return self._misses > 0 and self._misses % (2 * FAILURES_BEFORE_LOST) == 0

    def _new_client(self) -> Any:
        link = self.link
        if link.kind == "tcp":
            return AsyncModbusTcpClient(
                link.host, port=link.port or 502, timeout=60, retries=0, reconnect_delay=0
            )
        return AsyncModbusSerialClient(
            link.device,
            framer=FramerType.ASCII if link.framing == "ascii" else FramerType.RTU,
            baudrate=link.baudrate or 9600,
            parity="N" if is_pseudo(link.device) else (link.parity or "none")[0].upper(),
            stopbits=link.stopbits or 1,
            timeout=60,
            retries=0,
            reconnect_delay=0,
        )

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
            await asyncio.sleep(0)

    def _fail_all(self, why: str) -> None:
        for job in self._queue:
            if not job.answer.done():
                job.answer.set_exception(self._unreachable(job, why))
        self._queue.clear()

    def _unreachable(self, job: Job, why: object) -> BoardUnreachableError:
        return BoardUnreachableError(
            f"{self._name(job.request.unit)}: {describe(job.request)}: {why}"
        )

    def _name(self, unit: int) -> str:
        return f"{self.link.line} unit {unit}"


def is_pseudo(device: str) -> bool:
    """A pseudo terminal has no parity, and Linux refuses to set any."""
    return Path(device).resolve().is_relative_to("/dev/pts")


def describe(request: Span | WriteRequest) -> str:
    """The request as a technician would say it."""
    verb = "write" if isinstance(request, WriteRequest) else "read"
    count = len(request.words) if isinstance(request, WriteRequest) else request.count
    return f"{verb} {count} from {request.address:#06x} (function {request.function})"


def _checked(request: Span | WriteRequest, reply: Any) -> Words:
    """Only the answer to this very request; a stray one is a missing one."""
    if reply.function_code != request.function:
        raise ModbusException("an answer to another request")
    if isinstance(request, WriteRequest):
        if reply.address != request.address:
            raise ModbusException("an answer to another request")
        return ()
    words = reply.bits if request.function in {1, 2} else reply.registers
    if len(words) < request.count or (request.function in {3, 4} and len(words) > request.count):
        raise ModbusException("an answer of another length")
    return tuple(int(word) for word in words[: request.count])


class PortPool:
    """The ports of one agent: devices on the same line get the same owner."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ports: dict[str, ModbusPort] = {}

    def port(self, link: ModbusLink) -> ModbusPort:
        """`link` is completed by its profile; its serial settings are those of the first user."""
        if link.line not in self._ports:
            self._ports[link.line] = ModbusPort(link, self._clock)
        return self._ports[link.line]
