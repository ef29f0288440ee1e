"""How fast a backlog may leave beside live data, and how soon a lost link is tried again (pure)."""

from __future__ import annotations

from typing import Final

QUEUE_MS: Final = 500
"""What the backlog may add to the time that an acknowledgement takes by itself, since live data
waits in the same queues. More than that says that the line or the cloud is full."""
AGAIN_MS: Final = 1500
START: Final = 4
FARTHEST_DOUBLING: Final = 10


def retry_delay(first_s: float, longest_s: float, failures: int, chance: float) -> float:
    """Seconds before the next attempt: doubling, jittered by half (`chance` in 0..1)."""
    doubled = first_s * (1 << min(failures, FARTHEST_DOUBLING))
    return min(longest_s, doubled) * (0.5 + chance / 2)


class Pace:
    """A window of unacknowledged batches that follows the line, and a rate that is never passed."""

    def __init__(self, most: int, per_second: int) -> None:
        self.most = most
        self.per_second = per_second
        self.window = float(min(START, most))
        self._quickest: int | None = None
        """The shortest that an acknowledgement took on this connection (ms)."""
        self._burst = max(1.0, per_second / 4)
        self._tokens = self._burst
        self._at = 0
        self._shrunk_at = 0

    def connected(self) -> None:
        """Another connection: it may be another line, with a time of its own."""
        self._quickest = None

    def room(self, in_flight: int, now: int) -> int:
        """How many batches may leave at monotonic time `now` (ms) beside those in flight."""
        gained = (now - self._at) * self.per_second / 1000
        self._tokens = min(self._tokens + gained, self._burst)
        self._at = now
        return max(0, min(int(self.window) - in_flight, int(self._tokens)))

    def spent(self, batches: int) -> None:
        self._tokens -= batches

    def acknowledged(self, latency_ms: int, now: int) -> None:
        self._quickest = min(latency_ms, latency_ms if self._quickest is None else self._quickest)
        if latency_ms <= self._quickest + QUEUE_MS:
            self.window = min(self.window + 1, float(self.most))
        else:
            self.slower(now, latency_ms)

    def slower(self, now: int, latency_ms: int = AGAIN_MS) -> None:
        """Halve the window, once for all that left before it was halved last."""
        if now - latency_ms >= self._shrunk_at:
            self.window = max(1.0, self.window / 2)
            self._shrunk_at = now
