"""Three lines of a site, and which of them a charger's pins are wired to.

Everything that is counted per line of the site is a `Lines`: mA on L1, L2, L3 of the main fuse. A
charger's own L1 need not be the site's: OCPP calls how it is wired its phase rotation (R, S, T are
the site's lines; the letter's place is the charger's).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Lines = tuple[int, int, int]
NONE: Final[Lines] = (0, 0, 0)
ROTATIONS: Final[dict[str, tuple[int, int, int]]] = {
    name: ("RST".index(name[0]), "RST".index(name[1]), "RST".index(name[2]))
    for name in ("RST", "RTS", "SRT", "STR", "TRS", "TSR")
}


def wired(rotation: str, phases: int) -> tuple[int, ...]:
    """The site's lines (0, 1, 2) behind a charger's pins, in the pins' order."""
    return ROTATIONS[rotation][:phases]


def everywhere(current: int) -> Lines:
    return (current, current, current)


def on(lines: Iterable[int], current: int) -> Lines:
    """`current` on these lines, nothing on the others."""
    chosen = set(lines)
    return (
        current if 0 in chosen else 0,
        current if 1 in chosen else 0,
        current if 2 in chosen else 0,
    )


def placed(pins: Sequence[int | None], lines: Sequence[int]) -> Lines:
    """What a charger measured on its pins, on the site's lines; what it cannot measure is 0."""
    found = [0, 0, 0]
    for line, current in zip(lines, pins, strict=False):
        found[line] = current or 0
    return (found[0], found[1], found[2])


def plus(one: Lines, other: Lines) -> Lines:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def minus(one: Lines, other: Lines) -> Lines:
    """What is left; never below 0."""
    left = [max(0, a - b) for a, b in zip(one, other, strict=True)]
    return (left[0], left[1], left[2])


def total(many: Iterable[Lines]) -> Lines:
    found = NONE
    for one in many:
        found = plus(found, one)
    return found


def least(one: Lines, other: Lines) -> Lines:
    return (min(one[0], other[0]), min(one[1], other[1]), min(one[2], other[2]))


def most(one: Lines, other: Lines) -> Lines:
    return (max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]))
