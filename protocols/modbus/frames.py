"""Modbus requests as the bytes that go over a line (MODBUS Application Protocol V1.1b3)."""

from __future__ import annotations

import struct
from typing import Final

from protocols.modbus.binding import WriteRequest
from protocols.modbus.planning import Span

WRITE_COIL: Final = 5
WRITE_REGISTER: Final = 6
COIL_ON: Final = 0xFF00
POLYNOMIAL: Final = 0xA001


def _entry(octet: int) -> int:
    crc = octet
    for _ in range(8):
        crc = crc >> 1 ^ POLYNOMIAL if crc & 1 else crc >> 1
    return crc


_TABLE: Final = tuple(_entry(octet) for octet in range(256))


def crc16(octets: bytes | bytearray | memoryview) -> int:
    """CRC-16/MODBUS; it goes over the line low byte first."""
    crc = 0xFFFF
    for octet in octets:
        crc = crc >> 8 ^ _TABLE[(crc ^ octet) & 0xFF]
    return crc


def request_pdu(request: Span | WriteRequest) -> bytes:
    """Function and data of a request, without unit and checksum."""
    if isinstance(request, Span):
        return struct.pack(">BHH", request.function, request.address, request.count)
    if request.function == WRITE_COIL:
        value = COIL_ON if request.words[0] else 0
        return struct.pack(">BHH", WRITE_COIL, request.address, value)
    if request.function == WRITE_REGISTER:
        return struct.pack(">BHH", WRITE_REGISTER, request.address, request.words[0])
    count = len(request.words)
    head = struct.pack(">BHHB", request.function, request.address, count, 2 * count)
    return head + struct.pack(f">{count}H", *request.words)


def rtu_frame(unit: int, pdu: bytes) -> bytes:
    """As it goes over a serial line."""
    frame = bytes((unit,)) + pdu
    return frame + struct.pack("<H", crc16(frame))


def spaced(octets: bytes) -> str:
    """As a technician compares it: `01 06 41 00 3E 80`."""
    return octets.hex(" ").upper()
