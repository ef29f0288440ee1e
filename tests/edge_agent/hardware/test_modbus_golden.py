"""The driver's very bytes, against frames written by hand from the manual."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from edge_agent.hardware.board import IecState
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, open_board
from protocols.quantities import MilliAmperes

GOLDEN = json.loads((Path(__file__).parents[2] / "vectors/modbus/golden.json").read_text())
FRAMES = {
    bytes.fromhex(frame["request"]): bytes.fromhex(frame["reply"])
    for frame in GOLDEN["abb_terra_ac"]["frames"]
}


class Tape:
    """Answers known requests with known replies, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(6):
            body = await reader.readexactly(int.from_bytes(head[4:6]))
            self.asked.append(head[4:6] + body)
            writer.write(head[:4] + FRAMES[head[4:6] + body])
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        self.ended.set()


async def test_every_byte_is_the_manuals() -> None:
    tape = Tape()
    server = await asyncio.start_server(tape.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = ModbusLink(host="127.0.0.1", port=port, timeout_s=1)
    board = open_board(BoardConfig(profile="abb_terra_ac", link=link))
    await board.open()
    (reading,) = await board.read()
    assert await board.set_limit(1, MilliAmperes(16_000)) == 16_000
    await board.release(1)
    await board.withhold(1)
    await board.close()
    await tape.ended.wait()
    server.close()
    await server.wait_closed()
    assert board.identity == "ABB 54220100262500a1 1.8.2"
    assert reading.state is IecState.CHARGING
    assert reading.current == (15_996, 16_000, 16_004)
    assert reading.voltage == (230_000, 230_500, 229_500)
    assert (reading.power, reading.energy, reading.applied_limit) == (11_040, 8_000, 16_000)
    assert reading.suspect == frozenset()
    assert set(tape.asked) == set(FRAMES), "all of the tape, and nothing else"
