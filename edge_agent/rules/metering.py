"""From a board's raw energy register to a lifetime integral that never runs back.

A register may count one session or a lifetime, wrap at a modulus, fall to zero with a new session
or a restarted board, and now and then show nonsense. A step that the EVSE's rating and the time
passed can explain is counted at once. Anything else is put in doubt: since counters are
cumulative, nothing is lost by waiting for the next reading. It either fits the last good value
again (a spike, forgotten), or confirms the doubtful one (a reset or a jump, accepted).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from edge_agent.hardware.board import EnergyKind, EvseInfo
from edge_agent.records import Register
from protocols.quantities import WattHours

MS_PER_HOUR: Final = 3_600_000
HIGH_MAINS_MV: Final = 260_000
"""EN 50160's upper limit of a 230 V supply (253 V), and some more."""
SMALL_STEP_WH: Final = 20
"""Below this no step is worth a doubt: meters round, and polls come late."""
RESTART_MS: Final = 600_000
"""So much unobserved time is granted to the first reading of a boot without a second look."""
LONGEST_GAP_MS: Final = 30 * 24 * MS_PER_HOUR
CONFIRM_RESET: Final = 2
CONFIRM_JUMP: Final = 10


class Step(StrEnum):
    """What a reading meant for the integral."""

    COUNTED = "counted"
    DOUBTED = "doubted"
    RESET = "reset"
    JUMPED = "jumped"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Readings that do not fit the last good one, but fit each other."""

    first: WattHours
    last: WattHours
    at_ms: int
    readings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """An EVSE's integral and what is needed to continue it."""

    register: Register
    at_ms: int | None = None
    """Monotonic time of the last good reading; None: none yet since the agent started."""
    doubt: Doubt | None = None
    fresh: bool = False
    """A session was just released: a session register may now start from zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What an EVSE can deliver and how its register counts."""

    max_power_w: int
    kind: EnergyKind
    step: WattHours
    modulus: int | None
    margin: int = 2
    """Times the rated energy that is still believed; above 2 only where time is accelerated."""

    @classmethod
    def of(cls, info: EvseInfo, margin: int = 2) -> Rating:
        power = info.max_current * HIGH_MAINS_MV * info.phases // 1_000_000
        return cls(
            max_power_w=power,
            kind=info.energy_kind,
            step=info.energy_step,
            modulus=info.energy_modulus,
            margin=margin,
        )

    def allowance(self, elapsed_ms: int) -> int:
        """The most Wh that this EVSE can have delivered in that time, generously."""
        rated = self.max_power_w * max(0, elapsed_ms) * self.margin // MS_PER_HOUR
        return rated + self.margin * max(SMALL_STEP_WH, 2 * self.step)


def expect_reset(meter: Meter) -> Meter:
    """Call at a release: the next reading may start from zero without a second look."""
    return replace(meter, fresh=True)


def count(meter: Meter, raw: WattHours | None, now_ms: int, rating: Rating) -> tuple[Meter, Step]:
    """Take one raw reading (None: there was none) into the integral."""
    if raw is None:
        return meter, Step.DOUBTED if meter.doubt else Step.COUNTED
    last = meter.register.raw_wh
    if last is None:
        return _accept(meter, raw, 0, now_ms), Step.COUNTED
    elapsed = RESTART_MS if meter.at_ms is None else now_ms - meter.at_ms
    gain = None
    if not (meter.fresh and raw < last and rating.kind is EnergyKind.SESSION):
        gain = _gain(last, raw, rating, rating.allowance(elapsed))
    if gain is not None:
        return _accept(meter, raw, gain, now_ms), Step.COUNTED
    doubt = _weigh(meter.doubt, raw, now_ms, rating)
    restarted = _is_reset(meter, doubt.first, now_ms, rating)
    if doubt.readings < _needed(meter, restarted=restarted):
        return replace(meter, doubt=doubt), Step.DOUBTED
    return _resolve(replace(meter, doubt=doubt), raw, now_ms, rating, restarted=restarted)


def _gain(last: int, raw: int, rating: Rating, allowed: int) -> int | None:
    """Wh from `last` to `raw`, forward or across the modulus; None: not physically possible."""
    forward = raw - last
    if forward < 0 and rating.modulus:
        forward += rating.modulus
    return forward if 0 <= forward <= allowed else None


def _weigh(doubt: Doubt | None, raw: WattHours, now_ms: int, rating: Rating) -> Doubt:
    """Join a doubtful reading to those before it, or start over with it."""
    if doubt is not None:
        grown = raw - doubt.last
        if 0 <= grown <= rating.allowance(now_ms - doubt.at_ms):
            return Doubt(doubt.first, raw, now_ms, doubt.readings + 1)
    return Doubt(raw, raw, now_ms, 1)


def _is_reset(meter: Meter, first: int, now_ms: int, rating: Rating) -> bool:
    """A session register that starts over: lower than before, and no more than time allows."""
    if rating.kind is not EnergyKind.SESSION or first >= (meter.register.raw_wh or 0):
        return False
    unseen = LONGEST_GAP_MS if meter.at_ms is None else now_ms - meter.at_ms
    return first <= rating.allowance(unseen)


def _needed(meter: Meter, *, restarted: bool) -> int:
    if restarted and meter.fresh:
        return 1
    return CONFIRM_RESET if restarted or meter.at_ms is None else CONFIRM_JUMP


def _resolve(
    meter: Meter, raw: WattHours, now_ms: int, rating: Rating, *, restarted: bool
) -> tuple[Meter, Step]:
    """The doubtful readings are confirmed: count what they can explain."""
    if restarted:
        return _accept(meter, raw, raw, now_ms), Step.RESET
    if meter.at_ms is None:
        gain = _gain(meter.register.raw_wh or 0, raw, rating, rating.allowance(LONGEST_GAP_MS))
        if gain is not None:
            return _accept(meter, raw, gain, now_ms), Step.COUNTED
    first = meter.doubt.first if meter.doubt else raw
    return _accept(meter, raw, raw - first, now_ms), Step.JUMPED


def _accept(meter: Meter, raw: WattHours, gain: int, now_ms: int) -> Meter:
    register = Register(
        evse=meter.register.evse,
        meter_wh=WattHours(meter.register.meter_wh + gain),
        raw_wh=raw,
    )
    return Meter(register=register, at_ms=now_ms)
