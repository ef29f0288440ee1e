"""One owner per line, whatever is spoken on it: all who share the medium queue here.

Writes go ahead of reads; each unit gets its pauses, in which others are served; a unit that is dead
among others costs them one timeout, then is left alone for a while. How a request is put on the
line, and how its answer is known, is the language's own: see modbus_port and serial_port.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from edge_agent.hardware.board import BoardUnreachableError

FAILURES_BEFORE_LOST: Final = 3
MAX_BACKOFF_S: Final = 15.0
MAX_TIMEOUT_S: Final = 5.0
Request = TypeVar("Request")
Answer = TypeVar("Answer")
LineKind = Literal["tcp", "rtu", "serial"]


class NoAnswerError(Exception):
    """What came back is no answer to this request; the text says what it was instead."""


class AnsweredError(Exception):
    """The device answered, and the answer is no; it counts as alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a device wants to be asked (seconds)."""

    gap_s: float = 0.0
    """Between its answer and the next request to it."""
    repeat_first_request: bool = False
    """It sleeps through the first frame."""


@dataclass(order=True, slots=True)
class Job(Generic[Request, Answer]):
    """One request in the queue; writes have the lower rank and go first."""

    rank: int
    number: int
    unit: int = field(compare=False)
    what: str = field(compare=False)
    """The request as a technician would say it."""
    request: Request = field(compare=False)
    manners: Manners = field(compare=False)
    timeout_s: float = field(compare=False)
    answer: asyncio.Future[Answer] = field(compare=False)

    @property
    def writes(self) -> bool:
        return self.rank == 0


@dataclass(slots=True)
class UnitHealth:
    """What the owner knows of one unit (monotonic seconds)."""

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
    kind: LineKind
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


class LineOwner(abc.ABC, Generic[Request, Answer]):
    """The owner of one line. `ask` may be called from any task; answers come in order."""

    failed_exchange: tuple[type[Exception], ...] = (TimeoutError, NoAnswerError, OSError)
    """What an exchange raises when it stayed without an answer."""
    failed_dial: tuple[type[Exception], ...] = (TimeoutError, OSError)

    def __init__(
        self,
        line: str,
        kind: LineKind,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line: Final = line
        self._kind: Final[LineKind] = kind
        self.logger = logger
        self._clock = clock
        self._queue: list[Job[Request, Answer]] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._users = 0
        self._units: dict[int, UnitHealth] = {}
        self._misses = 0
        self._connect_at = 0.0
        self._backoff = 0.0
        self._requests = self._missed_ever = 0
        self._heard_at: float | None = None
        self._quiet_until = 0.0

    # ------------------------------------------------------------- what the language brings along

    @property
    @abc.abstractmethod
    def _connected(self) -> bool: ...

    @abc.abstractmethod
    async def _dial(self) -> bool:
        """Open the line; False, or one of `failed_dial`, where that does not work."""

    @abc.abstractmethod
    async def _hang_up(self) -> None:
        """Close the line; nothing where it is closed."""

    @abc.abstractmethod
    async def _exchange(self, job: Job[Request, Answer], patience: float) -> Answer:
        """One request and its answer. Raises one of `failed_exchange`, or AnsweredError."""

    @abc.abstractmethod
    async def _settle(self, health: UnitHealth, patience: float) -> None:
        """After a miss of that unit, before anybody else may ask."""

    @abc.abstractmethod
    def _worn_out(self) -> bool:
        """Whether the open line has been silent for so long that it is opened anew."""

    @property
    @abc.abstractmethod
    def _hint(self) -> str:
        """A question for whoever reads that the line cannot be opened."""

    @property
    def _silence(self) -> float:
        """Seconds that must lie between an answer and the next request."""
        return 0.0

    # -------------------------------------------------------------------------------- for everybody

    def health(self) -> LineHealth:
        return LineHealth(
            line=self._line,
            kind=self._kind,
            open=self._connected,
            refused=self._backoff > 0,
            failures={unit: health.failures for unit, health in sorted(self._units.items())},
            requests=self._requests,
            missed=self._missed_ever,
            waiting=len(self._queue),
            age_s=None if self._heard_at is None else self._clock() - self._heard_at,
        )

    def attach(self) -> None:
        """Called by each device that shares the line."""
        self._users += 1

    async def detach(self) -> None:
        """The last one to leave closes the line."""
        self._users -= 1
        if self._users > 0 or self._owner is None:
            return
        owner, self._owner = self._owner, None
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
        await self._hang_up()
        self._fail_all("the port was closed")

    async def ask(
        self,
        unit: int,
        what: str,
        request: Request,
        *,
        writes: bool,
        manners: Manners,
        timeout_s: float,
    ) -> Answer:
        """Raises BoardUnreachableError, and what the language says of an answer that is no."""
        if self._owner is None:
            self._owner = asyncio.create_task(self._own(), name=f"line {self._line}")
        job: Job[Request, Answer] = Job(
            0 if writes else 1,
            next(self._numbers),
            unit,
            what,
            request,
            manners,
            timeout_s,
            asyncio.get_running_loop().create_future(),
        )
        self._queue.append(job)
        self._wake.set()
        return await job.answer

    # ---------------------------------------------------------------------------- the owner itself

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

    def _take(self) -> Job[Request, Answer] | None:
        """The first in the queue whose unit may be asked now, off the queue; None: nobody."""
        self._queue = [job for job in self._queue if not job.answer.done()]
        now = self._clock()
        ready = (job for job in self._queue if self._free_at(job) <= now)
        first = min(ready, default=None)
        if first is not None:
            self._queue.remove(first)
        return first

    def _free_at(self, job: Job[Request, Answer]) -> float:
        health = self._units.get(job.unit)
        if health is None or self._left_alone(job, health) > 0:
            return 0.0  # the answer is ready
        return health.free_at

    def _left_alone(self, job: Job[Request, Answer], health: UnitHealth) -> float:
        """Seconds for which this unit is not read; what makes it safe is tried all the same."""
        return 0.0 if job.writes else health.quarantined_until - self._clock()

    async def _wait(self) -> None:
        """Until somebody asks for something, or a unit that is asked for has had its pause."""
        self._wake.clear()
        free = min((self._free_at(job) for job in self._queue), default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if free is None else free - self._clock()):
                await self._wake.wait()

    async def _outcome(self, job: Job[Request, Answer]) -> Answer | Exception:
        try:
            return await self._serve(job)
        except (BoardUnreachableError, AnsweredError) as error:
            return error
        except asyncio.CancelledError:
            # Closing the port must not look to the asker as if it were cancelled itself.
            if not job.answer.done():
                job.answer.set_exception(self._unreachable(job, "the port was closed"))
            raise
        except Exception as error:
            # The root of this loop: whatever a driver throws, the line must live on.
            self.logger.exception("%s: request failed", self._name(job.unit))
            await self._hang_up()
            return self._unreachable(job, repr(error))

    async def _serve(self, job: Job[Request, Answer]) -> Answer:
        health = self._units.setdefault(job.unit, UnitHealth())
        wait = self._left_alone(job, health)
        if wait > 0:
            raise self._unreachable(job, f"left alone for {wait:.0f} s more")
        await self._connect(job)
        silence = self._quiet_until - self._clock()
        if silence > 0:
            await asyncio.sleep(silence)
        started = self._clock()
        try:
            answer = await self._attempt(job, health)
        except AnsweredError:
            self._answered(job, health, started)
            raise
        self._answered(job, health, started)
        return answer

    async def _attempt(self, job: Job[Request, Answer], health: UnitHealth) -> Answer:
        timeout = min(max(job.timeout_s, 3 * health.slowest), MAX_TIMEOUT_S)
        try:
            return await self._exchange(job, timeout)
        except self.failed_exchange as error:
            if job.manners.repeat_first_request and self._connected:
                with contextlib.suppress(*self.failed_exchange):  # the first failure is told
                    return await self._exchange(job, timeout)
            await self._missed(job, health, timeout)
            why = f"no answer within {timeout:.1f} s" if isinstance(error, TimeoutError) else error
            raise self._unreachable(job, f"{why} ({health.failures} in a row)") from error

    def _answered(self, job: Job[Request, Answer], health: UnitHealth, started: float) -> None:
        now = self._heard_at = self._clock()
        self._requests += 1
        self._quiet_until = now + self._silence
        health.free_at = now + job.manners.gap_s
        health.slowest = max(now - started, health.slowest * 0.9)
        health.failures = self._misses = 0
        health.quarantined_until = 0.0
        if health.lost_at is not None:
            away = now - health.lost_at
            self.logger.warning("%s: restored after %.0f s", self._name(job.unit), away)
            health.lost_at = None

    async def _missed(self, job: Job[Request, Answer], health: UnitHealth, patience: float) -> None:
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
            self.logger.warning("%s: lost, no answer %d times", self._name(job.unit), 3)
        await self._settle(health, patience)

    async def _connect(self, job: Job[Request, Answer]) -> None:
        if self._connected and not self._worn_out():
            return
        if self._clock() < self._connect_at:
            raise self._unreachable(job, "the line is down")
        await self._hang_up()
        opened = False
        with contextlib.suppress(*self.failed_dial):  # `_note_down` and the asker's error tell it
            async with asyncio.timeout(job.timeout_s):
                opened = await self._dial()
        if opened:
            self._backoff = self._connect_at = 0.0
            self._misses = 0
            return
        await self._hang_up()
        self._backoff = min(max(0.25, 2 * self._backoff), MAX_BACKOFF_S / 3)
        self._connect_at = self._clock() + self._backoff
        self._note_down(job)
        raise self._unreachable(job, f"cannot open {self._line}; {self._hint}")

    def _note_down(self, job: Job[Request, Answer]) -> None:
        health = self._units.setdefault(job.unit, UnitHealth())
        health.failures += 1
        if health.lost_at is None and health.failures >= FAILURES_BEFORE_LOST:
            health.lost_at = self._clock()
            self.logger.warning("%s: lost, cannot be opened", self._name(job.unit))

    def _adapter_is_dead(self) -> bool:
        """A USB adapter can die silently: after a row of misses open it anew, now and then."""
        return self._misses > 0 and self._misses % (2 * FAILURES_BEFORE_LOST) == 0

    def _fail_all(self, why: str) -> None:
        for job in self._queue:
            if not job.answer.done():
                job.answer.set_exception(self._unreachable(job, why))
        self._queue.clear()

    def _unreachable(self, job: Job[Request, Answer], why: object) -> BoardUnreachableError:
        return BoardUnreachableError(f"{self._name(job.unit)}: {job.what}: {why}")

    def _name(self, unit: int) -> str:
        return f"{self._line} unit {unit}"


def is_pseudo(device: str) -> bool:
    """A pseudo terminal has no parity, and Linux refuses to set any."""
    return Path(device).resolve().is_relative_to("/dev/pts")
