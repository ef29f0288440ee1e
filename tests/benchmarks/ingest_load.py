"""The load: a process that publishes telemetry of many stations and hears the cloud's acks.

It speaks raw MQTT 3.1.1 over TLS: one connection publishes at QoS 1 (many packets a write, PUBACKs
are counted), one hears welcomes and acks at QoS 0. Each station greets first, as an agent does;
when the cloud falls silent it greets again and sends what the welcome does not count as committed.
At most `window` messages are out uncommitted, so that no broker's queue overflows. One user that
may publish for every station stands for all of them: what is measured is the way behind the broker.

`with load(plan) as running: running.committed …` from a benchmark; the numbers and the controls
(rate, stop) lie in a small file that both processes map. `python ingest_load.py PLAN.json` is the
other process.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingest_messages import Fleet, Messages, Placed, Prepared, Spliced, publish, varint

from protocols.agent_link import (
    Ack,
    Down,
    LinkError,
    Stream,
    Up,
    Welcome,
    decode_down,
    down_topic,
    encode,
    up_topic,
)

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 256
"""Messages a write: about 90 KB."""
DOWN_FILTER = "karvon/1/+/+/down/+"
MOST_REFUSALS = 20
SAMPLED = 64
"""One message in so many is timed from its first write to its ack."""


@dataclass(frozen=True)
class BrokerAddress:
    host: str
    port: int
    user: str
    password: str
    ca_file: str


@dataclass(frozen=True)
class LoadPlan:
    """What a load does. `prepared` is a folder of `prepare`; without one, messages are made."""

    broker: BrokerAddress
    fleet: Fleet
    prepared: str = ""
    placed: Placed | None = None
    window: int = 4000
    rate: int = 0
    """Messages a second; 0: as many as the window lets out."""
    duplicates: float = 0.0
    """The share of messages that goes out twice."""
    acks: bool = True
    """False: no greeting; the consumer counts what it has committed into `Numbers` itself."""
    drain_s: float = 60.0
    patience_s: float = 3.0
    """Without an ack for so long, stations greet again, and with twice the patience next time."""
    numbers: str = ""


class Numbers:
    """A few counters in a file, shared by processes; each has one writer."""

    NAMES = ("sent", "committed", "pubacked", "resent", "duplicated", "greeted", "rate", "stop")

    def __init__(self, path: Path) -> None:
        size = 8 * len(self.NAMES)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._cells[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._cells[self.NAMES.index(name)] = value


# --------------------------------------------------------------------------- from outside


class RunningLoad:
    """A load at work, as its benchmark sees it."""

    def __init__(self, numbers: Numbers, process: subprocess.Popen[bytes]) -> None:
        self._numbers = numbers
        self._process = process

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    @property
    def pid(self) -> int:
        return self._process.pid

    def set_rate(self, rate: int) -> None:
        self._numbers["rate"] = rate

    def await_committed(self, count: int, seconds: float = 60.0) -> None:
        """Until so many messages are committed; raises when the load ended or time is over."""
        end = time.monotonic() + seconds
        while self["committed"] < count:
            if self._process.poll() is not None:
                raise RuntimeError("the load ended early; its message stands above")
            if time.monotonic() > end:
                raise TimeoutError(f"{self['committed']} of {count} messages are committed")
            time.sleep(0.01)

    def finish(self) -> dict[str, Any]:
        """Send nothing new, wait for what is out; what the load says of itself."""
        self._numbers["stop"] = 1
        out, _ = self._process.communicate(timeout=120)
        if self._process.returncode:
            raise RuntimeError("the load failed; its message stands above")
        return dict(json.loads(out))


@contextlib.contextmanager
def load(plan: LoadPlan) -> Iterator[RunningLoad]:
    """Start a load; it is killed at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="karvon-load-") as name:
        path = Path(plan.numbers or Path(name) / "numbers")
        numbers = Numbers(path)
        numbers["rate"] = plan.rate
        file = Path(name) / "plan.json"
        file.write_text(json.dumps({**asdict(plan), "numbers": str(path)}))
        file.chmod(0o600)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(file)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield RunningLoad(numbers, process)
        finally:
            process.kill()
            process.communicate()


