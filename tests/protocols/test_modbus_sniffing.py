"""Frames out of a stream: in whatever pieces it comes, with whatever noise between."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hardware.registry import find_profile, profile_names
from karvon.simulator import frames as independent
from protocols.modbus.binding import Binding, WriteRequest
from protocols.modbus.commands import failsafe_commands, limit_command, release_commands
from protocols.modbus.frames import crc16, request_pdu, rtu_frame, spaced
from protocols.modbus.planning import Span
from protocols.modbus.sniffing import Kind, Seen, Sniffer, named, named_write
from protocols.quantities import MilliAmperes

LIMIT = MilliAmperes(10_000)
WRITE = bytes.fromhex("11 06 00 01 00 03 9A 9B")
"""The specification's own example (MODBUS over serial line, function 06)."""


def rtu(unit: int, pdu: bytes) -> bytes:
    return independent.put_rtu(unit, pdu)


def answer_to_read(unit: int, function: int, words: list[int]) -> bytes:
    data = struct.pack(f">{len(words)}H", *words)
    return rtu(unit, bytes((function, len(data))) + data)


def all_of(stream: bytes) -> list[Seen]:
    sniffer = Sniffer()
    return sniffer.feed(stream, 1.0) + sniffer.idle(2.0)


def test_a_known_frame_has_its_known_checksum() -> None:
    assert rtu_frame(0x11, bytes.fromhex("06 00 01 00 03")) == WRITE
    assert spaced(WRITE) == "11 06 00 01 00 03 9A 9B"


@given(st.binary(max_size=300))
def test_the_checksum_is_that_of_an_independent_one(octets: bytes) -> None:
    assert struct.pack("<H", crc16(octets)) == independent.crc16(octets)


@pytest.mark.parametrize(
    ("request_", "pdu"),
    [
        (Span(1, 3, 0x4006, 2), "03 40 06 00 02"),
        (WriteRequest(1, 5, 0x0010, (1,)), "05 00 10 FF 00"),
        (WriteRequest(1, 5, 0x0010, (0,)), "05 00 10 00 00"),
        (WriteRequest(1, 6, 0x4105, (1,)), "06 41 05 00 01"),
        (WriteRequest(1, 16, 0x4100, (0, 16000)), "10 41 00 00 02 04 00 00 3E 80"),
    ],
)
def test_a_request_becomes_the_bytes_of_the_specification(
    request_: Span | WriteRequest, pdu: str
) -> None:
    assert request_pdu(request_) == bytes.fromhex(pdu)


def test_a_read_and_its_answer_are_told_apart_and_joined() -> None:
    asked, told = all_of(rtu(1, bytes.fromhex("03 40 06 00 02")) + answer_to_read(1, 3, [0, 32000]))
    assert (asked.kind, asked.address, asked.count) == (Kind.REQUEST, 0x4006, 2)
    assert (told.kind, told.address, told.words) == (Kind.RESPONSE, 0x4006, (0, 32000))


def test_a_write_and_its_echo_are_told_apart() -> None:
    first, echo, again = all_of(WRITE + WRITE + WRITE)
    assert [each.kind for each in (first, echo, again)] == ["request", "response", "request"]
    assert echo.words == (3,)
    many = rtu(1, request_pdu(WriteRequest(1, 16, 0x4100, (0, 16000))))
    asked, told = all_of(many + rtu(1, bytes.fromhex("10 41 00 00 02")))
    assert (asked.kind, asked.words) == (Kind.REQUEST, (0, 16000))
    assert (told.kind, told.address, told.count) == (Kind.RESPONSE, 0x4100, 2)


def test_three_octets_of_coils_look_like_a_request_and_are_none() -> None:
    asked, told = all_of(
        rtu(1, bytes.fromhex("01 00 00 00 14")) + rtu(1, bytes.fromhex("01 03 05 00 08"))
    )
    assert (asked.kind, told.kind) == (Kind.REQUEST, Kind.RESPONSE)
    assert [index for index, bit in enumerate(told.words) if bit] == [0, 2, 19]
    assert len(told.words) == 20


def test_an_exception_names_what_it_refused() -> None:
    asked, refused = all_of(rtu(1, bytes.fromhex("03 40 06 00 02")) + rtu(1, b"\x83\x02"))
    assert (refused.kind, refused.exception, refused.address) == (Kind.EXCEPTION, 2, 0x4006)
    assert asked.crc_fits


def test_a_function_of_its_own_is_a_frame_once_the_line_is_idle() -> None:
    sniffer = Sniffer()
    frame = rtu(1, bytes.fromhex("2B 0E 01 00"))
    assert sniffer.feed(frame[:5], 1.0) == []
    assert sniffer.feed(frame[5:], 1.0) == []
    (seen,) = sniffer.idle(1.1)
    assert (seen.kind, seen.function, seen.raw) == (Kind.REQUEST, 0x2B, frame)


