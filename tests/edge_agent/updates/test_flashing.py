"""The process that flashes, with a board behind Modbus."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.updates.flashing import FlashJob, FlashWord, Reached
from firmware_bridge.flashing import Result
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.modbus import ModbusBoard
from firmware_bridge.ways import Kind

HW = "KPB-22"
SIZE = 2000


@pytest.fixture
def board() -> ModbusBoard:
    return ModbusBoard(unit=7, hw_id=HW)


@pytest.fixture
def line(board: ModbusBoard, tmp_path: Path) -> Iterator[str]:
    with PtyLine(board, link=tmp_path / "line") as served:
        yield str(served.path)


def flash(tmp_path: Path, line: str, version: str, hw: str = HW, **said: Any) -> FlashWord:
    """The last word of the real process."""
    image = tmp_path / f"{version}.bin"
    image.write_bytes(make_image(SIZE, version, hw_id=hw, **said))
    job = FlashJob(
        boards=(Reached(board="left", device=line, loader=Kind.MODBUS, unit=7),),
        state=str(tmp_path / "state"),
        image=str(image),
        version=version,
        hw_ids=(hw,),
        protocol=1,
        protocols=(1,),
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-m", "edge_agent.updates.flashing"],
        input=msgspec.json.encode(job),
        capture_output=True,
        check=True,
        timeout=100,
    )
    return msgspec.json.decode(ended.stdout.splitlines()[-1], type=FlashWord)


def test_ota_f40_f45_a_board_behind_modbus(tmp_path: Path, board: ModbusBoard, line: str) -> None:
    last = flash(tmp_path, line, "1.1.0")
    assert last.outcomes is not None
    assert (last.outcomes["left"].result, last.outcomes["left"].version) == (
        Result.INSTALLED,
        "1.1.0",
    )
    last = flash(tmp_path, line, "1.2.0", healthy=False)
    assert last.outcomes is not None
    assert last.outcomes["left"].result is Result.PREVIOUS
    before = bytes(board.flash.octets)
    last = flash(tmp_path, line, "1.3.0", hw="KPB-OTHER")
    assert "KPB-OTHER" in last.failure or "KPB-OTHER" in str(last.outcomes)
    assert bytes(board.flash.octets) == before
