"""What the limits of a site mean for the vehicles on it: pure arithmetic for the installer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edge_agent.rules.fuse import curve
from edge_agent.rules.phases import Lines, wired
from protocols.quantities import IEC_MIN_CURRENT

LARGEST_FUSE_A: Final = 3200


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """One EVSE: what it may give, and on how many phases, wired how."""

    evse: int
    most: int
    phases: int
    rotation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """Currents in mA, per line of the site."""

    fuse: Lines
    all_at_once: Lines
    """What flows when every EVSE gives its most."""
    each: int
    """What each gets when all charge and share evenly; under 6 A they take turns."""
    at_once: int
    """So many can charge at the same time, with the least that a vehicle charges with."""
    dead: Lines
    """What all take by their own failsafe when the agent is dead."""
    safe: Lines
    """What all take while the site's meter is silent."""


def meaning(fuse: Lines, outlets: Sequence[Outlet], failsafe: int, safe_share: int) -> Meaning:
    """What these limits lead to; one value of a vehicle counts on every phase it is wired to."""
    return Meaning(
        fuse=fuse,
        all_at_once=_sum(outlets, lambda one: one.most),
        each=_even(fuse, outlets),
        at_once=_fitting(fuse, outlets),
        dead=_sum(outlets, lambda _: failsafe),
        safe=_sum(outlets, lambda one: min(safe_share, one.most)),
    )


def _sum(outlets: Sequence[Outlet], of: Callable[[Outlet], int]) -> Lines:
    lines = [0, 0, 0]
    for one in outlets:
        for line in wired(one.rotation, one.phases):
            lines[line] += of(one)
    return (lines[0], lines[1], lines[2])


def _even(fuse: Lines, outlets: Sequence[Outlet]) -> int:
    """The most that all can have alike on every line."""
    users = _sum(outlets, lambda _: 1)
    shares = [room // count for room, count in zip(fuse, users, strict=True) if count]
    return min([*shares, max((one.most for one in outlets), default=0)])


def _fitting(fuse: Lines, outlets: Sequence[Outlet]) -> int:
    left, count = list(fuse), 0
    for one in outlets:
        lines = wired(one.rotation, one.phases)
        if all(left[line] >= IEC_MIN_CURRENT for line in lines):
            count += 1
            for line in lines:
                left[line] -= IEC_MIN_CURRENT
    return count


def overload(fuse: Lines) -> tuple[tuple[int, int], ...]:
    """(mA, seconds) that the weakest line's fuse bears beyond its rating, by the gG curve."""
    rating = min(fuse)
    return tuple(
        (rating * thousandths // 1000, bearable // 1000)
        for thousandths, bearable in curve(rating)
        if bearable is not None
    )


def current_of(text: str) -> int:
    """`63`, `62.5 A`, `63000 mA` -> mA. Raises ValueError with what would be right."""
    plain = text.strip().lower().replace(",", ".")
    scale = 1 if plain.endswith("ma") else 1000
    number = plain.removesuffix("ma").removesuffix("a").strip()
    try:
        milliamperes = round(float(number) * scale)
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is no current; write 63, 62.5 A or 63000 mA") from None
    if not 0 <= milliamperes <= LARGEST_FUSE_A * 1000:
        raise ValueError(f"'{text}' is not between 0 and {LARGEST_FUSE_A} A; mA end with mA")
    return milliamperes


def fuse_of(text: str) -> Lines:
    """`63` for all lines, or `63;63;50`, `63/63/50`, one for each. Raises ValueError."""
    parts = text.replace("/", ";").split(";")
    if len(parts) not in {1, 3}:
        raise ValueError(f"'{text}': one current for all lines, or three as 63/63/50")
    currents = [current_of(part) for part in parts]
    if min(currents) < IEC_MIN_CURRENT:
        raise ValueError(f"'{text}': below 6 A no vehicle can charge")
    return (currents[0], currents[0], currents[0]) if len(currents) == 1 else _three(currents)


def _three(currents: Sequence[int]) -> Lines:
    return (currents[0], currents[1], currents[2])
