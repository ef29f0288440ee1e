"""How commands speak: a table or a line for people, JSON for scripts, complaints on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge_agent.shown import amperes, duration, kwh
from protocols.agent_link import ClockQuality, Stamp

__all__ = [
    "amperes",
    "complain",
    "duration",
    "kwh",
    "print_json",
    "print_lines",
    "print_table",
    "when",
]


def complain(text: str, code: int) -> int:
    """One line that says what happened, why, and what to do; returns the exit code."""
    sys.stderr.write(f"karvon agent: {text}\n")
    return code


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_lines(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Plain columns, so that a serial console shows them too."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def when(stamp: Stamp) -> str:
    """UTC to the second; a question mark where the clock was not set."""
    moment = datetime.fromtimestamp(stamp.wall_ms / 1000, UTC)
    doubt = "?" if stamp.quality is ClockQuality.UNSET else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{doubt}"


def mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
