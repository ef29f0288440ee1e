"""`capture --diff`: which words changed between two captures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.cli.output import print_table
from karvon.profiles.scanning import Capture
from karvon.profiles.speaking import WRONG, ToolError, complain, profile_named, told, told_json
from protocols.modbus.binding import Binding, laid_out
from protocols.modbus.profile import Profile


def compare(one: Path, other: Path, profile: str | None, *, as_json: bool) -> int:
    """1 when they differ: so that scripts notice."""
    try:
        named = profile_named(profile) if profile else None
        before, after = _read(one), _read(other)
    except ToolError as error:
        return complain(error)
    changes = list(_changes(before, after, _names(named, before.unit)))
    if as_json:
        told_json(changes)
    elif changes:
        rows = [tuple("" if v is None else v for v in each.values()) for each in changes]
        print_table(tuple(changes[0]), rows)
    else:
        told("nothing changed")
    return WRONG if changes else 0


def _read(path: Path) -> Capture:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Capture)
    except OSError as error:
        raise ToolError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ToolError(f"{path} is no capture ({error}); make one with --out") from error


def _names(profile: Profile | None, unit: int) -> dict[tuple[int, int], str]:
    """Which field stands at a function and address."""
    if profile is None:
        return {}
    binding = Binding(profile=profile, unit=unit, models=laid_out(profile))
    evse = 1 if profile.kind == "charger" else 0
    found: dict[tuple[int, int], str] = {}
    for name, each in binding.fields().items():
        span = binding.span(each, evse)
        found |= {(span.function, address): name for address in range(span.address, span.end)}
    return found


def _changes(
    before: Capture, after: Capture, names: dict[tuple[int, int], str]
) -> Iterator[dict[str, Any]]:
    for function in sorted({*before.words, *after.words}):
        old, new = before.words.get(function, {}), after.words.get(function, {})
        for address in sorted({*old, *new}, key=lambda text: int(text, 16)):
            was, now = old.get(address), new.get(address)
            if was != now:
                yield {
                    "function": int(function),
                    "address": address,
                    "before": was,
                    "after": now,
                    "before_decimal": None if was is None else int(was, 16),
                    "after_decimal": None if now is None else int(now, 16),
                    "register": names.get((int(function), int(address, 16)), ""),
                }