# --------------------------------------------------------------------------- MQTT


class Wire:
    """One connection, clean session, without keep-alive; never blocks in reading."""

    def __init__(self, broker: BrokerAddress, client: str) -> None:
        raw = socket.create_connection((broker.host, broker.port), 20)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.create_default_context(cafile=broker.ca_file)
        self.socket = context.wrap_socket(raw, server_hostname=broker.host)
        fields = (client.encode(), broker.user.encode(), broker.password.encode())
        body = b"\x00\x04MQTT\x04\xc2\x00\x00"
        body += b"".join(struct.pack("!H", len(one)) + one for one in fields)
        self.socket.sendall(b"\x10" + varint(len(body)) + body)
        answer = self.socket.recv(4)
        if answer != b"\x20\x02\x00\x00":
            raise ConnectionError(f"the broker refuses {broker.user}: {answer.hex()}")
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def subscribe(self, topic_filter: str) -> None:
        name = topic_filter.encode()
        body = b"\x00\x01" + struct.pack("!H", len(name)) + name + b"\x00"
        self.send(b"\x82" + varint(len(body)) + body)
        select.select([self.socket], [], [], 10)
        answer = self.receive()
        if answer[:5] != b"\x90\x03\x00\x01\x00":
            raise ConnectionError(f"the broker refuses {topic_filter}: {answer.hex()}")

    def send(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self.socket.send(left) :]
            except ssl.SSLWantWriteError:
                select.select([], [self.socket], [], 30)

    def receive(self) -> bytes:
        """What there is, perhaps nothing. Raises ConnectionError when the broker hung up."""
        parts = []
        try:
            while part := self.socket.recv(1 << 18):
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts)
        raise ConnectionError("the broker hung up")


class Splitter:
    """PUBLISH packets of QoS 0 out of a stream of bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Topic and payload of each whole packet; other packets are left out."""
        data = self._rest + data
        at, end = 0, len(data)
        while (found := _length(data, at)) is not None and found[1] + found[0] <= end:
            length, start = found
            if data[at] & 0xF6 == 0x30:
                name = start + 2
                payload = name + (data[start] << 8 | data[start + 1])
                yield data[name:payload], data[payload : start + length]
            at = start + length
        self._rest = data[at:]


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """The packet's remaining length and where that part begins; None: not all of it is here."""
    length = 0
    for place in range(4):
        here = at + 1 + place
        if here >= len(data):
            return None
        length |= (data[here] & 0x7F) << 7 * place
        if data[here] < 128:
            return length, here + 1
    raise ConnectionError("the broker sends no MQTT")


# --------------------------------------------------------------------------- the sender


