"""What a benchmark hands to `run.py`: a measured figure, what it must reach, and how it was got."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. `at_least` or `at_most` is the promise; None: only reported."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    detail: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def line(self) -> dict[str, object]:
        """The JSON line: figure, value, unit, must, holds, and the numbers behind it."""
        must = self.at_least if self.at_least is not None else self.at_most
        return {
            "figure": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "must": must,
            "direction": "at least" if self.at_least is not None else "at most",
            "holds": self.holds,
            **self.detail,
        }
