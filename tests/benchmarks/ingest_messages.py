"""What the load sends: telemetry batches of one EVSE, ten samples of nine values each.

`prepare` seals them as the agent does and writes whole MQTT packets into files before any clock
runs; neighbours lie side by side there, so that many go out with one write. `Prepared` reads them.
`Spliced` makes them while it runs, for hours of load: the part of a payload that changes is a
stored deflate block before a compressed one that is reused, which costs a tenth of sealing.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from signal_model import samples

from protocols.agent_link import (
    COLUMNS,
    ClockQuality,
    EvseDescription,
    Hello,
    Mark,
    Series,
    Stamp,
    Stream,
    TelemetryBatch,
    Up,
    encode,
    up_topic,
)
from protocols.series import to_series

SAMPLES = 10
LANES = 20
MONO_MS = 60_000
_BASE = 65_521
"""Adler-32's modulus (RFC 1950)."""


class Messages(Protocol):
    """Message n is number n // stations + 1 of station n % stations."""

    total: int

    def packets(self, first: int, end: int) -> bytes | memoryview:
        """PUBLISH packets of QoS 1, one behind the other; the packet id is n % 65535 + 1."""
        ...


@dataclass(frozen=True)
class Fleet:
    """Stations of the load; a lap is another life of all their outboxes."""

    stations: int = 100
    prefix: str = "LOAD"
    lap: int = 0

    def identity(self, station: int) -> str:
        return f"{self.prefix}-{station:05}"

    @cached_property
    def identities(self) -> list[str]:
        return [self.identity(station) for station in range(self.stations)]

    def outbox(self, station: int) -> UUID:
        return uuid5(NAMESPACE_URL, f"outbox {self.lap} of {self.identity(station)}")

    def boot(self, station: int) -> UUID:
        return uuid5(NAMESPACE_URL, f"boot of {self.identity(station)}")

    def hello(self, station: int, now_ms: int, following: int) -> Hello:
        """A greeting whose next free telemetry number is `following`."""
        boot = self.boot(station)
        nothing = Mark(next=1, floor=1)
        return Hello(
            outbox=self.outbox(station),
            boots=(boot,),
            sent=Stamp(now_ms, MONO_MS, boot, ClockQuality.SYNCED),
            marks={
                Stream.BILLING: nothing,
                Stream.STATE: nothing,
                Stream.TELEMETRY: Mark(following, 1),
            },
            agent_version="load",
            evses=(EvseDescription(1, 3, 32_000, 1, True),),
            open_transactions=(),
            local_list_version=0,
        )


def publish(topic: str, payload: bytes, packet: int) -> bytes:
    """An MQTT 3.1.1 PUBLISH packet of QoS 1."""
    name = topic.encode()
    body = struct.pack("!H", len(name)) + name + struct.pack("!H", packet) + payload
    return b"\x32" + varint(len(body)) + body


def varint(length: int) -> bytes:
    """MQTT's remaining length."""
    out = bytearray()
    while True:
        length, low = divmod(length, 128)
        out.append(low | (128 if length else 0))
        if not length:
            return bytes(out)


def packet_id(message: int) -> int:
    return message % 65_535 + 1


# --------------------------------------------------------------------------- signal


def lanes(length: int) -> list[list[Series]]:
    """Each lane is one EVSE's signal of so many messages; every second one charges."""
    seconds = samples(SAMPLES * length, LANES)
    columns: list[list[Series]] = [[] for _ in range(LANES)]
    for rows in zip(*[iter(seconds)] * SAMPLES, strict=True):
        for lane, of_one in enumerate(zip(*rows, strict=True)):
            columns[lane] += to_series(of_one)
    return columns


@dataclass(frozen=True)
class Placed:
    """Where the signal's messages go: the first sample of number 1, and how far numbers are apart.

    `step_ms` is also ten samples' time, so that no two samples of a station share a time.
    """

    start_ms: int
    step_ms: int = SAMPLES * 1000

    def wall_ms(self, seq: int) -> int:
        return self.start_ms + (seq - 1) * self.step_ms


# --------------------------------------------------------------------------- ours


def batches(fleet: Fleet, count: int, placed: Placed) -> Iterator[TelemetryBatch]:
    signal = lanes(100)
    outboxes = [fleet.outbox(station) for station in range(fleet.stations)]
    boots = [fleet.boot(station) for station in range(fleet.stations)]
    for number in range(count):
        seq, station = number // fleet.stations + 1, number % fleet.stations
        wall_ms, mono_ms = placed.wall_ms(seq), MONO_MS + seq * placed.step_ms
        boot = boots[station]
        series = msgspec.structs.replace(
            signal[station % LANES][seq % 100],
            evse=1,
            boot=boot,
            wall_ms=wall_ms,
            mono_ms=mono_ms,
        )
        sent = Stamp(wall_ms + placed.step_ms, mono_ms + placed.step_ms, boot, ClockQuality.SYNCED)
        yield TelemetryBatch(outboxes[station], seq, 1, sent, (series,))


def prepare(folder: Path, fleet: Fleet, count: int, placed: Placed) -> None:
    """Seal `count` messages as the agent does, into files that `Prepared` reads."""
    topics = [up_topic(name, Up.TELEMETRY) for name in fleet.identities]
    _write(
        folder,
        (
            publish(topics[n % fleet.stations], encode(batch), packet_id(n))
            for n, batch in enumerate(batches(fleet, count, placed))
        ),
    )


