"""`new`: a profile to fill in, made of the blueprint, so that nothing in it is out of date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edge_agent.hardware.registry import PROFILES
from karvon.profiles.speaking import ToolError, complain, profile_named, told, told_json

OF_CHARGERS: Final = ("states", "setpoint", "release", "withhold", "failsafe", "evses")
METER_REGISTERS: Final = """\
  serial: {address: 0, type: str8, read: open}      # read: poll (default) | open | demand
  firmware: {address: 8, type: str4, read: open}
  current_l1: {address: 110, type: u32, scale: 0.001, unit: A, plausible: [0, 100]}
  current_l2: {address: 112, type: u32, scale: 0.001, unit: A, plausible: [0, 100]}
  current_l3: {address: 114, type: u32, scale: 0.001, unit: A, plausible: [0, 100]}
  voltage_l1: {address: 116, type: f32, unit: V, word_order: lsw_first, plausible: [0, 500]}
  power: {address: 118, type: s32, unit: W, sentinels: [0x7FFFFFFF]}    # positive is consumed
  imported: {address: 120, type: u32, scale: 0.1, unit: kWh}
  exported: {address: 122, type: u32, scale: 0.1, unit: kWh}
"""
METER_BLOCKS: Final = {
    "registers": "# A meter's own names: current_l1..3, voltage_l1..3, power, imported, exported.\n"
    f"registers:\n{METER_REGISTERS}",
    "energy": "energy: {field: imported, kind: lifetime, billing_grade: false}\n",
    "forbidden": "# Out of reach of every request, with the reason.\nforbidden:\n"
    "  - {addresses: [0, 0xFFFF], access: write, why: a meter is read}\n",
    "simulator": "# For `karvon sim meter`: what it shows of itself.\n"
    "simulator: {defaults: {serial: SIM00001, firmware: 1.2.0}}\n",
}
NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
BLOCK: Final = re.compile(r"^(?P<name>[a-z_]+):", re.MULTILINE)


def new(path: Path, kind: str, like: str | None, *, as_json: bool) -> int:
    try:
        path = _free(path)
        text = _copied(like, path.stem) if like else scaffold(path.stem, kind)
        path.write_text(text, encoding="utf-8")
    except ToolError as error:
        return complain(error)
    except OSError as error:
        return complain(ToolError(f"{path} cannot be written: {error}"))
    if as_json:
        told_json({"written": str(path), "profile": path.stem})
        return 0
    told(f"wrote {path}: fill it in, then  karvon agent profile lint {path}")
    told(f"then without the device:  karvon agent profile test {path}")
    return 0


def _free(path: Path) -> Path:
    path = path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml")
    if not NAME.fullmatch(path.stem):
        raise ToolError(
            f"'{path.stem}' is no name for a profile: small letters, digits and _, "
            "a letter first, such as my_charger"
        )
    if path.exists():
        raise ToolError(f"{path} is there already and stays as it is; choose another name")
    return path


def scaffold(name: str, kind: str) -> str:
    """The blueprint with its own name; for a meter without what only chargers have."""
    text = (PROFILES / "_blueprint.yaml").read_text(encoding="utf-8")
    if kind == "meter":
        text = "".join(_meter_block(block) for block in blocks(text))
        text = re.sub(r"^kind: charger.*$", "kind: meter", text, flags=re.MULTILINE)
    return text.replace("profile: blueprint ", f"profile: {name} ", 1)


def blocks(text: str) -> list[str]:
    """The file cut before each top-level key, whose comments above go with it."""
    lines = text.splitlines(keepends=True)
    cuts = []
    for i, line in enumerate(lines):
        if BLOCK.match(line):
            start = i
            while start and lines[start - 1].startswith("#"):
                start -= 1
            cuts.append(start)
    return ["".join(lines[a:b]) for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]


def _meter_block(block: str) -> str:
    found = BLOCK.search(block)
    name = found["name"] if found else ""
    if name in OF_CHARGERS:
        return ""
    return f"{METER_BLOCKS[name]}\n" if name in METER_BLOCKS else block


def _copied(like: str, name: str) -> str:
    profile = profile_named(like)
    by_path = "/" in like or like.endswith(".yaml")
    text = (Path(like) if by_path else PROFILES / f"{like}.yaml").read_text(encoding="utf-8")
    return text.replace(f"profile: {profile.profile}", f"profile: {name}", 1)
