"""A whole agent, as `karvon agent run` puts it together, with two boards of our own on one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import control, main
from edge_agent.config import load
from edge_agent.control import NotRunningError, Request
from edge_agent.journal import JournalView
from karvon.simulator.serial_board import BoardAnswers, SimulatedSerialBoard
from karvon.simulator.server import PtyServer
from karvon.simulator.vehicle import NANOJOULES_PER_WH, Vehicle

SPEED = 120.0
CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
kind = "serial_board"
link = {{ kind = "serial", device = "{line}", unit = 1, timeout_s = 1 }}
[[boards]]
name = "right"
kind = "serial_board"
evses = [2, 3]
link = {{ kind = "serial", device = "{line}", unit = 2, timeout_s = 1 }}
[authorization]
unknown = "allow"
[times]
poll_s = 0.1
deadline_s = 4
lost_after_s = 2
raise_after_s = 0
[metering]
margin = 600
"""


@dataclass
class Live:
    """The running agent and the two boards."""

    config: Path
    left: BoardAnswers
    right: BoardAnswers

    async def ask(self, do: str, **more: Any) -> Any:
        return await control.ask(self.config.with_name("journal"), Request(do=do, **more))

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                try:
                    status: dict[str, Any] = await self.ask("status")
                    if holds(status):
                        return status
                except NotRunningError:
                    pass  # the agent has not made its socket yet
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Live]:
    clock = asyncio.get_running_loop().time
    boards = [
        SimulatedSerialBoard(address=1, speed=SPEED, now=clock()),
        SimulatedSerialBoard(address=2, evses=2, speed=SPEED, now=clock()),
    ]
    left, right = (BoardAnswers(board, clock) for board in boards)
    line = PtyServer(left, right, echo=True)
    await line.start(str(folder / "usb-boards"))
    path = folder / "agent.toml"
    path.write_text(CONFIG.format(line=folder / "usb-boards"))
    agent = asyncio.create_task(main.run(load(path)))
    try:
        yield Live(path, left, right)
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
        await line.close()


def full(answers: BoardAnswers, evse: int) -> bool:
    vehicle = answers.board.evses[evse].vehicle
    return vehicle is not None and vehicle.full and not vehicle.current


def state_of(status: dict[str, Any], evse: int) -> str:
    return next((str(one["charging_state"]) for one in status["evses"] if one["evse"] == evse), "")


def codes(status: dict[str, Any]) -> dict[str, str]:
    return {link["name"]: link["code"] for link in status["links"] if link["kind"] == "board"}


def line_of(status: dict[str, Any]) -> dict[str, Any]:
    """The one line that both share."""
    (line,) = [link for link in status["links"] if link["kind"] == "bus"]
    return line


async def ended(folder: Path, count: int) -> dict[int, int]:
    """The energy of so many sessions by EVSE, once the journal has the end of each."""
    async with asyncio.timeout(60):
        while True:
            with JournalView(folder) as journal:
                found = {one.evse: one.energy_wh for one in journal.sessions(10) if one.ended}
            if len(found) == count:
                return found
            await asyncio.sleep(0.02)


async def test_sessions_on_a_shared_line_are_billed_as_flowed(tmp_path: Path) -> None:
    async with running(tmp_path) as live:
        status = await live.until(lambda s: codes(s) == {"left": "board.ok", "right": "board.ok"})
        line = line_of(status)
        dumps = await live.ask("read", device="right")
        assert {(one["device"], one["evse"]) for one in dumps} == {("right", 1), ("right", 2)}
        assert (line["code"], line["name"]) == ("bus.ok", str(tmp_path / "usb-boards"))
        for answers, mine, evse in ((live.left, 1, 1), (live.right, 2, 3)):
            answers.board.plug(Vehicle(wants_wh=150), mine)
            await live.until(
                lambda s, evse=evse: (
                    state_of(s, evse) in {"EVConnected", "Idle"}
                    and any(e["evse"] == evse and e["status"] != "Available" for e in s["evses"])
                )
            )
            await live.ask("token", token="CARD", evse=evse)
        await live.until(lambda _: full(live.left, 1) and full(live.right, 2))
        live.left.board.unplug(1)
        live.right.board.unplug(2)
        billed = await ended(tmp_path / "journal", 2)
        flowed = {
            1: live.left.board.evses[1].lifetime_nj // NANOJOULES_PER_WH,
            3: live.right.board.evses[2].lifetime_nj // NANOJOULES_PER_WH,
        }
        assert flowed == {1: 150, 3: 150}
        assert billed == flowed
        assert not live.left.board.violations + live.right.board.violations


async def test_one_dead_board_leaves_the_other_charging(tmp_path: Path) -> None:
    async with running(tmp_path) as live:
        await live.until(lambda s: codes(s) == {"left": "board.ok", "right": "board.ok"})
        live.left.board.plug(Vehicle())
        await live.until(lambda s: any(e["status"] == "Occupied" for e in s["evses"]))
        await live.ask("token", token="CARD", evse=1)
        await live.until(lambda s: state_of(s, 1) == "Charging")
        live.right.silent_until = float("inf")
        status = await live.until(
            lambda s: (
                codes(s) == {"left": "board.ok", "right": "board.silent"}
                and [e["status"] for e in s["evses"]] == ["Occupied", "Faulted", "Faulted"]
            )
        )
        assert state_of(status, 1) == "Charging"
        await live.until(lambda s: line_of(s)["code"] == "bus.partly")
        live.right.silent_until = 0.0
        status = await live.until(lambda s: codes(s)["right"] == "board.ok")
        assert state_of(status, 1) == "Charging"


async def test_a_board_that_restarts_is_told_again_and_the_session_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as live:
        await live.until(lambda s: codes(s) == {"left": "board.ok", "right": "board.ok"})
        live.left.board.plug(Vehicle())
        await live.until(lambda s: any(e["status"] == "Occupied" for e in s["evses"]))
        await live.ask("token", token="CARD", evse=1)
        await live.until(lambda s: state_of(s, 1) == "Charging")
        live.left.board.reset_board()
        assert live.left.board.evses[1].limit == 0
        (before,) = (await live.ask("status"))["sessions"]
        evse = live.left.board.evses[1]
        await live.until(lambda _: evse.released and evse.limit >= 6_000)
        status = await live.until(lambda s: state_of(s, 1) == "Charging")
        (after,) = status["sessions"]
        assert after["transaction"]["id"] == before["transaction"]["id"]
        assert codes(status)["left"] == "board.ok"
        assert not live.left.board.violations