class Sender:
    """Publishes until it is told to stop, then waits for what is out."""

    def __init__(self, plan: LoadPlan, messages: Messages) -> None:
        self._plan = plan
        self._messages = messages
        self._numbers = Numbers(Path(plan.numbers))
        self._parent = os.getppid()
        self._up = Wire(plan.broker, "karvon-load-up")
        self._dice = random.Random(7)
        self._sent = self._pubacked = 0
        self._greetings = Greetings(plan, self._up, self._numbers)
        self._sockets = [self._up.socket, *self._greetings.sockets]
        self._began = time.monotonic()
        self._rated = (0, 0.0, 0)

    def run(self) -> dict[str, Any]:
        cpu = time.process_time()
        self._greetings.greet_all()
        while not self._numbers["stop"] and self._sent < self._messages.total:
            self._hear()
            self._look_after()
            if not self._greetings.waiting:
                self._send_new()
        done = time.monotonic() + self._plan.drain_s
        while self._out and time.monotonic() < done:
            self._hear()
            self._look_after()
        return {
            "sent": self._sent,
            "committed": self._committed,
            "pubacked": self._pubacked,
            "resent": self._numbers["resent"],
            "duplicated": self._numbers["duplicated"],
            "greeted": self._numbers["greeted"],
            "load_cpu_ms_per_1000": round(
                (time.process_time() - cpu) * 1e6 / max(self._sent, 1), 2
            ),
            **self._greetings.latencies(),
        }

    @property
    def _committed(self) -> int:
        return self._numbers["committed"]

    @property
    def _out(self) -> int:
        return self._sent - self._committed

    def _hear(self) -> None:
        idle = 0.005 if self._plan.acks else 0.0005
        ready, _, _ = select.select(self._sockets, [], [], idle)
        if self._up.socket in ready:
            self._pubacked += len(self._up.receive()) // 4
            self._numbers["pubacked"] = self._pubacked
        if len(ready) > 1 or (ready and ready[0] is not self._up.socket):
            self._greetings.hear()

    def _send_new(self) -> None:
        free = min(self._plan.window - self._out, AT_ONCE, self._due())
        end = min(self._sent + free, self._messages.total)
        if end <= self._sent:
            return
        self._greetings.sending(self._sent, end)
        self._up.send(self._messages.packets(self._sent, end))
        first, self._sent = self._sent, end
        self._numbers["sent"] = end
        if self._plan.duplicates:
            self._send_again(first, end)

    def _send_again(self, first: int, end: int) -> None:
        """Some of what has just gone, or of what went shortly before, a second time."""
        twice = [n for n in range(first, end) if self._dice.random() < self._plan.duplicates]
        for number in twice:
            earlier = max(0, number - self._dice.choice((0, 1, 100, 1000)))
            self._up.send(self._messages.packets(earlier, earlier + 1))
        self._numbers["duplicated"] += len(twice)

    def _due(self) -> int:
        """How many the rate allows now; a new rate counts from when it was set."""
        rate = self._numbers["rate"]
        if not rate:
            return AT_ONCE
        now = time.monotonic()
        if self._rated[0] != rate:
            self._rated = (rate, now, self._sent)
        _, since, sent = self._rated
        return sent + int((now - since) * rate) - self._sent

    def _look_after(self) -> None:
        if os.getppid() != self._parent:
            sys.exit("the benchmark is gone")
        if self._plan.acks:
            for number in self._greetings.look_after(self._sent):
                self._up.send(self._messages.packets(number, number + 1))
                self._numbers["resent"] += 1


