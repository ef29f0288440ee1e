"""Our own serial language: frames made by hand, and whatever a line may do to them."""

from __future__ import annotations

import binascii
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from protocols import serial_board as wire
from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts
from protocols.serial_board import (
    Abilities,
    Ability,
    BoardState,
    Command,
    Flag,
    FrameError,
    Identity,
    Message,
    Reading,
    Receiver,
    crc16,
    decode,
    encode,
    stuff,
    unstuff,
)

VECTORS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "vectors/serial_board.yaml").read_text()
)
FRAMES: list[dict[str, str]] = VECTORS["frames"]

messages = st.builds(
    Message,
    address=st.sampled_from(wire.ADDRESSES),
    message=st.integers(0, 255),
    sequence=st.integers(0, 255),
    payload=st.binary(max_size=wire.MAX_PAYLOAD),
)
u32 = st.integers(0, wire.NOTHING_U32 - 1)
maybe = st.none() | u32
readings = st.builds(
    Reading,
    evse=st.integers(1, 4),
    state=st.sampled_from("ABCDEF"),
    flags=st.sampled_from([Flag(n) for n in range(16)]),
    fault=st.integers(0, 0xFFFF),
    current=st.tuples(maybe, maybe, maybe),
    voltage=st.tuples(maybe, maybe, maybe),
    power=st.none() | st.integers(-(2**31) + 1, 2**31 - 1),
    energy=st.none() | st.integers(0, 2**64 - 2),
    temperature=st.none() | st.integers(-(2**15) + 1, 2**15 - 1),
    applied_limit=u32,
)


def octets(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame["what"])
def test_frames_made_by_hand_are_made_and_understood(frame: dict[str, str]) -> None:
    body, on_wire = octets(frame["body"]), octets(frame["wire"])
    message = Message(body[1], body[2], body[3], body[4:])
    assert encode(message) == on_wire
    assert Receiver().feed(on_wire) == [message]
    assert message.answers == bool(body[2] & 0x80)


def test_the_identity_made_by_hand_says_who_it_is() -> None:
    known = Identity(
        state=BoardState.APPLICATION,
        hw_id="KPB-F411",
        firmware=(1, 4, 11),
        build=bytes.fromhex("deadbeef00112233"),
        loader=(2, 0, 1),
        serial="AB123",
        evses=2,
    )
    block = octets(VECTORS["identity_block"])
    assert Identity.decode(block) == known
    assert known.encode() == block
    assert Identity.decode(block + b"what a later version appends") == known


def test_the_reading_made_by_hand_says_what_flows() -> None:
    known = Reading(
        evse=1,
        state="C",
        flags=Flag.CONTACTOR,
        fault=0,
        current=(MilliAmperes(16_000), MilliAmperes(15_990), MilliAmperes(16_010)),
        voltage=(MilliVolts(230_000), MilliVolts(229_800), None),
        power=Watts(11_040),
        energy=WattHours(12_345_678),
        temperature=412,
        applied_limit=MilliAmperes(16_000),
    )
    block = octets(VECTORS["reading_block"])
    assert wire.readings(block) == (known,)
    assert known.encode() == block


def test_the_crc_is_the_one_that_is_named() -> None:
    assert crc16(b"123456789") == 0x29B1


@given(st.binary(max_size=300))
def test_the_crc_agrees_with_the_standard_librarys(data: bytes) -> None:
    assert crc16(data) == binascii.crc_hqx(data, 0xFFFF)


@given(st.binary(max_size=600))
def test_stuffed_octets_have_no_zero_and_come_back(data: bytes) -> None:
    stuffed = stuff(data)
    assert 0 not in stuffed
    assert unstuff(stuffed) == data


@given(st.lists(messages, max_size=6), st.data())
def test_messages_come_through_in_any_pieces(sent: list[Message], data: st.DataObject) -> None:
    line = b"".join(encode(message) for message in sent)
    receiver, got, at = Receiver(), [], 0
    while at < len(line):
        size = data.draw(st.integers(1, 80))
        got += receiver.feed(line[at : at + size])
        at += size
    assert got == sent
    assert receiver.spoiled == 0


@given(messages, st.data())
def test_a_changed_octet_is_noticed_and_the_next_frame_gets_through(
    sent: Message, data: st.DataObject
) -> None:
    frame = bytearray(encode(sent))
    place = data.draw(st.integers(1, len(frame) - 2))
    frame[place] ^= data.draw(st.integers(1, 255))
    receiver = Receiver()
    assert sent not in receiver.feed(bytes(frame))
    assert receiver.spoiled >= 1
    after = Message(9, Command.READ, 1)
    assert receiver.feed(encode(after)) == [after]


