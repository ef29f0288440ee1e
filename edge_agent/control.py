"""The agent's control socket: how a technician's commands reach the agent that runs.

A unix socket in the journal's folder, readable by its owner only. One JSON object per line asks,
one answers; `watch` goes on answering. An answer has `error` when it could not be done. Nothing
that happens here reaches the agent's other tasks: clients are few, each answer has its deadline,
and a socket that cannot be made is tried again while the agent goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.rules.station import RefusedError
from edge_agent.serving import Connections
from protocols.agent_link import IdToken

log = logging.getLogger(__name__)
NAME: Final = "control.sock"
MAX_LINE: Final = 65_536
MOST_CLIENTS: Final = 8
DEADLINE_S: Final = 60.0
"""For an answer that reads devices."""
LONGEST_S: Final = 2 * DEADLINE_S
"""A technician waits for any answer no longer: another's reading may come first."""
IDLE_S: Final = 120.0
"""A client that asks nothing for so long makes room for another."""
SLOW_S: Final = 10.0
"""A client that takes no bytes for so long is let go."""
AGAIN_S: Final = 10.0
"""Between two attempts to make the socket."""
THERE_S: Final = 1.0
"""Between two looks whether it is still there."""
LONGEST_ANSWER: Final = 4 * 1024 * 1024


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked; a token for `token`, an EVSE, device or folder where one is meant."""

    do: str
    token: str = ""
    type: str = "ISO14443"
    evse: int | None = None
    device: str = ""
    field: str = ""
    value: int = 0
    dry: bool = False
    """For `write`: tell what would be sent, and send nothing."""


Answer = Any
Readings = asyncio.Queue[Answer]


class NotRunningError(Exception):
    """No agent answers on this journal's control socket."""


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path by way of an open folder: a unix address has 107 bytes at most."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)


