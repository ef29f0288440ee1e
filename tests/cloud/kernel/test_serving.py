"""The HTTP socket."""

from __future__ import annotations

import asyncio
import socket

from cloud.kernel.serving import listening


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