@given(messages, st.data())
def test_a_lost_octet_is_noticed_and_the_next_frame_gets_through(
    sent: Message, data: st.DataObject
) -> None:
    frame = encode(sent)
    place = data.draw(st.integers(1, len(frame) - 1))
    receiver = Receiver()
    got = receiver.feed(frame[:place] + frame[place + 1 :])
    after = Message(9, Command.READ, 1)
    got += receiver.feed(encode(after))
    assert got[-1] == after
    # without its last zero a frame is whole as soon as the next one begins
    assert got[:-1] == ([sent] if place == len(frame) - 1 else [])


@given(st.binary(max_size=2000), messages)
def test_noise_before_a_frame_costs_nothing_but_itself(noise: bytes, sent: Message) -> None:
    receiver = Receiver()
    assert receiver.feed(noise + encode(sent))[-1] == sent


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_noise_raises_nothing_and_does_not_pile_up(noise: list[bytes]) -> None:
    receiver = Receiver()
    for each in noise:
        receiver.feed(each)
        assert len(receiver._rest) <= wire.MAX_FRAME


@given(readings)
def test_readings_come_back_as_they_were(reading: Reading) -> None:
    assert wire.readings(reading.encode()) == (reading,)


@given(
    st.builds(
        Identity,
        state=st.sampled_from(BoardState),
        hw_id=st.text("ABCxyz09-", max_size=12),
        firmware=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535)),
        build=st.binary(min_size=8, max_size=8),
        loader=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535)),
        serial=st.text("ABCxyz09-", max_size=16),
        evses=st.integers(0, 4),
    ),
    st.data(),
)
def test_an_identity_comes_back_and_a_changed_one_is_refused(
    identity: Identity, data: st.DataObject
) -> None:
    block = bytearray(identity.encode())
    assert Identity.decode(bytes(block)) == identity
    block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FrameError):
        Identity.decode(bytes(block))


def test_abilities_and_writes_come_back() -> None:
    able = Abilities(
        flags=Ability.ONE_PHASE | Ability.BILLING_GRADE,
        min_current=MilliAmperes(6_000),
        max_current=MilliAmperes(63_000),
        shortest_timeout_s=5,
        longest_timeout_s=600,
    )
    assert Abilities.decode(able.encode()) == able
    assert wire.limit_of(wire.limit(2, 16_000)) == (2, 16_000)
    assert wire.contactor_of(wire.contactor(2, released=True)) == (2, True)
    assert wire.failsafe_of(wire.failsafe(60, 6_000)) == (60, 6_000)


@pytest.mark.parametrize(
    ("read", "block", "reason"),
    [
        (wire.limit_of, b"\1\0\0", "3 octets, not 5"),
        (wire.contactor_of, b"\1\2", "told 2"),
        (wire.readings, b"", "0 octets of readings"),
        (wire.readings, b"\1Z" + bytes(45), "unknown vehicle state b'Z'"),
        (Identity.decode, b"KPB1", "no identity block"),
        (decode, stuff(b"\7\5\1\7\0\0"), "another length"),
        (decode, b"\5\1", "cut short"),
        (decode, bytes([1]) * 300, "longer than any"),
    ],
)
def test_what_cannot_be_says_why(read: Any, block: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        read(block)


def test_no_frame_is_made_that_nobody_could_read() -> None:
    for impossible in (Message(0, 1, 1), Message(248, 1, 1), Message(1, 1, 1, bytes(241))):
        with pytest.raises(FrameError, match="no frame for"):
            encode(impossible)


def damaged(frame: bytes, chance: random.Random) -> bytes:
    """A frame after a bad stretch of line: octets changed, lost, doubled, or cut off."""
    octets = bytearray(frame)
    for _ in range(chance.randint(1, 6)):
        if len(octets) < 3:
            break
        at = chance.randrange(1, len(octets) - 1)
        what = chance.randrange(4)
        if what == 0:
            octets[at] ^= chance.randint(1, 255)
        elif what == 1:
            del octets[at]
        elif what == 2:
            octets.insert(at, octets[at])
        else:
            del octets[at:-1]
    return bytes(octets)


def test_a_bad_line_delivers_no_more_wrong_frames_than_a_crc_of_16_bits_lets_through(
    sample_size: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(5)
    count = sample_size(2_000, 1_000_000)
    receiver, wrong, lost = Receiver(), 0, 0
    for number in range(count):
        sent = Message(1 + number % 247, number % 128, number % 256, chance.randbytes(60))
        wrong += any(got != sent for got in receiver.feed(damaged(encode(sent), chance)))
        after = Message(9, Command.READ, number % 256)
        lost += after not in receiver.feed(encode(after))
    record_property("damaged frames", count)
    record_property("taken for good", wrong)
    assert lost == 0, "the next good frame always gets through"
    assert wrong <= 3 + 3 * count / 65536
