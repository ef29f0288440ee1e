"""What other suites rely on in the fake board beyond the port's contract."""

from __future__ import annotations

import pytest

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Failsafe, IecState
from edge_agent.hardware.testing import FakePowerBoard, ManualClock
from protocols.quantities import MilliAmperes, WattHours


async def charging(clock: ManualClock) -> FakePowerBoard:
    board = FakePowerBoard(clock)
    board.plug()
    await board.release(1)
    await board.set_limit(1, MilliAmperes(16_000))
    return board


async def test_energy_is_current_times_voltage_times_time() -> None:
    clock = ManualClock()
    board = await charging(clock)
    clock.advance(1800)
    (reading,) = await board.read()
    assert reading.state is IecState.CHARGING
    assert reading.power == 11_040
    assert reading.energy == 5_520
    assert board.true_energy() == 5_520


async def test_a_new_session_resets_the_register_but_not_the_truth() -> None:
    clock = ManualClock()
    board = await charging(clock)
    clock.advance(3600)
    board.unplug()
    await board.withhold(1)
    assert (await board.read())[0].energy == 11_040
    board.plug()
    await board.release(1)
    clock.advance(3600)
    assert (await board.read())[0].energy == 11_040
    assert board.true_energy() == WattHours(22_080)


async def test_the_watchdog_falls_back_in_the_middle_of_a_silent_hour() -> None:
    clock = ManualClock()
    board = await charging(clock)
    await board.arm_failsafe(Failsafe(timeout_s=1800, fallback=MilliAmperes(6_000)))
    board.go_silent()
    clock.advance(3600)
    assert board.drawn_current() == 6_000
    assert board.true_energy() == 5_520 + 2_070


async def test_silence_raises_and_records_what_was_asked() -> None:
    board = FakePowerBoard(ManualClock())
    board.go_silent()
    with pytest.raises(BoardUnreachableError):
        await board.withhold(1)
    board.come_back()
    await board.read()
    assert board.calls == ["withhold 1", "read"]


async def test_a_refusal_happens_once() -> None:
    board = FakePowerBoard(ManualClock())
    board.refuse("locked")
    with pytest.raises(BoardRefusedError, match="locked"):
        await board.set_limit(1, MilliAmperes(10_000))
    assert await board.set_limit(1, MilliAmperes(10_000)) == 10_000


async def test_doubted_fields_are_none_and_named() -> None:
    board = FakePowerBoard(ManualClock())
    board.doubt("energy", "current")
    (reading,) = await board.read()
    assert reading.energy is None
    assert reading.current == (None, None, None)
    assert reading.suspect == {"energy", "current"}
