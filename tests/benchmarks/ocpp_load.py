"""A fleet of stations in one process that costs little itself: fixed messages, minimal WebSockets.

Frames are masked with a key of zeros, which is legal (RFC 6455, 5.3) and leaves the bytes as they
are, so that this process spends 10 to 15 µs a call. Each station has one CALL out at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import ssl
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvloop

READINGS = 10
Call = tuple[str, dict[str, Any]]
_MEASURED = (
    ("Energy.Active.Import.Register", None, "Wh"),
    ("Power.Active.Import", None, "W"),
    ("Current.Import", "L1", "A"),
    ("Current.Import", "L2", "A"),
    ("Current.Import", "L3", "A"),
    ("Voltage", "L1-N", "V"),
    ("Current.Offered", None, "A"),
    ("SoC", None, "Percent"),
)


def token(number: int) -> str:
    """The station's id token; it must be entered first."""
    return f"04{number:08X}0001"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _values(wh: int, version: str) -> list[dict[str, Any]]:
    numbers = (wh, 11_000, 15.9, 16.0, 16.1, 231.5, 32, 55)
    found = []
    for (measurand, phase, unit), number in zip(_MEASURED, numbers, strict=True):
        value: dict[str, Any] = {"measurand": measurand, "context": "Sample.Periodic"}
        if phase:
            value["phase"] = phase
        if version == "ocpp1.6":
            value |= {"value": str(number), "unit": unit}
        else:
            value |= {"value": number, "unitOfMeasure": {"unit": unit}}
        found.append(value)
    return found


def boot(version: str) -> Call:
    if version == "ocpp1.6":
        return "BootNotification", {"chargePointVendor": "Bench", "chargePointModel": "One"}
    what = {"vendorName": "Bench", "model": "One"}
    return "BootNotification", {"reason": "PowerUp", "chargingStation": what}


def cycle_16(number: int, first: int) -> Iterator[Call]:
    """One session; receives each answer."""
    tag = token(number)

    def status(what: str) -> Call:
        fields = {"connectorId": 1, "errorCode": "NoError", "status": what, "timestamp": now()}
        return "StatusNotification", fields

    yield status("Preparing")
    yield "Authorize", {"idTag": tag}
    start = {"connectorId": 1, "idTag": tag, "meterStart": first, "timestamp": now()}
    answer = yield "StartTransaction", start
    transaction = (answer or {}).get("transactionId", 0)
    yield status("Charging")
    for step in range(READINGS):
        value = {"timestamp": now(), "sampledValue": _values(first + step, "ocpp1.6")}
        fields = {"connectorId": 1, "transactionId": transaction, "meterValue": [value]}
        yield "MeterValues", fields
    yield "Heartbeat", {}
    stop = {"transactionId": transaction, "idTag": tag, "meterStop": first + READINGS,
            "timestamp": now(), "reason": "Local"}  # fmt: skip
    yield "StopTransaction", stop
    yield status("Finishing")
    yield status("Available")


def cycle_201(number: int, first: int) -> Iterator[Call]:
    """One session."""
    who = {"idToken": token(number), "type": "ISO14443"}
    key = f"{number}-{first}-{time.time_ns():x}"[:36]

    def status(what: str) -> Call:
        fields = {"timestamp": now(), "connectorStatus": what, "evseId": 1, "connectorId": 1}
        return "StatusNotification", fields

    def event(kind: str, seq: int, wh: int, **more: Any) -> Call:
        info = {"transactionId": key, "chargingState": "Charging"}
        value = {"timestamp": now(), "sampledValue": _values(wh, "ocpp2.0.1")}
        return "TransactionEvent", {
            "eventType": kind,
            "timestamp": now(),
            "triggerReason": "Authorized" if kind == "Started" else "MeterValuePeriodic",
            "seqNo": seq,
            "transactionInfo": info,
            "evse": {"id": 1, "connectorId": 1},
            "meterValue": [value],
            **more,
        }

    yield status("Occupied")
    yield "Authorize", {"idToken": who}
    yield event("Started", 0, first, idToken=who)
    for step in range(READINGS):
        yield event("Updated", step + 1, first + step)
    yield "Heartbeat", {}
    yield event("Ended", READINGS + 1, first + READINGS, idToken=who)
    yield status("Available")


