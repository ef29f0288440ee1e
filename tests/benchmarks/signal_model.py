"""Electrical values as a charger reports them: register resolution, noise, ramps, idle EVSEs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from uuid import UUID

from protocols.agent_link import ClockQuality, Sample, Stamp
from protocols.quantities import MilliAmperes, Milliseconds, MilliVolts, WattHours, Watts

BOOT = UUID("6f1d2c3b-0000-7000-8000-000000000001")
START_MS = 1_767_225_600_000
VALUES_PER_SAMPLE = 9


def samples(seconds: int, evses: int, seed: int = 1) -> Iterator[list[Sample]]:
    """Second by second, one sample per EVSE; odd EVSEs charge three-phase, even ones stand idle.

    Resolution as in ABB's register map: 1 mA, 0.1 V, 1 W, 1 Wh. Currents carry 15 mA of noise and
    voltages 0.3 V (standard deviation), so that deflate has something real to work on.
    """
    rng = random.Random(seed)  # a repeatable signal, no secret
    milliwatt_seconds = [rng.randrange(10**12) for _ in range(evses)]
    for second in range(seconds):
        rows = []
        for evse in range(1, evses + 1):
            charging = evse % 2 == 1
            volts = [round(230_000 + rng.gauss(0, 300), -2) for _ in range(3)]
            amps = [round(16_000 + rng.gauss(0, 15)) if charging else 0 for _ in range(3)]
            power = sum(int(v) * a for v, a in zip(volts, amps, strict=True)) // 1_000_000
            milliwatt_seconds[evse - 1] += power * 1000
            rows.append(_sample(evse, second, volts, amps, power, milliwatt_seconds[evse - 1]))
        yield rows


def _sample(
    evse: int, second: int, volts: list[float], amps: list[int], power: int, energy: int
) -> Sample:
    return Sample(
        evse=evse,
        at=Stamp(
            Milliseconds(START_MS + second * 1000),
            Milliseconds(60_000 + second * 1000),
            BOOT,
            ClockQuality.SYNCED,
        ),
        energy_wh=WattHours(energy // 3_600_000),
        power_w=Watts(power),
        current_l1_ma=MilliAmperes(amps[0]),
        current_l2_ma=MilliAmperes(amps[1]),
        current_l3_ma=MilliAmperes(amps[2]),
        voltage_l1_mv=MilliVolts(int(volts[0])),
        voltage_l2_mv=MilliVolts(int(volts[1])),
        voltage_l3_mv=MilliVolts(int(volts[2])),
        offered_ma=MilliAmperes(16_000),
    )
