"""Frames against those that websockets itself writes and reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from cloud.communication.framing import Cutter, TooLong, text_frame, text_of

LONGEST = 70_000
BOUNDS = [0, 1, 125, 126, 127, 128, 65_535, 65_536, LONGEST]


def client_frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


sizes = st.sampled_from(BOUNDS) | st.integers(0, 300)
texts = sizes.map(lambda size: bytes(n % 256 for n in range(size)))
frames = st.one_of(
    st.builds(client_frame, st.sampled_from([Opcode.TEXT, Opcode.BINARY]), texts),
    st.builds(client_frame, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125)),
    st.builds(lambda data: client_frame(Opcode.TEXT, data, fin=False), texts),
    st.builds(lambda data: Frame(Opcode.TEXT, data).serialize(mask=False), texts),
)


@pytest.mark.parametrize("size", BOUNDS)
def test_a_client_reads_what_is_written(size: int) -> None:
    client = Protocol(CLIENT, state=State.OPEN)
    client.receive_data(text_frame(b"x" * size) + text_frame(b"the next"))
    first, second = client.events_received()
    assert isinstance(first, Frame)
    assert (first.opcode, first.fin, bytes(first.data)) == (Opcode.TEXT, True, b"x" * size)
    assert isinstance(second, Frame)
    assert bytes(second.data) == b"the next"


@given(texts)
def test_what_a_client_writes_is_read(data: bytes) -> None:
    assert text_of(client_frame(Opcode.TEXT, data)) == data


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(Opcode.TEXT, b"part", fin=False),
        client_frame(Opcode.CONT, b"part"),
        client_frame(Opcode.BINARY, b"[]"),
        client_frame(Opcode.PING, b""),
        client_frame(Opcode.CLOSE, b"\x03\xe8"),
        Frame(Opcode.TEXT, b"unmasked").serialize(mask=False),
        b"\xc1" + client_frame(Opcode.TEXT, b"compressed")[1:],
    ],
    ids=["begun", "continued", "binary", "ping", "close", "unmasked", "compressed"],
)
def test_every_other_frame_is_the_protocols(frame: bytes) -> None:
    assert text_of(frame) is None


@given(st.lists(frames, max_size=6), st.data())
def test_however_it_arrives_it_is_cut_where_frames_end(
    sent: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    cutter, got = Cutter(LONGEST), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += cutter.cut(stream[begin:end])
    assert got == sent


@given(st.lists(frames, max_size=3), st.integers(LONGEST + 1, 1 << 62))
def test_what_is_too_long_is_not_waited_for(sent: list[bytes], length: int) -> None:
    head = b"\x81\xff" + length.to_bytes(8)
    cutter, got = Cutter(LONGEST), []
    with pytest.raises(TooLong) as told:
        got.extend(cutter.cut(b"".join(sent) + head + b"mask"))
    assert got == sent  # those before it come out though it is refused
    assert told.value.rest == head + b"mask"
    server = Protocol(SERVER, state=State.OPEN, max_size=LONGEST)
    server.receive_data(told.value.rest)
    assert server.close_sent is not None
    assert server.close_sent.code == 1009


def test_a_frame_that_comes_byte_by_byte_is_looked_at_when_it_is_whole() -> None:
    frame = client_frame(Opcode.TEXT, b"x" * LONGEST)
    cutter = Cutter(LONGEST)
    got = [one for byte in frame for one in cutter.cut(bytes([byte]))]
    assert got == [frame]
