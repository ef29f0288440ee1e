"""`karvon cloud live`: a station as it is now, as a table that moves, or line by line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from karvon.remote.call import Call
from karvon.remote.client import Sent, at
from karvon.remote.show import harmless, local, plain

REFRESH: Final = 4
COLUMNS: Final = (
    *("EVSE", "status", "charging", "offered A", "L1 A", "L2 A", "L3 A", "kW", "register kWh"),
    *("limited by", "error", "measured"),
)


@dataclass
class Picture:
    """What was told of a station so far."""

    station: dict[str, Any] = field(default_factory=dict)
    samples: dict[int, dict[str, Any]] = field(default_factory=dict)
    watch: str = ""
    end: str = ""

    def take(self, sent: Sent) -> dict[str, Any]:
        """Take an event in; returns its data."""
        data: dict[str, Any] = json.loads(sent.data)
        if sent.event == "station":
            self.station = data
        elif sent.event == "sample":
            self.samples[data["evse"]] = data
        elif sent.event == "watch":
            self.watch = " ".join(word for word in (data["status"], data["result"]) if word)
        elif sent.event == "end":
            self.end = data["reason"]
        return data

    def rows(self, now: datetime) -> Iterator[list[str]]:
        """A row of texts for each EVSE, and for the site's meter where it is measured."""
        told = {one["evse"]: one for one in self.station.get("evses", ())}
        for number in sorted(told.keys() | self.samples.keys()):
            state = (told.get(number) or {}).get("state")
            value = state["value"] if state else {}
            sample = self.samples.get(number, {})
            stale = "?" if state and state["stale"] else ""
            yield [
                str(number) if number else "site",
                plain(value.get("status")) + stale,
                plain(value.get("charging_state")),
                _thousandth(value.get("offered_ma"), 1),
                *(_thousandth(sample.get(f"current_l{phase}_ma"), 1) for phase in (1, 2, 3)),
                _thousandth(sample.get("power_w"), 2),
                _thousandth(sample.get("energy_wh"), 3),
                plain(value.get("limited_by")),
                plain(value.get("error")),
                _ago(sample.get("at"), now),
            ]

    def head(self) -> str:
        """The station, whether it is there, and whether it was asked for live values."""
        online = self.station.get("online")
        told = {True: "online", False: "OFFLINE: what it last said"}.get(bool(online), "")
        asked = f"; asked for a sample a second: {self.watch}" if self.watch else ""
        return f"{self.station.get('station', '')} {told}{asked}"


def _thousandth(value: int | None, digits: int) -> str:
    return "-" if value is None else f"{value / 1000:.{digits}f}"


def _ago(at_: str | None, now: datetime) -> str:
    if at_ is None:
        return "-"
    return f"{max(0.0, (now - datetime.fromisoformat(at_)).total_seconds()):.0f} s ago"


def live(call: Call, *, station: str, minutes: int) -> None:
    """Follow until the time is over, or Ctrl-C."""
    path = at("/stations/{station}/live", station=station)
    events = call.cloud.stream(path, {"minutes": minutes}, None)
    if call.as_json:
        for sent in events:
            call.json({"event": sent.event, **json.loads(sent.data)})
    elif sys.stdout.isatty():
        _moving(events)
    else:
        _lines(events)


def _lines(events: Iterator[Sent]) -> None:
    picture = Picture()
    for sent in events:
        data = picture.take(sent)
        if sent.event == "sample":
            line = _line(data)
        elif sent.event == "station":
            states = (f"{row[0]} {row[1]} {row[2]}" for row in picture.rows(datetime.now(UTC)))
            line = f"{picture.head()}: {', '.join(states)}"
        else:
            line = f"{sent.event}: {picture.watch if sent.event == 'watch' else picture.end}"
        sys.stdout.write(harmless(line) + "\n")
        sys.stdout.flush()


def _line(sample: Mapping[str, Any]) -> str:
    currents = " ".join(_thousandth(sample.get(f"current_l{n}_ma"), 1) for n in (1, 2, 3))
    return (
        f"{local(sample['at'])}  EVSE {sample['evse']}  {_thousandth(sample.get('power_w'), 2)} kW"
        f"  {currents} A  {_thousandth(sample.get('energy_wh'), 3)} kWh"
    )


def _moving(events: Iterator[Sent]) -> None:
    from rich.live import Live

    picture = Picture()
    with Live(get_renderable=lambda: _table(picture), refresh_per_second=REFRESH):
        for sent in events:
            picture.take(sent)
    if picture.end:
        sys.stdout.write(harmless(picture.end) + "\n")


def _table(picture: Picture) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, title=Text(harmless(picture.head())), title_justify="left")
    for column in COLUMNS:
        shown.add_column(column)
    for row in picture.rows(datetime.now(UTC)):
        shown.add_row(*(Text(harmless(cell)) for cell in row))
    return shown