def test_the_gap_is_that_between_two_frames() -> None:
    sniffer = Sniffer()
    (first,) = sniffer.feed(rtu(1, bytes.fromhex("03 40 06 00 02")), 10.0)
    (second,) = sniffer.feed(answer_to_read(1, 3, [0, 7]), 10.25)
    assert (first.gap_s, second.gap_s) == (None, 0.25)


words = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40)
units = st.integers(1, 247)
addresses = st.integers(0, 0xFF00)


@st.composite
def exchanges(draw: st.DrawFn) -> list[bytes]:
    """A request and its answer, as two frames."""
    unit, address, values = draw(units), draw(addresses), draw(words)
    function = draw(st.sampled_from([3, 4, 6, 16]))
    if function in {3, 4}:
        asked = rtu(unit, struct.pack(">BHH", function, address, len(values)))
        answers = [answer_to_read(unit, function, values), rtu(unit, bytes((function | 0x80, 2)))]
        return [asked, draw(st.sampled_from(answers))]
    count = 1 if function == 6 else len(values)
    asked = rtu(unit, request_pdu(WriteRequest(unit, function, address, tuple(values[:count]))))
    echo = values[0] if function == 6 else count
    return [asked, rtu(unit, struct.pack(">BHH", function, address, echo))]


@given(st.lists(exchanges(), min_size=1, max_size=6), st.data())
def test_every_frame_is_found_in_whatever_pieces_it_comes(
    said: list[list[bytes]], data: st.DataObject
) -> None:
    stream = b"".join(b"".join(exchange) for exchange in said)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    sniffer, found = Sniffer(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += sniffer.feed(stream[begin:end], 1.0)
    found += sniffer.idle(2.0)
    assert [seen.raw for seen in found] == [frame for exchange in said for frame in exchange]
    assert [seen.kind is Kind.REQUEST for seen in found] == [True, False] * len(said)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_byte_is_lost_whatever_comes(pieces: list[bytes]) -> None:
    sniffer, found = Sniffer(), []
    for piece in pieces:
        found += sniffer.feed(piece, 1.0)
    found += sniffer.idle(2.0)
    assert b"".join(seen.raw for seen in found) == b"".join(pieces)


@given(st.binary(min_size=1, max_size=20), exchanges())
def test_frames_after_noise_and_a_pause_are_found(noise: bytes, exchange: list[bytes]) -> None:
    sniffer = Sniffer()
    before = sniffer.feed(noise, 1.0) + sniffer.idle(1.5)
    after = sniffer.feed(b"".join(exchange), 2.0) + sniffer.idle(3.0)
    assert b"".join(seen.raw for seen in before) == noise
    assert [seen.raw for seen in after] == exchange


def test_a_flipped_bit_is_noise_and_the_next_frame_is_found() -> None:
    spoiled = bytearray(rtu(1, bytes.fromhex("03 40 06 00 02")))
    spoiled[4] ^= 1
    seen = all_of(bytes(spoiled) + WRITE)
    assert [each.kind for each in seen] == [Kind.NOISE, Kind.REQUEST]
    assert (seen[0].raw, seen[0].crc_fits) == (bytes(spoiled), False)


@pytest.mark.parametrize("name", profile_names())
def test_whatever_a_shipped_profile_lets_the_agent_write_has_a_name(name: str) -> None:
    profile = find_profile(name)
    binding = Binding(profile=profile, unit=1)
    asked = [] if profile.setpoint is None else list(limit_command(binding, 1, LIMIT).writes)
    asked += [*release_commands(binding, 1), *failsafe_commands(binding, 1, 60, LIMIT)]
    for request in asked:
        (seen,) = all_of(rtu(request.unit, request_pdu(request)))
        assert named_write(seen, binding, [1]), spaced(seen.raw)


def test_a_profile_gives_names_to_what_is_read_and_written() -> None:
    profile = find_profile("abb_terra_ac")
    binding = Binding(profile=profile, unit=1)
    _, told = all_of(rtu(1, bytes.fromhex("03 40 0E 00 02")) + answer_to_read(1, 3, [0, 16000]))
    ((evse, name, value),) = named(told, binding, [1])
    assert (evse, name, value.value) == (1, "applied_limit", 16000)
    assert named(told, Binding(profile=profile, unit=2), [1]) == []
    limit = rtu(1, request_pdu(WriteRequest(1, 16, 0x4100, (0, 16000))))
    release, withhold = (
        rtu(1, request_pdu(WriteRequest(1, 6, 0x4105, (value,)))) for value in (0, 1)
    )
    for frame, meant in ((limit, "limit"), (release, "release"), (withhold, "withhold")):
        (seen,) = all_of(frame)
        assert named_write(seen, binding, [1]) == [(1, meant)]
