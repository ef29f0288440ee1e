"""`lint`: what is wrong with a profile, by line, and what a careful colleague would ask about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from karvon.profiles.speaking import WRONG, ToolError, complain, told, told_json
from protocols.modbus.describing import poll_seconds
from protocols.modbus.document import ProfileError
from protocols.modbus.loading import examined
from protocols.modbus.profile import Profile

LONGEST_POLL_S = 4
"""The agent's own `times.deadline_s`, unless it is configured otherwise."""
MEASURED = ("current_l1", "power", "voltage_l1")


class Remark(msgspec.Struct, frozen=True):
    """`line` is 0 where it is about the whole file."""

    file: str
    line: int
    reason: str
    wrong: bool


def lint(paths: list[Path], *, as_json: bool) -> int:
    remarks: list[Remark] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return complain(ToolError(f"{path}: cannot be read ({error}); give a profile's file"))
        remarks += remarks_on(text, str(path))
    if as_json:
        told_json(remarks)
    else:
        for each in remarks:
            where = f"{each.file}:{each.line}" if each.line else each.file
            told(f"{where}: {'' if each.wrong else 'look again: '}{each.reason}")
        wrong = {each.file for each in remarks if each.wrong}
        for path in paths:
            if str(path) not in wrong:
                told(f"{path}: ok")
    return WRONG if any(each.wrong for each in remarks) else 0


def remarks_on(text: str, file: str) -> list[Remark]:
    try:
        profile, found = examined(text, file)
    except ProfileError as error:
        return [Remark(error.file, error.line, error.reason, wrong=True)]
    wrong = [Remark(error.file, error.line, error.reason, wrong=True) for error in found]
    if wrong:
        return wrong
    return [Remark(file, 0, reason, wrong=False) for reason in _doubts(profile, Path(file))]


def _doubts(profile: Profile, path: Path) -> Iterator[str]:
    if profile.profile != path.stem.lstrip("_"):
        yield f"its name is {profile.profile}, the file's is {path.stem}"
    if profile.simulator is None:
        yield "no simulator block: `karvon agent profile test` cannot try it"
    elif profile.kind == "charger" and len(profile.simulator.states) < 6:
        yield "the simulator block does not show every situation"
    if poll_seconds(profile) > LONGEST_POLL_S:
        yield (
            f"one poll takes {poll_seconds(profile):.1f} s of pauses alone; read less with each "
            "poll (read: demand), or the agent needs a longer times.deadline_s"
        )
    if not any((profile.identity.serial, profile.identity.firmware, profile.identity.expect)):
        yield "no identity: another device at this address would not be noticed"
    for name in MEASURED:
        field = profile.registers.get(name)
        if field is not None and field.plausible is None and not field.sentinels:
            yield f"{name} has neither sentinels nor a plausible range: nonsense would be believed"
    yield from _charger_doubts(profile)


def _charger_doubts(profile: Profile) -> Iterator[str]:
    if profile.kind != "charger":
        return
    said = {doubt.about for doubt in profile.unsure}
    if profile.failsafe is None and "profile" not in said:
        yield (
            "no failsafe: it goes on when the agent is gone; if no source tells of one, "
            "say so under `unsure` (about: profile)"
        )
    if profile.energy is None and "profile" not in said:
        yield "no energy register: sessions have no energy without a meter beside it"
