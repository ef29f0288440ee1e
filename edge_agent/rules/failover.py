"""Which of the controller's links an uplink goes over: the preferred one, as long as it carries.

A cable that is plugged in says nothing of the router behind it, so a link is judged by what answers
through it. Each uplink judges for itself: its far end is its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

FARTHEST_DOUBLING: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverRules:
    """The links, the preferred one first, and how much it takes to change one's mind (ms)."""

    order: tuple[str, ...] = ()
    metered: frozenset[str] = frozenset()
    distrust_ms: int = 30_000
    """A link on which a connection did not hold comes last for so long, doubling."""
    longest_distrust_ms: int = 600_000
    held_ms: int = 30_000
    """A connection that stood for so long was a good one; what swallows large packets alone, or
    waits for a login, ends it sooner."""
    probe_ms: int = 5_000
    """How often a better link is tried while another is in use."""
    metered_probe_ms: int = 300_000
    """The same where each attempt costs money."""
    answers: int = 3
    """In a row, before an uplink goes back to a better link: one that flaps is none."""


@dataclass(slots=True)
class Failover:
    """What one uplink knows of its links; all times are monotonic milliseconds."""

    rules: FailoverRules
    in_use: str | None = None
    """The link that the connection stands on; None: there is no connection."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Why a link did not serve when last tried, for a person."""
    _failures: dict[str, int] = field(default_factory=dict)
    _distrusted: dict[str, int] = field(default_factory=dict)
    """Link -> until when it comes last."""
    _answers: dict[str, int] = field(default_factory=dict)
    _probe_at: dict[str, int] = field(default_factory=dict)

    def order(self, now_ms: int) -> list[str]:
        """Whom to try, one after the other: every link is there, whatever is thought of it."""
        return sorted(self.rules.order, key=lambda link: self._distrusts(link, now_ms))

    def _distrusts(self, link: str, now_ms: int) -> bool:
        return now_ms < self._distrusted.get(link, now_ms)

    def connected(self, link: str) -> None:
        """A connection stands on it; whether it holds is not known yet."""
        self.in_use = link
        for other in self.rules.order[self.rules.order.index(link) :]:
            self.troubles.pop(other, None)  # of those behind it nothing new is known
        self._answers.clear()
        self._probe_at.clear()

    def proved(self) -> None:
        """The connection on the link in use holds."""
        if self.in_use is not None:
            self._failures.pop(self.in_use, None)
            self._distrusted.pop(self.in_use, None)

    def unreached(self, link: str, why: str) -> None:
        """No connection came about on it."""
        self.troubles[link] = why
        self._answers.pop(link, None)

    def ended(self, *, held: bool, why: str, now_ms: int) -> None:
        """The connection is over; where it did not hold, other links come first for a while."""
        link, self.in_use = self.in_use, None
        if link is None or held:
            return
        failures = self._failures.get(link, 0)
        self._failures[link] = failures + 1
        doubled = self.rules.distrust_ms << min(failures, FARTHEST_DOUBLING)
        self._distrusted[link] = now_ms + min(doubled, self.rules.longest_distrust_ms)
        self.troubles[link] = why

    # ------------------------------------------------------------------ going back

    def due(self, now_ms: int) -> list[str]:
        """Links better than the one in use that are to be tried now."""
        found = [
            link
            for link in self._better()
            if not self._distrusts(link, now_ms) and now_ms >= self._next(link, now_ms)
        ]
        for link in found:
            self._probe_at[link] = now_ms + self._every(link)
        return found

    def _next(self, link: str, now_ms: int) -> int:
        """When its next attempt is due; the first waits, too."""
        return self._probe_at.setdefault(link, now_ms + self._every(link))

    def _every(self, link: str) -> int:
        rules = self.rules
        return rules.metered_probe_ms if link in rules.metered else rules.probe_ms

    def _better(self) -> Iterable[str]:
        if self.in_use not in self.rules.order:
            return ()
        return self.rules.order[: self.rules.order.index(self.in_use)]

    def answered(self, link: str) -> bool:
        """It was tried and somebody answered; True: go back to it."""
        self._answers[link] = self._answers.get(link, 0) + 1
        self.troubles.pop(link, None)
        return self._answers[link] >= self.rules.answers
