"""docs/firmware-bridge.md says what is so: commands run, faults are proven, registers are there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_bridge import modbus_map

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "firmware-bridge.md").read_text()
NUMBERED = re.compile(r"def (test_ota((?:_f\d+)+)_\w+)")
WITH_AN_AGENT = (
    "edge_agent/updates/test_boards.py",
    "edge_agent/updates/test_flashing.py",
    "system/test_update_of_boards.py",
)


def proven() -> set[tuple[int, str]]:
    """Each fault with each test that carries its number."""
    agents = [PROJECT / "tests" / place for place in WITH_AN_AGENT]
    files = (*Path(__file__).parent.glob("test_*.py"), *agents)
    found = [one for path in files for one in NUMBERED.findall(path.read_text())]
    return {(int(one), name) for name, all_of in found for one in re.findall(r"\d+", all_of)}


def test_every_fault_of_boards_is_proven_by_the_tests_that_the_table_names() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (`test_.*) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(40, 51))
    named = {
        (int(number), name) for number, names in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert named == proven()


def test_the_registers_are_those_of_the_code() -> None:
    addresses = [int(text, 16) for text in re.findall(r"^\| ([0-9A-F]{4})h \|", PAGE, re.MULTILINE)]
    ours = modbus_map
    assert addresses == [ours.IDENTITY_AT, ours.COMMAND_AT, ours.STATUS_AT, ours.BLOCK_AT]
    sizes = re.findall(r"^\| [0-9A-F]{4}h \| (.*?) \|", PAGE, re.MULTILINE)
    command = ours.COMMAND.size // 2
    header = command + (ours.HEADER.size + 2) // 2
    assert sizes == [
        str(ours.IDENTITY_WORDS),
        f"{command} to {header}",
        str(ours.STATUS.size // 2),
        f"{ours.BLOCK.size // 2} + data",
    ]
    for kind in (ours.Command, ours.State, ours.Fault):
        assert all(re.search(rf"\b{one.value} ", PAGE) for one in kind)


@pytest.mark.system
def test_the_commands_run_as_they_stand_there(tmp_path: Path) -> None:
    script = re.search(r"<!-- tested -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    assert script is not None
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eum", "-c", script[1]],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "chip        0x413" in done.stdout
    assert "the board has 1.4.0 and was compared" in done.stdout
    assert "nothing of board 'board' was left open" in done.stdout
