"""What a running agent tells of everything it depends on, and that nobody who asks can harm it."""

from __future__ import annotations

import asyncio
import json
import stat
from typing import Any

import pytest

from edge_agent.cli import looking
from edge_agent.control import MOST_CLIENTS

Live = Any  # the fixture's class lives in conftest, which cannot be imported


async def test_status_shows_every_link_of_a_healthy_agent(
    live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    await live.until_link("disk", "disk.ok")
    status = await live.until(lambda told: told["links"][1]["age_ms"] is not None)
    links = {link["kind"]: link for link in status["links"]}
    assert set(links) == {"bus", "board", "meter", "mqtt", "clock", "disk", "journal", "queue"}
    assert links["bus"]["facts"]["requests"] > 0
    assert links["bus"]["facts"]["lost"] == ""
    assert links["board"]["name"] == "left"
    assert links["board"]["facts"]["identity"].startswith("ABB")
    assert 0 <= links["board"]["age_ms"] < 30_000
    assert links["mqtt"]["code"] == "mqtt.none"
    assert links["disk"]["facts"]["free_mib"] > 0
    assert await looking.status(live.config, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "answers: ABB" in shown
    assert "MiB free" in shown


async def test_a_silent_board_is_told_with_why_and_what_to_do(
    live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    live.charger.control.execute({"do": "silence", "seconds": 3600})
    board = await live.until_link("board", "board.silent")
    assert board["state"] == "trouble"
    assert "no answer within" in board["why"]
    await live.until(lambda told: told["evses"][0]["status"] == "Faulted")
    assert await looking.status(live.config, as_json=False) == 1
    shown = capsys.readouterr().out
    assert "board left: the board is off" in shown
    assert "check the board's power" in shown
    live.charger.control.execute({"do": "silence", "seconds": 0})
    await live.until_link("board", "board.ok")


async def test_sessions_and_limits_are_told_as_they_are_now(live: Live) -> None:
    idle = await live.until(lambda told: len(told["limits"]) == 1)
    assert idle["sessions"] == []
    assert [(each["evse"], each["set_by"]) for each in idle["limits"]] == [(1, "board")]
    live.charger.control.execute({"do": "plug", "evse": 1, "want_wh": 5000})
    assert "accepted" in (await live.ask("token", token="CARD"))["text"]
    status = await live.until(lambda told: bool(told["sessions"]))
    (session,) = status["sessions"]
    assert session["evse"] == 1
    assert session["transaction"]["id_token"]["value"] == "CARD"
    assert status["limits"][0]["limit_ma"] == 32_000


async def test_registers_of_one_device_and_the_log_are_told(live: Live) -> None:
    registers = await live.ask("read", device="left")
    assert {each["device"] for each in registers} == {"left"}
    voltage = next(each for each in registers if each["name"] == "voltage_l1")
    assert len(voltage["raw"].split()) == 2
    assert voltage["value"] == 230_000
    refused = await live.ask("read", device="right")
    assert refused == {"error": "there is no device 'right' here; this controller has left"}
    live.charger.control.execute({"do": "silence", "seconds": 3600})
    await live.until_link("board", "board.silent")
    lines = await live.ask("log")
    assert any("board left" in line["text"] and line["level"] == "WARNING" for line in lines)


async def test_too_many_technicians_are_told_so_and_the_agent_goes_on(live: Live) -> None:
    address = str(live.folder / "control.sock")
    assert stat.S_IMODE((live.folder / "control.sock").stat().st_mode) == 0o600
    held = []
    for _ in range(MOST_CLIENTS):
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(b'{"do":"log"}\n')
        assert await reader.readline()
        held.append(writer)
    reader, writer = await asyncio.open_unix_connection(address)
    refused = json.loads(await reader.readline())
    assert "are connected already" in refused["error"]
    for each in (*held, writer):
        each.close()
        await each.wait_closed()
    await live.until(lambda told: told["running"])


async def test_a_socket_that_vanishes_comes_back(live: Live) -> None:
    (live.folder / "control.sock").unlink()
    await live.until(lambda told: told["running"])


async def test_a_device_that_is_switched_off_is_told_from_a_silent_one(live: Live) -> None:
    await live.charger.close()
    line = await live.until_link("bus", "bus.tcp_down")
    assert (line["state"], line["facts"]["lost"]) == ("trouble", "1")
    await live.until_link("board", "board.silent")
