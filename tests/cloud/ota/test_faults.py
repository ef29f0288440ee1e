"""The table of faults in docs/updates.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROW = re.compile(r"^\| (\d+) .*`(test_ota_f\d+_\w+)` \|$", re.MULTILINE)
TEST = re.compile(r"^(?:async )?def (test_ota_f\d+_\w+)\(", re.MULTILINE)
PAGE = HERE.parents[2] / "docs" / "updates.md"


def test_every_fault_of_the_table_has_its_test_and_the_other_way_round() -> None:
    told = dict(
        re.findall(r"^\| (\d+) .*`(test_ota_f\d+_\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    )
    there = {
        name
        for file in HERE.glob("test_*.py")
        for name in re.findall(
            r"^(?:async )?def (test_ota_f\d+_\w+)\(", file.read_text(), re.MULTILINE
        )
    }
    assert set(told.values()) <= there
    assert {f"test_ota_f{number}_" for number in told} == {
        re.match(r"test_ota_f\d+_", name)[0]  # type: ignore[index]  # of names that begin so
        for name in there
    }
    assert set(told) >= {"36", "38", "39", "51", "52", "53", "54", "55"}
