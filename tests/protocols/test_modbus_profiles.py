# ruff: noqa: E501 - a table of texts reads best with one case per line
"""The committed profiles against golden bytes, and how a wrong profile is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from protocols.modbus.binding import Binding
from protocols.modbus.commands import (
    failsafe_commands,
    limit_command,
    release_commands,
    withhold_commands,
)
from protocols.modbus.loading import ProfileError, load_profile, profile_schema
from protocols.modbus.planning import plan_reads
from protocols.quantities import MilliAmperes

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "edge_agent" / "profiles"
GOLDEN = json.loads((ROOT / "tests/vectors/modbus/golden.json").read_text())
ABB = (PROFILES / "abb_terra_ac.yaml").read_text()


def words(text: str) -> tuple[int, ...]:
    octets = bytes.fromhex(text)
    return tuple(int.from_bytes(octets[i : i + 2]) for i in range(0, len(octets), 2))


def binding(name: str) -> Binding:
    path = PROFILES / f"{name}.yaml"
    return Binding(profile=load_profile(path.read_text(), path.name), unit=1)


def vectors(device: str) -> list[Any]:
    return [pytest.param(v, id=f"{v['field']}-{v['words']}") for v in GOLDEN[device]["registers"]]


@pytest.mark.parametrize("vector", vectors("sdm630"))
def test_sdm630_registers_as_captured(vector: dict[str, Any]) -> None:
    meter = binding("eastron_sdm630")
    value = meter.decode(meter.fields()[vector["field"]], words(vector["words"]))
    assert value.value == vector["value"]


@pytest.mark.parametrize("vector", vectors("abb_terra_ac"))
def test_abb_registers_as_the_manual_says(vector: dict[str, Any]) -> None:
    board = binding("abb_terra_ac")
    value = board.decode(board.fields()[vector["field"]], words(vector["words"]))
    assert value.value == vector["value"]


def test_sdm630_captured_frame_asks_for_the_import_register() -> None:
    (frame,) = GOLDEN["sdm630"]["frames"]
    request, reply = bytes.fromhex(frame["request"]), bytes.fromhex(frame["reply"])
    meter = binding("eastron_sdm630")
    span = meter.span(meter.fields()["imported"], 0)
    assert request[1:6] == bytes((span.function, *divmod(span.address, 256), 0, span.count))
    assert meter.decode(meter.fields()["imported"], words(reply[3:-2].hex())).value == 177_194


def test_abb_commands_as_the_manual_says() -> None:
    board = binding("abb_terra_ac")
    limit = limit_command(board, 1, MilliAmperes(16_000)).writes
    pause = limit_command(board, 1, MilliAmperes(5_999)).writes
    failsafe = failsafe_commands(board, 1, 30, MilliAmperes(6_000))
    sent = (*limit, *pause, *release_commands(board, 1), *withhold_commands(board, 1), *failsafe)
    assert [(w.function, w.address, w.words) for w in sent] == [
        (v["function"], v["address"], words(v["words"])) for v in GOLDEN["abb_terra_ac"]["writes"]
    ]


@pytest.mark.parametrize(("name", "requests"), [("abb_terra_ac", 1), ("eastron_sdm630", 3)])
def test_a_poll_takes_few_requests(name: str, requests: int) -> None:
    device = binding(name)
    polled = [f for f in device.fields().values() if f.read == "poll"]
    spans = [device.span(each, 1) for each in polled]
    assert len(plan_reads(spans, device.profile.limits, device.profile.forbidden)) == requests


def test_published_schema_is_the_structs() -> None:
    published = (ROOT / "protocols/device_profile.schema.json").read_bytes()
    assert published == profile_schema(), (
        "run: karvon sim schema > protocols/device_profile.schema.json"
    )


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_accepted_and_named_as_its_file(path: Path) -> None:
    profile = load_profile(path.read_text(), path.name)
    assert profile.profile == path.stem.lstrip("_")


def line_of(text: str, needle: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), 1) if needle in line)


@pytest.mark.parametrize(
    ("old", "new", "where", "reason"),
    [
        ("power: {address: 0x401C", "power: {address: 401C", "  power:", r"registers\.power\.address: Expected `int`"),
        ("power: {address: 0x401C", "power: {address: 0401", "  power:", "Expected `int`, got `str`"),
        ("is: C}", "is: Z}", "is: C}", r"states\.rules\.4\.is"),
        ("401C, type: u32, unit: W", "401C, type: u32, unti: W", "  power:", "unknown field `unti`"),
        ("401C, type: u32, unit: W", "401C, type: u32, unit: A", "  power:", "power needs one of W"),
        ("401C, type: u32", "401C, type: u24", "  power:", r"registers\.power\.type"),
        ("read_back: applied_limit", "read_back: applied", "  read_back: applied_limit", "no register 'applied'"),
        ("{when: {charging_state: 4}", "{when: {chargin_state: 4}", "charging_state: 4}, is: C", "no register 'chargin_state'"),
        ("pause: {value: 0}", "pause: {}", "  pause:", "exactly one of"),
        ("range: [6, 32]", "range: [32, 6]", "  range: [6, 32]", "32 is above 6"),
        ("bits: [8, 14]", "bits: [8, 34]", "  charging_state: {", "bits 8..34"),
        ("kind: charger", "kind: meter", "registers:", "a meter needs at least power"),
        ("0x4100, function: 16", "0x4100, function: 6", "write: {address: 0x4100", "takes 2; use 16"),
        ("{address: 0x4105, function: 6, value: 1}", "{address: 0x4103, function: 6, value: 0}", "0x4105, function: 6, value: 1", "forbidden"),
        ("maker: ABB", "maker: ABB\nmaker: XYZ", "models:", "'maker' stands here twice"),
        ('firmware_from: "1.8"', 'firmware_from: "1.8', "", "not YAML"),
        ("maker: ABB", "maker: &x ABB\nnote: *x", "", "aliases"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_with_file_line_and_reason(
    old: str, new: str, where: str, reason: str
) -> None:
    assert old in ABB
    with pytest.raises(ProfileError, match=reason) as caught:
        load_profile(ABB.replace(old, new, 1), "abb.yaml")
    assert caught.value.file == "abb.yaml"
    if where:
        assert caught.value.line == line_of(ABB, where)
    assert str(caught.value).startswith(f"abb.yaml:{caught.value.line}: ")


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ProfileError, match="empty"):
        load_profile("", "nothing.yaml")


def loads_or_is_refused(text: str) -> None:
    refused: list[ProfileError] = []
    try:
        load_profile(text, "mutant.yaml")
    except ProfileError as error:
        refused.append(error)
    assert all(1 <= error.line <= text.count("\n") + 1 for error in refused)


@pytest.mark.parametrize("name", ["abb_terra_ac", "eastron_sdm630", "_blueprint"])
def test_every_missing_line_is_survived(name: str) -> None:
    lines = (PROFILES / f"{name}.yaml").read_text().splitlines()
    for i in range(len(lines)):
        loads_or_is_refused("\n".join(lines[:i] + lines[i + 1 :]) + "\n")


NASTY = ("-1", "1.0e999", "99999999999999999999", "[]", '""', "A")


@pytest.mark.parametrize("nasty", NASTY)
def test_every_value_replaced_is_loaded_or_refused_with_a_line(nasty: str) -> None:
    for found in re.finditer(r"(?<=: )(0x[0-9A-F]+|[0-9.]+|[a-z_0-9]+)(?=[,}\n\]])", ABB):
        loads_or_is_refused(ABB[: found.start()] + nasty + ABB[found.end() :])
