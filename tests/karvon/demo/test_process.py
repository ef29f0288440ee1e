"""Children on a leash, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from karvon.demo.process import ROOT, Child, DemoError, descendant, free_port, wait_for


def test_a_child_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    child = Child("wrong", ["no-such-command"], tmp_path)
    child.start()
    with pytest.raises(DemoError, match=r"(?s)ended with 2.*no such command"):
        child.ready(20)
    assert child.exit_code == 2


def test_waiting_says_what_it_waited_for() -> None:
    with pytest.raises(DemoError, match="in vain for rain"):
        wait_for(lambda: False, 0.0, "rain")


def test_waiting_returns_what_it_saw() -> None:
    seen = iter([None, 0, 7])
    assert wait_for(lambda: next(seen), 5.0, "seven") == 7


def test_a_free_port_lies_below_the_ephemeral_ones() -> None:
    assert 20_000 <= free_port() < 32_000


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


PARENT = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-c",
    "import os, time\\nfrom karvon.demo.leash import die_with\\n"
    f"die_with({os.getpid()})\\nprint('up', flush=True)\\ntime.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_its_killed_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert descendant(os.getpid(), "no-such-program") is None
        assert not _gone(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
    wait_for(lambda: _gone(pid), 10, "the child to be gone")
