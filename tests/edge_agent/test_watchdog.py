"""An agent that stands still says so by its silence, and who starts it anew loses nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.pulse import kick_every

PATIENCE_S = 2.0
CONFIG = """
station = "W-1"
[journal]
folder = "journal"
[[boards]]
name = "board"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "127.0.0.1", port = 1 }
"""


@contextmanager
def agent(folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that systemd would have started, with a board that nobody answers for."""
    (folder / "agent.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "karvon", "agent", "run", "--config"]
    process = subprocess.Popen(
        [*command, str(folder / "agent.toml")],
        env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def told(folder: Path) -> Iterator[Callable[[float], str]]:
    """What the agent tells next; "" when it says nothing for so long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(folder / "notify"))

        def heard(within_s: float) -> str:
            ear.settimeout(within_s)
            try:
                return ear.recv(100).decode()
            except TimeoutError:
                return ""

        yield heard


def test_a_loop_that_is_blocked_is_noticed_and_started_again(tmp_path: Path) -> None:
    allowed = {"WATCHDOG_USEC": str(round(PATIENCE_S * 1e6 / 4))}
    with told(tmp_path) as heard:
        with agent(tmp_path, KARVON_FAULT="agent.upkeep:2:block", **allowed) as process:
            assert heard(60)
            while heard(PATIENCE_S):  # until it says nothing any more
                pass
            assert process.poll() is None, "it died instead of standing still"
            process.send_signal(signal.SIGABRT)  # as systemd does
            process.wait(30)
        with agent(tmp_path, **allowed):
            first = [heard(60) for _ in range(4)]
            assert set(first) == {"READY=1", "WATCHDOG=1"}
            assert first.count("READY=1") == 1


@pytest.mark.parametrize(("allowed", "every_s"), [("3000000", 1.5), ("60000000", 10), ("", 10)])
def test_systemd_hears_of_it_twice_within_what_it_allows(
    monkeypatch: pytest.MonkeyPatch, allowed: str, every_s: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    assert kick_every() == every_s
