"""docs/troubleshooting.md knows what the agent says, and its commands do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TEXTS = tomllib.loads((ROOT / "edge_agent" / "texts" / "en.toml").read_text())
LINKS = ("bus", "board", "meter", "mqtt", "ocpp", "clock", "disk", "journal", "queue")
CALM = {"ok", "none", "starting", "connecting", "closed", "synced", "cloud"}
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
CARD = "04A1B2C3D4E5F6"


def test_every_trouble_that_a_link_can_tell_is_on_the_page() -> None:
    shown = PAGE.lower()
    missing = {
        f"{kind}.{code}": text["what"]
        for kind in LINKS
        for code, text in TEXTS[kind].items()
        if code not in CALM and not all(part in shown for part in _fixed(text["what"]))
    }
    assert not missing


def _fixed(text: str) -> list[str]:
    """The words of a text that do not depend on the case: up to the first value in it."""
    head = re.split(r"[{;:]", text)[0].strip().lower()
    if head:
        return [head]
    return [max(re.split(r"\{\w+\}", text), key=len).strip().lower()]


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of an agent that runs, with a charger on a serial line."""
    folder = tmp_path_factory.mktemp("controller")
    config = folder / "agent.toml"
    config.write_text(
        'station = "T-1"\n[journal]\nfolder = "journal"\n[authorization]\nunknown = "allow"\n'
        f'[[boards]]\nname = "left"\nprofile = "abb_terra_ac"\n'
        f'link = {{ kind = "rtu", device = "{folder / "line"}" }}\n'
    )
    with (
        _started("sim", "charger", "--pty", str(folder / "line"), "--script", "plug after 0 s"),
        _started("agent", "run", "--config", str(config)),
    ):
        deadline = time.monotonic() + 60
        while "answers" not in _ran(["status"], config).stdout:
            assert time.monotonic() < deadline, "the agent did not come to its board"
            time.sleep(0.2)  # the agent tells nobody when it has opened its board
        yield config


class _started:  # noqa: N801  # used like a function
    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "karvon", *arguments]

    def __enter__(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=quiet, stderr=quiet)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def _ran(words: list[str], config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "karvon", "agent", *words, "--config", str(config)],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_run(command: str, controller: Path) -> None:
    start, *words = command.split()
    assert (start, words.pop(0)) == ("karvon", "agent")
    done = _ran(words, controller)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_the_page_names_only_commands_and_options_that_there_are() -> None:
    from typer.main import get_command

    from karvon.agent import app

    known = get_command(app).commands  # type: ignore[attr-defined]  # a group
    named = re.findall(r"karvon agent ([a-z]+)((?: --?[\w-]+(?: [^-`\s]\S*)?)*)", PAGE)
    assert len(named) > 15
    for name, rest in named:
        options = {option for each in known[name].params for option in each.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options, (name, rest)
