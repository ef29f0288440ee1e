"""A profile in words, for people and for the documentation's register tables."""

from __future__ import annotations

from collections.abc import Iterable

from protocols.modbus.binding import Binding, laid_out
from protocols.modbus.checks import writes
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Field, Profile, Write


def summary(profile: Profile) -> str:
    """What a technician checks before trusting a profile."""
    names = [name for name, each in profile.registers.items() if each.read == "poll"]
    plan = poll_plan(profile)
    lines = [
        f"{profile.profile}: {profile.maker} {', '.join(profile.models)} ({profile.kind})",
        f"  source: {profile.source} (status: {profile.status})",
        f"  one poll reads {len(names)} fields in {len(plan)} requests:",
        *(f"    function {s.function}: {s.count} from {s.address:#06x}" for s in plan),
    ]
    named = [(".".join(map(str, path)), write) for path, write in writes(profile)]
    lines += [f"  writes {what}: {_place(write)}" for what, write in named]
    lines += [
        f"  never touches {rule.addresses[0]:#06x} to {rule.addresses[1]:#06x}: {rule.why}"
        for rule in profile.forbidden
    ]
    lines += [f"  unsure, {doubt.about}: {doubt.why}" for doubt in profile.unsure]
    if profile.simulator is None:
        lines.append("  no simulator block: `karvon sim` cannot play it")
    return "\n".join(lines) + "\n"


def shipped_table(profiles: Iterable[Profile]) -> str:
    """Markdown: every profile, where its map comes from, and what is unsure about it."""
    rows = ["| Profile | Devices | Map from | Unsure |", "|---|---|---|---|"]
    for each in sorted(profiles, key=lambda each: (each.kind, each.profile)):
        doubts = "; ".join(f"`{doubt.about}`: {doubt.why}" for doubt in each.unsure)
        devices = f"{each.maker} {', '.join(each.models)}"
        rows.append(f"| `{each.profile}` | {devices} | {each.status} | {doubts} |")
    return "\n".join(rows) + "\n"


def poll_seconds(profile: Profile) -> float:
    """What the pauses of one poll of one EVSE take, however fast the device answers."""
    return (len(poll_plan(profile)) - 1) * profile.limits.gap_ms / 1000


def options_of(profile: Profile) -> tuple[str, ...]:
    """Every option that changes something in this profile."""
    overrides = [override for each in profile.registers.values() for override in each.overrides]
    overrides += [override for _, write in writes(profile) for override in write.overrides]
    conditions = [override.when for override in overrides]
    if profile.states is not None:
        conditions += [rule.only for rule in profile.states.rules if rule.only]
    return tuple(sorted({each.option for each in conditions if each.option}))


def poll_plan(profile: Profile) -> tuple[Span, ...]:
    """The requests of one poll of one EVSE."""
    evse = 1 if profile.kind == "charger" else 0
    binding = Binding(profile=profile, unit=1, models=laid_out(profile))
    polled = [each for each in binding.fields().values() if each.read == "poll"]
    spans = [binding.span(each, evse) for each in polled]
    return plan_reads(spans, profile.limits, profile.forbidden)


def register_table(profile: Profile) -> str:
    """Markdown: every register read, then every register written."""
    rows = ["| Address | Name | Function | Type | Unit | Read |", "|---|---|---|---|---|---|"]
    ordered = sorted(profile.registers.items(), key=lambda item: (item[1].address, item[0]))
    rows += [_row(profile, name, each) for name, each in ordered]
    told = sorted({(write.address, _label(path), _place(write)) for path, write in writes(profile)})
    if told:
        rows += ["", "| Address | Written for | How |", "|---|---|---|"]
        rows += [f"| {address:#06x} | {what} | {how} |" for address, what, how in told]
    return "\n".join(rows) + "\n"


def _row(profile: Profile, name: str, each: Field) -> str:
    kind = each.type if each.bits is None else f"{each.type} bits {each.bits[0]}-{each.bits[1]}"
    unit = each.unit if each.scale == 1 else f"{each.scale:g} {each.unit}".strip()
    function = each.function or profile.read_function
    return f"| {each.address:#06x} | {name} | {function} | {kind} | {unit} | {each.read} |"


def _label(path: tuple[str | int, ...]) -> str:
    words = [str(part) for part in path if isinstance(part, str) and part != "write"]
    return " ".join(words)


def _place(write: Write) -> str:
    value = "" if write.value is None else f" = {write.value:#x}"
    unit = f" {write.scale:g} {write.unit}" if write.unit else ""
    return f"function {write.function}, {write.type}{unit}{value}"
