"""The documentation's register tables are the profiles'."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.hardware.registry import find_profile, profile_names
from protocols.modbus.describing import register_table, shipped_table, summary

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/device-profiles.md").read_text()


@pytest.mark.parametrize("name", ["abb_terra_ac", "eastron_sdm630"])
def test_documented_registers_are_the_profiles(name: str) -> None:
    begin, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
    documented = DOC.split(begin)[1].split(end)[0]
    assert documented == register_table(find_profile(name)), f"run: karvon sim table {name}"


def test_documented_devices_are_those_shipped() -> None:
    documented = DOC.split("<!-- shipped -->\n")[1].split("<!-- /shipped -->")[0]
    shipped = shipped_table(find_profile(name) for name in profile_names())
    assert documented == shipped, "run: karvon agent profile list --markdown"


def test_the_worked_example_is_as_the_page_says() -> None:
    text = summary(find_profile("webasto_next"))
    assert "writes setpoint.write: function 6, u16 1 A" in text
    assert "writes failsafe.fed_by.life: function 6, u16 = 0x1" in text
    assert "cannot play it" not in text