class Control:
    """Serves the socket; `watch` returns a queue of answers and how to end it."""

    def __init__(
        self,
        *,
        status: Callable[[], Answer],
        present: Callable[[IdToken, int | None], Awaitable[str]],
        read: Callable[[str], Awaitable[Answer]],
        watch: Callable[[], tuple[Readings, Callable[[], None]]],
        recover: Callable[[int | None], Awaitable[str]] | None = None,
        retry: Callable[[], str] = lambda: "nothing was refused",
        update: Callable[[str], str] | None = None,
        abort: Callable[[], str] | None = None,
        log: Callable[[], Answer] = list,
        write: Callable[[Request], Awaitable[Answer]] | None = None,
        again_s: float = AGAIN_S,
    ) -> None:
        self._status = status
        self._present = present
        self._read = read
        self._watch = watch
        self._recover = recover
        self._retry = retry
        self._update = update
        self._abort = abort
        self._log = log
        self._write = write
        self._again_s = again_s
        self._clients = 0
        self._connections = Connections(self._serve)
        self._reading = asyncio.Lock()

    @asynccontextmanager
    async def kept(self, folder: Path) -> AsyncIterator[None]:
        """Serve while the context lasts, again and again where it cannot be done at once."""
        keeping = asyncio.create_task(self._keep(folder), name="control")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep(self, folder: Path) -> None:
        trouble = ""
        while True:
            try:
                async with self.served(folder):
                    trouble = ""
                    while (folder / NAME).exists():  # noqa: ASYNC110  # nobody tells of a file gone
                        await asyncio.sleep(THERE_S)
            except OSError as error:
                if str(error) != trouble:
                    log.warning("no control socket in %s (%s); trying again", folder, error)
                trouble = str(error)
                await asyncio.sleep(self._again_s)

    @asynccontextmanager
    async def served(self, folder: Path) -> AsyncIterator[None]:
        """Listen while the context lasts; a socket that a dead agent left is replaced."""
        path = folder / NAME
        path.unlink(missing_ok=True)
        listener = _bound(folder)
        server = await asyncio.start_unix_server(
            self._connections.enter, sock=listener, limit=MAX_LINE
        )
        try:
            yield
        finally:
            server.close()
            with suppress(OSError):
                path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MOST_CLIENTS:
                text = f"{MOST_CLIENTS} technicians are connected already; close one and try again"
                await _send(writer, {"error": text})
                return
            while line := await self._line(reader):
                async for answer in self._answers(line):
                    await _send(writer, answer)
        except (ConnectionError, ValueError, asyncio.CancelledError):
            return  # the technician has gone, sent more than a line may hold, or the agent ends
        except TimeoutError:
            writer.transport.abort()  # it sleeps: closing would wait until it takes what is left
        except Exception:  # the root of this task: a fault here must end nothing but this client
            log.exception("control: a request failed")
        finally:
            self._clients -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    @staticmethod
    async def _line(reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(IDLE_S):
            return await reader.readline()

    async def _answers(self, line: bytes) -> AsyncIterator[Answer]:
        try:
            request = msgspec.json.decode(line, type=Request)
            if request.do == "watch":
                async for answer in self._watching():
                    yield answer
            else:
                yield await self._answer(request)
        except msgspec.DecodeError as error:
            yield {"error": f"not a request: {error}"}
        except RefusedError as error:
            yield {"error": str(error)}

    async def _answer(self, request: Request) -> Answer:
        if request.do == "status":
            return self._status()
        if request.do == "token":
            token = IdToken(request.token, request.type)
            return {"text": await self._present(token, request.evse)}
        if request.do == "read":
            return await self._read_devices(request.device)
        if request.do == "log":
            return self._log()
        if request.do == "retry":
            return {"text": self._retry()}
        if request.do == "update" and self._update is not None:
            return {"text": self._update(request.device)}
        if request.do == "abort" and self._abort is not None:
            return {"text": self._abort()}
        if request.do == "write" and self._write is not None:
            return await self._write(request)
        if request.do == "recover" and self._recover is not None:
            return {"text": await self._recover(request.evse)}
        known = "status, token, read, write, retry, recover, update, abort, log or watch"
        raise RefusedError(f"there is no '{request.do}'; ask for {known}")

    async def _read_devices(self, device: str) -> Answer:
        """One technician at a time, so that the agent's own polls keep their turns on the line."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._reading:
                return await self._read(device)
        except TimeoutError:
            text = f"the devices were not read within {DEADLINE_S:g} s; look at the lines in status"
            raise RefusedError(text) from None

    async def _watching(self) -> AsyncIterator[Answer]:
        queue, done = self._watch()
        try:
            while True:
                yield await queue.get()
        finally:
            done()


def _bound(folder: Path) -> socket.socket:
    """A listening socket of the owner only. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(folder) as short:
            old = os.umask(0o177)
            try:
                listener.bind(short)
            finally:
                os.umask(old)
    except BaseException:
        listener.close()
        raise
    return listener


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Raises TimeoutError when the client takes nothing."""
    writer.write(msgspec.json.encode(answer) + b"\n")
    async with asyncio.timeout(SLOW_S):
        await writer.drain()


async def ask(folder: Path, request: Request, within_s: float = LONGEST_S) -> Any:
    """One request to the agent that runs on this journal. Raises NotRunningError."""
    try:
        async with asyncio.timeout(within_s), aclosing(stream(folder, request)) as answers:
            async for answer in answers:
                return answer
    except TimeoutError:
        raise NotRunningError(f"the agent gave no answer within {within_s:g} s") from None
    raise NotRunningError("the agent closed the connection without an answer")


async def stream(folder: Path, request: Request) -> AsyncGenerator[Any, None]:
    """The answers to a request as they come. Raises NotRunningError."""
    try:
        with _short(folder) as short:
            reader, writer = await asyncio.open_unix_connection(short, limit=LONGEST_ANSWER)
    except OSError as error:
        raise NotRunningError(f"no agent runs on {folder} ({error.strerror})") from error
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        await writer.drain()
        while line := await reader.readline():
            yield msgspec.json.decode(line)
    except ConnectionError as error:
        raise NotRunningError(f"the agent on {folder} went away") from error
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
