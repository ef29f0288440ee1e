"""The measuring tools of ingest are right, before anything is measured with them."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from ingest_limit import _HEADER, _TRAILER, cut
from ingest_load import Numbers, Splitter
from ingest_messages import (
    SAMPLES,
    Fleet,
    Placed,
    Prepared,
    Spliced,
    _adler_of_both,
    prepare,
    prepare_plain,
    publish,
    varint,
)
from signal_model import VALUES_PER_SAMPLE

from protocols.agent_link import TelemetryBatch, Up, decode_up, up_topic
from protocols.series import to_samples

START = 1_790_000_000_000
FLEET = Fleet(3)


def payload(packet: bytes, topic: str) -> bytes:
    return packet[packet.index(topic.encode()) + len(topic) + 2 :]


def test_prepared_messages_are_what_an_agent_seals(tmp_path: Path) -> None:
    prepare(tmp_path, FLEET, 10, Placed(START))
    prepared = Prepared(tmp_path)
    assert prepared.total == 10
    packet = bytes(prepared.packets(7, 8))
    batch = decode_up(Up.TELEMETRY, payload(packet, up_topic("LOAD-00001", Up.TELEMETRY)))
    assert isinstance(batch, TelemetryBatch)
    assert (batch.outbox, batch.seq) == (FLEET.outbox(1), 3)
    samples = to_samples(batch.series[0])
    assert len(samples) == SAMPLES
    values = msgspec.structs.astuple(samples[0])[3:]
    assert len(values) == VALUES_PER_SAMPLE
    assert None not in values
    assert bytes(prepared.packets(0, 10)).count(b"up/telemetry") == 10


def test_no_two_samples_of_a_station_share_a_time() -> None:
    for placed in (Placed(START), Placed(START, 35)):
        messages = Spliced(FLEET, placed)
        topic = up_topic("LOAD-00002", Up.TELEMETRY)
        times = []
        for number in (2, 5, 8, 11):
            batch = decode_up(Up.TELEMETRY, payload(messages.packets(number, number + 1), topic))
            assert isinstance(batch, TelemetryBatch)
            times += [sample.at.wall_ms for sample in to_samples(batch.series[0])]
        assert all(earlier < later for earlier, later in pairwise(times))
        assert len(times) == 4 * SAMPLES


def test_the_baseline_gets_the_same_values(tmp_path: Path) -> None:
    prepare(tmp_path / "ours", FLEET, 4, Placed(START))
    prepare_plain(tmp_path / "plain", FLEET, 4, Placed(START))
    topic = up_topic("LOAD-00000", Up.TELEMETRY)
    ours = payload(bytes(Prepared(tmp_path / "ours").packets(3, 4)), topic)
    batch = decode_up(Up.TELEMETRY, ours)
    assert isinstance(batch, TelemetryBatch)
    packet = bytes(Prepared(tmp_path / "plain").packets(3, 4))
    plain = msgspec.json.decode(payload(packet, "karvon/1/load/LOAD-00000/plain/samples"))
    known = [(one.at.wall_ms, one.energy_wh, one.offered_ma) for one in to_samples(batch.series[0])]
    assert [(row["time"], row["energy"], row["offered"]) for row in plain["samples"]] == known


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_two_pieces_are_that_of_the_whole(first: bytes, second: bytes) -> None:
    both = _adler_of_both(zlib.adler32(first), zlib.adler32(second), len(second))
    assert both == zlib.adler32(first + second)


@given(st.lists(st.binary(max_size=400), max_size=8), st.integers(0, 2**32))
def test_packets_come_out_whole_however_the_stream_is_cut(bodies: list[bytes], seed: int) -> None:
    def packet(body: bytes) -> bytes:
        name = b"\x00\x05topic"
        return b"\x30" + varint(len(name) + len(body)) + name + body

    stream = b"\xd0\x00".join(packet(body) for body in bodies)
    splitter, dice, at, found = Splitter(), random.Random(seed), 0, []
    while at < len(stream):
        size = dice.randint(1, 200)
        found += splitter.feed(stream[at : at + size])
        at += size
    assert found == [(b"topic", body) for body in bodies]


def test_a_publish_packet_is_mqtt() -> None:
    packet = publish("a/b", b"x" * 200, 258)
    assert packet[:3] == b"\x32\xcf\x01"
    assert packet[3:10] == b"\x00\x03a/b\x01\x02"


def test_rows_are_cut_into_whole_transactions() -> None:
    row = b"\x00\x02" + b"\x00\x00\x00\x04abcd" + b"\xff\xff\xff\xff"
    stream = _HEADER + row * 5 + _TRAILER
    assert cut(stream, 2) == [_HEADER + row * 2 + _TRAILER] * 2


def test_numbers_are_seen_by_whoever_maps_them(tmp_path: Path) -> None:
    mine, yours = Numbers(tmp_path / "numbers"), Numbers(tmp_path / "numbers")
    mine["committed"] = 2**40
    assert yours["committed"] == 2**40
    assert (tmp_path / "numbers").stat().st_size == 8 * len(Numbers.NAMES)
