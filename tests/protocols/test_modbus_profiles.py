# ruff: noqa: E501 - a table of texts reads best with one case per line
"""The committed profiles, and how a wrong one is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocols.modbus.binding import Binding
from protocols.modbus.loading import ProfileError, load_profile, profile_schema
from protocols.modbus.planning import plan_reads

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "edge_agent" / "profiles"
ABB = (PROFILES / "abb_terra_ac.yaml").read_text()


def binding(name: str) -> Binding:
    path = PROFILES / f"{name}.yaml"
    return Binding(profile=load_profile(path.read_text(), path.name), unit=1)


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
        ("{about: registers.error,", "{about: failsafe.fedby,", "{about: registers.error", "there is no 'failsafe.fedby'"),
        ("{about: registers.error,", "{about: registers.nix,", "{about: registers.error", r"unsure\.0\.about"),
        ("    range: [10, 65535]\n", "", "  timeout:", "write and range come together"),
        ("    range: [10, 65535]\n", "    range: [10, 65535]\n    fixed: 60\n", "fixed: 60", "what is written is not fixed"),
        ("none_raw: 0xFF\n", "none_raw: 0xFF\n    stop_raw: 0x10000\n", "stop_raw:", "65536 does not fit into u16"),
        ("firmware: {address: 0x4004, type: bytes2", "firmware: {zeros: [1], address: 0x4004, type: bytes2", "  firmware: {", "zeros are for whole numbers, not for bytes2"),
        ("power: {address: 0x401C", "power: {model: [103], address: 0x401C", "  power:", "the profile has no chain"),
        ("power: {address: 0x401C", "power: {scale_from: ten, address: 0x401C", "  power:", "no register 'ten'"),
        ("power: {address: 0x401C", "power: {scale_from: error, address: 0x401C", "  power:", "'error' must be an s16 or u16"),
        ("energy: {address: 0x401E", "energy: {scale_from: comm_code, address: 0x401E", "  energy: {address", "no register 'comm_code'"),
        ("simulator:\n", "simulator:\n  models: [[103, 50]]\n", "  models:", "the profile has no chain"),
        ("maker: ABB\n", "maker: ABB\nchain: {bases: []}\n", "chain: {", "name at least one address"),
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
        wrong = ABB.replace(old, new, 1)
        here = wrong if where not in ABB else ABB
        assert caught.value.line == line_of(here, where)
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


@pytest.mark.parametrize(
    "name", ["abb_terra_ac", "mennekes_compact", "sunspec_meter", "_blueprint"]
)
def test_every_missing_line_is_survived(name: str) -> None:
    lines = (PROFILES / f"{name}.yaml").read_text().splitlines()
    for i in range(len(lines)):
        loads_or_is_refused("\n".join(lines[:i] + lines[i + 1 :]) + "\n")


NASTY = ("-1", "1.0e999", "99999999999999999999", "[]", '""', "A")


@pytest.mark.parametrize("nasty", NASTY)
def test_every_value_replaced_is_loaded_or_refused_with_a_line(nasty: str) -> None:
    for found in re.finditer(r"(?<=: )(0x[0-9A-F]+|[0-9.]+|[a-z_0-9]+)(?=[,}\n\]])", ABB):
        loads_or_is_refused(ABB[: found.start()] + nasty + ABB[found.end() :])
