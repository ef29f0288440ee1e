"""What the cloud answered, for people: tables, local times, ages."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

PIPE_WIDTH: Final = 220
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Column:
    """One column of a table: where its value lies in an item, and how it is written."""

    title: str
    path: str = ""
    of: Callable[[Mapping[str, Any]], Any] | None = None

    def text(self, item: Mapping[str, Any]) -> str:
        value = self.of(item) if self.of else at_path(item, self.path or self.title)
        return plain(value)


def at_path(item: Any, path: str) -> Any:
    """The value at `agent.version`; None where something on the way is missing."""
    for part in path.split("."):
        item = item.get(part) if isinstance(item, Mapping) else None
    return item


def plain(value: Any) -> str:
    """A value as a person reads it; moments in the local time zone."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return local(value) if _MOMENT.fullmatch(value) else value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(plain(one) for one in value) or "-"
    return str(value)


def local(moment: str) -> str:
    at = datetime.fromisoformat(moment).astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}"


def zone() -> str:
    """The local time zone, as a table's foot says it."""
    now = datetime.now(UTC).astimezone()
    return f"{now.tzname()} (UTC{now:%z})" if now.utcoffset() else "UTC"


def table(columns: Sequence[Column], items: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """A table on stdout; into a pipe it is as wide as it needs to be."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column.title, overflow="fold")
    for item in items:
        shown.add_row(*(Text(harmless(column.text(item))) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(shown)
    foot = f"{len(items)} shown, times in {zone()}"
    console.print(Text(f"{foot}; {note}" if note else foot, style="dim"))


def details(item: Any) -> None:
    """Everything that an answer holds, indented."""
    for line in _lines(item, 0):
        sys.stdout.write(harmless(line) + "\n")
    sys.stdout.write(f"(times in {zone()})\n")


def _lines(value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, Mapping | list) and one:
                yield f"{pad}{key}:"
                yield from _lines(one, depth + 1)
            else:
                yield f"{pad}{key}: {plain(one)}"
        return
    if not isinstance(value, list):
        yield f"{pad}{plain(value)}"
        return
    for one in value:
        first, *rest = _lines(one, depth + 1)
        yield f"{pad}- {first.lstrip()}"
        yield from rest


def harmless(text: str) -> str:
    """Without control characters: what a station or a person entered may not steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
