"""The Modbus driver on bad lines: late, noisy, half-open, dead neighbours, wrong devices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.hardware.registry import (
    BoardConfig,
    UnknownProfileError,
    find_profile,
    open_board,
    open_meter,
)
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.server import Device
from protocols.quantities import MilliAmperes

TIMEOUT_S = 0.2


@asynccontextmanager
async def serving(device: Device, places: Places) -> AsyncIterator[Running]:
    running = Running(device=device, places=places, clock=asyncio.get_running_loop().time)
    await running.start()
    try:
        yield running
    finally:
        await running.close()


def a_charger(profile: str = "abb_terra_ac", evses: int = 1) -> SimulatedCharger:
    now = asyncio.get_running_loop().time()
    return SimulatedCharger(find_profile(profile), evses=evses, unit=1, speed=1, now=now)


def tcp_link(running: Running, unit: int | None = None) -> ModbusLink:
    host, _, port = running.addresses["tcp"].rpartition(":")
    return ModbusLink(host=host, port=int(port), timeout_s=TIMEOUT_S, unit=unit)


def board_on(link: ModbusLink, ports: PortPool | None = None) -> ModbusBoard:
    board = open_board(BoardConfig(profile="abb_terra_ac", link=link), ports)
    assert isinstance(board, ModbusBoard)
    return board


async def test_a_late_serial_reply_is_not_taken_for_the_next_answer(tmp_path: Path) -> None:
    line = str(tmp_path / "line")
    async with serving(a_charger(), Places(pty=line)) as running:
        board = board_on(ModbusLink(kind="rtu", device=line, timeout_s=TIMEOUT_S))
        await board.open()
        running.control.execute({"do": "late", "seconds": TIMEOUT_S * 1.5})
        with pytest.raises(BoardUnreachableError, match="no answer within"):
            await board.device.read([(1, "applied_limit")])
        values = await board.device.read([(1, "voltage_l1")])
        assert values[1, "voltage_l1"].value == 230_000
        await board.close()


@pytest.mark.parametrize("kind", ["tcp", "rtu"])
async def test_noise_is_an_error_once_and_never_a_value(kind: str, tmp_path: Path) -> None:
    line = str(tmp_path / "line")
    places = Places(tcp="127.0.0.1:0") if kind == "tcp" else Places(pty=line)
    async with serving(a_charger(), places) as running:
        link = (
            tcp_link(running)
            if kind == "tcp"
            else ModbusLink(kind="rtu", device=line, timeout_s=TIMEOUT_S)
        )
        board = board_on(link)
        await board.open()
        if kind == "rtu":
            running.control.execute({"do": "noise", "replies": 1})
            with pytest.raises(BoardUnreachableError):
                await board.read()
        else:
            running.control.execute({"do": "silence", "seconds": TIMEOUT_S})
            with pytest.raises(BoardUnreachableError):
                await board.read()
        assert (await board.read())[0].voltage[0] == 230_000
        await board.close()


async def test_a_half_open_connection_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(a_charger(), Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        running.control.execute({"do": "half_open"})
        failures = 0
        while failures < 5:
            try:
                await board.read()
                break
            except BoardUnreachableError:
                failures += 1
        assert 1 <= failures <= 2
        await board.close()


async def test_lost_and_restored_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(a_charger(), Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        caplog.set_level(logging.DEBUG)
        running.control.execute({"do": "silence", "seconds": 1000})
        for _ in range(6):
            with pytest.raises(BoardUnreachableError):
                await board.read()
        running.control.execute({"do": "silence", "seconds": 0})
        await board.read()
        await board.read()
        told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert [text.split(": ")[1].split(",")[0].split(" ")[0] for text in told] == [
            "lost",
            "restored",
        ]
        await board.close()


async def test_a_dead_neighbour_does_not_stall_the_line() -> None:
    async with serving(a_charger(), Places(tcp="127.0.0.1:0")) as running:
        ports = PortPool()
        alive, dead = board_on(tcp_link(running, 1), ports), board_on(tcp_link(running, 9), ports)
        await alive.open()
        for _ in range(4):
            with pytest.raises(BoardUnreachableError):
                await dead.open()
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(BoardUnreachableError, match="left alone"):
            await dead.open()
        await alive.read()
        assert loop.time() - started < TIMEOUT_S
        await alive.close()
        await dead.close()


async def test_writes_go_ahead_of_reads() -> None:
    async with serving(a_charger(), Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        order: list[str] = []

        async def note(name: str, work: asyncio.Future[object]) -> None:
            await work
            order.append(name)

        reads = [asyncio.ensure_future(board.read()) for _ in range(3)]
        write = asyncio.ensure_future(board.withhold(1))
        named = [("read", each) for each in reads] + [("write", write)]
        await asyncio.gather(*(note(name, each) for name, each in named))
        assert order.index("write") <= 1
        await board.close()


async def test_nothing_there_says_what_to_do() -> None:
    board = board_on(ModbusLink(kind="rtu", device="/nowhere/ttyUSB0", timeout_s=TIMEOUT_S))
    with pytest.raises(BoardUnreachableError, match=r"cannot open /nowhere.*plugged in"):
        await board.open()
    await board.close()


async def test_a_limit_that_another_controller_overrides_is_refused() -> None:
    device = a_charger()
    async with serving(device, Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        running.control.execute({"do": "ceiling", "limit_ma": 10_000})
        with pytest.raises(BoardRefusedError, match="applies 10000 mA"):
            await board.set_limit(1, MilliAmperes(16_000))
        await board.close()


async def test_old_firmware_is_refused() -> None:
    device = a_charger()
    assert device.profile.simulator
    device.profile.simulator.defaults["firmware"] = "1.7.9"
    async with serving(device, Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        with pytest.raises(BoardRefusedError, match=r"1\.7\.9.*needs 1\.8"):
            await board.open()
        await board.close()


async def test_the_users_own_limit_lowers_the_rating() -> None:
    device = a_charger()
    assert device.profile.simulator
    device.profile.simulator.defaults["user_max_current"] = 20_000
    async with serving(device, Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        assert board.evses[0].max_current == 20_000
        assert await board.set_limit(1, MilliAmperes(32_000)) == 20_000
        await board.close()


async def test_a_fallback_is_taken_back_when_the_agent_leaves_for_good() -> None:
    device = a_charger()
    async with serving(device, Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        device.evses[1].fallback = 6_000
        await board.restore_failsafe()
        assert device.evses[1].fallback is None
        assert device.evses[1].timeout_s == 60
        await board.close()


async def test_a_meter_reads_both_directions() -> None:
    now = asyncio.get_running_loop().time()
    device = SimulatedMeter(find_profile("eastron_sdm630"), unit=1, speed=1, now=now)
    device.load_w = -6_900
    device.imported_nj = 30_794 * 3_600_000_000_000
    async with serving(device, Places(tcp="127.0.0.1:0")) as running:
        meter = open_meter(BoardConfig(profile="eastron_sdm630", link=tcp_link(running)))
        await meter.open()
        assert meter.identity == "Eastron 20123456"
        reading = await meter.read()
        assert (reading.power, reading.imported, reading.exported) == (-6_900, 30_794, 0)
        assert reading.voltage == (230_000, 230_000, 230_000)
        assert not reading.suspect
        await meter.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing", "give one of abb_"), ("eastron_sdm630", "describes a meter")],
)
def test_a_wrong_profile_name_says_which_there_are(name: str, reason: str) -> None:
    with pytest.raises(UnknownProfileError, match=reason):
        open_board(BoardConfig(profile=name, link=ModbusLink(host="127.0.0.1")))


SLEEPY = """
profile: sleepy
kind: charger
maker: Nobody
models: [Sleepy]
source: made for a test, after the ABL eMH1
status: field
transports: {rtu: {baudrate: 38400, framing: ascii}}
limits: {repeat_first_request: true}
registers: {state: {address: 4, type: u16}}
states: {rules: [{when: {state: 0xA1}, is: A}, {when: {state: 0xC2}, is: C}], otherwise: F}
setpoint:
  write: {address: 0x14, function: 16, scale: 0.06, unit: A}
  range: [6, 32]
  pause: {raw: 0x3E8}
  confirm_by_effect: true
simulator: {states: {empty: {state: 0xA1}}}
"""


async def test_a_sleeping_device_with_ascii_frames_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "sleepy.yaml").write_text(SLEEPY)
    line = str(tmp_path / "line")
    device = a_charger(str(tmp_path / "sleepy.yaml"))
    async with serving(device, Places(pty=line)):
        link = ModbusLink(kind="rtu", device=line, timeout_s=TIMEOUT_S)
        board = open_board(BoardConfig(profile=str(tmp_path / "sleepy.yaml"), link=link))
        await board.open()
        assert (await board.read())[0].state == "A"
        assert await board.set_limit(1, MilliAmperes(16_000)) is None
        assert device.evses[1].limit == 15_960, "266 steps of 0.06 A"
        await board.set_limit(1, MilliAmperes(0))
        assert device.evses[1].limit == 0
        await board.close()


async def test_closing_the_port_does_not_cancel_who_waits() -> None:
    async with serving(a_charger(), Places(tcp="127.0.0.1:0")) as running:
        board = board_on(tcp_link(running))
        await board.open()
        running.control.execute({"do": "silence", "seconds": 1000})
        waiting = asyncio.ensure_future(board.read())
        await asyncio.sleep(0)
        await board.close()
        with pytest.raises(BoardUnreachableError, match="closed"):
            await waiting


async def test_an_adapter_that_echoes_is_heard_through(tmp_path: Path) -> None:
    line = str(tmp_path / "line")
    async with serving(a_charger(), Places(pty=line, echo=True)):
        board = board_on(ModbusLink(kind="rtu", device=line, timeout_s=2, echo=True))
        await board.open()
        assert await board.set_limit(1, MilliAmperes(16_000)) == 16_000
        assert (await board.read())[0].voltage[0] == 230_000
        await board.close()
