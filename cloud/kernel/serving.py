"""Serving: the HTTP socket and server of a process, and work that is begun again when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI

logger = logging.getLogger(__name__)
RESTART_AFTER_S: Final = 1.0

T = TypeVar("T")


def http_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """The HTTP socket, taken first: a port in use is told before anything is started.

    It names its protocol, because asyncio turns Nagle's delay off only where it reads TCP there.
    With it, head and body of an answer are 40 ms apart: the client acknowledges late.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        yield listener


@asynccontextmanager
async def supervised(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run for as long as the block; what fails is logged and begun again."""

    async def again() -> None:
        while True:
            try:
                await work()
            except Exception:
                logger.exception("%s failed; it begins again in %s s", name, RESTART_AFTER_S)
            await asyncio.sleep(RESTART_AFTER_S)

    task = asyncio.create_task(again(), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def apart(
    name: str, opened: Callable[[], AbstractAsyncContextManager[T]]
) -> AsyncIterator[T]:
    """Hold a context on an event loop of its own, in a thread; gives what the context gives.

    What fails in it when it opens or closes is raised here.
    """
    here = asyncio.get_running_loop()
    there = type(here)()  # the same kind: uvloop's TLS costs a fraction of the other's
    up: asyncio.Future[T] = here.create_future()
    over: asyncio.Future[None] = here.create_future()
    stop = asyncio.Event()

    async def hold() -> None:
        async with opened() as held:
            here.call_soon_threadsafe(up.set_result, held)
            await stop.wait()

    def run() -> None:
        failed: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: there) as runner:
                runner.run(hold())
        except BaseException as error:  # noqa: BLE001  # the thread's root: raised where it was begun
            failed = error
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            here.call_soon_threadsafe(_settle, over, failed)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        waited: set[asyncio.Future[Any]] = {up, over}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            await over
        yield up.result()
    finally:
        with contextlib.suppress(RuntimeError):  # it is over
            there.call_soon_threadsafe(stop.set)
        await over


def _settle(over: asyncio.Future[None], failed: BaseException | None) -> None:
    if failed is None:
        over.set_result(None)
    else:
        over.set_exception(failed)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: HTTP stops first, what it stands on afterwards."""
        yield


@asynccontextmanager
async def http(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]), name="http")
    while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has only a flag
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await serving
