"""ocpp.parse_us: from the text of a CALL to its checked, typed message, mean over a session.

Through `Rpc.receive` and the tolerant reader, as a gateway does it; 1.6 and 2.0.1 in equal parts.
The baseline is what most Python systems do: json.loads and jsonschema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import TypeVar

from figure import Figure
from jsonschema import Draft4Validator, Draft6Validator
from ocpp_messages import cycle_16, cycle_201

from protocols.ocpp.rpc import Rpc
from protocols.ocpp.schemas import codec
from protocols.ocpp.shapes import shapes
from protocols.ocpp.tolerance import read_request
from protocols.ocpp.version import Version

T = TypeVar("T")

REPEATS = 400
BASELINE_REPEATS = 10
CYCLES = {Version.V16: cycle_16(), Version.V201: cycle_201()}


async def measure(runs: int) -> list[Figure]:
    """The medians of `runs`, each of the quickest of its cycles: the machine is not ours alone."""
    ours = {v: median(_ours(v) for _ in range(runs)) for v in CYCLES}
    answered = {v: median(_with_answer(v) for _ in range(runs)) for v in CYCLES}
    baseline = {v: median(_baseline(v) for _ in range(runs)) for v in CYCLES}
    mean = sum(ours.values()) / len(ours)
    return [
        Figure(
            name="ocpp.parse_us",
            value=mean,
            unit="us/message",
            at_most=3,
            detail={
                "ocpp16_us": round(ours[Version.V16], 2),
                "ocpp201_us": round(ours[Version.V201], 2),
                "with_answer_us": round(sum(answered.values()) / len(answered), 2),
                "baseline_16_us": round(baseline[Version.V16], 1),
                "baseline_201_us": round(baseline[Version.V201], 1),
                "times_quicker": round(sum(baseline.values()) / sum(ours.values()), 1),
            },
        )
    ]


def _ours(version: Version) -> float:
    types, frames = codec(version), CYCLES[version]

    def cycle(rpcs: list[Rpc]) -> None:
        for rpc, frame in zip(rpcs, frames, strict=True):
            (call,) = rpc.receive(frame, 0.0)
            read_request(types, call.action, call.payload)

    return _quickest(cycle, lambda: [Rpc(version, "b") for _ in frames], REPEATS) / len(frames)


def _with_answer(version: Version) -> float:
    types, frames = codec(version), CYCLES[version]

    def cycle(rpc: Rpc) -> None:
        for frame in frames:
            (call,) = rpc.receive(frame, 0.0)
            read_request(types, call.action, call.payload)
            rpc.answer(call.id, b"{}")

    return _quickest(cycle, lambda: Rpc(version, "b"), REPEATS) / len(frames)


def _baseline(version: Version) -> float:
    checker = Draft4Validator if version is Version.V16 else Draft6Validator
    frames = CYCLES[version]
    actions = {json.loads(frame)[2] for frame in frames}
    validators = {a: checker(json.loads(shapes(version).request_text(a))) for a in actions}

    def cycle(_: None) -> None:
        for frame in frames:
            _, _, action, payload = json.loads(frame)
            validators[action].validate(payload)

    return _quickest(cycle, lambda: None, BASELINE_REPEATS) / len(frames)


def _quickest(cycle: Callable[[T], None], fresh: Callable[[], T], repeats: int) -> float:
    """Microseconds of one cycle; what `fresh` makes for it is not counted."""
    cycle(fresh())
    times = []
    for _ in range(repeats):
        state = fresh()
        began = perf_counter()
        cycle(state)
        times.append(perf_counter() - began)
    sys.stderr.write(f"  median {median(times) * 1e6:.0f}, least {min(times) * 1e6:.0f} us\n")
    return min(times) * 1e6
