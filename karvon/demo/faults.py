"""A TCP proxy that breaks connections in the ways real networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Final, Self, TypeVar

CHUNK: Final = 4096
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close sends RST instead of FIN."""

T = TypeVar("T")


class FaultProxy:
    """Forwards a loopback port to another; what it does to the bytes is set at any time.

    It runs in a thread of its own, so that a test which is busy or blocked delays nothing.
    """

    def __init__(self, target: int, port: int = 0, listener: socket.socket | None = None) -> None:
        """`listener` is what it accepts on instead of a loopback port."""
        self.target = target
        self.port = port
        self._listener = listener
        self.delay_s = 0.0
        """Each chunk arrives this much later."""
        self.blackhole = False
        """Connections stand and are accepted, but no byte passes: half-open."""
        self.reset_every = 0
        """A connection is reset after so many bytes in either direction; 0: never."""
        self.connections = 0
        self.resets = 0
        self.swallowed = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection that stands now."""
        self._call(self._cut())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listener is not None:
            self._server = await asyncio.start_server(self._accepted, sock=self._listener)
        else:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._bridged(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        task.add_done_callback(lambda _: _reset(writer))  # it may be cancelled before it begins

    async def _bridged(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._bridge(reader, writer)

    async def _bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        allowance = [self.reset_every]
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, allowance)),
            asyncio.create_task(self._pump(far_reader, writer, allowance)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            _reset(far_writer)  # before the wait, in which the proxy's end may cancel this
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: list[int]
    ) -> None:
        """One direction until it ends; `allowance` is shared by both directions."""
        while chunk := await reader.read(CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.blackhole:
                self.swallowed += len(chunk)
                continue
            if self.reset_every:
                cut = allowance[0] < len(chunk)
                chunk = chunk[: allowance[0]]
                allowance[0] -= len(chunk)
                if cut:
                    self.resets += 1
                    writer.write(chunk)
                    return
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
