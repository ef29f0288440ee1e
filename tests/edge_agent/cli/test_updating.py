"""`karvon agent update` and `selftest`: first installation, a stick without an agent, refusals."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ota_slots import Controller
from ota_world import HARDWARE, Maker, World
from typer.testing import CliRunner

from edge_agent.cli.main import app
from edge_agent.updates import launcher
from edge_agent.updates.messages import Ready
from edge_agent.updates.service import PENDING

CONFIG = """
station = "UZ*KRV*E1"
[journal]
folder = "journal"
[[boards]]
name = "board"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = 1, unit = 1 }}
{updates}
"""
UPDATES = f'[updates]\nfolder = "state"\nhardware = "{HARDWARE}"\n'
SELFTEST = "if sys.argv[1:3] == ['agent', 'selftest']: sys.exit(0)\ntell()\n"


def run(*arguments: object, code: int = 0) -> str:
    result: Result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


class Place:
    """A controller on which no agent runs, and a stick."""

    def __init__(self, folder: Path, makers: Maker) -> None:
        self.world = World(folder, makers)
        self.root, self.stick = folder / "opt", self.world.out
        (self.root / launcher.SLOTS).mkdir(parents=True)
        self.config = folder / "agent.toml"
        self.config.write_text(CONFIG.format(updates=UPDATES))
        self.world.job()  # hands out the roots
        self.state = folder / "state"

    def release(self, version: str) -> None:
        self.world.maker.release(version, SELFTEST)
        self.world.maker.publish(self.stick)

    def update(self, *more: object, code: int = 0) -> str:
        common = ("update", "--config", self.config, "--root", self.root)
        return run(*common, *more, code=code)

    @property
    def record(self) -> launcher.Record:
        found = launcher.read(self.root)
        assert found is not None
        return found


@pytest.fixture
def place(tmp_path: Path, makers: Maker) -> Place:
    return Place(tmp_path, makers)


def test_a_new_controller_gets_factory_and_launcher_and_starts(place: Place) -> None:
    place.release("1.0")
    assert "1.0 is installed" in place.update("--from", place.stick, "--first")
    assert launcher.usable(place.root, "")
    controller = Controller(place.world.folder / "start")
    controller.folder = place.root
    started = controller.command("agent", "run")
    started[2] = str(place.root / "launcher.py")
    assert os.spawnve(os.P_WAIT, started[0], started, controller.environment) == 0
    assert controller.versions() == ["1.0"]
    place.release("0.9")
    floors = place.world.floors()
    assert floors.counter("agent/karvon-agent") == 1
    floors.close()
    assert "there already" in place.update("--from", place.stick, "--first", code=1)


def test_without_an_agent_the_next_start_tries_what_is_on_the_stick(place: Place) -> None:
    place.release("1.0")
    place.update("--from", place.stick, "--first")
    place.release("1.1")
    said = place.update("--from", place.stick)
    assert "1.1: SignatureVerified" in said
    assert "1.1 is tried at the next start" in said
    assert (place.record.tries, place.record.confirmed) == (launcher.TRIES, "")
    floors = place.world.floors()
    pending = floors.note(PENDING)
    floors.close()
    assert pending is not None
    assert json.loads(pending)["slot"] == place.record.trial
    assert Ready.__struct_config__.tag == "ready"


def test_nothing_newer_is_said(place: Place) -> None:
    place.release("1.0")
    place.update("--from", place.stick, "--first")
    assert json.loads(place.update("--from", place.stick, "--json")) == {"is": "nothing"}


def test_a_stick_of_somebody_else_is_refused(place: Place, tmp_path: Path) -> None:
    stranger = Maker(tmp_path / "stranger")
    stranger.release("9.0")
    stranger.publish(tmp_path / "stick")
    said = place.update("--from", tmp_path / "stick", code=1)
    assert re.search("InvalidSignature: images: .*signed by 0/", said)
    assert launcher.read(place.root) is None


def test_wrong_usage_is_said(place: Place) -> None:
    assert "install with --from" in place.update(code=3)
    assert "--first needs --from" in place.update("--first", code=2)
    place.config.write_text(CONFIG.format(updates=""))
    assert "updates are not configured" in place.update(code=2)


def test_the_selftest_reads_the_configuration(place: Place) -> None:
    assert run("selftest", "--config", place.config).startswith("karvon ")
    place.config.write_text(CONFIG.format(updates="").replace("abb_terra_ac", "no_such_board"))
    assert "no_such_board" in run("selftest", "--config", place.config, code=2)
    assert run("selftest")


def test_an_agent_that_runs_is_asked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def ask(folder: Path, request: Any) -> dict[str, str]:
        asked.append((folder.name, request.do, request.device))
        return {"text": "looking there"} if len(asked) == 1 else {"error": "one is on trial"}

    monkeypatch.setattr("edge_agent.cli.updating.ask", ask)
    assert place.update("--from", place.stick) == "looking there\n"
    assert asked == [("journal", "update", str(place.stick))]
    assert "one is on trial" in place.update(code=1)
