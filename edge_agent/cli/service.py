"""`karvon agent run`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from edge_agent import main
from edge_agent.cli.output import complain
from edge_agent.config import ConfigError, load
from edge_agent.journal import JournalError

log = logging.getLogger(__name__)


def run(path: Path) -> int:
    """Run until told to end; returns the exit code."""
    try:
        asyncio.run(main.run(load(path), path))
    except ConfigError as error:
        _not_the_versions_fault()
        return complain(str(error), 2)
    except JournalError as error:
        return complain(str(error), 1)
    return 0


def _not_the_versions_fault() -> None:
    """A configuration that nobody could read is no reason to start an older version."""
    root = os.environ.get("KARVON_ROOT")
    if root:
        from edge_agent.updates.crashes import settle

        settle(Path(root))


def selftest(path: Path | None) -> int:
    """Whether this version could run here; asked before it is started for the first time."""
    try:
        if path is not None:
            main.hardware(load(path))
    except ConfigError as error:
        return complain(str(error), 2)
    sys.stdout.write(f"karvon {main.version()}\n")
    return 0
