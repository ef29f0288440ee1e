"""The last lines of the agent's own log, kept in memory for the technician."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from protocols.quantities import Milliseconds

KEPT: Final = 500
LONGEST: Final = 2000
"""Characters of one line, trace included."""


class LogLine(msgspec.Struct, frozen=True):
    """One record, already formatted."""

    at_ms: Milliseconds
    level: str
    source: str
    text: str


class LogTail(logging.Handler):
    """Keeps the newest lines, whatever else becomes of them."""

    def __init__(self, kept: int = KEPT) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=kept)
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:LONGEST]
        except Exception:  # noqa: BLE001  # as every handler of logging: a bad record must not end its writer
            self.handleError(record)
            return
        at = Milliseconds(round(record.created * 1000))
        self._lines.append(LogLine(at, record.levelname, record.name, text))

    def lines(self) -> list[LogLine]:
        """Oldest first."""
        return list(self._lines)


@contextmanager
def log_kept() -> Iterator[LogTail]:
    """Keep the root logger's lines while the context lasts."""
    tail, root = LogTail(), logging.getLogger()
    root.addHandler(tail)
    try:
        yield tail
    finally:
        root.removeHandler(tail)
