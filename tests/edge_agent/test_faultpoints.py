"""The armed instant kills the process at the named pass, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from edge_agent.faultpoints import Armed

PASSES = (
    "from edge_agent.faultpoints import reach\n"
    "for n in range(5):\n"
    "    reach('agent.after_ack'); reach('agent.before_persist'); print(n, flush=True)\n"
)


def _run(setting: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KARVON_FAULT": setting}
    return subprocess.run(
        [sys.executable, "-c", PASSES], capture_output=True, text=True, env=environment, check=False
    )


def test_it_dies_at_the_third_pass_of_the_armed_instant() -> None:
    done = _run("agent.before_persist:3")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1"]


def test_unarmed_nothing_happens() -> None:
    assert _run("").stdout.split() == ["0", "1", "2", "3", "4"]


def test_it_strikes_once() -> None:
    armed = Armed("agent.after_ack:2")
    passes = ["agent.before_persist", "agent.after_ack", "agent.after_ack", "agent.after_ack"]
    assert [armed.strikes(instant) for instant in passes] == [False, False, True, False]
