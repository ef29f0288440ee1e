"""One suite for every PowerBoard: the fake, Modbus over TCP and serial, and a board of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from edge_agent.hardware.board import (
    BoardUnreachableError,
    EvseReading,
    Failsafe,
    IecState,
    PowerBoard,
)
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, find_profile, open_board
from edge_agent.hardware.testing import FakePowerBoard, ManualClock
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running
from karvon.simulator.serial_board import SimulatedSerialBoard
from protocols.quantities import MilliAmperes

SIXTEEN = MilliAmperes(16_000)
SPEED = 20.0


class World(Protocol):
    """The vehicle's side of a board under test."""

    board: PowerBoard

    def do(self, verb: str) -> None: ...

    def true_wh(self) -> float: ...

    async def until(self, holds: Callable[[EvseReading], bool]) -> EvseReading: ...


class FakeWorld:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.fake = FakePowerBoard(self.clock)
        self.board: PowerBoard = self.fake

    def do(self, verb: str) -> None:
        {
            "plug": self.fake.plug,
            "unplug": self.fake.unplug,
            "fault": self.fake.fault,
            "clear": self.fake.clear,
            "silence": self.fake.go_silent,
            "back": self.fake.come_back,
        }[verb]()

    def true_wh(self) -> float:
        return float(self.fake.true_energy())

    async def until(self, holds: Callable[[EvseReading], bool]) -> EvseReading:
        for _ in range(100):
            (reading,) = await self.board.read()
            if holds(reading):
                return reading
            self.clock.advance(1)
        raise AssertionError(f"never held: {reading}")


class SimulatedWorld:
    def __init__(self, running: Running, config: BoardConfig) -> None:
        self.running = running
        self.board = open_board(config)

    def do(self, verb: str) -> None:
        command: dict[str, Any] = {"do": verb}
        if verb == "silence":
            command["seconds"] = 1000
        if verb == "back":
            command = {"do": "silence", "seconds": 0}
        self.running.control.execute(command)

    def true_wh(self) -> float:
        return float(self.running.control.status()["evses"][0]["energy_wh"])

    async def until(self, holds: Callable[[EvseReading], bool]) -> EvseReading:
        async with asyncio.timeout(10):
            while True:
                (reading,) = await self.board.read()
                if holds(reading):
                    return reading
                await asyncio.sleep(0.02)


def simulated(kind: str, line: str) -> Running:
    clock = asyncio.get_running_loop().time
    device = (
        SimulatedSerialBoard(speed=SPEED, now=clock())
        if kind == "serial_board"
        else SimulatedCharger(
            find_profile("abb_terra_ac"), evses=1, unit=1, speed=SPEED, now=clock()
        )
    )
    places = Places(tcp="127.0.0.1:0") if kind == "tcp" else Places(pty=line)
    return Running(device=device, places=places, clock=clock)


def configured(kind: str, running: Running) -> BoardConfig:
    if kind == "serial_board":
        link = ModbusLink(kind="serial", device=running.addresses["pty"], timeout_s=0.3)
        return BoardConfig(kind="serial_board", link=link)
    if kind == "rtu":
        link = ModbusLink(kind="rtu", device=running.addresses["pty"], timeout_s=0.3)
    else:
        host, _, port = running.addresses["tcp"].rpartition(":")
        link = ModbusLink(kind="tcp", host=host, port=int(port), timeout_s=0.3)
    return BoardConfig(profile="abb_terra_ac", link=link)


