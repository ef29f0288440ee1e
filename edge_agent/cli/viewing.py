"""`karvon agent view`: everything about one controller in a terminal, live, with no cloud."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from rich.text import Text
from textual.app import App, ComposeResult, ScreenStackError
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.coordinate import Coordinate
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, RichLog, Static, TabbedContent, TabPane

from edge_agent import control, shown
from edge_agent.cli.output import complain
from edge_agent.config import Config, ConfigError, load
from edge_agent.control import NotRunningError, Request
from edge_agent.journal import JournalError, JournalView
from edge_agent.shown import Row
from edge_agent.wording import UnknownLanguageError, Wording, wording

EVERY_S: Final = 1.0
ANSWER_S: Final = 10.0
"""An agent that says nothing for so long hangs, or has just ended."""
SESSIONS: Final = 50
SITE_METER: Final = "site meter"
COLOURS: Final = {"ok": "green", "waiting": "yellow", "trouble": "bold red", "off": "dim"}
STATE_COLUMN: Final = {"links": 2, "evses": 1, "registers": 0}
Table = DataTable[Text]


def view(path: Path, language: str) -> int:
    """Until the technician leaves; returns the exit code."""
    try:
        config, words = load(path), wording(language)
    except (ConfigError, UnknownLanguageError) as error:
        return complain(str(error), 2)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        text = "view needs a terminal; over ssh give -t, in scripts use status --json"
        return complain(text, 2)
    View(config, words).run()
    return 0


class View(App[None]):
    """One tab per question; only what is in front is asked for, so that the bus stays free."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = []
    CSS = """
    #head { height: auto; padding: 0 1; background: $panel; }
    #advice { height: 7; padding: 0 1; border-top: solid $primary; }
    #device { height: 1; padding: 0 1; }
    DataTable { height: 1fr; }
    """

    def __init__(self, config: Config, words: Wording, every_s: float = EVERY_S) -> None:
        super().__init__()
        self.words = words
        self.every_s = every_s
        self._folder = config.path(config.journal.folder)
        self._devices: list[str] = []
        for board in config.boards:
            self._devices.append(board.name)
            self._devices += [f"{board.name} meter"] if board.meter is not None else []
        if config.site is not None and config.site.meter is not None:
            self._devices.append(SITE_METER)
        self._device = 0
        self._links: list[Row] = []
        self._told: dict[str, Any] | None = None
        self._told_at = 0.0
        self._logged: list[dict[str, Any]] = []
        self._pointed = False

    # ------------------------------------------------------------------ what is on the screen

    def compose(self) -> ComposeResult:
        """The tabs, empty until the first answer."""
        say = self.words
        yield Static(id="head", markup=False)
        with TabbedContent(id="tabs"):
            with TabPane(say("ui", "links"), id="links"):
                yield self._table("links")
                with VerticalScroll(id="advice"):
                    yield Static(id="told", markup=False)
            with TabPane(say("ui", "evses"), id="evses"):
                yield self._table("evses")
            with TabPane(say("ui", "registers"), id="registers"):
                yield Static(id="device", markup=False)
                yield self._table("registers")
            with TabPane(say("ui", "sessions"), id="sessions"):
                yield self._table("sessions")
            with TabPane(say("ui", "log"), id="log"):
                yield RichLog(id="lines", max_lines=500, wrap=True)
        yield Footer(show_command_palette=False)

    @staticmethod
    def _table(name: str) -> Table:
        return DataTable(id=f"{name}-table", cursor_type="row", zebra_stripes=True)

    def on_mount(self) -> None:
        """Name the columns and keys in the technician's language, and begin to ask."""
        for name, columns in (
            ("links", shown.LINKS),
            ("evses", shown.EVSES),
            ("registers", shown.REGISTERS),
            ("sessions", shown.SESSIONS),
        ):
            self._find(name).add_columns(*shown.heads(self.words, columns))
        self.bind("q", "quit", description=self.words("ui", "quit"))
        self.bind("d", "next_device", description=self.words("ui", "next_device"))
        self.run_worker(self._follow_until_closed(), name="follow")

    def _find(self, name: str) -> Table:
        return self.query_one(f"#{name}-table", DataTable)

    def action_next_device(self) -> None:
        """Show the registers of the next board, after the last one the site meter's."""
        self._device = (self._device + 1) % len(self._devices)
        self._find("registers").clear()
        self.query_one("#tabs", TabbedContent).active = "registers"
        self._find("registers").focus()  # else a tab in which a table has the focus comes back

    # ------------------------------------------------------------------ asking

    async def _follow_until_closed(self) -> None:
        try:
            await self._follow()
        except (NoMatches, ScreenStackError):
            if self.is_running:
                raise  # else the screen was taken down while an answer was on its way

    async def _follow(self) -> None:
        while True:
            await self._ask_status()
            front = self.query_one("#tabs", TabbedContent).active
            try:
                if front == "registers":
                    await self._ask_registers()
                elif front == "log":
                    await self._ask_log()
            except NotRunningError as error:  # it ended since it told its status
                self._head(self._away(str(error)))
            if front == "sessions":
                await self._read_sessions()
            await asyncio.sleep(self.every_s)

    async def _ask_status(self) -> None:
        try:
            told = await control.ask(self._folder, Request(do="status"), ANSWER_S)
        except NotRunningError as error:
            self._head(self._away(str(error)))
            return
        self._told, self._told_at = told, time.monotonic()
        self._head(shown.headline(told, self.words))
        self._links = shown.links(told, self.words)
        self._fill("links", self._links)
        self._fill("evses", shown.evses(told, self.words))
        self._point()
        self._advise()

    def _away(self, why: str) -> str:
        """What was seen last is no longer now; it says how old it is."""
        say = self.words
        lines = [
            say("ui", "not_running"),
            f"{say('ui', 'why')}: {say('ui', 'not_running_why', why=why)}",
            f"{say('ui', 'todo')}: {say('ui', 'not_running_todo')}",
        ]
        if self._told is not None:
            age = round((time.monotonic() - self._told_at) * 1000)
            lines.append(say("ui", "stale", age=say.age(age)))
        return "\n".join(lines)

    async def _ask_registers(self) -> None:
        device = self._devices[self._device]
        dumps = await control.ask(self._folder, Request(do="read", device=device))
        if device != self._devices[self._device]:
            return
        label = f"{self.words('ui', 'device')}: {device}"
        if isinstance(dumps, dict):
            label = f"{label}. {dumps.get('error', '')}"
            dumps = []
        elif not dumps:
            label = f"{label}. {self.words('ui', 'no_registers')}"
        self.query_one("#device", Static).update(label)
        self._fill("registers", shown.registers(dumps))

    async def _ask_log(self) -> None:
        lines = await control.ask(self._folder, Request(do="log"))
        box = self.query_one("#lines", RichLog)
        if self._logged and lines[: len(self._logged)] == self._logged:
            fresh = lines[len(self._logged) :]
        else:
            box.clear()
            fresh = lines
        for line in fresh:
            box.write(Text(shown.log_line(line), style=_log_style(line["level"])))
        self._logged = lines

    async def _read_sessions(self) -> None:
        try:
            records = await asyncio.to_thread(_sessions_of, self._folder)
        except JournalError as error:
            self._head(str(error))
            return
        self._fill("sessions", shown.sessions(records, self.words))

    # ------------------------------------------------------------------ showing

    def _head(self, text: str) -> None:
        self.query_one("#head", Static).update(text)

    def _fill(self, name: str, rows: Sequence[Row]) -> None:
        """Put the rows in place; the technician's cursor stays where it is."""
        table, coloured = self._find(name), STATE_COLUMN.get(name)
        if table.row_count != len(rows):
            table.clear()
            for row in rows:
                table.add_row(*_cells(row, coloured))
            return
        for y, row in enumerate(rows):
            for x, cell in enumerate(_cells(row, coloured)):
                place = Coordinate(y, x)
                if table.get_cell_at(place) != cell:
                    table.update_cell_at(place, cell, update_width=True)

    def _point(self) -> None:
        """Once, at the beginning: at the first link that is in trouble."""
        if self._pointed or not self._links:
            return
        self._pointed = True
        troubled = [y for y, row in enumerate(self._links) if row.state == "trouble"]
        if troubled:
            self._find("links").move_cursor(row=troubled[0])

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Another link is asked about."""
        if event.data_table.is_attached:  # told too while the screen is taken down
            self._advise()

    def _advise(self) -> None:
        """What happened, why and what to do, of the link under the cursor."""
        place = self._find("links").cursor_row
        if not 0 <= place < len(self._links):
            return
        row, say = self._links[place], self.words
        lines = [f"{row.cells[0]} {row.cells[1]}: {row.cells[4]}"]
        lines += [f"{say('ui', 'why')}: {row.why}"] if row.why else []
        lines += [f"{say('ui', 'todo')}: {row.todo}"] if row.todo else []
        self.query_one("#told", Static).update("\n".join(lines))


def _sessions_of(folder: Path) -> list[dict[str, Any]]:
    with JournalView(folder) as journal:
        records: list[dict[str, Any]] = msgspec.to_builtins(journal.sessions(SESSIONS))
    return records


def _cells(row: Row, coloured: int | None) -> list[Text]:
    return [
        Text(cell, style=COLOURS.get(row.state, "") if x == coloured else "")
        for x, cell in enumerate(row.cells)
    ]


def _log_style(level: str) -> str:
    return {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}.get(level, "")
