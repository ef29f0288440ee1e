"""Arithmetic on ranges of sequence numbers (inclusive, ascending, disjoint pairs)."""

from __future__ import annotations

from collections.abc import Iterator

from protocols.agent_link import Ranges


def contains(ranges: Ranges, number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)


def missing(ranges: Ranges, until: int) -> Iterator[tuple[int, int]]:
    """The gaps of `ranges` in 1..until."""
    free = 1
    for first, last in ranges:
        if free > until:
            return
        if free < first:
            yield free, min(first - 1, until)
        free = max(free, last + 1)
    if free <= until:
        yield free, until
