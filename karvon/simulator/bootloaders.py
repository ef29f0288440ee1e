"""Serves a simulated power board that waits in its loader."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Literal

from firmware_bridge.simulator.lines import Board, PtyLine
from firmware_bridge.simulator.modbus import ModbusBoard
from firmware_bridge.simulator.stm32 import Stm32

BITS = 11
FACTORY_BYTES = 4096
Kind = Literal["stm32", "modbus", "smp"]


def serve(kind: Kind, pty: str, baudrate: int | None, *, as_json: bool) -> None:
    """Until SIGINT or SIGTERM. Raises OSError where the link cannot be made."""
    ends = {signal.SIGINT, signal.SIGTERM}
    # Blocked before the line's thread starts, so that both are waited for here.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    octet_s = BITS / baudrate if baudrate else 0.0
    with PtyLine(_board(kind), octet_s=octet_s, link=Path(pty)) as line:
        told = {"loader": kind, "pty": line.path}
        text = json.dumps(told) if as_json else f"serving a board with {kind} on {line.path}"
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        signal.sigwait(ends)


def _board(kind: Kind) -> Board:
    if kind == "modbus":
        return ModbusBoard()
    if kind == "smp":
        from firmware_bridge.simulator.smp import SmpBoard, make_signed

        board = SmpBoard(sectors=512)
        board.load(make_signed(FACTORY_BYTES, "0.1.0"))
        return board
    return Stm32()
