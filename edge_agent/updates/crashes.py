"""The launcher counts starts that came to nothing; who lives says so."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from edge_agent.updates import launcher


def settle(root: Path) -> None:
    """Forget crashes that were counted: what runs now is not to blame for them."""
    record = launcher.read(root)
    if record is not None and record.crashes:
        with contextlib.suppress(OSError):  # a crash too many sends back to a version that ran
            launcher.write(root, replace(record, crashes=0))