@pytest.fixture(params=["fake", "tcp", "rtu", "serial_board"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeWorld()
        await fake.board.open()
        yield fake
        return
    running = simulated(request.param, str(tmp_path / "line"))
    await running.start()
    world = SimulatedWorld(running, configured(request.param, running))
    await world.board.open()
    yield world
    await world.board.close()
    await running.close()


async def test_tells_who_it_is_and_what_it_can(world: World) -> None:
    assert world.board.identity
    (info,) = world.board.evses
    assert (info.evse, info.phases, info.min_current, info.max_current) == (1, 3, 6_000, 32_000)


async def test_a_plugged_vehicle_draws_nothing_until_released(world: World) -> None:
    assert (await world.board.read())[0].state is IecState.NO_VEHICLE
    await world.board.set_limit(1, SIXTEEN)
    world.do("plug")
    reading = await world.until(lambda r: r.state is not IecState.NO_VEHICLE)
    assert reading.state is IecState.CONNECTED
    assert reading.awaits_release
    assert reading.current == (0, 0, 0)
    assert world.true_wh() == 0


async def test_released_it_charges_at_the_limit_and_the_register_agrees(world: World) -> None:
    assert await world.board.set_limit(1, SIXTEEN) == SIXTEEN
    world.do("plug")
    await world.board.release(1)
    reading = await world.until(lambda r: r.energy is not None and r.energy >= 20)
    assert reading.state is IecState.CHARGING
    assert reading.current == (16_000, 16_000, 16_000)
    assert reading.voltage == (230_000, 230_000, 230_000)
    assert reading.power == 11_040
    assert reading.applied_limit == 16_000
    assert not reading.suspect
    await world.board.withhold(1)
    reading = await world.until(lambda r: r.state is IecState.CONNECTED)
    assert reading.energy is not None
    assert 0 <= world.true_wh() - reading.energy < 1


async def test_a_limit_above_the_rating_is_clamped(world: World) -> None:
    assert await world.board.set_limit(1, MilliAmperes(80_000)) == 32_000


async def test_below_the_minimum_is_a_pause_that_keeps_the_session(world: World) -> None:
    await world.board.set_limit(1, SIXTEEN)
    world.do("plug")
    await world.board.release(1)
    await world.until(lambda r: r.current[0] == 16_000)
    applied = await world.board.set_limit(1, MilliAmperes(5_999))
    assert applied is None or applied < 6_000
    reading = await world.until(lambda r: r.current == (0, 0, 0))
    assert reading.state is IecState.CONNECTED
    assert not reading.awaits_release
    await world.board.set_limit(1, SIXTEEN)
    await world.until(lambda r: r.state is IecState.CHARGING)


async def test_withhold_opens_the_contactor_and_release_closes_it(world: World) -> None:
    await world.board.set_limit(1, SIXTEEN)
    world.do("plug")
    await world.board.release(1)
    await world.until(lambda r: r.state is IecState.CHARGING)
    await world.board.withhold(1)
    reading = await world.until(lambda r: r.current == (0, 0, 0))
    assert (reading.state, reading.awaits_release) == (IecState.CONNECTED, False)
    await world.board.release(1)
    await world.until(lambda r: r.state is IecState.CHARGING)


async def test_a_fault_is_a_fault_until_it_is_cleared(world: World) -> None:
    world.do("plug")
    world.do("fault")
    reading = await world.until(lambda r: r.state is IecState.FAULT)
    assert reading.error_code != 0
    assert reading.current == (0, 0, 0)
    world.do("clear")
    await world.until(lambda r: r.state is IecState.CONNECTED)


async def test_unplugged_is_no_vehicle_and_the_last_energy_stays(world: World) -> None:
    await world.board.set_limit(1, SIXTEEN)
    world.do("plug")
    await world.board.release(1)
    await world.until(lambda r: r.energy is not None and r.energy > 5)
    await world.board.withhold(1)
    before = await world.until(lambda r: r.current == (0, 0, 0))
    world.do("unplug")
    reading = await world.until(lambda r: r.state is IecState.NO_VEHICLE)
    assert reading.energy == before.energy


async def test_silence_raises_and_never_repeats_an_old_value(world: World) -> None:
    before = (await world.board.read())[0]
    world.do("silence")
    for ask in (world.board.read, lambda: world.board.set_limit(1, SIXTEEN)):
        with pytest.raises(BoardUnreachableError, match=r"."):
            await ask()
    world.do("back")
    reading = await world.until(lambda r: True)
    assert reading.taken_at >= before.taken_at


async def test_the_failsafe_reads_back_as_armed(world: World) -> None:
    wanted = Failsafe(timeout_s=30, fallback=MilliAmperes(6_000))
    assert await world.board.arm_failsafe(wanted) == wanted
