"""Every register that a device's profile names, read one by one, raw and decoded."""

from __future__ import annotations

import msgspec

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.serial_board import SerialBoard
from protocols.serial_board import PLACES

BASE_UNITS = {"A": "mA", "mA": "mA", "V": "mV", "mV": "mV", "kW": "W", "kWh": "Wh"}
"""What a decoded value is in, by the register's own unit."""


class RegisterDump(msgspec.Struct, frozen=True):
    """One register as a technician sees it."""

    device: str
    evse: int
    name: str
    address: str
    raw: str
    value: int | str | None
    unit: str
    note: str = ""
    """Why there is no value, or what the profile says about it."""


async def dump(name: str, device: ModbusDevice) -> list[RegisterDump]:
    """Read all of it; what one register refuses does not keep the others from being read."""
    return [
        await _one(name, device, evse, field)
        for evse in device.evses
        for field in device.binding.fields()
    ]


async def dump_board(name: str, board: SerialBoard) -> list[RegisterDump]:
    """The readings of a board of our own, field by field; the address is the offset in them."""
    try:
        blocks = await board.blocks()
    except (BoardRefusedError, BoardUnreachableError) as error:
        return [
            RegisterDump(
                device=name,
                evse=0,
                name="",
                address="",
                raw="",
                value=None,
                unit="",
                note=str(error),
            )
        ]
    return [
        RegisterDump(
            device=name,
            evse=told.evse,
            name=field,
            address=f"+{offset}",
            raw=block[offset : offset + size].hex(" ").upper(),
            value=told.named()[field],
            unit=unit,
            note="" if told.named()[field] is not None else "the board cannot tell",
        )
        for told, block in blocks
        for field, offset, size, unit in PLACES
    ]


async def _one(name: str, device: ModbusDevice, evse: int, field: str) -> RegisterDump:
    each = device.binding.fields()[field]
    span = device.binding.span(each, evse)
    raw, value, note = "", None, each.note
    try:
        _, words, decoded = await device.look(evse, field)
        raw, value = " ".join(f"{word:04X}" for word in words), decoded.value
        note = "not available or implausible" if decoded.suspect else note
    except (BoardRefusedError, BoardUnreachableError) as error:
        note = str(error)
    return RegisterDump(
        device=name,
        evse=evse,
        name=field,
        address=f"{span.function}:{span.address:04X}",
        raw=raw,
        value=value,
        unit=BASE_UNITS.get(each.unit, each.unit),
        note=note,
    )
