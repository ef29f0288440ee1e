"""How often somebody may try: a token bucket per asker, pure."""

from __future__ import annotations

from datetime import datetime, timedelta

_MOST_ASKERS = 10_000


class Limiter:
    """Allows `burst` attempts at once and one more per `every`, for each asker."""

    def __init__(self, burst: int, every: timedelta) -> None:
        self._burst = burst
        self._every = every
        self._spent: dict[str, datetime] = {}

    def allow(self, asker: str, now: datetime) -> bool:
        """Whether the asker may try now; a refused attempt costs nothing."""
        full = max(self._spent.get(asker, now), now) + self._every
        if full - now > self._every * self._burst:
            return False
        if len(self._spent) >= _MOST_ASKERS:
            self._spent = {who: until for who, until in self._spent.items() if until > now}
        self._spent[asker] = full
        return True

    def give_back(self, asker: str) -> None:
        """Undo one allowed attempt, which proved to be none that counts."""
        if asker in self._spent:
            self._spent[asker] -= self._every
