"""A child's output in a file of bounded size, with its last lines at hand for error messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 8 * 1024 * 1024
TAIL_LINES: Final = 40
APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class OutputLog:
    """Writes `path`; at `max_bytes` it becomes `path`.1 and a new file begins, so two at most."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._max_bytes = max_bytes
        self._partial = b""
        self._waiters: list[tuple[tuple[str, ...], asyncio.Future[str]]] = []
        self._transports: set[asyncio.BaseTransport] = set()

    async def attach(self) -> int:
        """A new pipe's write end for a child; the caller closes it after the fork."""
        read_end, write_end = os.pipe()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: _Pipe(self), os.fdopen(read_end, "rb", buffering=0)
        )
        self._transports.add(transport)
        return write_end

    def write(self, data: bytes) -> None:
        """Never fails: a full disk must not close the pipe, for that would kill the child."""
        with contextlib.suppress(OSError):
            self._append(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))

    def _append(self, data: bytes) -> None:
        if self.path.exists() and self.path.stat().st_size + len(data) > self._max_bytes:
            self.path.replace(self.path.with_suffix(self.path.suffix + ".1"))
        with os.fdopen(os.open(self.path, APPEND, 0o600), "ab") as log:
            log.write(data)

    def expect(self, *parts: str) -> asyncio.Future[str]:
        """The next line that contains one of the parts."""
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((parts, future))
        return future

    def last_words(self, lines: int = 8) -> str:
        return "\n".join(f"  {line}" for line in list(self.tail)[-lines:]) or "  (it said nothing)"

    def detach(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
        self._transports.discard(transport)

    async def close(self) -> None:
        for transport in [*self._transports]:
            self.detach(transport)
        await asyncio.sleep(0)  # closing a pipe takes one turn of the loop

    def _take(self, line: str) -> None:
        self.tail.append(line)
        for waiter in [*self._waiters]:
            parts, future = waiter
            if future.done() or any(part in line for part in parts):
                self._waiters.remove(waiter)
                if not future.done():
                    future.set_result(line)


class _Pipe(asyncio.Protocol):
    def __init__(self, log: OutputLog) -> None:
        self._log = log
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._log.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._transport is not None:
            self._log.detach(self._transport)
