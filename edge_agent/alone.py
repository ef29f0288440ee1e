"""Keeping every agent out while somebody else works on its devices."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.journal.journal import LOCK
from edge_agent.rules.station import RefusedError


@contextmanager
def alone(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Hold the journal's lock, as an agent would; `make` it where no agent has ever run.

    Raises RefusedError when an agent has it, or the folder cannot be used.
    """
    lock = folder / LOCK
    if not make and not lock.exists():
        yield  # no agent has ever run on this folder
        return
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        handle = os.open(lock, flags, 0o600)
    except OSError as error:
        raise RefusedError(f"{lock}: {error.strerror}; run this as the agent's user") from error
    try:
        _take(handle)
        yield
    finally:
        os.close(handle)


def _take(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(
            "an agent runs but does not answer on its socket; wait until it has started, or stop it"
            " (systemctl stop karvon-agent)"
        ) from None
