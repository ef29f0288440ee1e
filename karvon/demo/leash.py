"""Runs `karvon ARGS...` so that the kernel kills it when the process that started it is gone.

`python -m karvon.demo.leash PARENT ARGS...`. The child asks for the signal itself: unlike a hook
between fork and exec that is safe beside threads. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

from karvon.cli import main

PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Have SIGKILL sent to this process when its parent ends; exits 1 if it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    main(sys.argv[2:])
