"""What systemd is told: that the agent is ready, that it lives, that it hangs, that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from edge_agent import pulse
from edge_agent.agent import STUCK_AFTER_S, Agent, Inbox
from edge_agent.disk import Disk
from edge_agent.hardware.testing import ManualClock
from edge_agent.journal import Journal, JournalBudget
from edge_agent.pulse import KICK_S, Pulse, kick_every

ROOT = Path(__file__).parents[2]
UNIT = re.compile(r"```ini\n(# /etc/systemd/system/karvon-agent\.service\n.*?)```", re.DOTALL)


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def look(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told.append(self._socket.recv(4096).decode())
        return self.told

    async def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        async with asyncio.timeout(60):
            while not holds(self.look()):
                await asyncio.sleep(0.02)
        return self.told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Systemd]:
    manager = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    yield manager
    manager.close()


def test_a_loop_is_late_when_it_does_not_come_round() -> None:
    clock = ManualClock()
    heart = Pulse(clock)
    quick, slow = heart.of("quick", 10), heart.of("slow", 300)
    clock.advance(10)
    assert heart.overdue() == []
    clock.advance(1)
    assert heart.overdue() == ["quick"]
    quick()
    assert heart.overdue() == []
    quick(rest_s=100)
    clock.advance(109)
    assert heart.overdue() == []
    clock.advance(2)
    assert heart.overdue() == ["quick"]
    quick.stop()
    clock.advance(1000)
    assert heart.overdue() == ["slow"], "who waits for what may never come is not late"
    slow()
    assert heart.overdue() == []
    assert heart.of("quick", 10) is quick, "started again it is the same loop"


async def test_tasks_that_a_loop_starts_beat_for_it() -> None:
    clock = ManualClock()
    heart = Pulse(clock)
    mine, other = heart.of("mine", 10), heart.of("other", 10)
    del mine, other
    clock.advance(20)

    async def child() -> None:
        pulse.beat()

    async def loop() -> None:
        pulse.adopt(heart.of("mine", 10))
        clock.advance(20)
        await asyncio.create_task(child())

    await asyncio.create_task(loop())
    assert heart.overdue() == ["other"]
    pulse.beat()
    assert heart.overdue() == ["other"], "the caller's own context has none"


async def test_waiting_for_an_event_is_not_hanging() -> None:
    clock = ManualClock()
    heart = Pulse(clock)

    async def loop() -> None:
        pulse.adopt(heart.of("mine", 10))
        with pulse.waiting():
            clock.advance(1000)
            assert heart.overdue() == []
        clock.advance(11)

    await asyncio.create_task(loop())
    assert heart.overdue() == ["mine"], "what it heard has to be done in time"


@pytest.mark.parametrize(
    ("asked", "every_s"), [("30000000", 10.0), ("4000000", 2.0), ("0", KICK_S), ("", KICK_S)]
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    asked: str, every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", asked)
    assert kick_every() == every_s
    monkeypatch.delenv("WATCHDOG_USEC")
    assert kick_every() == KICK_S


def looked(heart: Pulse, *, ready: bool = True) -> list[str]:
    return heart.look(ready=ready, every_s=10)


def test_systemd_is_told_once_that_all_is_ready_and_again_and_again_that_it_lives() -> None:
    clock = ManualClock()
    heart = Pulse(clock)
    assert looked(heart, ready=False) == ["WATCHDOG=1"]
    clock.advance(4)
    assert looked(heart) == ["READY=1"]
    clock.advance(4)
    assert looked(heart) == []
    clock.advance(4)
    assert looked(heart) == ["WATCHDOG=1"]


def test_a_hung_loop_stops_the_kicks_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    heart = Pulse(clock)
    heart.of("upkeep", 60)
    quick = heart.of("board left", 60)
    told = []
    for _ in range(40):
        clock.advance(4)
        quick()
        told += looked(heart)
    at = told.index("STATUS=hangs: upkeep")
    assert "WATCHDOG=1" in told[:at]
    assert told[at + 1 :] == []
    assert "hangs: upkeep" in caplog.text
    heart.of("upkeep", 60)()
    clock.advance(4)
    assert looked(heart) == ["STATUS=", "WATCHDOG=1"]


def test_a_process_that_slept_is_not_taken_for_one_that_hangs() -> None:
    clock = ManualClock()
    heart = Pulse(clock)
    slow = heart.of("slow", STUCK_AFTER_S)
    looked(heart)
    clock.advance(600)
    assert looked(heart) == []
    clock.advance(1)
    slow()
    assert looked(heart) == ["WATCHDOG=1"]


async def test_every_task_of_an_agent_keeps_its_time_and_the_hung_one_is_found(
    make_rig: Callable[..., Any], tmp_path: Path, systemd: Systemd
) -> None:
    budget = JournalBudget()
    with closing(Journal.open(tmp_path, station="T", boot=uuid4(), budget=budget)) as journal:
        rig = make_rig(store=journal)
        agent = Agent(
            loop=rig.loop,
            desk=rig.desk,
            journal=journal,
            inbox=Inbox(),
            version="1",
            on_journal_error="continue",
        )
        clock = ManualClock()
        agent.pulse = Pulse(clock)
        agent.disk = Disk(tmp_path, every_s=0.05)
        hangs = asyncio.Event()

        async def lock_out() -> None:
            hangs.set()
            await asyncio.Event().wait()

        agent.desk.lock_out = lock_out
        task = asyncio.create_task(agent.run())
        await systemd.until(lambda told: "READY=1" in told)
        await hangs.wait()
        assert agent.pulse.overdue() == []
        clock.advance(STUCK_AFTER_S + 1)
        async with asyncio.timeout(60):
            while agent.pulse.overdue() != ["upkeep"]:  # of another task's time
                await asyncio.sleep(0.02)
        assert any(alarm.startswith("hangs: upkeep;") for alarm in agent.alarms())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert systemd.look()[-1] == "STOPPING=1"


CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
kind = "serial_board"
link = { kind = "serial", device = "nowhere", unit = 1, timeout_s = 0.2 }
"""


@pytest.mark.system
async def test_the_process_tells_systemd_that_it_is_ready_lives_and_ends(
    tmp_path: Path, systemd: Systemd
) -> None:
    (tmp_path / "agent.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "karvon", "agent", "run"]
    command += ["--config", str(tmp_path / "agent.toml")]
    with subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL) as process:
        told = await systemd.until(lambda told: told.count("WATCHDOG=1") >= 3)
        assert told.count("READY=1") == 1, "also without a board that answers"
        process.send_signal(signal.SIGTERM)
        await systemd.until(lambda told: "STOPPING=1" in told)
        assert process.wait(60) == 0


def test_the_unit_of_the_page_is_one_that_systemd_takes(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("NOT RUN: systemd-analyze is not installed")
    found = UNIT.search((ROOT / "docs/agent.md").read_text())
    assert found
    unit = found[1]
    assert "Type=notify" in unit
    assert "WatchdogSec=" in unit
    command = Path(sys.executable).with_name("karvon")
    file = tmp_path / "karvon-agent.service"
    file.write_text(unit.replace("/opt/karvon/bin/karvon", str(command)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "karvon-agent" in line]
    assert (done.returncode, said) == (0, []), done.stderr
