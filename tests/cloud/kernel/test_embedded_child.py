"""Supervision itself, on children that are easy to make misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cloud.kernel.embedded.child import (
    ChildEvent,
    EmbeddedError,
    Launch,
    Supervised,
    folder_lock,
)
from cloud.kernel.embedded.output import OutputLog


class Script:
    """A Python one-liner as child; it is ready when it has said so."""

    def __init__(self, folder: Path, *lives: str) -> None:
        self.lives = list(lives)
        self.events: list[ChildEvent] = []
        self.changed = asyncio.Event()
        self.output = OutputLog(folder / "child.log", max_bytes=2000)
        self.child = Supervised(
            "script",
            launch=self.launch,
            ready=self.ready,
            output=self.output,
            stop_signal=signal.SIGTERM,
            report=self.report,
        )

    async def launch(self) -> Launch:
        code = self.lives.pop(0) if len(self.lives) > 1 else self.lives[0]
        self.output.tail.clear()
        return Launch([sys.executable, "-u", "-c", code], Path("/"))

    async def ready(self, pid: int) -> bool:
        return any("ready" in line for line in self.output.tail)

    def report(self, event: ChildEvent) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, what: str) -> None:
        async with asyncio.timeout(20):
            while not any(event.what == what for event in self.events):
                await self.changed.wait()
                self.changed.clear()


SERVES = "import time; print('ready'); time.sleep(3600)"


async def test_a_child_that_fails_at_first_says_its_last_words(tmp_path: Path) -> None:
    script = Script(tmp_path, "raise SystemExit('no such setting')")
    with pytest.raises(EmbeddedError, match=r"(?s)ended at once \(exit code 1\).*no such setting"):
        await script.child.start()
    with pytest.raises(EmbeddedError, match="not running"):
        _ = script.child.pid


async def test_a_restart_that_fails_is_tried_again(tmp_path: Path) -> None:
    script = Script(tmp_path, SERVES, "raise SystemExit('not yet')", SERVES)
    await script.child.start()
    first = script.child.pid
    os.kill(first, signal.SIGKILL)
    await script.until("restarted")
    assert await script.child.serving() != first
    assert script.child.restarts == 1
    assert [event.what for event in script.events] == ["died", "died", "restarted"]
    assert "not yet" in script.events[1].detail
    await script.child.stop()
    with pytest.raises(EmbeddedError, match="stopped"):
        await script.child.serving()


async def test_stopping_in_the_middle_of_a_restart_leaves_nothing(tmp_path: Path) -> None:
    script = Script(tmp_path, SERVES, "import time; time.sleep(3600)")
    await script.child.start()
    os.kill(script.child.pid, signal.SIGKILL)
    await script.until("died")
    await script.child.stop()
    assert script.child.restarts == 0
    with pytest.raises(EmbeddedError, match="not running"):
        _ = script.child.pid


async def test_the_log_is_bounded(tmp_path: Path) -> None:
    output = OutputLog(tmp_path / "log", max_bytes=1000)
    for number in range(100):
        output.write(f"line {number:03} {'x' * 40}\n".encode())
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    assert output.last_words(1).strip().startswith("line 099")


async def test_a_full_disk_does_not_end_the_child(tmp_path: Path) -> None:
    output = OutputLog(Path("/dev/full"))
    output.write(b"could not be written\n")
    assert output.last_words(1).strip() == "could not be written"


def test_one_owner_per_folder(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(EmbeddedError, match=rf"another Karvon \(pid {os.getpid()}\).*--data-dir"),
        folder_lock(tmp_path),
    ):
        pytest.fail("two owners")
    with folder_lock(tmp_path):
        pass
