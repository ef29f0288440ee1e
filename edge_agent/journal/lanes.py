"""Where the pending facts of each lane begin, found by lane and by position."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Final

_BEHIND_ALL: Final = "\U0010ffff"


class Lanes:
    """Lane -> position of its oldest pending fact."""

    def __init__(self, begins: Iterable[tuple[str, int]] = ()) -> None:
        self._begins = dict(begins)
        self._order = sorted((pos, lane) for lane, pos in self._begins.items())

    def add(self, lane: str, pos: int) -> None:
        """A lane that is there already keeps its place."""
        if lane not in self._begins:
            self._begins[lane] = pos
            insort(self._order, (pos, lane))

    def move(self, lane: str, pos: int | None) -> None:
        """It begins there now; None: nothing of it is pending."""
        old = self._begins.pop(lane, None)
        if old is not None:
            del self._order[bisect_left(self._order, (old, lane))]
        if pos is not None:
            self.add(lane, pos)

    def after(self, pos: int) -> Iterator[tuple[int, str]]:
        """Position and lane of those that begin behind a position, oldest first."""
        for at in range(bisect_right(self._order, (pos, _BEHIND_ALL)), len(self._order)):
            yield self._order[at]
