"""The system's clocks, for the one place that reads them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from edge_agent.rules.clock import ClockRules, SystemTime
from protocols.agent_link import ClockCorrected, Stamp

TIME_ERROR: Final = 5
"""adjtimex(2): the clock is not synchronised."""
TIMEX_BYTES: Final = 256
"""More than struct timex has on any Linux; all zero asks without changing anything."""


def kernel_synced() -> bool:
    """Whether the kernel says that something disciplines its clock; False where it cannot tell."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return False
    state: int = adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return 0 <= state < TIME_ERROR


def system_time() -> SystemTime:
    return SystemTime(
        wall_ms=time.time_ns() // 1_000_000,
        mono_ms=time.monotonic_ns() // 1_000_000,
        synced=kernel_synced(),
    )


class Clock:
    """The agent's account of time, fed from a source that a test replaces."""

    def __init__(self, rules: ClockRules, source: Callable[[], SystemTime] = system_time) -> None:
        self.rules = rules
        self._source = source

    def now(self) -> Stamp:
        return self.rules.stamp(self._source())

    def observe(self) -> ClockCorrected | None:
        """Look at the system clock; the fact to record when our account of time changed."""
        return self.rules.observe(self._source(), uuid4())

    def cloud_time(self, now_ms: int) -> ClockCorrected | None:
        """The cloud just told its time."""
        return self.rules.cloud_time(now_ms, self._source().mono_ms, uuid4())
