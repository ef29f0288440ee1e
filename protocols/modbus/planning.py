"""Joins the registers that are wanted into the fewest requests the device allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocols.modbus.checks import forbids
from protocols.modbus.profile import Forbidden, Limits


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Registers (or coils) to read: `count` from `address`, by `function`, of `unit`."""

    unit: int
    function: int
    address: int
    count: int

    @property
    def end(self) -> int:
        return self.address + self.count


def plan_reads(
    wanted: Iterable[Span], limits: Limits, forbidden: Sequence[Forbidden] = ()
) -> tuple[Span, ...]:
    """The fewest requests that cover every wanted span, each whole and in exactly one request.

    Spans that overlap are read together. Greedy is minimal here: after merging, spans are disjoint
    and whatever may be joined may also be joined without its first span.
    """
    plan: list[Span] = []
    for span in _merged(wanted):
        if plan and (joined := _joined(plan[-1], span, limits, forbidden)):
            plan[-1] = joined
        else:
            plan.append(span)
    return tuple(plan)


def _merged(wanted: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(set(wanted)):
        last = merged[-1] if merged else None
        if last and _same_space(last, span) and span.address < last.end:
            merged[-1] = _hull(last, span)
        else:
            merged.append(span)
    return merged


def _same_space(one: Span, other: Span) -> bool:
    return (one.unit, one.function) == (other.unit, other.function)


def _hull(one: Span, other: Span) -> Span:
    count = max(one.end, other.end) - one.address
    return Span(one.unit, one.function, one.address, count)


def _joined(last: Span, span: Span, limits: Limits, forbidden: Sequence[Forbidden]) -> Span | None:
    hull = _hull(last, span)
    gap = span.address - last.end
    if (
        limits.one_value_per_request
        or not _same_space(last, span)
        or hull.count > limits.max_registers
        or (gap and not limits.readable_gaps)
    ):
        return None
    crossed = gap and any(
        forbids(rule, "read", span.function, last.end, span.address - 1) for rule in forbidden
    )
    return None if crossed else hull
