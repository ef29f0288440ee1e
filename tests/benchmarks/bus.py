"""bus.*: how well the agent uses a serial line, on ptys that are as slow as 19200 baud.

Requests are counted by the simulated line, not by the agent. The optimum of a poll cycle is found
by trying every way to cut a profile's registers into requests, without the planner's code. Then one
of three units falls silent, and what that costs the others is seen in when they are asked.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

from edge_site import UNITS, EdgeSite, ask
from figure import Figure

from edge_agent.hardware.registry import find_profile, profile_names
from protocols.modbus.binding import Binding
from protocols.modbus.checks import forbids
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Profile

PROFILE = "abb_terra_ac"
SILENT = UNITS[-1]
SETTLE_S = 10.0
MEASURED_S = 60.0
BACKED_OFF_S = 15.0
"""After that many seconds of silence the unit is asked no oftener than it will be for ever."""
Asked = tuple[float, int, int, int, int]


async def measure(runs: int) -> list[Figure]:
    del runs
    return await asyncio.to_thread(_measure)


def _measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        site = EdgeSite(Path(name))
        with site.chargers():
            site.configure(more='[authorization]\nunknown = "allow"\n')
            with site.agent():
                site.all_charge()
                time.sleep(SETTLE_S)  # the sessions begin with writes, which are no poll
                steady = {bus: _listen(site, bus, MEASURED_S) for bus in site.buses}
                before = steady[site.buses[0]]
                silent = next(s for s in site.spots if s.where.get("unit") == SILENT)
                silent.ask("silence", seconds=10 * MEASURED_S)
                after = _listen(site, site.buses[0], MEASURED_S)
    return [*_efficiency(list(steady.values())), *_dead(before, after)]


def _listen(site: EdgeSite, bus: str, seconds: float) -> list[Asked]:
    """What was asked on a bus within the next seconds."""
    ask(site.control(bus), {"do": "asked"})
    time.sleep(seconds)  # the stretch that is measured
    told = ask(site.control(bus), {"do": "asked"})
    assert told is not None
    return [tuple(each) for each in told["asked"]]


# ------------------------------------------------------------------ requests a cycle


def _efficiency(buses: list[list[Asked]]) -> list[Figure]:
    profile = find_profile(PROFILE)
    optimum = fewest(wanted_of(profile), profile)
    cycles = [len(_polls(bus, unit)) for bus in buses for unit in UNITS]
    requests = sum(len(bus) for bus in buses)
    plans = {name: ratio for name in profile_names() if (ratio := _planned_vs_optimum(name))}
    worst = max(plans, key=lambda name: plans[name])
    return [
        Figure(
            name="bus.requests_vs_optimum",
            value=requests / (sum(cycles) * optimum),
            unit="ratio",
            at_most=1.1,
            detail={"requests": requests, "cycles": sum(cycles), "optimum_a_cycle": optimum},
        ),
        Figure(
            name="bus.plan_vs_optimum",
            value=plans[worst],
            unit="ratio",
            at_most=1.1,
            detail={"profiles": len(plans), "worst": worst},
        ),
        Figure(
            name="bus.poll_period_s",
            value=statistics.median(_periods(buses[0], UNITS)),
            unit="s",
            at_most=1.05,
            detail={"worst_s": round(max(_periods(buses[0], UNITS)), 2), "units": len(UNITS)},
        ),
    ]


def wanted_of(profile: Profile) -> list[Span]:
    """The registers of one poll cycle of a device with one EVSE."""
    evse = 1 if profile.kind == "charger" else 0
    binding = Binding(profile=profile, unit=1)
    return [binding.span(f, evse) for f in binding.fields().values() if f.read == "poll"]


def fewest(wanted: list[Span], profile: Profile) -> int:
    """The least number of requests by which every span is read whole, by exhaustion."""
    spans = sorted(set(wanted))
    limits = profile.limits

    def joint(group: tuple[Span, ...]) -> bool:
        first, last = group[0], max(span.end for span in group)
        if len({(span.unit, span.function) for span in group}) > 1:
            return False
        if len(group) > 1 and (
            limits.one_value_per_request or last - first.address > limits.max_registers
        ):
            return False
        covered = {place for span in group for place in range(span.address, span.end)}
        gaps = [place for place in range(first.address, last) if place not in covered]
        if gaps and not limits.readable_gaps:
            return False
        return not any(
            forbids(rule, "read", first.function, gap, gap)
            for gap in gaps
            for rule in profile.forbidden
        )

    @cache
    def least(start: int) -> int:
        if start == len(spans):
            return 0
        ends = range(start + 1, len(spans) + 1)
        return min(1 + least(end) for end in ends if joint(tuple(spans[start:end])))

    return least(0)


def _planned_vs_optimum(name: str) -> float:
    """Of one poll cycle; 0 where only the device's own chain of models tells what there is."""
    profile = find_profile(name)
    wanted = wanted_of(profile)
    if not wanted:
        return 0.0
    return len(plan_reads(wanted, profile.limits, profile.forbidden)) / fewest(wanted, profile)


# ------------------------------------------------------------------ a dead neighbour


def _dead(before: list[Asked], after: list[Asked]) -> list[Figure]:
    profile, alive = find_profile(PROFILE), UNITS[:-1]
    slot = profile.limits.timeout_ms / 1000
    usual = statistics.mean(_periods(before, alive))
    backed_off = [each for each in after if each[0] > after[0][0] + BACKED_OFF_S]
    asked = [each for each in after if each[1] == SILENT]
    return [
        Figure(
            name="bus.dead_neighbour_slots",
            value=(max(_periods(after, alive)) - max(_periods(before, alive))) / slot,
            unit="timeouts",
            at_most=1.0,
            detail={
                "worst_gap_s": round(max(_periods(after, alive)), 2),
                "usual_worst_gap_s": round(max(_periods(before, alive)), 2),
                "timeout_s": slot,
            },
        ),
        Figure(
            name="bus.dead_neighbour_period_ratio",
            value=statistics.mean(_periods(backed_off, alive)) / usual,
            unit="ratio",
            at_most=1.1,
            detail={"silent_unit_asked": len(asked), "seconds": MEASURED_S},
        ),
    ]


def _polls(bus: list[Asked], unit: int) -> list[float]:
    """When a unit was asked for its state: once a cycle."""
    profile = find_profile(PROFILE)
    state = Binding(profile=profile, unit=unit).span(profile.registers["charging_state"], 1)
    return [
        at
        for at, asked, function, address, count in bus
        if (asked, function) == (unit, state.function)
        and address <= state.address < address + count
    ]


def _periods(bus: list[Asked], units: tuple[int, ...]) -> list[float]:
    return [later - earlier for unit in units for earlier, later in pairwise(_polls(bus, unit))]
