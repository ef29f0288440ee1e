"""The driver on devices that are nothing like the ABB: the profile alone makes the difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.hardware.board import BoardRefusedError, Failsafe, IecState
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, find_profile, open_board
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running
from protocols.quantities import MilliAmperes

PROFILES = Path(__file__).parents[2] / "vectors/profiles"


@asynccontextmanager
async def opened(
    name: str, evses: int = 1, prepare: Callable[[SimulatedCharger], None] | None = None
) -> AsyncIterator[tuple[ModbusBoard, SimulatedCharger, Running]]:
    beside = PROFILES / f"{name}.yaml"
    path = str(beside) if beside.exists() else name
    profile = find_profile(path)
    loop = asyncio.get_running_loop()
    unit = profile.transports.tcp.unit if profile.transports.tcp else 1
    device = SimulatedCharger(profile, evses=evses, unit=unit, speed=20, now=loop.time())
    if prepare:
        prepare(device)
    running = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=loop.time)
    await running.start()
    host, _, port = running.addresses["tcp"].rpartition(":")
    link = ModbusLink(host=host, port=int(port), timeout_s=0.3)
    board = open_board(BoardConfig(profile=path, link=link))
    assert isinstance(board, ModbusBoard)
    try:
        await board.open()
        yield board, device, running
    finally:
        await board.close()
        await running.close()


async def until(board: ModbusBoard, evse: int, state: IecState) -> None:
    async with asyncio.timeout(10):
        while (await board.read())[evse - 1].state is not state:
            await asyncio.sleep(0.02)


async def test_a_life_register_keeps_the_watchdog_quiet() -> None:
    async with opened("webasto_next") as (board, device, running):
        armed = await board.arm_failsafe(Failsafe(timeout_s=20, fallback=MilliAmperes(0)))
        assert armed == Failsafe(timeout_s=20, fallback=MilliAmperes(0))
        fed = device._fed_at
        await board.read()
        assert device._fed_at > fed, "the first read after arming writes the life register"
        at = device._fed_at
        await board.read()
        assert device._fed_at == at, "reads alone do not feed it, and half the timeout is not over"
        running.control.execute({"do": "plug"})
        await board.release(1)
        assert await board.set_limit(1, MilliAmperes(10_000)) is None, "confirmed by effect"
        await until(board, 1, IecState.CHARGING)


async def test_limits_however_often_set_are_no_life_sign() -> None:
    async with opened("webasto_next") as (board, device, _):
        await board.arm_failsafe(Failsafe(timeout_s=20, fallback=MilliAmperes(0)))
        await board.set_limit(1, MilliAmperes(10_000))
        fed = device._fed_at
        await board.read()
        assert device._fed_at > fed, "the limit just set does not put off the life register"


async def test_two_sockets_are_two_units_with_their_own_states() -> None:
    async with opened("two_sockets", evses=2) as (board, device, running):
        assert board.device.binding.order == "msw_first"
        assert "process" in board.device.binding.fields()
        assert board.identity == "Nobody Twin 22"
        running.control.execute({"do": "plug", "evse": 2})
        applied = await board.set_limit(2, MilliAmperes(16_000))
        assert applied is not None
        assert abs(applied - 16_000) <= 2, "16 A on three phases is 11 040 W and back"
        await until(board, 2, IecState.CHARGING)
        one, two = await board.read()
        assert (one.state, two.state) == (IecState.NO_VEHICLE, IecState.CHARGING)
        assert device.evses[1].limit == 32_000


async def test_a_suspend_register_pauses_where_zero_would_end_the_session() -> None:
    async with opened("two_sockets", evses=2) as (board, device, running):
        running.control.execute({"do": "plug", "evse": 1})
        await board.set_limit(1, MilliAmperes(16_000))
        await until(board, 1, IecState.CHARGING)
        assert await board.set_limit(1, MilliAmperes(0)) is None
        await until(board, 1, IecState.CONNECTED)
        assert device.violations == []
        await board.set_limit(1, MilliAmperes(16_000))
        await until(board, 1, IecState.CHARGING)


async def test_without_a_release_register_withholding_is_a_pause_that_a_limit_does_not_lift() -> (
    None
):
    async with opened("two_sockets", evses=2) as (board, device, running):
        running.control.execute({"do": "plug", "evse": 1})
        await board.withhold(1)
        await board.set_limit(1, MilliAmperes(16_000))
        assert device.evses[1].paused
        await board.release(1)
        await until(board, 1, IecState.CHARGING)
        assert not device.evses[1].paused


async def test_a_device_without_a_watchdog_says_so() -> None:
    async with opened("two_sockets", evses=2) as (board, _, _):
        failsafe = Failsafe(timeout_s=30, fallback=MilliAmperes(6_000))
        assert await board.arm_failsafe(failsafe) is None


async def test_another_device_behind_the_address_is_refused() -> None:
    def other(device: SimulatedCharger) -> None:
        assert device.profile.simulator
        device.profile.simulator.defaults["maker_name"] = "Fridge"
        device.refresh()

    with pytest.raises(BoardRefusedError, match="maker_name is 'Fridge'"):
        async with opened("two_sockets", prepare=other):
            raise AssertionError("opened a fridge")
