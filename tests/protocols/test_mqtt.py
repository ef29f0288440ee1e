"""The MQTT codec: whole however the bytes arrive, clear about what is not MQTT.

The bytes are written out from the OASIS standard; real brokers speak to it in the link's tests.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mqtt
from protocols.mqtt import Acknowledged, Connected, Decoder, Message, MqttError, Pong, Subscribed

topics = st.text(min_size=1, max_size=40)
messages = st.builds(
    Message, topics, st.binary(max_size=400), st.integers(0, 0xFFFF), st.just(value=False)
)


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 300), max_size=20))
def test_messages_arrive_whole_however_they_are_cut(told: list[Message], cuts: list[int]) -> None:
    stream = b"".join(mqtt.publish(m.topic, m.payload, m.packet_id) for m in told)
    decoder, found, at = Decoder(), [], 0
    for cut in [*cuts, len(stream)]:
        found += decoder.feed(stream[at : at + cut])
        at += cut
    found += decoder.feed(stream[at:])
    assert found == told


def test_the_bytes_are_the_standards() -> None:
    assert mqtt.connect("id", "u", "p", 20) == (
        b"\x10\x14\x00\x04MQTT\x04\xc2\x00\x14\x00\x02id\x00\x01u\x00\x01p"
    )
    assert mqtt.subscribe(1, ["a/+"], 1) == b"\x82\x08\x00\x01\x00\x03a/+\x01"
    assert mqtt.publish("a", b"x") == b"\x30\x04\x00\x01ax"
    assert mqtt.publish("a", b"x", 5) == b"\x32\x06\x00\x01a\x00\x05x"
    assert mqtt.publish("a", b"x" * 200)[:3] == b"\x30\xcb\x01"
    assert mqtt.pubacks([1, 256]) == b"\x40\x02\x00\x01\x40\x02\x01\x00"


def test_answers_are_read() -> None:
    stream = b"\x20\x02\x00\x00\x90\x03\x00\x07\x01\x40\x02\x00\x09\xd0\x00"
    assert Decoder().feed(stream) == [Connected(), Subscribed(7), Acknowledged(9), Pong()]


def test_a_retained_message_is_marked() -> None:
    assert Decoder().feed(b"\x31\x04\x00\x01ax") == [Message("a", b"x", 0, retained=True)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x20\x02\x00\x05", "not authorized"),
        (b"\x90\x03\x00\x07\x80", "refuses the subscription"),
        (b"\x34\x06\x00\x01a\x00\x05x", "QoS 2"),
        (b"\x30\x04\x00\x09ax", "longer than its packet"),
        (b"\x30\x03\x00\x01\xff", "malformed"),
        (b"\x20\x00", "malformed"),
        (b"\x30\xff\xff\xff\x7f", "a packet of"),
        (b"\x30\xff\xff\xff\xff", "more than four bytes"),
        (b"\x10\x00", "no client expects"),
    ],
)
def test_what_breaks_the_protocol_is_named(data: bytes, words: str) -> None:
    with pytest.raises(MqttError, match=words):
        Decoder().feed(data)


@given(st.binary(max_size=60))
def test_noise_never_trips_it(noise: bytes) -> None:
    with suppress(MqttError):
        packets = Decoder().feed(noise)
        assert len(packets) <= len(noise) / 2
