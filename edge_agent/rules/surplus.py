"""Charging with what the sun leaves over, without starting and stopping at every cloud."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class SurplusRules:
    """When an EVSE starts and stops (W, ms)."""

    start_margin_w: int = 200
    """So much more than the least charging power must be left over to start."""
    import_w: int = 500
    """So much may be missing before it counts as too little."""
    start_after_ms: int = 60_000
    stop_after_ms: int = 180_000
    min_on_ms: int = 300_000
    min_off_ms: int = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether one EVSE may charge on surplus now, and since when it would be otherwise."""

    on: bool = False
    since_ms: int | None = None
    """When it was switched; None: never yet."""
    other_ms: int | None = None
    """Since when the surplus speaks for switching."""

    def follow(self, left_w: int, least_w: int, rules: SurplusRules, now_ms: int) -> Gate:
        """`left_w` is left over for this EVSE, `least_w` the power at its least current."""
        if self.on:
            speaks = left_w < least_w - rules.import_w
            patience, stays = rules.stop_after_ms, rules.min_on_ms
        else:
            speaks = left_w >= least_w + rules.start_margin_w
            patience, stays = rules.start_after_ms, rules.min_off_ms
        if not speaks:
            return replace(self, other_ms=None)
        other = now_ms if self.other_ms is None else self.other_ms
        bound = self.since_ms is not None and now_ms - self.since_ms < stays
        if bound or now_ms - other < patience:
            return replace(self, other_ms=other)
        return Gate(on=not self.on, since_ms=now_ms)