CYCLES = {"ocpp1.6": cycle_16, "ocpp2.0.1": cycle_201}


@dataclass
class Plan:
    """What the fleet shall do."""

    port: int
    version: str
    stations: int
    mode: str
    """`closed`: as fast as answers come; `rate`: so many calls a second; `idle`: boot and stay;
    `start`: all StartTransactions in one instant."""
    seconds: float = 5.0
    warm_up_s: float = 2.0
    rate: float = 0.0
    tls: bool = False
    heartbeat_s: float = 0.0
    """Of idle stations; 0: they say nothing."""


@dataclass
class Seen:
    calls: int = 0
    errors: int = 0
    latencies: list[float] = field(default_factory=list)


def _any_server() -> ssl.SSLContext:
    """TLS 1.3; who the server is matters to nobody here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Station(asyncio.Protocol):
    """A WebSocket client with one CALL out."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._number = number
        self._buffer = b""
        self._open = False
        self._id = 0
        self._sent = 0.0
        self._due = 0.0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._script: Iterator[Call] = iter(())
        self.start_at: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        key = base64.b64encode(os.urandom(16)).decode()
        plan = self._fleet.plan
        self._transport.write(
            f"GET /ocpp/B{self._number:06} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {plan.version}\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError("closed"))
        elif not self._fleet.over:
            self._fleet.seen.errors += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head[:20]:
                self.ready.set_exception(ConnectionError(head.decode(errors="replace")))
                return
            self._open, self._buffer = True, rest
            self.call(*boot(self._fleet.plan.version))
        while (frame := self._frame()) is not None:
            self._take(frame)

    def _frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, at = buffer[1], 2
        if length == 126:
            length, at = struct.unpack_from("!H", buffer, 2)[0], 4
        if len(buffer) < at + length:
            return None
        self._buffer = buffer[at + length :]
        return buffer[at : at + length] if buffer[0] & 15 == 1 else b""

    def call(self, action: str, payload: dict[str, Any]) -> None:
        self._id += 1
        message = json.dumps([2, str(self._id), action, payload], separators=(",", ":")).encode()
        size = len(message)
        head = (
            struct.pack("!BB4x", 0x81, 0x80 | size)
            if size < 126
            else struct.pack("!BBH4x", 0x81, 0xFE, size)
        )
        self._sent = time.perf_counter()
        self._transport.write(head + message)

    def _take(self, frame: bytes) -> None:
        if not frame:
            return
        message = json.loads(frame)
        if message[0] == 2:
            return
        if not self.ready.done():
            self.ready.set_result(None)
            return
        if message[0] == 4:
            self._fleet.seen.errors += 1
        self._fleet.note(self._sent if not self._due else self._due)
        self.go_on(message[2] if message[0] == 3 else None)

    def go_on(self, answer: dict[str, Any] | None = None) -> None:
        fleet = self._fleet
        if fleet.over:
            return
        try:
            following = self._script.send(answer)  # type: ignore[attr-defined]  # a generator
        except (StopIteration, AttributeError):
            if fleet.plan.mode in {"start", "idle"}:
                return
            self._script = CYCLES[fleet.plan.version](self._number, fleet.next_register())
            following = next(self._script)
        if fleet.plan.mode == "rate":
            self._due += fleet.plan.stations / fleet.plan.rate
            wait = self._due - time.perf_counter()
            asyncio.get_running_loop().call_later(max(0.0, wait), self.call, *following)
        else:
            self.call(*following)

    def begin(self, due: float = 0.0) -> None:
        """The first call, due then (0: at once)."""
        self._script = CYCLES[self._fleet.plan.version](self._number, self._fleet.next_register())
        self._due = due
        first = next(self._script)
        wait = max(0.0, due - time.perf_counter()) if due else 0.0
        asyncio.get_running_loop().call_later(wait, self.call, *first)

    def beat(self) -> None:
        """A Heartbeat now, and for ever."""
        if not self._fleet.over:
            self.call("Heartbeat", {})
            asyncio.get_running_loop().call_later(self._fleet.plan.heartbeat_s, self.beat)

    def start_now(self) -> None:
        start = {"connectorId": 1, "idTag": token(self._number), "meterStart": self._number,
                 "timestamp": now()}  # fmt: skip
        self.call("StartTransaction", start)


class Fleet:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen = Seen()
        self.over = False
        self.counting = False
        self._register = 0
        self._expected = 0
        self._all_back: asyncio.Future[None] | None = None

    def next_register(self) -> int:
        self._register += 100
        return self._register

    def note(self, since: float) -> None:
        if self.counting:
            self.seen.calls += 1
            self.seen.latencies.append((time.perf_counter() - since) * 1000)
        if self._all_back is not None and self.seen.calls >= self._expected:
            self._all_back.set_result(None)
            self._all_back = None

    async def run(self, said: Any) -> dict[str, Any]:
        """Connect, do it, tell; `said` is called when the measured stretch begins and ends."""
        plan, loop = self.plan, asyncio.get_running_loop()
        stations = [Station(self, number) for number in range(plan.stations)]
        said("connecting")
        began = time.perf_counter()
        gate = asyncio.Semaphore(200)
        tls = _any_server() if plan.tls else None

        async def connect(station: Station) -> None:
            async with gate:
                await loop.create_connection(lambda: station, "127.0.0.1", plan.port, ssl=tls)
                await station.ready

        await asyncio.gather(*map(connect, stations))
        booted = time.perf_counter() - began
        said("booted")
        if plan.mode == "start":
            self.counting, self._expected = True, plan.stations
            self._all_back = loop.create_future()
            back = self._all_back
            for station in stations:
                station.start_now()
            await asyncio.wait_for(back, 60)
        elif plan.mode == "idle":
            for number, station in enumerate(stations if plan.heartbeat_s else ()):
                loop.call_later(plan.heartbeat_s * number / len(stations), station.beat)
            await asyncio.sleep(plan.seconds)
        else:
            self._begin(stations)
            await asyncio.sleep(plan.warm_up_s)
            said("measuring")
            self.counting = True
            await asyncio.sleep(plan.seconds)
            self.counting = False
        self.over = True
        said("measured")
        return {"booted_s": booted, "calls": self.seen.calls, "errors": self.seen.errors,
                "seconds": plan.seconds, **_percentiles(self.seen.latencies)}  # fmt: skip

    def _begin(self, stations: list[Station]) -> None:
        spread = self.plan.stations / self.plan.rate if self.plan.mode == "rate" else 0.0
        first = time.perf_counter() + 0.05
        for number, station in enumerate(stations):
            due = first + spread * number / len(stations) if spread else 0.0
            station.begin(due)


def _percentiles(found: list[float]) -> dict[str, float]:
    if len(found) < 2:
        return {}
    cuts = statistics.quantiles(found, n=100)
    return {"p50_ms": cuts[49], "p99_ms": cuts[98]}


def main() -> None:
    """Run one plan, given as JSON; tells phases and the result as JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=json.loads)
    plan = Plan(**parser.parse_args().plan)

    def said(phase: str) -> None:
        sys.stdout.write(json.dumps({"phase": phase}) + "\n")
        sys.stdout.flush()
        if phase in {"booted", "measuring", "measured"}:
            sys.stdin.readline()  # the other side reads its counters first

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(Fleet(plan).run(said))
    sys.stdout.write(json.dumps({"result": result}) + "\n")


if __name__ == "__main__":
    main()
