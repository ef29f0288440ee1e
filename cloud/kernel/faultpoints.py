"""Places where a test may kill this process: `KARVON_FAULT=cloud.after_commit:3` dies at the third.

A durability promise is about the instants between persist, publish, commit and ack; kills at random
moments rarely meet them.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

_NAME, _, _COUNT = os.environ.get("KARVON_FAULT", "").partition(":")
ARMED: Final = _NAME
_left = int(_COUNT or "1") if _NAME else 0


def reach(instant: str) -> None:
    """Die by SIGKILL if this instant is armed and its count is reached."""
    global _left  # noqa: PLW0603  # one countdown for the process is the point
    if instant != ARMED:
        return
    _left -= 1
    if _left == 0:
        sys.stderr.write(f"faultpoint {instant}: killing this process\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
