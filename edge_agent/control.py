"""The agent's control socket: how a technician's commands reach the agent that runs.

A unix socket in the journal's folder, readable by its owner only. One JSON object per line asks,
one answers; `watch` goes on answering. An answer has `error` when it could not be done.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.rules.station import RefusedError
from protocols.agent_link import IdToken

NAME: Final = "control.sock"
MAX_LINE: Final = 65_536


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked; a token for `token`, an EVSE where one is meant."""

    do: str
    token: str = ""
    type: str = "ISO14443"
    evse: int | None = None


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
        read: Callable[[], Awaitable[Answer]],
        watch: Callable[[], tuple[Readings, Callable[[], None]]],
        recover: Callable[[int | None], Awaitable[str]] | None = None,
        retry: Callable[[], str] = lambda: "nothing was refused",
    ) -> None:
        self._status = status
        self._present = present
        self._read = read
        self._watch = watch
        self._recover = recover
        self._retry = retry

    @asynccontextmanager
    async def served(self, folder: Path) -> AsyncIterator[None]:
        """Listen while the context lasts; a socket that a dead agent left is replaced."""
        path = folder / NAME
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(folder) as short:
            old = os.umask(0o177)
            try:
                listener.bind(short)
            finally:
                os.umask(old)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                async for answer in self._answers(line):
                    writer.write(msgspec.json.encode(answer) + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            return  # the technician has gone, sent more than a line may hold, or the agent ends
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

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
            return await self._read()
        if request.do == "recover" and self._recover is not None:
            return {"text": await self._recover(request.evse)}
        if request.do == "retry":
            return {"text": self._retry()}
        known = "status, token, read, retry, recover or watch"
        raise RefusedError(f"there is no '{request.do}'; ask for {known}")

    async def _watching(self) -> AsyncIterator[Answer]:
        queue, done = self._watch()
        try:
            while True:
                yield await queue.get()
        finally:
            done()


async def ask(folder: Path, request: Request) -> Any:
    """One request to the agent that runs on this journal. Raises NotRunningError."""
    async for answer in stream(folder, request):
        return answer
    raise NotRunningError("the agent closed the connection without an answer")


async def stream(folder: Path, request: Request) -> AsyncIterator[Any]:
    """The answers to a request as they come. Raises NotRunningError."""
    try:
        with _short(folder) as short:
            reader, writer = await asyncio.open_unix_connection(short, limit=16 * MAX_LINE)
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
