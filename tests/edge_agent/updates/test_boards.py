"""Firmware for boards through a whole agent: two boards of our own, with STM32s, on one line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ota_world import World

from edge_agent import control, main
from edge_agent.config import load
from edge_agent.control import NotRunningError, Request
from edge_agent.updates import images
from edge_agent.updates.boards import WANTED
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.stm32 import Stm32
from karvon.simulator.serial_board import BoardAnswers, SimulatedSerialBoard
from karvon.simulator.server import PtyServer
from karvon.simulator.vehicle import NANOJOULES_PER_WH, Vehicle
from protocols import serial_board as wire
from protocols.release import Encoding, Kind, Requires

NAME = "power-stage"
HW = "KPB-SIM"
SIZE = 6000
CONFIG = """
station = "UZ*KRV*E1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
kind = "serial_board"
link = {{ kind = "serial", device = "{line}", unit = 1, timeout_s = 1 }}
firmware = {{ name = "power-stage", loader = "stm32", hw_ids = ["KPB-SIM"] }}
[[boards]]
name = "right"
kind = "serial_board"
evses = [2]
link = {{ kind = "serial", device = "{line}", unit = 2, timeout_s = 1 }}
firmware = {{ name = "power-stage", loader = "stm32", hw_ids = ["KPB-SIM"] }}
[updates]
images_root = "images.root.json"
folder = "state"
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


def chip(version: str = "1.0.0", **said: Any) -> Stm32:
    made = Stm32(boot0=False)
    made.flash.program(0, make_image(SIZE, version, hw_id=HW, **said))
    made.power_on()
    return made


@dataclass
class Rig:
    """The two boards, and agents one after the other."""

    folder: Path
    world: World
    boards: list[BoardAnswers] = field(default_factory=list)

    @property
    def versions(self) -> list[str | None]:
        chips = (answers.board.chip for answers in self.boards)
        seen = (None if one is None else one.running() for one in chips)
        return [None if one is None else one.version for one in seen]

    def chip(self, at: int) -> Stm32:
        found = self.boards[at].board.chip
        assert found is not None
        return found

    def release(self, version: str, hw: str = HW, **said: Any) -> None:
        """A board's release on the stick."""
        requires = said.pop("requires", Requires())
        made = make_image(SIZE, version, hw_id=HW, **said)
        self.world.maker.release(
            version, kind=Kind.BOARD, name=NAME, hw_ids=(hw,), encoding=Encoding.ZSTD,
            requires=requires, made=made,
        )  # fmt: skip
        self.world.maker.publish(self.world.out)

    async def ask(self, do: str, **more: Any) -> Any:
        return await control.ask(self.folder / "journal", Request(do=do, **more))

    async def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(150):
                while True:
                    try:
                        status = await self.ask("status")
                        if holds(status):
                            return status
                    except NotRunningError:
                        pass  # the agent has not made its socket yet
                    await asyncio.sleep(0.02)  # polls the agent over its socket
        except TimeoutError:
            pytest.fail(f"never {what}: {status}")

    async def ready(self) -> None:
        await self.stand("Available")

    async def stand(self, status: str) -> None:
        """Both EVSEs do."""
        await self.until(lambda s: [e["status"] for e in s["evses"]] == [status, status], status)

    async def update(self, *states: str) -> dict[str, Any]:
        """From the stick, until it ends in one of these states."""
        await self.ask("update", device=str(self.world.out))
        return await self.until(lambda s: told(s) in states, f"{states}")

    def wanted(self) -> Any:
        path = self.world.controller.folder / images.FOLDER / WANTED
        return msgspec.json.decode(path.read_bytes())


def told(status: dict[str, Any]) -> str:
    updates = status["updates"]
    return f"{updates['phase']} {updates['last']}"


