"""The live table's text."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console

from karvon.demo.picture import write_picture
from karvon.demo.table import Row, live_table


def _text(*rows: Row, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(live_table(rows, "Karvon"))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


CHARGING = Row(
    station="UZ-TAS-001",
    site="Chorsu bozori",
    state="Charging",
    age_s=1,
    stale=False,
    power_w=21_950,
    energy_wh=1_234,
    transaction="0190f2a4-aaaa-bbbb-cccc-0123456789ab",
    online=True,
)


def test_a_charging_station_shows_power_energy_and_transaction() -> None:
    text = _text(CHARGING)
    for part in ("UZ-TAS-001", "Charging", "1 s", "21.9 kW", "1.234 kWh", "0190f2a4", "online"):
        assert part in text


def test_nothing_is_cut_off_in_a_terminal_of_80_columns() -> None:
    widest = replace(
        CHARGING,
        site="Samarqand",
        state="SuspendedEVSE",
        age_s=9999,
        energy_wh=99_999,
        online=False,
    )
    assert "…" not in _text(widest, width=80)


def test_the_picture_loads_nothing_and_shows_the_rows(tmp_path: Path) -> None:
    write_picture([CHARGING], tmp_path / "images" / "demo.svg")
    svg = (tmp_path / "images" / "demo.svg").read_text()
    ET.fromstring(svg)
    assert "UZ-TAS-001" in svg
    assert "url(http" not in svg


def test_what_is_not_known_is_not_invented() -> None:
    nothing = Row(
        station="UZ-SAM-001",
        site="",
        state=None,
        age_s=None,
        stale=True,
        power_w=None,
        energy_wh=None,
        transaction=None,
        online=False,
    )
    text = _text(nothing)
    assert "unknown" in text
    assert "offline" in text
    assert "kW" not in text
