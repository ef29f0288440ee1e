"""`test --device`: every register of a live device, raw and decoded. It is only read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edge_agent.cli.output import print_table
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.registers import RegisterDump, dump
from karvon.profiles.speaking import (
    UNREACHABLE,
    WRONG,
    ToolError,
    complain,
    device_link,
    profile_named,
    told,
    told_json,
)
from protocols.modbus.profile import Profile, Unsure
from protocols.modbus.states import state_of
from protocols.modbus.values import Value

HIGHEST_MV, LOWEST_MV = 280_000, 180_000


class Report(msgspec.Struct, frozen=True):
    """What a live device showed."""

    profile: str
    device: str
    identity: str
    refused: str
    """Why the profile does not fit the device, or ""."""
    state: str | None
    registers: list[RegisterDump]
    doubts: list[str]
    unsure: tuple[Unsure, ...]
    """What the profile's sources leave open: look at these first."""


@dataclass(frozen=True, slots=True)
class How:
    """Which EVSE is looked at, and how long for one answer (seconds; None: as the profile says)."""

    evse: int
    timeout: float | None


def run(name: str, device: str, options: tuple[str, ...], how: How, *, as_json: bool) -> int:
    try:
        profile = profile_named(name, options)
        link = device_link(device, profile)
        link = msgspec.structs.replace(link, timeout_s=how.timeout or link.timeout_s)
    except ToolError as error:
        return complain(error)
    report = asyncio.run(looked_at(profile, link, options, how.evse))
    if not any(one.raw for one in report.registers):
        why = report.refused or next((one.note for one in report.registers), "no answer")
        return complain(
            ToolError(f"{why}; check cabling, address, unit {link.unit} and line", UNREACHABLE)
        )
    if as_json:
        told_json(report)
    else:
        _tell(report)
    return WRONG if report.refused or report.doubts else 0


async def looked_at(
    profile: Profile, link: ModbusLink, options: tuple[str, ...], evse: int
) -> Report:
    """One look at every register; a device that refuses some still shows the others."""
    evses = (evse,) if profile.kind == "charger" else (0,)
    device = ModbusDevice(
        profile, link, PortPool().port(link), evses=evses, options=frozenset(options)
    )
    refused, registers = "", []
    try:
        refused = await _opened(device)
        registers = await dump(profile.profile, device)
    except BoardUnreachableError as error:
        refused = str(error)
    finally:
        await device.close()
    return Report(
        profile=profile.profile,
        device=link.line,
        identity=device.identity,
        refused=refused,
        state=_state(device, registers),
        registers=registers,
        doubts=list(_doubts(registers)),
        unsure=profile.unsure,
    )


async def _opened(device: ModbusDevice) -> str:
    """Why the device is not the one described, or ""; raises BoardUnreachableError."""
    try:
        await device.open()
    except BoardRefusedError as error:
        return str(error)
    return ""


def _state(device: ModbusDevice, registers: list[RegisterDump]) -> str | None:
    states = device.profile.states
    if states is None or not registers:
        return None
    values = {one.name: Value(one.value) for one in registers}
    letter, strange = state_of(device.binding.rules(), states.otherwise, values)
    return f"{letter} (no rule knows these raw values)" if strange else letter


def _doubts(registers: list[RegisterDump]) -> Iterator[str]:
    for one in registers:
        if not one.raw:
            yield f"{one.name} at {one.address}: {one.note}"
        elif one.value is None:
            yield f"{one.name} at {one.address} reads {one.raw}: {one.note}"
        elif one.name.startswith("voltage_l") and not _believable(one.value):
            yield (
                f"{one.name} at {one.address} reads {one.raw}, {one.value} mV: "
                "is scale, type or word order right?"
            )


def _believable(millivolts: int | str) -> bool:
    """A phase that is not connected shows 0."""
    return millivolts == 0 or (
        isinstance(millivolts, int) and LOWEST_MV <= millivolts <= HIGHEST_MV
    )


def _tell(report: Report) -> None:
    told(f"{report.profile} on {report.device}: {report.identity or 'not identified'}")
    if report.refused:
        told(f"WRONG  {report.refused}")
    rows = [
        (one.name, one.address, one.raw, "" if one.value is None else one.value, one.unit, one.note)
        for one in report.registers
    ]
    print_table(("register", "address", "raw", "value", "unit", "note"), rows)
    if report.state is not None:
        told(f"IEC state: {report.state}")
    for doubt in report.doubts:
        told(f"look again: {doubt}")
    for each in report.unsure:
        told(f"unsure, {each.about}: {each.why}")
