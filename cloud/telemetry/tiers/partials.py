"""Partial aggregates as SQL: whatever they are combined from, the combination is exact.

Sums are numeric and weights integers, so no order of adding changes a digit. The last of several
values at one instant is the largest of them.
"""

from __future__ import annotations

from typing import Final, LiteralString

MEANS: Final[tuple[LiteralString, ...]] = (
    "power_w",
    "current_l1_ma",
    "current_l2_ma",
    "current_l3_ma",
    "voltage_l1_mv",
    "voltage_l2_mv",
    "voltage_l3_mv",
)


def _last(column: LiteralString, at: LiteralString) -> LiteralString:
    return (
        f"(array_agg({column} ORDER BY {at} DESC, {column} DESC)"
        f" FILTER (WHERE {column} IS NOT NULL))[1] AS {column}"
    )


def _mean(column: LiteralString) -> LiteralString:
    return f"({column}_sum / nullif(coalesce({column}_ms, weight), 0))::bigint AS {column}"


def _comma(parts: tuple[LiteralString, ...]) -> LiteralString:
    joined: LiteralString = ", ".join(parts)
    return joined


COLUMNS: Final[LiteralString] = _comma(
    (
        "samples",
        "weight",
        *(f"{name}_sum, {name}_ms" for name in MEANS),
        "energy_wh, energy_at, energy_min, offered_ma, offered_at, power_max_w",
    )
)
"""A partial's columns, in the order of the others here."""

OF_SAMPLES: Final[LiteralString] = _comma(
    (
        "count(*)::int AS samples",
        "sum(every_ms)::bigint AS weight",
        *(
            f"sum({name}::bigint * every_ms) AS {name}_sum,"
            f" nullif(sum(every_ms) FILTER (WHERE {name} IS NOT NULL), sum(every_ms))::bigint"
            f" AS {name}_ms"
            for name in MEANS
        ),
        _last("energy_wh", "time"),
        "max(time) FILTER (WHERE energy_wh IS NOT NULL) AS energy_at",
        "min(energy_wh) AS energy_min",
        _last("offered_ma", "time"),
        "max(time) FILTER (WHERE offered_ma IS NOT NULL) AS offered_at",
        "max(power_w) AS power_max_w",
    )
)

OF_PARTIALS: Final[LiteralString] = _comma(
    (
        "sum(samples)::int AS samples",
        "sum(weight)::bigint AS weight",
        *(
            f"sum({name}_sum) AS {name}_sum,"
            f" nullif(sum(coalesce({name}_ms, weight)) FILTER (WHERE {name}_sum IS NOT NULL),"
            f" sum(weight))::bigint AS {name}_ms"
            for name in MEANS
        ),
        _last("energy_wh", "energy_at"),
        "max(energy_at) AS energy_at",
        "min(energy_min) AS energy_min",
        _last("offered_ma", "offered_at"),
        "max(offered_at) AS offered_at",
        "max(power_max_w) AS power_max_w",
    )
)

SHOWN: Final[LiteralString] = _comma(
    ("samples, energy_wh", _mean("power_w"), "power_max_w", *map(_mean, MEANS[1:]), "offered_ma")
)
"""A partial as people see it: means weighted by what each sample stands for, after thinning too."""
