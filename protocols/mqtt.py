"""MQTT 3.1.1 as a client speaks it, sans-IO: bytes in, packets out (OASIS standard of 2014).

Only what an ingester needs: CONNECT with a clean session, SUBSCRIBE, PUBLISH at QoS 0 and 1, PUBACK
and PINGREQ. Measured against paho-mqtt, whose receiving costs ten times the CPU per message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
LONGEST_PACKET: Final = 16 * 1024 * 1024
REFUSALS: Final = {
    1: "unacceptable protocol version",
    2: "client identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}
"""Table 3.1: Connect Return code values."""

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP = 2, 3, 4, 9, 11, 13
_SUBSCRIPTION_REFUSED: Final = 0x80
_ID: Final = struct.Struct("!H")
_PUBACK_PACKET: Final = struct.Struct("!BBH")


class MqttError(ValueError):
    """The broker broke the protocol, or refused us; the text says how."""


class Message(NamedTuple):
    """A PUBLISH; `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int
    retained: bool


@dataclass(frozen=True)
class Connected:
    """CONNACK with return code 0."""


@dataclass(frozen=True)
class Acknowledged:
    """PUBACK."""

    packet_id: int


@dataclass(frozen=True)
class Subscribed:
    """SUBACK in which nothing was refused."""

    packet_id: int


@dataclass(frozen=True)
class Pong:
    """PINGRESP."""


Packet = Message | Connected | Acknowledged | Subscribed | Pong


def _text(value: str) -> bytes:
    raw = value.encode()
    if len(raw) > 0xFFFF:
        raise ValueError(f"a string of MQTT has at most 65535 bytes, not {len(raw)}")
    return _ID.pack(len(raw)) + raw


def _packet(head: int, *parts: bytes) -> bytes:
    left = sum(map(len, parts))
    size = bytearray()
    while True:
        left, digit = left >> 7, left & 0x7F
        size.append(digit | 0x80 if left else digit)
        if not left:
            return b"".join((bytes((head,)), size, *parts))


def connect(client_id: str, username: str, password: str, keepalive_s: int) -> bytes:
    """CONNECT with a clean session; the password is text here, as everywhere in Karvon."""
    flags = 0b1100_0010
    return _packet(
        0x10,
        _text("MQTT"),
        bytes((4, flags)),
        _ID.pack(keepalive_s),
        _text(client_id),
        _text(username),
        _text(password),
    )


def subscribe(packet_id: int, topic_filters: Iterable[str], qos: int) -> bytes:
    asked = [_text(one) + bytes((qos,)) for one in topic_filters]
    return _packet(0x82, _ID.pack(packet_id), *asked)


def publish(topic: str, payload: bytes, packet_id: int = 0) -> bytes:
    """PUBLISH; at QoS 1 with a packet id, at QoS 0 without."""
    if packet_id:
        return _packet(0x32, _text(topic), _ID.pack(packet_id), payload)
    return _packet(0x30, _text(topic), payload)


def pubacks(packet_ids: Iterable[int]) -> bytes:
    """Many acknowledgements in one piece."""
    return b"".join([_PUBACK_PACKET.pack(0x40, 2, number) for number in packet_ids])


class Decoder:
    """Cuts a stream of bytes into packets; keeps what is not complete yet."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that these bytes complete. Raises MqttError."""
        data = self._rest + data if self._rest else data
        found: list[Packet] = []
        at, end = 0, len(data)
        while at < end:
            head, size, body = _header(data, at, end)
            if not body or body + size > end:
                break
            found.append(_decode(head, data, body, body + size))
            at = body + size
        self._rest = data[at:]
        return found


def _header(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """First byte, remaining length and where the body begins; 0 while the header is incomplete."""
    size = 0
    for number in range(4):
        place = at + 1 + number
        if place >= end:
            return data[at], 0, 0
        digit = data[place]
        size |= (digit & 0x7F) << (7 * number)
        if digit < 0x80:
            if size > LONGEST_PACKET:
                raise MqttError(f"a packet of {size} bytes")
            return data[at], size, place + 1
    raise MqttError("a remaining length of more than four bytes")


def _decode(head: int, data: bytes, at: int, end: int) -> Packet:
    kind = head >> 4
    try:
        if kind == _PUBLISH:
            return _message(head, data, at, end)
        if kind == _PUBACK:
            return Acknowledged(_ID.unpack_from(data, at)[0])
        if kind == _PINGRESP:
            return Pong()
        if kind == _CONNACK:
            return _connected(data[at + 1])
        if kind == _SUBACK:
            return _subscribed(data[at:end])
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MqttError(f"a malformed packet of type {kind}: {error}") from None
    raise MqttError(f"a packet of type {kind}, which no client expects here")


def _message(head: int, data: bytes, at: int, end: int) -> Message:
    length = data[at] << 8 | data[at + 1]
    at += 2
    topic = data[at : at + length].decode()
    at += length
    packet_id = 0
    if qos := head & 0b0110:
        if qos != 0b0010:
            raise MqttError("a message at QoS 2, which was not asked for")
        packet_id = data[at] << 8 | data[at + 1]
        at += 2
    if at > end:
        raise MqttError("a topic that is longer than its packet")
    return Message(topic, data[at:end], packet_id, bool(head & 1))


def _connected(code: int) -> Connected:
    if code:
        raise MqttError(f"the broker refuses us: {REFUSALS.get(code, f'code {code}')}")
    return Connected()


def _subscribed(body: bytes) -> Subscribed:
    if _SUBSCRIPTION_REFUSED in body[2:]:
        raise MqttError("the broker refuses the subscription")
    return Subscribed(_ID.unpack_from(body)[0])
