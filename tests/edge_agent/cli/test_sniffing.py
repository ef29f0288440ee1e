"""Listening on a line over which an agent's driver and a charger really speak."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli.sniffing import Asked, sniff
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, open_board
from protocols.quantities import MilliAmperes

Line = Any  # the fixture's class lives in conftest, which cannot be imported


async def listening(line: Line, *args: str) -> asyncio.subprocess.Process:
    """The command, once it listens or has given up."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "karvon", "agent", "sniff", str(line.tap.listener), *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    async with asyncio.timeout(60):
        said = (await child.stderr.readline()).decode()
    assert ("listening on" in said) or ("cannot be opened" in said)
    return child


def board_on(line: Line) -> ModbusBoard:
    link = ModbusLink(kind="rtu", device=str(line.tap.client), timeout_s=2)
    board = open_board(BoardConfig(profile="abb_terra_ac", link=link))
    assert isinstance(board, ModbusBoard)
    return board


async def finished(child: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(60):
        out, complaint = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), complaint.decode()


async def test_both_directions_are_told_with_names(line: Line) -> None:
    child = await listening(line, "--profile", "abb_terra_ac", "--json", "--frames", "40")
    board = board_on(line)
    await board.open()
    await board.set_limit(1, MilliAmperes(10_000))
    await board.withhold(1)
    for _ in range(20):
        await board.read()
    await board.close()
    code, out, complaint = await finished(child)
    told = [json.loads(row) for row in out.splitlines()]
    assert (code, len(told)) == (0, 40), complaint
    assert {each["kind"] for each in told} == {"request", "response"}
    assert [each["kind"] for each in told[:4]] == ["request", "response", "request", "response"]
    assert all(each["crc_fits"] for each in told)
    named = [(one["name"], one["value"]) for each in told for one in each["named"]]
    assert ("firmware", "1.8.2") in named
    assert ("voltage_l1", 230_000) in named
    assert ("applied_limit", 10_000) in named
    assert {"limit", "withhold"} <= {name for name, _ in named}


async def test_the_configuration_gives_names_and_people_get_lines_and_sums(
    line: Line, tmp_path: Path
) -> None:
    config = tmp_path / "listener.toml"
    text = line.config.read_text().replace(str(line.tap.client), str(line.tap.listener))
    config.write_text(text)
    child = await listening(line, "--config", str(config))
    board = board_on(line)
    await board.open()
    line.tap.hear(bytes.fromhex("DE AD BE EF"))
    assert child.stdout is not None
    seen = ""
    async with asyncio.timeout(60):
        while "CRC fits nothing" not in seen or "firmware=1.8.2" not in seen:
            seen += (await child.stdout.readline()).decode()
    child.send_signal(signal.SIGTERM)
    code, out, _ = await finished(child)
    await board.close()
    assert code == 0
    assert "[DE AD BE EF]" in seen
    assert "unit 1" in seen
    assert "unit 1: " in out
    assert "0 exceptions, 0 unanswered" in out
    assert "noise (CRC fits nothing): 1 times; check speed and parity" in out


@pytest.mark.parametrize(
    ("changed", "code", "why"),
    [
        ({"parity": "some"}, 2, "--parity is none, even or odd, not 'some'"),
        ({"profile": "abb_tera"}, 2, "no profile 'abb_tera'"),
        ({}, 3, "is it plugged in, and does another program hold it? To listen beside the agent"),
    ],
)
def test_what_cannot_be_listened_to_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    code: int,
    why: str,
) -> None:
    plain: dict[str, Any] = dict.fromkeys(("profile", "baudrate", "parity", "stopbits", "frames"))
    asked = Asked(port=tmp_path / "none", **(plain | changed))
    assert sniff(tmp_path / "none.toml", asked, as_json=False) == code
    assert why in capsys.readouterr().err


async def test_a_port_that_another_holds_is_left_alone(line: Line) -> None:
    first = await listening(line)
    second = await listening(line)
    assert (await finished(second))[0] == 3
    first.send_signal(signal.SIGTERM)
    assert (await finished(first))[0] == 0
