"""The read planner against brute force: everything wanted, nothing forbidden, nothing too long."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.modbus.checks import forbids
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Forbidden, Limits

MAX = 9
spans = st.builds(
    Span,
    unit=st.integers(1, 2),
    function=st.sampled_from([3, 4]),
    address=st.integers(0, 40),
    count=st.integers(1, 4),
)
limits = st.builds(
    Limits,
    max_registers=st.integers(MAX, 20),
    readable_gaps=st.booleans(),
)
rules = st.lists(
    st.integers(0, 44).map(lambda a: Forbidden(addresses=(a, a), access="read", why="test")),
    max_size=3,
)


def allowed(wanted: list[Span], forbidden: list[Forbidden]) -> list[Span]:
    """A profile that wants what it forbids is refused before it is planned."""
    return [
        span
        for span in wanted
        if not any(forbids(r, "read", span.function, span.address, span.end - 1) for r in forbidden)
    ]


def covers(request: Span, span: Span) -> bool:
    same = (request.unit, request.function) == (span.unit, span.function)
    return same and request.address <= span.address and span.end <= request.end


def disjoint(wanted: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(set(wanted)):
        last = kept[-1] if kept else None
        if not last or not covers_space(last, span) or last.end <= span.address:
            kept.append(span)
    return kept


def covers_space(one: Span, other: Span) -> bool:
    return (one.unit, one.function) == (other.unit, other.function)


@given(st.lists(spans, max_size=12), limits, rules)
def test_every_wanted_register_is_covered_once_and_nothing_forbidden_is_touched(
    wanted: list[Span], limit: Limits, forbidden: list[Forbidden]
) -> None:
    wanted = disjoint(allowed(wanted, forbidden))
    plan = plan_reads(wanted, limit, forbidden)
    for span in wanted:
        assert sum(covers(request, span) for request in plan) == 1
    for request in plan:
        assert request.count <= limit.max_registers
        assert not any(
            forbids(r, "read", request.function, request.address, request.end - 1)
            for r in forbidden
        )
    for one, other in pairwise(plan):
        assert not covers_space(one, other) or one.end <= other.address


@given(st.lists(spans, max_size=12))
def test_overlapping_values_come_in_one_request(wanted: list[Span]) -> None:
    plan = plan_reads(wanted, Limits())
    assert all(sum(covers(request, span) for request in plan) == 1 for span in wanted)


def legal(group: list[Span], limit: Limits, forbidden: list[Forbidden]) -> bool:
    first, last = group[0], group[-1]
    if any(not covers_space(first, span) for span in group):
        return False
    if last.end - first.address > limit.max_registers:
        return False
    for one, other in pairwise(group):
        if one.end == other.address:
            continue
        if not limit.readable_gaps or any(
            forbids(r, "read", one.function, one.end, other.address - 1) for r in forbidden
        ):
            return False
    return True


def fewest(wanted: list[Span], limit: Limits, forbidden: list[Forbidden]) -> int:
    """Every way to cut the sorted spans into runs, the best of them."""
    best = [0] + [len(wanted) + 1] * len(wanted)
    for end in range(1, len(wanted) + 1):
        for start in range(end):
            if legal(wanted[start:end], limit, forbidden):
                best[end] = min(best[end], best[start] + 1)
    return best[-1]


@settings(max_examples=200)
@given(st.lists(spans, max_size=8), limits, rules)
def test_no_plan_has_fewer_requests(
    wanted: list[Span], limit: Limits, forbidden: list[Forbidden]
) -> None:
    wanted = disjoint(allowed(wanted, forbidden))
    assert len(plan_reads(wanted, limit, forbidden)) == fewest(wanted, limit, forbidden)


@given(st.lists(spans, max_size=8))
def test_one_value_per_request_means_one(wanted: list[Span]) -> None:
    wanted = disjoint(wanted)
    plan = plan_reads(wanted, Limits(one_value_per_request=True))
    assert sorted(plan) == sorted(wanted)
