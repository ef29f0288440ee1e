"""Modbus framing of the simulated device, written from the specification and sharing no code with
the agent's client, so that one checks the other (MODBUS Application Protocol V1.1b3; Serial Line
V1.02; Messaging on TCP/IP V1.0b).
"""

from __future__ import annotations

import struct
from typing import Final

FIXED_LENGTH: Final = {1: 8, 2: 8, 3: 8, 4: 8, 5: 8, 6: 8}
"""Whole RTU request in bytes, by function; 15 and 16 tell their own."""


def crc16(octets: bytes | bytearray) -> bytes:
    """CRC-16/MODBUS, low byte first as on the wire."""
    crc = 0xFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return struct.pack("<H", crc)


def take_rtu(buffer: bytearray) -> tuple[int, bytes] | None:
    """One request (unit, pdu) off the buffer; noise before it is thrown away byte by byte."""
    while len(buffer) >= 8:
        length = _rtu_length(buffer)
        if length is not None and len(buffer) < length:
            return None
        if length is not None and crc16(buffer[: length - 2]) == buffer[length - 2 : length]:
            frame = bytes(buffer[:length])
            del buffer[:length]
            return frame[0], frame[1:-2]
        del buffer[0]
    return None


def _rtu_length(buffer: bytearray) -> int | None:
    function = buffer[1]
    if function in {15, 16}:
        return 9 + buffer[6]
    return FIXED_LENGTH.get(function)


def put_rtu(unit: int, pdu: bytes) -> bytes:
    frame = bytes((unit,)) + pdu
    return frame + crc16(frame)


def take_ascii(buffer: bytearray) -> tuple[int, bytes] | None:
    """One ":" ... CR LF request; a wrong checksum is dropped like any noise."""
    while (end := buffer.find(b"\r\n")) >= 0:
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        start = line.rfind(b":")
        try:
            octets = bytes.fromhex(line[start + 1 :].decode("ascii")) if start >= 0 else b""
        except ValueError:
            continue
        if len(octets) >= 4 and sum(octets) & 0xFF == 0:
            return octets[0], octets[1:-1]
    return None


def put_ascii(unit: int, pdu: bytes) -> bytes:
    octets = bytes((unit,)) + pdu
    octets += bytes((-sum(octets) & 0xFF,))
    return b":" + octets.hex().upper().encode() + b"\r\n"


def take_tcp(buffer: bytearray) -> tuple[int, int, bytes] | None:
    """One request (transaction, unit, pdu); raises ValueError where the stream is no Modbus."""
    if len(buffer) < 8:
        return None
    transaction, protocol, length, unit = struct.unpack_from(">HHHB", buffer)
    if protocol != 0 or not 2 <= length <= 254:
        raise ValueError("not a Modbus header")
    if len(buffer) < 6 + length:
        return None
    pdu = bytes(buffer[7 : 6 + length])
    del buffer[: 6 + length]
    return transaction, unit, pdu


def put_tcp(transaction: int, unit: int, pdu: bytes) -> bytes:
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu
