"""Boards of our own on real pseudo terminals: shared lines, bad lines, lines that go away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent import links
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Failsafe, IecState
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.hardware.registry import BoardConfig, open_board
from edge_agent.hardware.serial_board import SerialBoard
from edge_agent.hardware.serial_port import SerialPort, open_serial
from edge_agent.registers import dump_board
from karvon.simulator.serial_board import BoardAnswers, SimulatedSerialBoard
from karvon.simulator.server import PtyServer
from karvon.simulator.vehicle import Vehicle
from protocols.quantities import MilliAmperes
from protocols.serial_board import PLACES, READING, BoardState, Command

TIMEOUT_S = 1.0
SIXTEEN = MilliAmperes(16_000)


def a_board(address: int = 1, evses: int = 1, **more: Any) -> SimulatedSerialBoard:
    now = asyncio.get_running_loop().time()
    return SimulatedSerialBoard(address=address, evses=evses, now=now, **more)


@asynccontextmanager
async def serving(
    line: Path, *boards: SimulatedSerialBoard, echo: bool = False
) -> AsyncIterator[list[BoardAnswers]]:
    """All of them on one line."""
    answers = [BoardAnswers(board, asyncio.get_running_loop().time) for board in boards]
    server = PtyServer(*answers, echo=echo)
    await server.start(str(line))
    try:
        yield answers
    finally:
        await server.close()


def board_on(
    line: Path, address: int = 1, ports: PortPool | None = None, evses: int = 1, **more: Any
) -> SerialBoard:
    link = ModbusLink(kind="serial", device=str(line), unit=address, timeout_s=TIMEOUT_S)
    config = BoardConfig(kind="serial_board", link=link, evses=evses, **more)
    board = open_board(config, ports)
    assert isinstance(board, SerialBoard)
    return board


@asynccontextmanager
async def opened(board: SerialBoard) -> AsyncIterator[SerialBoard]:
    await board.open()
    try:
        yield board
    finally:
        await board.close()


def port_of(board: SerialBoard) -> SerialPort:
    return board._port


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # what is waited for is another world's state
            await asyncio.sleep(0.01)


async def test_it_says_who_it_is_and_how_warm_it_is(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(7)),
        opened(board_on(tmp_path / "line", 7)) as one,
    ):
        assert one.identity == "Karvon board KPB-SIM SIM00007 1.0.0"
        assert one.told is not None
        assert (one.told.state, one.told.protocol) == (BoardState.APPLICATION, (1, 0))
        await one.read()
        assert one.temperature == 412


async def test_all_evses_come_in_one_request(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(evses=4)) as (answers,),
        opened(board_on(tmp_path / "line", evses=4)) as board,
    ):
        before = answers.requests
        readings = await board.read()
        assert [reading.evse for reading in readings] == [1, 2, 3, 4]
        assert answers.requests == before + 1
        await board.set_limit(3, SIXTEEN)
        limits = [reading.applied_limit for reading in await board.read()]
        assert limits == [0, 0, 16_000, 0]


async def test_two_boards_share_one_line_and_one_owner(tmp_path: Path) -> None:
    line, ports = tmp_path / "line", PortPool()
    async with (
        serving(line, a_board(1), a_board(2)),
        opened(board_on(line, 1, ports)) as one,
        opened(board_on(line, 2, ports)) as two,
    ):
        assert port_of(one) is port_of(two)
        for _ in range(20):
            mine, other = MilliAmperes(10_000), MilliAmperes(20_000)
            assert await asyncio.gather(one.set_limit(1, mine), two.set_limit(1, other)) == [
                mine,
                other,
            ]
            (first,), (second,) = await asyncio.gather(one.read(), two.read())
            assert (first.applied_limit, second.applied_limit) == (mine, other)
        assert one.identity != two.identity
        assert port_of(one).health().missed == 0


async def test_a_dead_board_costs_its_neighbour_a_slot_and_is_then_left_alone(
    tmp_path: Path,
) -> None:
    line, ports = tmp_path / "line", PortPool()
    async with (
        serving(line, a_board(1), a_board(2)) as (_, dead),
        opened(board_on(line, 1, ports)) as one,
        opened(board_on(line, 2, ports)) as two,
    ):
        dead.silent_until = float("inf")
        loop = asyncio.get_running_loop()
        asked = dead.requests
        for cycle in range(6):
            started = loop.time()
            lost, mine = await asyncio.gather(two.read(), one.read(), return_exceptions=True)
            assert isinstance(lost, BoardUnreachableError)
            assert not isinstance(mine, BaseException)
            slots = (loop.time() - started) / TIMEOUT_S
            assert cycle >= 3 or slots >= 0.9, "it was asked, and given its time"
        missed = port_of(one).health().missed
        assert missed == 3, "after three misses it is left alone"
        with pytest.raises(BoardUnreachableError, match="left alone"):
            await two.read()
        assert dead.requests == asked
        dead.silent_until = 0.0
        assert await two.set_limit(1, SIXTEEN) == SIXTEEN, "a write goes out all the same"
        await two.read()


async def test_an_echo_is_taken_for_no_reply(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(), echo=True) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        assert await board.set_limit(1, SIXTEEN) == SIXTEEN
        assert (await board.read())[0].applied_limit == SIXTEEN
        answers.silent_until = float("inf")
        with pytest.raises(BoardUnreachableError, match="no answer within"):
            await board.read()


async def test_doubled_and_late_replies_are_dropped(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board()) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        answers.doubled = 3
        for limit in (8_000, 9_000, 10_000):
            assert await board.set_limit(1, MilliAmperes(limit)) == limit
        await until(lambda: port_of(board).strays == 3)
        answers.late.append(1.5 * TIMEOUT_S)
        with pytest.raises(BoardUnreachableError):
            await board.set_limit(1, MilliAmperes(11_000))
        assert await board.set_limit(1, MilliAmperes(12_000)) == 12_000
        await until(lambda: port_of(board).strays == 4)
        assert (await board.read())[0].applied_limit == 12_000


@pytest.mark.parametrize("spoil", ["noisy", "torn"])
async def test_noise_and_lost_octets_are_errors_once_and_never_values(
    spoil: str, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path / "line", a_board()) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        setattr(answers, spoil, 2)
        for _ in range(2):
            with pytest.raises(BoardUnreachableError):
                await board.read()
        assert (await board.read())[0].voltage == (230_000, 230_000, 230_000)
        assert port_of(board).spoiled >= 2


async def test_an_adapter_that_is_unplugged_is_there_again_under_its_stable_name(
    tmp_path: Path,
) -> None:
    line, device = tmp_path / "usb-Karvon-if00", a_board()
    board = board_on(line)
    async with serving(line, device):
        await board.open()
        await board.set_limit(1, SIXTEEN)
        first = line.resolve()
    for _ in range(4):
        with pytest.raises(BoardUnreachableError, match=r"plugged in|line is down|Input/output"):
            await board.read()
    (seen,) = links.buses([board])
    assert seen.code in {"bus.serial_down", "bus.closed"}
    with contextlib.ExitStack() as held:
        if not first.exists():  # so that the adapter comes back under another number
            near, far = os.openpty()
            held.callback(os.close, near)
            held.callback(os.close, far)
        async with serving(line, device):
            async with asyncio.timeout(30):
                while True:
                    try:
                        (reading,) = await board.read()
                        break
                    except BoardUnreachableError:
                        await asyncio.sleep(0.05)
            assert reading.applied_limit == SIXTEEN
            assert links.buses([board])[0].code == "bus.ok"
            await board.close()


async def test_a_line_that_is_not_there_says_what_to_do() -> None:
    board = board_on(Path("/nowhere/usb-adapter"))
    with pytest.raises(BoardUnreachableError, match=r"cannot open /nowhere.*plugged in"):
        await board.open()
    await board.close()


async def test_a_silent_line_is_opened_anew_now_and_then(tmp_path: Path) -> None:
    """A USB adapter can die silently: only opening it again wakes it."""
    async with serving(tmp_path / "line", a_board()) as (answers,):
        dialled = 0

        def dial(link: ModbusLink) -> Any:
            nonlocal dialled
            dialled += 1
            return open_serial(link)

        link = ModbusLink(kind="serial", device=str(tmp_path / "line"), timeout_s=0.05)
        board = SerialBoard(SerialPort(link, dial=dial), 1)
        async with opened(board):
            answers.silent_until = float("inf")
            for _ in range(7):
                with pytest.raises(BoardUnreachableError):
                    await board.read()
            assert dialled == 2


async def test_the_boards_own_failsafe_takes_over_and_ends(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board()) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        await board.set_limit(1, SIXTEEN)
        wanted = Failsafe(timeout_s=10, fallback=MilliAmperes(6_000))
        assert await board.arm_failsafe(wanted) == wanted
        device = answers.board
        device._fed_at -= 11
        device.advance(answers.clock())
        assert device.limit(device.evses[1]) == 6_000
        assert (await board.read())[0].applied_limit == 16_000, "asking feeds it"
        with pytest.raises(BoardRefusedError, match="bad value"):
            await board.arm_failsafe(Failsafe(timeout_s=2, fallback=MilliAmperes(6_000)))
        await board.restore_failsafe()
        assert device.evses[1].timeout_s == 0


async def test_it_goes_to_its_loader_only_while_nothing_flows(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(speed=20.0)) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        await board.set_limit(1, SIXTEEN)
        answers.board.plug(Vehicle())
        await board.release(1)
        async with asyncio.timeout(30):
            while (await board.read())[0].current[0] != SIXTEEN:
                await asyncio.sleep(0.02)
        with pytest.raises(BoardUnreachableError, match="not now"):
            await board.enter_loader()
        await board.withhold(1)
        await board.enter_loader()
        assert answers.board.in_loader
        with pytest.raises(BoardRefusedError, match="unknown command"):
            await board.read()
        with pytest.raises(BoardRefusedError, match=r"in its loader 1\.0\.0.*install"):
            await board.open()


async def test_after_its_own_restart_it_is_withheld(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(speed=20.0)) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        await board.set_limit(1, SIXTEEN)
        await board.release(1)
        assert not (await board.read())[0].restarted
        answers.board.reset_board()
        (reading,) = await board.read()
        assert reading.restarted
        assert (reading.applied_limit, reading.state) == (0, IecState.NO_VEHICLE)
        assert not answers.board.evses[1].released


async def test_a_lower_dial_inside_is_told_as_a_refusal(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board()) as (answers,),
        opened(board_on(tmp_path / "line")) as board,
    ):
        answers.board.set_ceiling(10_000)
        with pytest.raises(BoardRefusedError, match="applies 10000 mA"):
            await board.set_limit(1, SIXTEEN)


@pytest.mark.parametrize(
    ("device", "configured", "reason"),
    [
        ({"phases": 1}, {}, r"is 'one_phase'; add it"),
        ({}, {"options": ("one_phase",)}, r"is not 'one_phase'; take it out"),
        ({}, {"options": ("billing_grade",)}, r"is not 'billing_grade'; take it out"),
        ({}, {"evses": 2}, r"has 1 EVSEs, 2 are configured"),
    ],
)
async def test_a_board_that_is_another_than_configured_is_refused(
    device: dict[str, Any], configured: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    async with serving(tmp_path / "line", a_board(**device)):
        board = board_on(tmp_path / "line", **configured)
        with pytest.raises(BoardRefusedError, match=reason):
            await board.open()
        await board.close()


async def test_another_major_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = a_board()
    told = device._identity()
    monkeypatch.setattr(device, "_identity", lambda: replace(told, protocol=(2, 0)))
    async with serving(tmp_path / "line", device):
        board = board_on(tmp_path / "line")
        with pytest.raises(BoardRefusedError, match=r"speaks protocol 2\.0, this agent 1\.0"):
            await board.open()
        await board.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": ("fast",)}, "no option 'fast'; it has one_phase, billing_grade"),
        ({"evses": 5}, "1 to 4 EVSEs, not 5"),
        ({"address": 248}, "1 to 247, not 248"),
    ],
)
def test_what_no_board_can_be_is_said_before_it_is_asked(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        board_on(Path("/dev/null"), **changes)


def test_a_line_has_one_language() -> None:
    ports = PortPool()
    board_on(Path("/dev/usb-one"), ports=ports)
    link = ModbusLink(kind="rtu", device="/dev/usb-one")
    with pytest.raises(ValueError, match="devices of another kind already"):
        open_board(BoardConfig(profile="abb_terra_ac", link=link), ports)


@dataclass
class Transceiver:
    """A line whose RTS lets it send, noting what was done in which order."""

    near: int
    kernel: bool = False
    told: list[str] = field(default_factory=list)

    def fileno(self) -> int:
        return self.near

    def close(self) -> None:
        self.told.append("closed")

    @property
    def rts(self) -> bool:
        return self.told[-1] == "rts up"

    @rts.setter
    def rts(self, up: bool) -> None:
        self.told.append(f"rts {'up' if up else 'down'}")

    @property
    def rs485_mode(self) -> None:
        return None

    @rs485_mode.setter
    def rs485_mode(self, mode: Any) -> None:
        if not self.kernel:
            raise ValueError("Failed to set RS485 mode")
        self.told.append(f"kernel sends at {mode.rts_level_for_tx}")


@pytest.mark.parametrize(
    ("setting", "kernel", "expected"),
    [
        ("high", False, ["rts down", "rts up", "sent", "rts down", "closed"]),
        ("low", False, ["rts up", "rts down", "sent", "rts up", "closed"]),
        ("high", True, ["kernel sends at True", "sent", "closed"]),
        ("none", False, ["sent", "closed"]),
    ],
)
async def test_rts_lets_the_transceiver_send_and_then_listen(
    setting: Any, kernel: bool, expected: list[str]
) -> None:
    far, near = os.openpty()
    tty.setraw(near)
    os.set_blocking(near, False)
    transceiver = Transceiver(near, kernel)
    answers = BoardAnswers(a_board(), asyncio.get_running_loop().time)

    def heard() -> None:
        octets = os.read(far, 1024)
        transceiver.told.append("sent")
        for frame in answers.hear(octets):
            os.write(far, frame)

    asyncio.get_running_loop().add_reader(far, heard)
    link = ModbusLink(kind="serial", device="/dev/usb", timeout_s=5, rts=setting, baudrate=9600)
    port = SerialPort(link, dial=lambda _: transceiver)
    port.attach()
    await port.request(1, Command.IDENTITY)
    await port.detach()
    assert transceiver.told == expected
    asyncio.get_running_loop().remove_reader(far)
    os.close(far)
    os.close(near)


async def test_a_technician_sees_every_field_raw_and_as_understood(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "line", a_board(evses=2)) as (answers,),
        opened(board_on(tmp_path / "line", evses=2)) as board,
    ):
        dumps = {(one.evse, one.name): one for one in await dump_board("left", board)}
        assert len(dumps) == 2 * len(PLACES)
        warm = dumps[1, "temperature"]
        assert (warm.raw, warm.value, warm.unit, warm.address) == ("01 9C", 412, "0.1 °C", "+41")
        assert (dumps[2, "state"].raw, dumps[2, "state"].value) == ("41", "A")
        assert dumps[1, "voltage_l1"].value == 230_000
        assert dumps[1, "flags"].value == "restarted"
        answers.silent_until = float("inf")
        (silent,) = await dump_board("left", board)
        assert "no answer within" in silent.note


def test_the_places_of_a_reading_cover_it_without_gaps() -> None:
    at = 1
    for _, offset, size, _ in PLACES:
        assert offset == at
        at += size
    assert at == READING.size