@pytest.fixture
async def rig(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    world.job()  # hands out the roots
    monkeypatch.setenv("KARVON_ROOT", str(world.controller.folder))
    made = Rig(world.folder, world)
    clock = asyncio.get_running_loop().time
    for address in (1, 2):
        board = SimulatedSerialBoard(address=address, speed=60.0, now=clock(), chip=chip())
        made.boards.append(BoardAnswers(board, clock))
    line = PtyServer(*made.boards, echo=False)
    await line.start(str(tmp_path / "usb-boards"))
    (world.folder / "agent.toml").write_text(CONFIG.format(line=tmp_path / "usb-boards"))
    yield made
    await line.close()


@asynccontextmanager
async def agent(rig: Rig) -> AsyncIterator[None]:
    running = asyncio.create_task(main.run(load(rig.folder / "agent.toml")))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def charges(rig: Rig, at: int) -> None:
    """A session of some watt-hours at that board."""
    board = rig.boards[at].board
    before = board.evses[1].lifetime_nj
    board.plug(Vehicle(wants_wh=60, max_current=16_000))
    await rig.ask("token", evse=at + 1, token="CARD")
    async with asyncio.timeout(150):
        while board.evses[1].lifetime_nj - before < 60 * NANOJOULES_PER_WH:
            await asyncio.sleep(0.05)  # polls the vehicle's meter
    board.unplug()


async def test_ota_f45_one_whose_self_test_fails_goes_back_on_both(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        rig.release("1.1.0")
        await rig.update("idle Installed")
        assert rig.versions == ["1.1.0", "1.1.0"]
        rig.release("1.2.0", healthy=False)
        status = await rig.update("idle InstallVerificationFailed")
        assert "self-test fails" in status["updates"]["trouble"]
        assert rig.versions == ["1.1.0", "1.1.0"]
        await rig.ready()
        await charges(rig, 1)


async def test_ota_f48_a_board_swapped_while_the_agent_runs(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        rig.release("1.1.0")
        await rig.update("idle Installed")
        for swapped in rig.boards:
            swapped.silent_until = math.inf
            await rig.until(lambda s: "board.silent" in codes(s), "missed")
            swapped.board.chip = chip("1.0.0")
            swapped.board.reset_board()
            swapped.silent_until = 0.0
            await rig.until(lambda _: rig.versions == ["1.1.0", "1.1.0"], "brought up to it")
            await rig.ready()


async def test_ota_f40_another_hardware_is_refused_before_anything_is_erased(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        rig.release("1.1.0", hw="KPB-OTHER")
        rig.release("9.0.0", requires=Requires(board_protocol="9.0"))
        await rig.ask("update", device=str(rig.world.out))
        await rig.until(lambda s: s["updates"]["phase"] == "fetching", "looked for")
        await rig.until(lambda s: s["updates"]["phase"] == "idle", "done looking")
        assert rig.versions == ["1.0.0", "1.0.0"]
        assert not rig.chip(0).erased


async def test_a_technician_aborts_while_somebody_charges(rig: Rig) -> None:
    rig.release("1.1.0")
    async with agent(rig):
        await rig.ready()
        rig.boards[0].board.plug(Vehicle(wants_wh=50_000))
        await rig.ask("token", evse=1, token="CARD")
        await rig.until(lambda s: any(e["transaction"] for e in s["evses"]), "charging")
        await rig.ask("update", device=str(rig.world.out))
        await rig.until(lambda s: s["updates"]["phase"] == "waiting", "waiting")
        await rig.until(lambda s: s["evses"][1]["status"] == "Unavailable", "held")
        assert "aborted" in (await rig.ask("abort"))["text"]
        await rig.until(lambda s: told(s) == "idle InstallationFailed", "told")
        await rig.until(lambda s: s["evses"][1]["status"] == "Available", "let go")
        assert "no update" in (await rig.ask("abort"))["error"]
    assert rig.versions == ["1.0.0", "1.0.0"]


async def test_versions_that_differ_let_nobody_charge(rig: Rig) -> None:
    rig.boards[1].board.chip = chip("0.9.0")
    async with agent(rig):
        status = await rig.until(lambda s: "different versions" in s["updates"]["trouble"], "told")
        assert "left 1.0.0, right 0.9.0" in status["updates"]["trouble"]
        await rig.stand("Unavailable")
    rig.boards[1].board.chip = chip("1.0.0")
    async with agent(rig):
        await rig.ready()


async def test_a_board_of_another_protocol_takes_nothing_but_firmware(rig: Rig) -> None:
    for answers in rig.boards:
        answers.board.chip = chip("0.5.0", protocol=wire.MAJOR + 1)
    async with agent(rig):
        status = await rig.until(lambda s: codes(s) == {"board.not_opened"}, "refused")
        assert "Available" not in [evse["status"] for evse in status["evses"]]
        rig.release("1.1.0")
        await rig.update("idle Installed")
        assert rig.versions == ["1.1.0", "1.1.0"]
        await rig.ready()


def codes(status: dict[str, Any]) -> set[str]:
    """How its boards stand."""
    return {link["code"] for link in status["links"] if link["kind"] == "board"}
