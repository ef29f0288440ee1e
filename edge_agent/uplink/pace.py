"""How fast a backlog may leave beside live data (pure)."""

from __future__ import annotations

from typing import Final

QUICK_MS: Final = 1500
"""An acknowledgement that takes longer says that the line is full: live data would wait too."""
START: Final = 4


class Pace:
    """A window of unacknowledged batches that follows the line, and a rate that is never passed."""

    def __init__(self, most: int, per_second: int) -> None:
        self.most = most
        self.per_second = per_second
        self.window = float(min(START, most))
        self._burst = max(1.0, per_second / 4)
        self._tokens = self._burst
        self._at = 0
        self._shrunk_at = 0

    def room(self, in_flight: int, now: int) -> int:
        """How many batches may leave at monotonic time `now` (ms) beside those in flight."""
        gained = (now - self._at) * self.per_second / 1000
        self._tokens = min(self._tokens + gained, self._burst)
        self._at = now
        return max(0, min(int(self.window) - in_flight, int(self._tokens)))

    def spent(self, batches: int) -> None:
        self._tokens -= batches

    def acknowledged(self, latency_ms: int, now: int) -> None:
        if latency_ms <= QUICK_MS:
            self.window = min(self.window + 1, float(self.most))
        else:
            self.slower(now)

    def slower(self, now: int) -> None:
        """Halve the window, once per round trip rather than once per batch."""
        if now - self._shrunk_at >= QUICK_MS:
            self.window = max(1.0, self.window / 2)
            self._shrunk_at = now