class Greetings:
    """Hellos, welcomes, and which messages are committed."""

    def __init__(self, plan: LoadPlan, up: Wire, numbers: Numbers) -> None:
        self._fleet = plan.fleet
        self._patience_s = plan.patience_s
        self._up = up
        self._numbers = numbers
        self._settled = bytearray()
        self._sampled: dict[int, float] = {}
        self._took: list[float] = []
        self.waiting: set[int] = set()
        self._outboxes = [plan.fleet.outbox(station) for station in range(plan.fleet.stations)]
        self._clouds: dict[int, object] = {}
        self._again: list[int] = []
        self._refusals: Counter[int] = Counter()
        self._greetings = 0
        self._heard_at = time.monotonic()
        self._splitter = Splitter()
        self._topics: dict[bytes, tuple[int, Down]] = {}
        self.sockets: list[socket.socket] = []
        if plan.acks:
            self._down = Wire(plan.broker, "karvon-load-down")
            self._down.subscribe(DOWN_FILTER)
            self.sockets.append(self._down.socket)
            self._topics = {
                down_topic(name, channel).encode(): (station, channel)
                for station, name in enumerate(plan.fleet.identities)
                for channel in (Down.WELCOME, Down.ACK)
            }

    def greet_all(self) -> None:
        if self._topics:
            self._greet(range(self._fleet.stations))

    def _greet(self, stations: Any) -> None:
        now_ms = time.time_ns() // 1_000_000
        following = len(self._settled) // self._fleet.stations + 2
        for station in stations:
            hello = self._fleet.hello(station, now_ms, following)
            topic = up_topic(self._fleet.identity(station), Up.HELLO)
            self._up.send(publish(topic, encode(hello), 65_535))
            self.waiting.add(station)
            self._numbers["greeted"] += 1
        self._heard_at = time.monotonic()

    def sending(self, first: int, end: int) -> None:
        """These go out now for the first time."""
        if self._topics:
            self._settled += bytes(end - first)
            sampled = -first % SAMPLED + first
            if sampled < end:
                self._sampled[sampled] = time.monotonic()

    def hear(self) -> None:
        for topic, payload in self._splitter.feed(self._down.receive()):
            known = self._topics.get(topic)
            if known is None:
                continue  # other stations of the same broker
            station, channel = known
            try:
                heard = decode_down(channel, payload)
            except LinkError as error:
                sys.exit(f"the cloud says what no agent understands: {error}")
            if isinstance(heard, Welcome):
                self._welcomed(station, heard)
            elif isinstance(heard, Ack):
                self._acked(station, heard)

    def _welcomed(self, station: int, welcome: Welcome) -> None:
        if welcome.outbox != self._outboxes[station] or station not in self.waiting:
            return
        if welcome.verdict != "go_on":
            self._refused(station)
            return
        self._greetings = 0
        self._clouds[station] = welcome.cloud
        self._settle(station, welcome.committed.get(Stream.TELEMETRY, ()))
        self.waiting.discard(station)
        self._again.append(station)

    def _refused(self, station: int) -> None:
        """Perhaps the answer to an older hello, when newer numbers were committed already."""
        self._refusals[station] += 1
        if self._refusals[station] > MOST_REFUSALS:
            sys.exit(f"station {station} shall take a new outbox; give the fleet another lap")

    def _acked(self, station: int, ack: Ack) -> None:
        if ack.stream is not Stream.TELEMETRY or ack.outbox != self._outboxes[station]:
            return
        if ack.cloud != self._clouds.get(station) or not ack.ranges:
            if station not in self.waiting:
                self._greet([station])
            return
        self._settle(station, ack.ranges)

    def _settle(self, station: int, ranges: Any) -> None:
        now, count = time.monotonic(), 0
        settled, stations = self._settled, self._fleet.stations
        for first, last in ranges:
            for number in range((first - 1) * stations + station, len(settled), stations):
                if number > (last - 1) * stations + station:
                    break
                if not settled[number]:
                    settled[number] = 1
                    count += 1
                    if number in self._sampled:
                        self._took.append(now - self._sampled.pop(number))
        if count:
            self._numbers["committed"] += count
            self._heard_at = now

    def look_after(self, sent: int) -> list[int]:
        """What to send again now; greets again where the cloud fell silent."""
        again: list[int] = []
        for station in self._again:
            mine = range(station, sent, self._fleet.stations)
            again += [number for number in mine if not self._settled[number]]
        self._again.clear()
        patience = self._patience_s * min(2**self._greetings, 16)
        silent = time.monotonic() - self._heard_at > patience
        if silent and (self.waiting or self._numbers["committed"] < sent):
            self._greetings += 1
            self._greet(self.waiting or range(self._fleet.stations))
        return sorted(again)

    def latencies(self) -> dict[str, float]:
        """Milliseconds from the first write to the ack, of the sampled ones."""
        took = sorted(self._took)
        if not took:
            return {}
        at = {"ack_p50_ms": 0.5, "ack_p99_ms": 0.99}
        return {name: round(took[int(len(took) * q)] * 1000, 1) for name, q in at.items()}


def main() -> int:
    told = json.loads(Path(sys.argv[1]).read_text())
    told["broker"] = BrokerAddress(**told["broker"])
    told["fleet"] = Fleet(**told["fleet"])
    told["placed"] = Placed(**told["placed"]) if told["placed"] else None
    plan = LoadPlan(**told)
    sys.stdout.write(json.dumps(Sender(plan, _messages(plan)).run()) + "\n")
    return 0


def _messages(plan: LoadPlan) -> Messages:
    if plan.prepared:
        return Prepared(Path(plan.prepared))
    if plan.placed is None:
        raise ValueError("messages are prepared, or placed in time")
    return Spliced(plan.fleet, plan.placed)


if __name__ == "__main__":
    sys.exit(main())
