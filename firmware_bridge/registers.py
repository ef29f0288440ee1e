"""Holding registers of one Modbus unit: the port, and pymodbus behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ModbusException

from firmware_bridge.loader import LineError
from firmware_bridge.port import LineSettings, is_pseudo

Words = tuple[int, ...]
T = TypeVar("T")
MOST_WRITTEN: Final = 123
"""Registers in one request of function 16."""
MOST_READ: Final = 125


class NoAnswerError(Exception):
    """The unit is silent, or what it said was spoiled."""


class ModbusExceptionError(Exception):
    """The unit refused the request with this exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code}")
        self.code = code


class Registers(Protocol):
    """One unit's. Both raise NoAnswerError, ModbusExceptionError, LineError; neither repeats."""

    def read(self, address: int, count: int) -> Words: ...

    def write(self, address: int, words: Words) -> None:
        """In one request of function 16."""
        ...


class PymodbusRegisters:
    """A unit on a serial line or behind TCP, through a client of its own. Raises LineError."""

    def __init__(
        self,
        where: LineSettings | tuple[str, int],
        unit: int,
        timeout_s: float = 1.0,
    ) -> None:
        # Each lost reply is our caller's matter: pymodbus would say it once more in its log.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self._unit = unit
        self._client: Any
        if isinstance(where, LineSettings):
            self._name = where.device
            parity = "N" if is_pseudo(where.device) else where.parity[0].upper()
            self._client = ModbusSerialClient(
                where.device, baudrate=where.baudrate, parity=parity, timeout=timeout_s, retries=0
            )
        else:
            host, port = where
            self._name = f"{host}:{port}"
            self._client = ModbusTcpClient(host, port=port, timeout=timeout_s, retries=0)
        if not self._client.connect():
            raise LineError(
                f"cannot open {self._name}; is it plugged in and on, the name right, and no other "
                "program on it (the agent holds the lines of its boards)?"
            )

    def close(self) -> None:
        self._client.close()

    def read(self, address: int, count: int) -> Words:
        reply = self._asked(
            lambda: self._client.read_holding_registers(address, count=count, device_id=self._unit)
        )
        if len(reply.registers) != count:
            raise NoAnswerError
        return tuple(reply.registers)

    def write(self, address: int, words: Words) -> None:
        self._asked(
            lambda: self._client.write_registers(address, list(words), device_id=self._unit)
        )

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            reply = ask()
        except ModbusException as error:
            raise NoAnswerError(str(error)) from error
        except OSError as error:
            raise LineError(
                f"{self._name} went away in the middle: {error}; connect it again and run the same "
                "command, the board waits in its loader"
            ) from error
        if reply.isError():
            raise ModbusExceptionError(int(getattr(reply, "exception_code", 0)))
        return reply


def to_words(octets: bytes) -> Words:
    """High octet first, filled up to whole registers."""
    octets += b"\0" * (len(octets) % 2)
    return tuple(int.from_bytes(octets[at : at + 2], "big") for at in range(0, len(octets), 2))


def to_octets(words: Words) -> bytes:
    return b"".join(word.to_bytes(2, "big") for word in words)
