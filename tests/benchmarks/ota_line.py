"""ota.an3155_vs_line: how long a board's image takes, against what the line itself needs.

Our AN3155 client writes and reads back 320 KiB at 115200 8E1. The board is the simulated STM32
behind a pseudo terminal that takes 11 bits' time for every octet, in both directions. The limit is
computed: the octets that the protocol needs for it, 11 bits each. Erasing and the chip's own time
for programming are left out: the simulated chip takes none.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from figure import Figure

from firmware_bridge.loader import FirmwareImage
from firmware_bridge.port import LineSettings, SerialLine
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.stm32 import Stm32
from firmware_bridge.stm32 import Stm32Loader

SIZE = 320 * 1024
BLOCK = 256
WRITE_OCTETS = (2 + 5 + 1 + BLOCK + 1) + 3
"""Command, address, count, data and check, and three ACKs."""
READ_OCTETS = (2 + 5 + 2) + 3 + BLOCK


async def measure(runs: int) -> list[Figure]:
    """One run takes a minute and hardly varies; of more than two the median counts."""
    seconds = [await asyncio.to_thread(_seconds) for _ in range(max(1, runs - 2))]
    settings = LineSettings(device="")
    blocks = SIZE // BLOCK
    limit = blocks * (WRITE_OCTETS + READ_OCTETS) * settings.octet_s
    taken = statistics.median(seconds)
    return [
        Figure(
            name="ota.an3155_vs_line",
            value=taken / limit,
            unit="ratio",
            at_most=1.10,
            detail={"seconds": round(taken, 2), "limit_s": round(limit, 2), "kib": SIZE // 1024},
        )
    ]


def _seconds() -> float:
    board = Stm32(pid=0x413)
    octet_s = LineSettings(device="").octet_s
    with PtyLine(board, octet_s=octet_s) as line:
        port = SerialLine(LineSettings(device=line.path))
        loader = Stm32Loader(port)
        image = FirmwareImage(octets=make_image(SIZE, "1.0.0"), version="1.0.0")
        if not loader.probe():
            raise RuntimeError("the simulated board does not answer")
        loader.identify()
        loader.check(image)
        loader.erase(image)
        started = time.perf_counter()
        loader.write(image)
        loader.verify(image)
        loader.seal(image)
        taken = time.perf_counter() - started
        port.close()
    if board.flash.octets[:SIZE] != image.octets:
        raise RuntimeError("the board holds something else than the image")
    return taken
