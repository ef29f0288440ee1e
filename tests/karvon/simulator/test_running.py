"""Scripts, memory and the command line of the simulator."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, find_profile, open_board
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.memory import restore, saved
from karvon.simulator.script import ScriptError, parse_script
from karvon.simulator.vehicle import Vehicle


def charger() -> SimulatedCharger:
    return SimulatedCharger(find_profile("abb_terra_ac"), evses=1, unit=1, speed=1, now=0)


def test_a_script_plugs_waits_for_full_and_leaves() -> None:
    device = charger()
    script = parse_script("plug after 2 s, want 1 kWh, unplug when full")
    seen = []
    for second in range(1, 1200):
        device.advance(second)
        script.step(device)
        evse = device.evses[1]
        if evse.vehicle and not evse.released:
            device.write(1, 6, 0x4105, (0,), second)
        seen.append(evse.situation(device.limit(evse)))
    assert seen[0] == "empty"
    assert "charging" in seen
    assert seen[-1] == "empty"
    (session,) = device.status()["sessions"]
    assert session["energy_wh"] == 1000
    assert device.status()["evses"][0]["energy_wh"] == 1000


def test_a_script_that_is_not_understood_is_named() -> None:
    with pytest.raises(ScriptError, match="'dance'"):
        parse_script("plug after 1 s, dance")


def test_memory_survives_a_restart() -> None:
    first = charger()
    first.plug(Vehicle(wants_wh=10_000))
    first.write(1, 6, 0x4105, (0,), 1)
    for second in range(2, 50):
        first.read(span(0x400C), second)
    second_life = charger()
    restore(second_life, json.loads(json.dumps(saved(first))))
    assert second_life.evses[1].lifetime_nj == first.evses[1].lifetime_nj > 0
    assert second_life.evses[1].situation(32_000) == "charging"
    assert second_life.world_ms == first.world_ms
    second_life.unplug()
    assert second_life.sessions[0].energy_nj == first.evses[1].lifetime_nj


def span(address: int) -> object:
    from protocols.modbus.planning import Span

    return Span(1, 3, address, 2)


def test_the_command_prints_its_addresses_and_ends_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "karvon", "sim", "charger", "--json", "--tcp", "127.0.0.1:0"]
    command += ["--control", str(tmp_path / "control"), "--state", str(tmp_path / "state.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert told["profile"] == "abb_terra_ac"
    assert told["tcp"].startswith("127.0.0.1:")
    assert json.loads((tmp_path / "state.json").read_text())["sessions"] == []


async def test_a_board_of_our_own_runs_as_a_process_and_is_controlled(tmp_path: Path) -> None:
    line, control = tmp_path / "line", tmp_path / "control"
    command = [sys.executable, "-m", "karvon", "sim", "board", "--json", "--pty", str(line)]
    command += ["--address", "3", "--evses", "2", "--echo", "--control", str(control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["pty"] == str(line)
        link = ModbusLink(kind="serial", device=str(line), unit=3, timeout_s=5)
        board = open_board(BoardConfig(kind="serial_board", link=link, evses=2))
        await board.open()
        reader, writer = await asyncio.open_unix_connection(str(control))
        writer.write(b'{"do": "plug", "evse": 2}\n')
        assert json.loads(await reader.readline())["evses"][1]["plugged"]
        writer.close()
        assert [reading.state for reading in await board.read()] == ["A", "B"]
        await board.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--profile", "nothing"], "give one of abb_"),
        (["--profile", "phoenix_ev_cc_eth", "--option", "walbe"], "has no option 'walbe'; it has"),
        (["--profile", "eastron_sdm630"], "karvon sim meter"),
        (["--script", "dance"], "dance"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], reason: str) -> None:
    command = [sys.executable, "-m", "karvon", "sim", "charger", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
