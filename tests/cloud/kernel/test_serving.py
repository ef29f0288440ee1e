"""The HTTP socket, and what runs on a loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloud.kernel.serving import apart, listening


async def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    """Nagle's algorithm against delayed acknowledgements makes 40 ms of every answer."""
    delays: asyncio.Queue[int] = asyncio.Queue()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        delays.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listening("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(serve, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await delays.get()
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def noted(told: list[str], *, fail: str = "") -> AsyncIterator[threading.Thread]:
    if fail == "opening":
        raise OSError(fail)
    told.append("open")
    yield threading.current_thread()
    told.append("closed")
    if fail:
        raise OSError(fail)


async def test_what_is_held_apart_opens_and_closes_in_a_thread_of_its_own() -> None:
    told: list[str] = []
    async with apart("aside", lambda: noted(told)) as thread:
        assert thread.name == "aside"
        assert told == ["open"]
    assert told == ["open", "closed"]


async def test_what_blocks_apart_does_not_block_here() -> None:
    @asynccontextmanager
    async def busy() -> AsyncIterator[threading.Event]:
        began = threading.Event()
        asyncio.get_running_loop().call_soon(lambda: (began.set(), time.sleep(1)))
        yield began

    async with apart("aside", busy) as began:
        before = time.monotonic()
        while not began.is_set():
            await asyncio.sleep(0)
        assert time.monotonic() - before < 0.9


@pytest.mark.parametrize("when", ["opening", "closing"])
async def test_what_fails_apart_is_raised_here(when: str) -> None:
    with pytest.raises(OSError, match=when):
        async with apart("aside", lambda: noted([], fail=when)):
            pass


async def test_what_fails_here_still_closes_apart() -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="here"):
        async with apart("aside", lambda: noted(told)):
            raise ValueError("here")
    assert told == ["open", "closed"]
