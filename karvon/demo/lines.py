"""Asks a local control port (simulator: TCP, agent: unix socket) one JSON line at a time."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from karvon.demo.process import DemoError

DEADLINE_S: Final = 10.0

Address = int | Path
"""A loopback TCP port, or the path of a unix socket."""


def ask(address: Address, question: dict[str, Any]) -> dict[str, Any]:
    """Send one line on a fresh connection, return the answering line.

    Raises DemoError when nobody answers or the answer says that it was refused.
    """
    try:
        with _connect(address) as line, line.makefile("rwb") as stream:
            stream.write(json.dumps(question).encode() + b"\n")
            stream.flush()
            raw = stream.readline()
    except OSError as error:
        raise DemoError(f"{address} does not answer {question}: {error}") from None
    if not raw:
        raise DemoError(f"{address} closed the connection instead of answering {question}")
    answer: dict[str, Any] = json.loads(raw)
    if answer.get("ok") is False or "error" in answer:
        raise DemoError(f"{address} refused {question}: {answer.get('error', answer)}")
    return answer


def _connect(address: Address) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=DEADLINE_S)
    line = socket.socket(socket.AF_UNIX)
    try:
        line.settimeout(DEADLINE_S)
        line.connect(str(address))
    except OSError:
        line.close()
        raise
    return line
