"""Opening a device that another connection of ours has just asked."""

from __future__ import annotations

import asyncio
from typing import Final

from edge_agent.hardware.board import BoardUnreachableError, PowerBoard
from edge_agent.hardware.metered_board import board_itself
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_device import ModbusDevice

USUAL_S: Final = 0.2
"""For a board that has no profile."""


async def open_gently(board: PowerBoard | ModbusDevice) -> None:
    """The pause that it needs holds over connections; one that sleeps is woken once.

    Raises as its `open`.
    """
    itself = board if isinstance(board, ModbusDevice) else board_itself(board)
    device = itself.device if isinstance(itself, ModbusBoard) else itself
    pause = device.profile.limits.gap_ms / 1000 if isinstance(device, ModbusDevice) else USUAL_S
    await asyncio.sleep(pause)
    try:
        await board.open()
    except BoardUnreachableError:
        await asyncio.sleep(pause)
        await board.open()
