"""The live view, driven as a technician drives it, beside a real agent on a simulated charger."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static, TabbedContent

from edge_agent.cli.viewing import View
from edge_agent.config import load
from edge_agent.wording import LANGUAGES, wording

Live = Any  # the fixture's class lives in conftest, which cannot be imported
EVERY_S = 0.05


def rows(view: View, name: str) -> list[list[str]]:
    table = view.query_one(f"#{name}-table", DataTable)
    return [[str(cell) for cell in table.get_row_at(y)] for y in range(table.row_count)]


def text(view: View, name: str) -> str:
    return str(view.query_one(f"#{name}", Static).render())


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await pilot.pause(0.02)


def view_of(live: Live, language: str = "en") -> View:
    return View(load(live.config), wording(language), every_s=EVERY_S)


async def test_every_tab_shows_what_is_so_now(live: Live) -> None:
    view = view_of(live)
    live.charger.control.execute({"do": "plug", "evse": 1})
    await live.ask("token", token="CARD")
    async with view.run_test(size=(160, 40)) as pilot:
        await until(pilot, lambda: len(rows(view, "links")) == 8)
        assert "Station TAS-1, agent" in text(view, "head")
        board = rows(view, "links")[1]
        assert board[:3] == ["board", "left", "ok"]
        assert board[4].startswith("answers: ABB")

        view.query_one("#tabs", TabbedContent).active = "evses"
        await until(pilot, lambda: "CARD" in str(rows(view, "evses")))
        assert "32.0 A board" in rows(view, "evses")[0][4]

        await pilot.press("d")
        await until(pilot, lambda: len(rows(view, "registers")) > 5)
        shown = {row[0]: row for row in rows(view, "registers")}
        assert shown["voltage_l1"][3:5] == ["230000", "mV"]
        assert len(shown["voltage_l1"][2].split()) == 2
        charging = shown["charging_state"]
        live.charger.control.execute({"do": "unplug", "evse": 1})
        await until(pilot, lambda: charging not in rows(view, "registers"))

        view.query_one("#tabs", TabbedContent).active = "sessions"
        await until(pilot, lambda: "EVDisconnected" in str(rows(view, "sessions")))
        assert rows(view, "sessions")[0][4] == "CARD"


async def test_trouble_is_pointed_at_with_why_and_what_to_do(live: Live) -> None:
    live.charger.control.execute({"do": "silence", "seconds": 3600})
    await live.until_link("board", "board.silent")
    await live.until_link("bus", "bus.tcp_silent")
    view = view_of(live)
    async with view.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "check the unit number" in text(view, "told"))
        assert "connected, but the device does not answer" in text(view, "told")
        await pilot.press("tab", "down")
        await until(pilot, lambda: "board left" in text(view, "told"))
        assert "no answer within" in text(view, "told")
        await pilot.press("d")  # from within a table too
        assert view.query_one("#tabs", TabbedContent).active == "registers"
        await pilot.press("shift+tab")
        view.query_one("#tabs", TabbedContent).active = "log"
        box = view.query_one("#lines", RichLog)
        await until(pilot, lambda: any("board left" in line.text for line in box.lines))
        live.charger.control.execute({"do": "silence", "seconds": 0})
        await until(pilot, lambda: rows(view, "links")[1][2] == "ok")
        await until(pilot, lambda: any("answers again" in line.text for line in box.lines))


@pytest.mark.parametrize("language", LANGUAGES)
async def test_without_an_agent_it_says_so_in_every_language(tmp_path: Path, language: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'station = "TAS-1"\njournal = { folder = "journal" }\n[[boards]]\nname = "left"\n'
        'profile = "abb_terra_ac"\nlink = { host = "127.0.0.1" }\n'
    )
    words = wording(language)
    view = View(load(path), words, every_s=EVERY_S)
    async with view.run_test() as pilot:
        await until(pilot, lambda: words("ui", "not_running") in text(view, "head"))
        assert words("ui", "not_running_todo") in text(view, "head")
        tab = view.query_one("#tabs", TabbedContent).get_tab("registers")
        assert str(tab.label) == words("ui", "registers")
        await pilot.press("q")
    assert view.return_code == 0


async def test_an_agent_that_ends_leaves_a_screen_that_says_how_old_it_is(
    live: Live, tmp_path: Path
) -> None:
    view = view_of(live)
    async with view.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: len(rows(view, "links")) == 8)
        live.agent.cancel()
        await until(pilot, lambda: "The agent does not run" in text(view, "head"))
        assert "last seen" in text(view, "head")
        assert rows(view, "links")[1][1] == "left"


def karvon(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "karvon", "agent", *args]
    return subprocess.run(command, text=True, capture_output=True, timeout=60, check=False, **more)


def test_without_a_terminal_it_says_what_to_use(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'station = "TAS-1"\njournal = { folder = "journal" }\n[[boards]]\nname = "left"\n'
        'profile = "abb_terra_ac"\nlink = { host = "127.0.0.1" }\n'
    )
    done = karvon("view", "--config", str(path), stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "over ssh give -t" in done.stderr
    done = karvon("view", "--config", str(path), "--lang", "fr", stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "choose one of uz, ru, en, de" in done.stderr


def test_the_command_starts_in_a_terminal_and_ends_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'station = "TAS-1"\njournal = { folder = "journal" }\n[[boards]]\nname = "left"\n'
        'profile = "abb_terra_ac"\nlink = { host = "127.0.0.1" }\n'
    )
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "karvon", "agent", "view", "--config", str(path)]
    environment = os.environ | {"TERM": "xterm-256color", "LANG": "de_DE.UTF-8", "LC_ALL": ""}
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as child:
        os.close(slave)
        seen = b""
        while "läuft nicht".encode() not in seen:
            seen += os.read(master, 65_536)
        os.write(master, b"q")
        try:
            while os.read(master, 65_536):
                pass
        except OSError:
            pass  # the other end is closed: the program has ended
        assert child.wait(60) == 0
    os.close(master)


def test_help_and_status_load_no_terminal_toolkit() -> None:
    script = (
        "import sys; from edge_agent.cli.main import app; import edge_agent.cli.looking;"
        "sys.exit('textual' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
