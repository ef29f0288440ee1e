"""One `karvon` command as a child process: started, signalled, restarted, never left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import karvon

ROOT: Final = Path(karvon.__file__).resolve().parent.parent
"""Where the packages lie: as working directory it makes them importable, installed or not."""
BELOW_EPHEMERAL: Final = range(20_000, 32_000)
"""Outgoing connections never take these, so a port stays ours while its server is down."""
POLL_S: Final = 0.05

T = TypeVar("T")


class DemoError(Exception):
    """Something in the network did not do its part; the text says what, and where to look."""


_given: set[int] = set()


def free_port() -> int:
    """A loopback TCP port that nobody listens on now, and that this process was not given before.

    Whoever was given one may not listen on it yet, or not at the moment.
    """
    while True:
        port = random.choice(BELOW_EPHEMERAL)  # noqa: S311  no secret depends on it
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


def wait_for(look: Callable[[], T | None], deadline_s: float, what: str) -> T:
    """Look until there is something true to return; raises DemoError with `what` when too late."""
    end = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > end:
            raise DemoError(f"waited {deadline_s:.0f} s in vain for {what}")
        time.sleep(POLL_S)
    return found


class Child:
    """A `karvon ARGS...` process; its output goes to `<name>.out` and `<name>.log` in `logs`."""

    def __init__(
        self, name: str, args: Sequence[str], logs: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.args = tuple(args)
        self.env = dict(env or {})
        self.before: tuple[str, ...] = ()
        """What runs it, and ends by exec: another network namespace, as a test needs it."""
        self.starts = 0
        self._out = logs / f"{name}.out"
        self._log = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self._log

    @property
    def pid(self) -> int:
        """Raises DemoError before the first start."""
        if self._process is None:
            raise DemoError(f"{self.name} was never started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while running or never started; negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start it; `env` holds for this one run only. Raises DemoError when it runs already."""
        if self.alive:
            raise DemoError(f"{self.name} runs already (pid {self.pid})")
        argv = [
            *self.before,
            sys.executable,
            "-m",
            "karvon.demo.leash",
            str(os.getpid()),
            *self.args,
        ]
        with self._out.open("wb") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.env, **(env or {})},
                start_new_session=True,
            )
        self.starts += 1

    def ready(self, deadline_s: float = 30.0) -> dict[str, Any]:
        """Its first line of output, a JSON object; raises DemoError when it ends without one."""
        return wait_for(self._first_line, deadline_s, f"{self.name} to be ready; see {self._log}")

    def _first_line(self) -> dict[str, Any] | None:
        first, newline, _ = self._out.read_bytes().partition(b"\n")
        if newline:
            line: dict[str, Any] = json.loads(first)
            return line
        if not self.alive:
            raise DemoError(f"{self.name} ended with {self.exit_code}:\n{self.tail()}")
        return None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._reap(10.0)

    def stop(self, deadline_s: float = 15.0) -> None:
        """SIGTERM; SIGKILL when it has not ended by the deadline."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            self._reap(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def _reap(self, deadline_s: float) -> None:
        if self._process is not None:
            self._process.wait(deadline_s)


def descendant(pid: int, name: str) -> int | None:
    """The nearest descendant process of `pid` whose program is called `name` (Linux, /proc)."""
    for child in _children(pid):
        if _comm(child) == name:
            return child
        if found := descendant(child, name):
            return found
    return None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # the thread ended while we looked
            continue
    return found


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
