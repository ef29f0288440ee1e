"""`list` and `show`."""

from __future__ import annotations

import msgspec

from edge_agent.cli.output import print_table
from edge_agent.hardware.registry import find_profile, profile_names
from karvon.profiles.speaking import ToolError, complain, profile_named, told, told_json
from protocols.modbus.describing import (
    options_of,
    poll_plan,
    register_table,
    shipped_table,
    summary,
)


def list_all(*, as_json: bool, as_markdown: bool) -> int:
    profiles = [find_profile(name) for name in profile_names()]
    if as_markdown:
        told(shipped_table(profiles).rstrip())
        return 0
    if as_json:
        told_json(
            [
                {
                    "profile": each.profile,
                    "kind": each.kind,
                    "maker": each.maker,
                    "models": each.models,
                    "status": each.status,
                    "options": options_of(each),
                    "unsure": each.unsure,
                }
                for each in profiles
            ]
        )
        return 0
    rows = [
        (each.profile, each.kind, each.status, len(each.unsure) or "", _models(each.models))
        for each in sorted(profiles, key=lambda each: (each.kind, each.profile))
    ]
    print_table(("profile", "kind", "map from", "unsure", "models"), rows)
    return 0


def _models(models: tuple[str, ...]) -> str:
    text = ", ".join(models)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show(name: str, *, as_json: bool) -> int:
    try:
        profile = profile_named(name)
    except ToolError as error:
        return complain(error)
    if as_json:
        plan = [
            {"function": s.function, "address": s.address, "count": s.count}
            for s in poll_plan(profile)
        ]
        told_json({**msgspec.to_builtins(profile), "poll": plan, "options": options_of(profile)})
        return 0
    told(summary(profile))
    for option in options_of(profile):
        told(f"  option: {option}")
    told(register_table(profile).rstrip())
    return 0
