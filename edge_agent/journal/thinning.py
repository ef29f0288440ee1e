"""Coarser telemetry: what is kept of samples when there is no room for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

import msgspec

from protocols.agent_link import Sample
from protocols.quantities import Milliseconds

STEPS_MS: Final = (60_000, 300_000, 900_000)
"""1 min, then 5, then 15; what is coarser than that is dropped."""
MEANS: Final = (
    "power_w",
    "current_l1_ma",
    "current_l2_ma",
    "current_l3_ma",
    "voltage_l1_mv",
    "voltage_l2_mv",
    "voltage_l3_mv",
)


def coarser(every_ms: int) -> Milliseconds | None:
    """The next step after a resolution; None when it is the coarsest."""
    return next((Milliseconds(step) for step in STEPS_MS if step > every_ms), None)


def _mean(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if known else None


def _last(values: Sequence[int | None]) -> int | None:
    return next((value for value in reversed(values) if value is not None), None)


def _merge(group: Sequence[Sample], every_ms: Milliseconds) -> Sample:
    values: dict[str, int | None] = {
        name: _mean(getattr(sample, name) for sample in group) for name in MEANS
    }
    for name in ("energy_wh", "offered_ma"):
        values[name] = _last([getattr(sample, name) for sample in group])
    return msgspec.structs.replace(group[-1], every_ms=every_ms, **values)


def thin(samples: Iterable[Sample], every_ms: Milliseconds) -> list[Sample]:
    """One sample per `every_ms` of a boot's monotonic clock, at the time of its last one.

    Energy is the last reading, exact at that time; power, currents and voltages are means.
    """

    def bucket(sample: Sample) -> tuple[object, ...]:
        at = sample.at
        offset = at.wall_ms - at.mono_ms
        return (sample.evse, at.boot, at.quality, offset, at.mono_ms // every_ms)

    ordered = sorted(samples, key=lambda s: (s.evse, str(s.at.boot), s.at.mono_ms))
    return [_merge(list(group), every_ms) for _, group in groupby(ordered, bucket)]