def prepare_plain(folder: Path, fleet: Fleet, count: int, placed: Placed) -> None:
    """The same samples as an ordinary integration sends them: one JSON object a sample."""
    _write(
        folder,
        (
            publish(plain_topic(fleet, n), plain(fleet, n, batch), packet_id(n))
            for n, batch in enumerate(batches(fleet, count, placed))
        ),
    )


PLAIN_NAMES = dict(
    zip(COLUMNS, ("energy", "power", "i1", "i2", "i3", "u1", "u2", "u3", "offered"), strict=True)
)
PLAIN_FILTER = "karvon/1/load/+/plain/samples"


def plain_topic(fleet: Fleet, number: int) -> str:
    return f"karvon/1/load/{fleet.identity(number % fleet.stations)}/plain/samples"


def plain(fleet: Fleet, number: int, batch: TelemetryBatch) -> bytes:
    """JSON as most write it: a station, an EVSE, a list of samples with a time and named values."""
    (series,) = batch.series
    columns = {name: list(accumulate(getattr(series, name))) for name in COLUMNS}
    times = [series.wall_ms + elapsed for elapsed in accumulate(series.dt_ms)]
    rows = [
        {"time": time, **{short: columns[name][row] for name, short in PLAIN_NAMES.items()}}
        for row, time in enumerate(times)
    ]
    message = {"station": fleet.identity(number % fleet.stations), "evse": 1, "samples": rows}
    return msgspec.json.encode(message)


def _write(folder: Path, packets: Iterator[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    offsets = array("Q", [0])
    with (folder / "packets").open("wb") as out:
        for packet in packets:
            out.write(packet)
            offsets.append(offsets[-1] + len(packet))
    (folder / "offsets").write_bytes(offsets.tobytes())


class Prepared:
    """Messages from `prepare`'s files."""

    def __init__(self, folder: Path) -> None:
        self._offsets = array("Q", (folder / "offsets").read_bytes())
        with (folder / "packets").open("rb") as file:
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        self.total = len(self._offsets) - 1

    @property
    def mean_bytes(self) -> float:
        return self._offsets[-1] / self.total

    def packets(self, first: int, end: int) -> memoryview:
        return self._bytes[self._offsets[first] : self._offsets[end]]


# --------------------------------------------------------------------------- made while it runs


class Spliced:
    """Messages without end, made when they are asked for."""

    def __init__(self, fleet: Fleet, placed: Placed) -> None:
        self.total = 2**48
        self._fleet = fleet
        self._placed = placed
        self._topics = [up_topic(name, Up.TELEMETRY) for name in fleet.identities]
        self._outboxes = [str(fleet.outbox(station)) for station in range(fleet.stations)]
        every = placed.step_ms // SAMPLES
        signal = [
            [msgspec.structs.replace(one, dt_ms=(0, *[every] * (SAMPLES - 1))) for one in lane]
            for lane in lanes(20)
        ]
        self._tails = [
            [_Tail(_rest(one, fleet.boot(station))) for one in signal[station % LANES]]
            for station in range(min(fleet.stations, LANES * 5))
        ]

    def packets(self, first: int, end: int) -> bytes:
        return b"".join(map(self._packet, range(first, end)))

    def _packet(self, number: int) -> bytes:
        seq, station = number // self._fleet.stations + 1, number % self._fleet.stations
        wall_ms = self._placed.wall_ms(seq)
        head = (
            f'{{"outbox":"{self._outboxes[station]}","seq":{seq},"floor":1,"series":['
            f'{{"wall_ms":{wall_ms},"mono_ms":{seq * self._placed.step_ms},'
        ).encode()
        tail = self._tails[station % len(self._tails)][seq % 20]
        return publish(self._topics[station], tail.behind(head), packet_id(number))


def _rest(series: Series, boot: UUID) -> bytes:
    """A batch's JSON from behind the series' times to its end."""
    fields = msgspec.to_builtins(msgspec.structs.replace(series, evse=1, boot=boot))
    rest = {name: value for name, value in fields.items() if name not in {"wall_ms", "mono_ms"}}
    sent = Stamp(series.wall_ms, MONO_MS, boot, ClockQuality.SYNCED)
    inner = json.dumps(rest, separators=(",", ":"))[1:]
    return f'{inner}],"sent":{msgspec.json.encode(sent).decode()}}}'.encode()


class _Tail:
    """The end of a deflated payload, and its checksum's parts."""

    def __init__(self, plain: bytes) -> None:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._packed = packer.compress(plain) + packer.flush()
        self._length = len(plain) % _BASE
        self._adler = zlib.adler32(plain)

    def behind(self, head: bytes) -> bytes:
        """A zlib stream of head and tail: the head stored, the tail compressed (RFC 1950, 1951)."""
        length = len(head)
        stored = struct.pack("<BHH", 0, length, length ^ 0xFFFF)
        check = _adler_of_both(zlib.adler32(head), self._adler, self._length)
        return b"\x78\x9c" + stored + head + self._packed + struct.pack("!I", check)


def _adler_of_both(first: int, second: int, second_length: int) -> int:
    """Adler-32 of two pieces in a row, from the checksums of each."""
    a1, b1, a2, b2 = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    a = (a1 + a2 - 1) % _BASE
    b = (b1 + b2 + second_length * (a1 - 1)) % _BASE
    return b << 16 | a
