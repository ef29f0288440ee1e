"""How a commissioning speaks with the installer: questions that an option can answer instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table

from edge_agent.wording import Wording

T = TypeVar("T")
MARKS: Final = {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
YES: Final = frozenset({"y", "yes", "j", "ja", "ha", "h", "д", "да"})
NO: Final = frozenset({"n", "no", "nein", "yo'q", "yoq", "н", "нет"})


class CommissionError(Exception):
    """It cannot go on; the text says what happened, why, what to do; `code` ends the program."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Dialog:
    """Asks at the terminal, or takes what the options say; with `yes` it asks nobody."""

    def __init__(
        self,
        words: Wording,
        console: Console,
        *,
        yes: bool,
        prompt: Callable[..., str] = typer.prompt,
    ) -> None:
        self.words = words
        self.console = console
        self.yes = yes
        self._prompt = prompt

    def text(self, key: str, **names: object) -> str:
        return self.words("commission", key, **names)

    def ask(
        self,
        option: str,
        key: str,
        read: Callable[[str], T],
        *,
        given: str | None = None,
        default: str | None = None,
        **names: object,
    ) -> T:
        """The answer, read; a wrong one is explained and asked again, or ends a script.

        Raises CommissionError (2) where an option is missing or wrong and nobody may be asked.
        """
        if given is not None:
            return self._read(option, read, given)
        if self.yes:
            if default is None:
                raise CommissionError(f"{option} is needed: with --yes nobody is asked", 2)
            return self._read(option, read, default)
        while True:
            answer = self._prompt(self.text(key, **names), default=default, show_default=True)
            try:
                return read(answer.strip())
            except ValueError as error:
                self.tell(f"[red]{escape(str(error))}[/]")

    def confirm(self, option: str, key: str, *, default: bool, given: bool | None = None) -> bool:
        def read(text: str) -> bool:
            if text.lower() in YES:
                return True
            if text.lower() in NO:
                return False
            raise ValueError(self.text("yes_or_no"))

        if given is not None:
            return given
        return self.ask(option, key, read, default="y" if default else "n")

    @staticmethod
    def _read(option: str, read: Callable[[str], T], text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise CommissionError(f"{option}: {error}", 2) from error

    # ------------------------------------------------------------------ telling

    def step(self, number: int, of: int, key: str) -> None:
        title = f"{number}/{of}  {self.text(key)}"
        self.console.print()
        self.console.print(Rule(title, align="left", style="cyan"))

    def tell(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True, highlight=False)

    def say(self, key: str, **names: object) -> None:
        self.tell(escape(self.text(key, **names)))

    def mark(self, verdict: str, text: str) -> None:
        self.tell(f"  {MARKS[verdict]} {escape(text)}")

    def warn(self, key: str, **names: object) -> None:
        """Nobody may overlook it."""
        told = escape(self.text(key, **names))
        self.console.print(Panel(told, border_style="bold red", style="bold", expand=False))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in head:
            table.add_column(escape(name), overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self.console.print(table)
