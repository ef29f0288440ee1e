"""The IEC 61851 state from raw values, by the profile's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.modbus.profile import Match, StateRule
from protocols.modbus.values import Value

UNAVAILABLE = "E"
"""IEC 61851 state E, "no power": nothing can be had here, though nothing is known to be broken."""


def state_of(
    rules: Sequence[StateRule], otherwise: str, values: Mapping[str, Value]
) -> tuple[str, bool]:
    """The state letter A..F, and whether it is suspect (no rule held: an unknown raw value)."""
    rule = _first(rules, values)
    return (_letter(otherwise), True) if rule is None else (_letter(rule.is_), False)


def awaits_release(rules: Sequence[StateRule], values: Mapping[str, Value]) -> bool:
    """Whether the device itself says that it waits for an authorization."""
    rule = _first(rules, values)
    return rule is not None and rule.awaits_release


def _first(rules: Sequence[StateRule], values: Mapping[str, Value]) -> StateRule | None:
    for rule in rules:
        if all(_matches(values[name].value, want) for name, want in rule.when.items()):
            return rule
    return None


def _letter(name: str) -> str:
    return UNAVAILABLE if name == "unavailable" else name


def _matches(value: int | str | None, want: int | str | tuple[int | str, ...] | Match) -> bool:
    if value is None:
        return False
    if isinstance(want, tuple):
        return value in want
    return _fits(value, want) if isinstance(want, Match) else value == want


def _fits(value: int | str, want: Match) -> bool:
    if want.starts_with is not None:
        return isinstance(value, str) and value.startswith(want.starts_with)
    if isinstance(value, str):
        return False
    masked = value if want.mask is None else value & want.mask
    return (
        (want.equals is None or masked == want.equals)
        and (want.other_than is None or masked != want.other_than)
        and (want.at_least is None or masked >= want.at_least)
        and (want.at_most is None or masked <= want.at_most)
    )
