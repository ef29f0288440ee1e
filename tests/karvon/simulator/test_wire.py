"""The simulated devices seen by a plain socket: frames written by hand from the register tables."""

from __future__ import annotations

import asyncio
import json
import os
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pymodbus.client import AsyncModbusTcpClient

from edge_agent.hardware.registry import find_profile
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import NANOJOULES_PER_WH

REQUEST, REPLY = (bytes.fromhex(text) for text in ("660400480002f9ca", "660404433131aa3ce6"))
"""As captured on the line of a real meter, SDM630, unit 102."""


class Wire:
    """A Modbus TCP client that knows nothing: hex in, hex out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, pdu: str) -> str:
        body = bytes.fromhex(pdu)
        self.writer.write(bytes((0, 7, 0, 0, 0, len(body) + 1, 1)) + body)
        async with asyncio.timeout(2):
            head = await self.reader.readexactly(7)
            assert head[:5] == bytes((0, 7, 0, 0, 0))
            return (await self.reader.readexactly(head[5] - 1)).hex()


@pytest.fixture
async def charger(tmp_path: Path) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    device = SimulatedCharger(
        find_profile("abb_terra_ac"), evses=1, unit=1, speed=60, now=loop.time()
    )
    places = Places(tcp="127.0.0.1:0", control=str(tmp_path / "control"))
    running = Running(device=device, places=places, clock=loop.time)
    await running.start()
    yield running
    await running.close()


async def connect(address: str) -> Wire:
    host, _, port = address.rpartition(":")
    return Wire(*await asyncio.open_connection(host, int(port)))


@pytest.fixture
async def wire(charger: Running) -> AsyncIterator[Wire]:
    client = await connect(charger.addresses["tcp"])
    yield client
    client.writer.close()
    await client.writer.wait_closed()


async def pause() -> None:
    """The device wants 50 ms after a write."""
    await asyncio.sleep(0.06)


async def test_a_session_by_hand(charger: Running, wire: Wire) -> None:
    assert await wire.ask("03400c0002") == "030400000000"  # state A
    charger.control.execute({"do": "plug"})
    await pause()
    assert await wire.ask("03400c0002") == "030400000100"  # B1, waiting for authorization
    await pause()
    assert await wire.ask("1041000002040000 2710") == "1041000002"  # limit 10 A
    await pause()
    assert await wire.ask("0641050000") == "0641050000"  # start
    await asyncio.sleep(0.5)
    assert await wire.ask("03400c0002") == "030400000400"  # C2
    await pause()
    assert await wire.ask("0340100002") == "030400002710"  # 10.000 A
    await pause()
    assert await wire.ask("0641050001") == "0641050001"  # stop
    await pause()
    assert await wire.ask("03400c0002") == "030400000500"  # stopped, still plugged
    charger.control.execute({"do": "unplug"})
    await pause()
    assert await wire.ask("03400c0002") == "030400000000"
    status = charger.control.status()
    assert status["violations"] == []
    (session,) = status["sessions"]
    assert session["ended_ms"] is not None
    await pause()
    energy = int((await wire.ask("03401e0002"))[4:], 16)
    assert energy == int(session["energy_wh"]) > 0


@pytest.mark.parametrize(
    ("pdu", "answer"),
    [
        ("0100000001", "8101"),  # no coils
        ("0440000001", "8401"),  # no input registers
        ("0341000002", "8302"),  # the limit is written, never read
        ("0340230004", "8302"),  # beyond the table
        ("03400c0000", "8303"),  # nothing wanted
        ("03400c007e", "8303"),  # more than 125
        ("0641030000", "8602"),  # the socket lock is out of reach
        ("0641110003", "8602"),  # and so is firmware mode
        ("0641050002", "8603"),  # neither start nor stop
        ("064106 0005", "8603"),  # a timeout under 10 s
        ("10410000020400 00fde8", "9003"),  # 65 A
        ("1041000001020000", "9003"),  # half a value
    ],
)
async def test_what_the_device_refuses(wire: Wire, pdu: str, answer: str) -> None:
    assert await wire.ask(pdu) == answer


async def test_a_request_that_comes_too_soon_is_not_answered(charger: Running, wire: Wire) -> None:
    await wire.ask("03400c0002")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await wire.ask("03400c0002")
    assert charger.control.status()["gap_violations"] == 1


async def test_without_fallback_silence_is_an_error_that_ends_the_session(
    charger: Running, wire: Wire
) -> None:
    device = charger.device
    assert isinstance(device, SimulatedCharger)
    charger.control.execute({"do": "plug"})
    await wire.ask("0641050000")
    now = charger.clock()
    device.advance(now + 59)
    assert device.status()["evses"][0]["situation"] == "charging"
    device.advance(now + 61)
    shown = device.status()["evses"][0]
    assert (shown["situation"], shown["current_ma"]) == ("fault", 0)


async def test_with_a_fallback_silence_means_that_current(charger: Running, wire: Wire) -> None:
    device = charger.device
    assert isinstance(device, SimulatedCharger)
    charger.control.execute({"do": "plug"})
    await wire.ask("0641050000")
    await pause()
    await wire.ask("0641090006")
    await pause()
    await wire.ask("064106000a")
    device.advance(charger.clock() + 9)
    assert device.status()["evses"][0]["current_ma"] == 32_000
    device.advance(charger.clock() + 30)
    shown = device.status()
    assert shown["evses"][0]["current_ma"] == 6_000
    assert shown["watchdog_ran_out"]
    assert shown["violations"] == []


async def test_the_referee_sees_a_vehicle_that_disobeys(charger: Running) -> None:
    device = charger.device
    assert isinstance(device, SimulatedCharger)
    charger.control.execute({"do": "plug", "stubborn": True})
    device.advance(charger.clock() + 1)
    assert any("while waiting" in what for what in charger.control.status()["violations"])


async def test_pymodbus_reads_the_same(charger: Running) -> None:
    host, _, port = charger.addresses["tcp"].rpartition(":")
    client = AsyncModbusTcpClient(host, port=int(port), reconnect_delay=0)
    assert await client.connect()
    reply = await client.read_holding_registers(0x4016, count=2, device_id=1)
    assert reply.registers == [0, 2300]
    client.close()
    await asyncio.sleep(0)


async def test_the_control_port_speaks_json_lines(charger: Running) -> None:
    reader, writer = await asyncio.open_unix_connection(charger.addresses["control"])
    for line in (b'{"do": "plug", "wants_wh": 500}\n', b"status\n", b"dance\n"):
        writer.write(line)
    plugged, status, dance = [json.loads(await reader.readline()) for _ in range(3)]
    assert plugged["evses"][0]["plugged"]
    assert status["ok"]
    assert not dance["ok"]
    assert "can do:" in dance["error"]
    writer.close()
    await writer.wait_closed()


async def test_a_meter_answers_the_captured_request_with_the_captured_bytes(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    meter = SimulatedMeter(
        find_profile("eastron_sdm630"), unit=REQUEST[0], speed=1, now=loop.time()
    )
    meter.imported_nj = 177_194 * NANOJOULES_PER_WH
    running = Running(device=meter, places=Places(pty=str(tmp_path / "line")), clock=loop.time)
    await running.start()
    line = os.open(tmp_path / "line", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(line)
    os.write(line, bytes.fromhex("ff00") + REQUEST)
    answered = asyncio.Event()
    loop.add_reader(line, answered.set)
    async with asyncio.timeout(2):
        await answered.wait()
    assert os.read(line, 100) == REPLY
    loop.remove_reader(line)
    os.close(line)
    await running.close()
