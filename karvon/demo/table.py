"""The live view: what the cloud knows of every station, and how old that knowledge is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.table import Table

TITLE: Final = "What the cloud knows of each station, and how old that is"
COLOURS = {
    "Charging": "green",
    "SuspendedEV": "cyan",
    "SuspendedEVSE": "yellow",
    "EVConnected": "blue",
    "Faulted": "red",
    "Unavailable": "red",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One station as REST tells it; None: not known."""

    station: str
    site: str
    state: str | None
    age_s: int | None
    stale: bool
    power_w: int | None
    energy_wh: int | None
    transaction: str | None
    online: bool


def live_table(rows: Iterable[Row], title: str) -> Table:
    """What stands in the terminal, within 80 columns; a stale value is dim and says its age."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for heading in ("station", "site", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("age", "power", "energy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("transaction", "link"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), style="dim" if row.stale else "")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    state = row.state or "unknown"
    colour = COLOURS.get(state, "white")
    return (
        row.station,
        row.site,
        f"[{colour}]{state}[/]",
        "" if row.age_s is None else f"{row.age_s} s",
        "" if row.power_w is None else f"{row.power_w / 1000:.1f} kW",
        "" if row.energy_wh is None else f"{row.energy_wh / 1000:.3f} kWh",
        (row.transaction or "")[:8],
        "[green]online[/]" if row.online else "[red]offline[/]",
    )
