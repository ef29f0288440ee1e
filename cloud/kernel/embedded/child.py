"""One supervised child process: bound to this process's life, restarted when it dies.

The child gets a parent-death signal from the kernel, so that it ends also when we are killed. That
signal belongs to the thread that forked: run the supervisor on a loop whose thread lives as long as
the child shall.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from cloud.kernel.embedded.output import OutputLog

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1

STOP_GRACE_S: Final = 60.0
POLL_S: Final = 0.05
SLOW_START_S: Final = 10.0
FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 30.0
STEADY_S: Final = 3.0
"""A child that ran so long was sound: what ended it came from outside."""


class EmbeddedError(Exception):
    """An embedded server cannot run; the text says what happened, why, and what to do."""


class FolderInUse(EmbeddedError):
    """Another Karvon works in the folder."""


@dataclass(frozen=True)
class ChildEvent:
    """What became of a child: `died` (restart follows), `restarted`, or `slow` to get ready."""

    child: str
    what: Literal["died", "restarted", "slow"]
    detail: str


@dataclass(frozen=True)
class Account:
    """The operating system's user that a child runs as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Launch:
    """How to start a child. `account` None: as ourselves."""

    command: list[str]
    cwd: Path
    account: Account | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Supervised:
    """Keeps one child running from `start` to `stop`.

    `launch` is asked before every start and clears what an earlier life left behind. `ready` tells
    for a pid whether it serves; there is no deadline while the process lives, since crash recovery
    may take long. Raises EmbeddedError when the first start fails; later ones are repeated with
    growing pauses and told to `report`.
    """

    def __init__(
        self,
        name: str,
        *,
        launch: Callable[[], Awaitable[Launch]],
        ready: Callable[[int], Awaitable[bool]],
        output: OutputLog,
        stop_signal: signal.Signals,
        report: Callable[[ChildEvent], None] | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._launch = launch
        self._ready = ready
        self._output = output
        self._stop_signal = stop_signal
        self._report = report or _log_event
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the child as it runs now; EmbeddedError when it does not."""
        if self._process is None or self._process.returncode is not None:
            raise EmbeddedError(f"{self.name} is not running; see {self._output.path}")
        return self._process.pid

    async def serving(self) -> int:
        """Wait out a restart; the pid of the child that serves. EmbeddedError after `stop`."""
        if self._keeper is None:
            raise EmbeddedError(f"{self.name} was stopped")
        await self._serving.wait()
        return self.pid

    async def start(self) -> None:
        try:
            process = await self._run()
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(process), name=f"keep {self.name}")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._process is not None:
            await _end(self._process, self._stop_signal)
        await self._output.close()

    async def _run(self) -> Process:
        """Start the child and wait until it serves."""
        self._process = process = await spawn(await self._launch(), self._output, self._stop_signal)
        waited = 0.0
        while process.returncode is None:
            if await self._ready(process.pid):
                self._serving.set()
                return process
            await asyncio.sleep(POLL_S)
            waited += POLL_S
            if waited >= SLOW_START_S:
                self._report(ChildEvent(self.name, "slow", self._output.last_words(1).strip()))
                waited = 0.0
        raise EmbeddedError(
            f"{self.name} ended at once ({_how(process.returncode)}). Its last words:\n"
            f"{self._output.last_words()}\nThe whole log: {self._output.path}"
        )

    async def _keep(self, process: Process) -> None:
        clock = asyncio.get_running_loop().time
        pause = FIRST_BACKOFF_S
        while True:
            since = clock()
            code = await process.wait()
            self._serving.clear()
            if clock() - since > STEADY_S:
                pause = FIRST_BACKOFF_S
            self._report(ChildEvent(self.name, "died", _how(code)))
            process, pause = await self._restart(pause)

    async def _restart(self, pause: float) -> tuple[Process, float]:
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_BACKOFF_S)
            try:
                process = await self._run()
            except (EmbeddedError, OSError) as error:
                self._report(ChildEvent(self.name, "died", str(error)))
            else:
                self.restarts += 1
                self._report(ChildEvent(self.name, "restarted", f"pid {process.pid}"))
                return process, pause


class Process:
    """A child of this thread; its end is heard of through a pidfd, on whatever event loop."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._popen.returncode

    def send_signal(self, how: int) -> None:
        self._popen.send_signal(how)

    async def wait(self) -> int:
        """The exit code; negative for a signal."""
        await self._ended.wait()
        return self._popen.wait()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        self._ended.set()


async def spawn(launch: Launch, output: OutputLog, death_signal: signal.Signals) -> Process:
    """Start a child that gets `death_signal` when this thread ends, however it ends."""
    write_end = await output.attach()
    account = launch.account
    try:
        popen = subprocess.Popen(  # noqa: ASYNC220  # the death signal is bound to the forking thread
            launch.command,
            cwd=launch.cwd,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **launch.env},
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            start_new_session=True,
            umask=0o077,
            preexec_fn=_die_with(os.getpid(), death_signal),  # noqa: PLW1509  # it calls prctl alone
        )
    finally:
        os.close(write_end)
    return Process(popen)


def _die_with(parent: int, how: signal.Signals) -> Callable[[], None]:
    def bind() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(how))
        if os.getppid() != parent:  # it died before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


async def _end(process: Process, how: signal.Signals) -> None:
    for attempt in (how, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(attempt)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
            return


async def end_leftovers(folder: Path, program: str, how: signal.Signals) -> None:
    """End what an earlier life of ours left running in this folder; the caller holds its lock."""
    for attempt, patience in ((how, STOP_GRACE_S), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
        for pid in running_in(folder, program):
            _log.warning("ending %s (pid %d), left by an earlier run in %s", program, pid, folder)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, attempt)
        for _ in range(int(patience / POLL_S)):
            if not any(running_in(folder, program)):
                return
            await asyncio.sleep(POLL_S)
    pids = ", ".join(str(pid) for pid in running_in(folder, program))
    raise EmbeddedError(f"{program} (pid {pids}) still runs in {folder} and cannot be ended")


def running_in(folder: Path, program: str) -> Iterator[int]:
    """Processes of that program whose working directory is the folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (entry / "exe").readlink().name.removesuffix(" (deleted)")  # upgraded since
            if name == program and (entry / "cwd").samefile(folder):
                yield int(entry.name)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One Karvon per folder; the kernel frees the lock when we die. FolderInUse when taken."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode().strip() or "unknown"
            raise FolderInUse(
                f"{folder} is in use by another Karvon (pid {owner}); "
                "stop that one or choose another --data-dir"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _log_event(event: ChildEvent) -> None:
    level = logging.ERROR if event.what == "died" else logging.WARNING
    _log.log(level, "%s: %s: %s", event.child, event.what, event.detail)
