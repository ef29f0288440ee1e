"""The real agent in its slot puts firmware into boards, and is killed while it does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from ota_real import RealController, real_image
from ota_server import Server
from ota_world import HARDWARE, World

from edge_agent.updates import launcher
from firmware_bridge.simulator.flash import make_image
from karvon.demo.lines import ask
from karvon.demo.process import Child, free_port
from protocols.agent_link import UpdateState
from protocols.release import Encoding, Kind

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
NAME: Final = "power-stage"
HW: Final = "KPB-SIM"
SIZE: Final = 4_000
LONG: Final = 24_000
"""Some hundred blocks: time to be killed in."""
BOARD: Final = """
[[boards]]
name = "{name}"
kind = "serial_board"
evses = [{evse}]
link = {{ kind = "serial", device = "{line}", unit = 1, timeout_s = 1 }}
firmware = {{ name = "power-stage", loader = "stm32", hw_ids = ["KPB-SIM"] }}
"""


class Board:
    """One on a line of its own; its flash outlives its process."""

    def __init__(self, folder: Path, name: str, evse: int) -> None:
        self.name, self.evse = name, evse
        self.line, self.flash = folder / name, folder / f"{name}.flash"
        self.control = free_port()
        arguments = [
            *("sim", "board", "--pty", str(self.line), "--flash", str(self.flash), "--json"),
            *("--control", f"127.0.0.1:{self.control}", "--speed", "20"),
        ]
        self.process = Child(name, arguments, folder)

    def start(self) -> None:
        self.process.start()
        self.process.ready()

    def swap(self) -> None:
        """Another one, as it comes from the factory, in the place of this."""
        self.process.stop()
        self.flash.unlink()
        self.start()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.control, {"do": do, **arguments})

    def version(self) -> str | None:
        """None: no application can run."""
        found: str | None = self.ask("status")["firmware"]
        return found


class Rig:
    """A charger on TCP and two boards with firmware, one agent for them, and a web server."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.server = Server(self.world.out)
        self.world.job()  # hands out the roots
        self.boards = (Board(folder, "left", 2), Board(folder, "right", 3))
        self.controller = RealController(
            folder,
            f'url = "{self.server.url}"\nhardware = "{HARDWARE}"\n'
            f'images_root = "{folder}/images.root.json"\n'
            f'director_root = "{folder}/director.root.json"\n'
            + "".join(BOARD.format(**vars(board)) for board in self.boards),
        )
        self.first = self.controller.install(real_image("1.0.0"))
        launcher.write(self.controller.root, launcher.Record(confirmed=self.first))

    def start(self) -> None:
        for board in self.boards:
            board.start()
        self.controller.start()
        self.stand("Available")

    def end(self) -> None:
        self.controller.end()
        for board in self.boards:
            board.process.stop()
        self.server.close()

    def release(
        self, version: str, *, size: int = SIZE, hw: str = HW, healthy: bool = True
    ) -> None:
        """A board's release: published, named by the director, and the agent told to look."""
        made = make_image(size, version, hw_id=hw, healthy=healthy)
        path, _ = self.world.maker.release(
            version, kind=Kind.BOARD, name=NAME, hw_ids=(hw,), encoding=Encoding.ZSTD, made=made
        )
        self.world.maker.publish(self.world.out)
        self.world.ask(path)
        self.controller.ask(do="update")

    def versions(self) -> list[str | None]:
        return [board.version() for board in self.boards]

    def told(self) -> str:
        return self.controller.service.log.read_text()

    def hears(self, text: str) -> None:
        self.controller.until(lambda: text in self.told(), text)

    def runs(self, version: str) -> None:
        self.controller.until(lambda: self.versions() == [version] * 2, f"boards with {version}")

    def shown(self) -> dict[str, Any]:
        """What a technician sees of the boards' firmware."""
        status = self.controller.status()
        found: dict[str, Any] = {} if status is None else status["updates"]["board"]
        return found

    def another_agent(self) -> str:
        """A slot with the same files, confirmed after the first; returns its name."""
        root, name = self.controller.root, "0" * 64
        source, copy = launcher.path_of(root, self.first), launcher.path_of(root, name)
        shutil.copytree(source, copy, symlinks=True, copy_function=os.link)
        launcher.write(root, launcher.Record(confirmed=name, previous=self.first))
        return name

    def updates(self, what: str) -> str:
        status = self.controller.status()
        return "" if status is None else str(status["updates"][what])

    def runs_from(self, slot: str) -> bool:
        return self.updates("slot") == slot

    def stands(self) -> list[str]:
        status = self.controller.status()
        return [] if status is None else [str(evse["status"]) for evse in status["evses"]]

    def stand(self, status: str) -> None:
        self.controller.until(lambda: self.stands() == [status] * 3, f"EVSEs {status}")

    def charges(self, board: Board) -> None:
        before = board.ask("status")["evses"][0]["energy_wh"]
        board.ask("plug", evse=1, wants_wh=40, max_current_ma=16_000)
        self.controller.ask(do="token", token="CARD", evse=board.evse)
        self.controller.until(
            lambda: board.ask("status")["evses"][0]["energy_wh"] - before >= 40, "energy"
        )
        board.ask("unplug", evse=1)
        assert not board.ask("status")["violations"]
        self.stand("Available")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("boards"))
    try:
        rig.start()
        yield rig
    finally:
        rig.end()


