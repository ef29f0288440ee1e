"""What an EVSE may still be taking: a lower limit frees nothing before the vehicle has followed.

IEC 61851-1 gives a vehicle five seconds to follow a lower limit. Until then it may take as much as
the highest limit of that time, and may even still be rising towards it; a low reading proves
nothing yet. After it, a reading that is still higher than the limit counts for what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

REACTION_MS: Final = 6000
"""The five seconds of IEC 61851-1, and one for the reading that shows it."""
INEXACT_MA: Final = 1000
"""What a meter or a vehicle may be beside the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """The limit an EVSE was told last, and those before it that may still be followed."""

    limit: int
    earlier: tuple[tuple[int, int], ...] = ()
    """(until when, limit), each higher than the limit told last."""

    def told(self, limit: int, now_ms: int) -> Reserve:
        """The board was told, or may have been."""
        earlier = ((now_ms + REACTION_MS, self.limit), *self.earlier)
        still = tuple((until, old) for until, old in earlier if until > now_ms and old > limit)
        return replace(self, limit=limit, earlier=still)

    def ceiling(self, now_ms: int) -> int:
        """The most that a vehicle in order may take now."""
        return max([self.limit, *(old for until, old in self.earlier if until > now_ms)])

    def disobeyed(self, measured: int, now_ms: int) -> bool:
        """More is taken than any limit of the last while allowed."""
        return measured > self.ceiling(now_ms) + INEXACT_MA
