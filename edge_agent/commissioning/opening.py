"""Opening a device that another connection of ours has just asked."""

from __future__ import annotations

import asyncio

from edge_agent.hardware.board import BoardUnreachableError
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_device import ModbusDevice


async def open_gently(board: ModbusBoard | ModbusDevice) -> None:
    """The pause that it needs holds over connections; one that sleeps is woken once.

    Raises as its `open`.
    """
    device = board if isinstance(board, ModbusDevice) else board.device
    pause = device.profile.limits.gap_ms / 1000
    await asyncio.sleep(pause)
    try:
        await board.open()
    except BoardUnreachableError:
        await asyncio.sleep(pause)
        await board.open()
