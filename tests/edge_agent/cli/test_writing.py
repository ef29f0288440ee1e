"""A technician's write: shown, asked, sent, read back; and all that is refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent import control
from edge_agent.cli.main import app
from edge_agent.control import Request
from edge_agent.hardware.registry import PROFILES

Live = Any  # the fixtures' classes live in conftest, which cannot be imported
Line = Any
RUNNER = CliRunner()


async def call(config: Path, *args: str, said: str = "") -> tuple[int, str, str]:
    """The command in a thread of its own, as if typed; the charger lives in this one."""
    command = ["write", *args, "--config", str(config)]
    result = await asyncio.to_thread(RUNNER.invoke, app, command, input=said)
    return result.exit_code, result.stdout, result.stderr


async def test_what_is_shown_is_what_goes_over_the_line(line: Line) -> None:
    code, out, _ = await call(line.config, "left", "limit", "16000", said="y\n")
    assert code == 0, out
    assert "board left, EVSE 1: limit = 16000 mA" in out
    shown = bytes.fromhex(out.partition("sends ")[2].partition("   (")[0])
    assert shown.startswith(bytes.fromhex("01 10 41 00 00 02 04 00 00 3E 80"))
    assert line.tap.said.count(shown) == 1
    assert "the device shows 16000 mA" in out


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
async def test_without_a_yes_nothing_is_written(line: Line, answer: str) -> None:
    code, out, complaint = await call(line.config, "left", "limit", "16000", said=answer)
    shown = bytes.fromhex(out.partition("sends ")[2].partition("   (")[0])
    assert (code, "nothing was written" in complaint) == (1, True)
    assert shown not in line.tap.said


async def test_a_dry_run_asks_nobody_and_writes_nothing(line: Line) -> None:
    code, out, _ = await call(line.config, "left", "failsafe_timeout", "30", "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["field"], plan["unit"]) == (0, "failsafe_timeout", "s")
    frames = [bytes.fromhex(frame["octets"]) for frame in plan["frames"]]
    assert frames[-1][:6] == bytes.fromhex("01 06 41 06 00 1E")
    assert not any(frame in line.tap.said for frame in frames)


async def test_a_registers_own_name_is_understood_and_json_says_it_all(line: Line) -> None:
    code, out, _ = await call(line.config, "left", "comm_timeout", "30", "--yes", "--json")
    written = json.loads(out)
    assert (code, written["read_back"]) == (0, 30)
    assert written["plan"]["field"] == "failsafe_timeout"


async def test_a_device_that_applies_something_else_is_told(line: Line) -> None:
    profile = line.config.with_name("impatient.yaml")
    shipped = (PROFILES / "abb_terra_ac.yaml").read_text()
    profile.write_text(shipped.replace("settle_ms: 2000", "settle_ms: 50"))
    line.config.write_text(line.config.read_text().replace("abb_terra_ac", str(profile)))
    line.charger.control.execute({"do": "ceiling", "limit_ma": 10_000, "evse": 1})
    code, _, complaint = await call(line.config, "left", "limit", "16000", "--yes")
    assert code == 1
    assert "it applies 10000 mA" in complaint
    assert "karvon agent read" in complaint


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["right", "limit", "0"], 1, "there is no board 'right' here; this controller has left"),
        (["left", "voltage_l1", "1"], 1, "its profile allows limit (mA), applied_limit (mA)"),
        (["left", "socket_lock", "1"], 1, "nothing to write named 'socket_lock'"),
        (["left", "limit", "32001"], 1, "more than the board allows: 32000 mA"),
        (["left", "failsafe_timeout", "5"], 1, "failsafe_timeout 5 s"),
        (["left", "limit", "0", "--evse", "7"], 1, "EVSE 7 is not behind board left"),
        (["left", "limit", "0", "--json"], 2, "add --yes to write or --dry-run"),
    ],
)
async def test_what_the_profile_does_not_allow_is_refused(
    line: Line, args: list[str], code: int, why: str
) -> None:
    yes = [] if "--json" in args else ["--yes"]
    found, _, complaint = await call(line.config, *args, *yes)
    assert found == code
    assert why in complaint


async def test_the_weakest_cable_and_the_site_bound_a_limit(line: Line) -> None:
    text = line.config.read_text()
    line.config.write_text(text.replace('name = "left"', 'name = "left"\ncable_ma = 20000'))
    _, _, complaint = await call(line.config, "left", "limit", "20001", "--yes")
    assert "more than boards.cable_ma allows: 20000 mA" in complaint
    line.config.write_text(f"{text}\n[site]\nlimit_ma = 10000\n")
    _, _, complaint = await call(line.config, "left", "limit", "16000", "--yes")
    assert "more than site.limit_ma allows: 10000 mA" in complaint


async def test_a_device_that_does_not_answer_is_exit_code_3(line: Line) -> None:
    line.charger.control.execute({"do": "silence", "seconds": 3600})
    code, _, complaint = await call(line.config, "left", "limit", "0", "--yes")
    assert code == 3
    assert "no answer within" in complaint


async def test_an_agent_that_does_not_answer_on_its_socket_still_keeps_it(line: Line) -> None:
    folder = line.config.with_name("journal")
    folder.mkdir()
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code, _, complaint = await call(line.config, "left", "limit", "0", "--yes")
    assert code == 1
    assert "an agent runs but does not answer" in complaint
    os.close(handle)
    code, _, _ = await call(line.config, "left", "limit", "0", "--yes")
    assert code == 0


async def test_through_the_running_agent_only_what_makes_it_no_less_safe(live: Live) -> None:
    code, _, complaint = await call(live.config, "left", "limit", "16000", "--yes")
    assert (code, "the running agent sets the limit" in complaint) == (1, True)
    for field, value in (("failsafe_fallback", "16000"), ("failsafe_timeout", "600")):
        code, _, complaint = await call(live.config, "left", field, value, "--yes")
        assert (code, "was commissioned with" in complaint) == (1, True)
    code, out, _ = await call(live.config, "left", "failsafe_timeout", "30", said="y\n")
    assert code == 0
    assert "sends 01 06 41 06 00 1E" in out
    assert "the device shows 30 s" in out
    registers = await live.ask("read", device="left")
    shown = next(each for each in registers if each["name"] == "comm_timeout")
    assert shown["value"] == 30
    await live.until_link("board", "board.ok")


async def test_a_dry_request_to_the_agent_sends_nothing(live: Live) -> None:
    asked = Request(do="write", device="left", field="failsafe_timeout", value=20, dry=True)
    plan = await control.ask(live.folder, asked)
    assert plan["frames"][-1]["octets"].startswith("01 06 41 06 00 14")
    registers = await live.ask("read", device="left")
    shown = next(each for each in registers if each["name"] == "comm_timeout")
    assert shown["value"] == 60