def test_ota_f42_f45_f47_the_agent_is_killed_between_two_boards(rig: Rig, kills: Any) -> None:
    """One has the new version, the other a half of it: nobody charges until both are whole.

    What is bad after that goes back to it, and is told.
    """
    rig.release("2.0.0", size=LONG)
    rig.controller.until(
        lambda: (seen := rig.shown()).get("flashing") == "right" and seen.get("done", 0) > 0,
        "the second board to be written",
    )
    assert set(rig.stands()) == {"Unavailable"}
    rig.controller.service.kill()
    kills.count("update.flashing")
    assert rig.versions() == ["2.0.0", None]
    rig.runs("2.0.0")
    rig.hears(f"2.0.0 {UpdateState.INSTALLED}")
    rig.stand("Available")
    rig.charges(rig.boards[1])
    rig.release("2.1.0", healthy=False)
    rig.hears(f"2.1.0 {UpdateState.INSTALL_VERIFICATION_FAILED}")
    assert rig.versions() == ["2.0.0", "2.0.0"]
    rig.stand("Available")
    rig.charges(rig.boards[0])


def test_ota_f40_another_hardware_is_refused_before_anything_is_erased(rig: Rig) -> None:
    before = [board.flash.read_bytes() for board in rig.boards]
    rig.release("2.3.0", hw="KPB-OTHER")
    refused = "it is for KPB-OTHER, and this is KPB-SIM"
    rig.controller.until(lambda: refused in rig.updates("trouble"), refused)
    assert [board.flash.read_bytes() for board in rig.boards] == before
    assert rig.stands() == ["Available"] * 3


def test_ota_f46_f48_a_fallback_and_a_swapped_board(rig: Rig) -> None:
    """What the launcher starts instead brings its boards with it, one from the factory, too."""
    rig.release("3.0.0")
    rig.hears(f"3.0.0 {UpdateState.INSTALLED}")
    second = rig.another_agent()
    rig.controller.service.kill()
    rig.controller.until(lambda: rig.runs_from(second), "the second agent")
    rig.stand("Available")
    rig.release("3.1.0")
    rig.hears(f"3.1.0 {UpdateState.INSTALLED}")
    assert rig.versions() == ["3.1.0", "3.1.0"]
    rig.world.director.ask({})  # nothing is asked for any more
    (launcher.path_of(rig.controller.root, second) / launcher.COMPLETE).unlink()
    rig.controller.service.kill()
    rig.boards[1].swap()
    rig.controller.until(lambda: rig.runs_from(rig.first), "the agent before")
    rig.runs("3.0.0")
    rig.stand("Available")
    rig.charges(rig.boards[1])
