"""Places where a test may kill this process: `KARVON_FAULT=cloud.after_commit:3` dies at the third.

An amount with a dot is a probability instead: `cloud.before_ack:0.05` dies at one pass in twenty.
A durability promise is about the instants between persist, publish, commit and ack; kills at random
moments rarely meet them. The line on stderr lets a test count the kills per instant.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from typing import Final

BEFORE_COMMIT: Final = "cloud.before_commit"
AFTER_COMMIT: Final = "cloud.after_commit"
BEFORE_ACK: Final = "cloud.before_ack"
AFTER_ACK: Final = "cloud.after_ack"

_NAME, _, _AMOUNT = os.environ.get("KARVON_FAULT", "").partition(":")
ARMED: Final = _NAME
_CHANCE: Final = float(_AMOUNT) if "." in _AMOUNT else 0.0
_left = 0 if _CHANCE or not _NAME else int(_AMOUNT or "1")


def reach(instant: str) -> None:
    """Die by SIGKILL if this instant is armed and its count or its chance says so."""
    if instant != ARMED or not _springs():
        return
    sys.stderr.write(f"faultpoint {instant}: killing this process\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _springs() -> bool:
    global _left  # noqa: PLW0603  # one countdown for the process is the point
    if _CHANCE:
        return random.random() < _CHANCE  # noqa: S311  # a test's dice, no secret
    _left -= 1
    return _left == 0
