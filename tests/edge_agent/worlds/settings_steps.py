"""A process that takes a settings release, then the cloud's word, from wherever it was cut."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edge_agent.config import load
from edge_agent.remote import RemoteSettings
from edge_agent.rules.update import Expected
from edge_agent.updates.archive import Entry, pack, sha256
from protocols.agent_link import Configure, SettingsState

RELEASE = pack([Entry("settings.toml", b"[times]\nevent_s = 60\ncheckpoint_s = 30\n")])
SAID = Configure(7, {"times": {"event_s": 90}})
OWN, RELEASED, BOTH = (300, 60), (60, 30), (90, 30)
"""What runs at each stage: event_s and checkpoint_s."""
KEPT = 7
"""Times that something is written on the way: what is told, and twice a trial with its count."""


def runs(remote: RemoteSettings) -> tuple[int, int]:
    return remote.effective.times.event_s, remote.effective.times.checkpoint_s


def idle_loop() -> Any:
    """A controller where nobody charges; ten seconds pass between two looks."""
    passed = count(1, 10_000)
    return SimpleNamespace(
        lines=(),
        ledger=SimpleNamespace(failure=""),
        station=SimpleNamespace(connectors={}),
        clock=SimpleNamespace(now=lambda: SimpleNamespace(mono_ms=next(passed))),
    )


def begun(folder: Path) -> RemoteSettings:
    return RemoteSettings(load(folder / "agent.toml"), folder)


def proven(remote: RemoteSettings, folder: Path) -> RemoteSettings:
    """As often begun anew as it asks for, until nothing is on trial."""
    idle = idle_loop()
    while True:
        while remote.busy and not remote.reloads:
            remote.tick(idle, lambda: True, list)
        if not remote.reloads:
            return remote
        remote = begun(folder)


def work(folder: Path) -> RemoteSettings:
    remote = proven(begun(folder), folder)
    if remote.use().told < SAID.version:
        remote.take(SAID)
    if remote.image != sha256(RELEASE):
        remote.with_image(RELEASE)
        remote.try_image(sha256(RELEASE), Expected())
        remote = proven(remote, folder)
    if remote.use().state is not SettingsState.APPLIED:
        remote.tick(idle_loop(), lambda: True, list)
        remote = proven(remote, folder)
    return remote


if __name__ == "__main__":
    work(Path(sys.argv[1]))
