"""How commands speak: a table or a line for people, JSON for scripts, complaints on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from protocols.agent_link import ClockQuality, Stamp


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


def kwh(watt_hours: int | None) -> str:
    return "" if watt_hours is None else f"{watt_hours / 1000:.3f} kWh"


def mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"


def amperes(milliamperes: int | None) -> str:
    return "" if milliamperes is None else f"{milliamperes / 1000:.1f} A"


def duration(milliseconds: int) -> str:
    """Hours, minutes and seconds, e.g. `1:05:09`."""
    minutes, seconds = divmod(milliseconds // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
