"""How a board's loader is reached: what a person, or the agent's configuration, says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # a command's help opens no port
    from firmware_bridge.loader import Loader
    from firmware_bridge.port import LineSettings


class Kind(StrEnum):
    """The loaders that there are."""

    STM32 = "stm32"
    MODBUS = "modbus"
    SMP = "smp"
    TERRA_AC = "terra-ac"


class Parity(StrEnum):
    """Of the line."""

    NONE = "none"
    EVEN = "even"
    ODD = "odd"


USUAL: Final = {
    Kind.STM32: (115_200, Parity.EVEN),
    Kind.MODBUS: (19_200, Parity.EVEN),
    Kind.SMP: (115_200, Parity.NONE),
    Kind.TERRA_AC: (19_200, Parity.EVEN),
}


class UsageError(Exception):
    """The command line asks for what makes no sense."""


@dataclass(frozen=True, slots=True)
class Where:
    """How to reach the board."""

    device: str
    loader: Kind
    baudrate: int | None
    parity: Parity | None
    unit: int
    pins: str | None
    hw_id: str | None
    terra_ac_checksum: str | None = None
    address: int | None = None
    """Of a board of our own, whose application is asked and told in its own language."""
    speed: int = 115_200
    """At which its application speaks."""

    @property
    def asks(self) -> bool:
        """Whether its application can be asked who it is."""
        return self.loader is not Kind.STM32 or self.address is not None

    @property
    def line(self) -> LineSettings:
        from firmware_bridge.port import LineSettings

        baudrate, parity = USUAL[self.loader]
        return LineSettings(
            device=self.device,
            baudrate=self.baudrate or baudrate,
            parity=(self.parity or parity).value,
        )


@contextmanager
def opened(where: Where) -> Iterator[Loader]:
    """The loader on its line. Raises LineError, UsageError."""
    tcp = where.device.startswith("tcp://")
    if tcp and where.loader in {Kind.STM32, Kind.SMP}:
        raise UsageError(f"--device {where.device}: {where.loader.value} needs a serial line")
    if where.loader is Kind.STM32:
        from firmware_bridge.pins import BootPins, Wiring, WiringError
        from firmware_bridge.port import SerialLine
        from firmware_bridge.stm32 import Stm32Loader

        try:
            wiring = None if where.pins is None else Wiring.parse(where.pins)
        except WiringError as error:
            raise UsageError(f"--pins: {error}") from error
        line = SerialLine(where.line, wiring)
        pins = None if wiring is None else BootPins(line, wiring)
        ways: dict[str, Any] = {}
        if where.address is not None:
            from firmware_bridge.own_board import OwnBoard

            board = OwnBoard(line, where.address, where.speed)
            ways = {"enter": board.enter, "version": board.version}
        try:
            yield Stm32Loader(line, hw_id=where.hw_id, pins=pins, **ways)
        finally:
            line.close()
    elif where.loader is Kind.SMP:
        from firmware_bridge.smp import SmpLoader, serial_transport

        smp = SmpLoader(lambda: serial_transport(where.line), where.device, hw_id=where.hw_id)
        try:
            yield smp
        finally:
            smp.close()
    else:
        from firmware_bridge.registers import PymodbusRegisters

        registers = PymodbusRegisters(_host(where.device) if tcp else where.line, where.unit)
        try:
            yield _behind(registers, where)
        finally:
            registers.close()


def _behind(registers: Any, where: Where) -> Loader:
    if where.loader is Kind.MODBUS:
        from firmware_bridge.modbus_loader import ModbusLoader

        return ModbusLoader(registers)
    from firmware_bridge.terra_ac import CHECKSUMS, SETTING, TerraAcLoader

    checksum = where.terra_ac_checksum
    if checksum is not None and checksum not in CHECKSUMS:
        raise UsageError(f"{SETTING} {checksum}: known are {' and '.join(CHECKSUMS)}")
    return TerraAcLoader(registers, checksum=checksum)


def _host(device: str) -> tuple[str, int]:
    host, _, port = device.removeprefix("tcp://").rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError as error:
        raise UsageError(f"--device {device}: tcp://HOST:PORT is wanted") from error
