"""How a simulated board is reached: at once, for rules; through a pseudo terminal, for any host."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, Self

MANY: Final = 4096


class Board(Protocol):
    """What is at the other end of a line."""

    def feed(self, octets: bytes) -> bytes:
        """The host's octets; what the board answers to them."""
        ...


class DirectLine:
    """A line without time: what is not there when it is read does not come."""

    octet_s = 0.0

    def __init__(self, board: Board) -> None:
        self._board = board
        self._came = bytearray()
        self.waited = 0
        """How often somebody waited in vain."""

    def write(self, octets: bytes) -> None:
        self._came += self._board.feed(octets)

    def read(self, count: int, patience_s: float) -> bytes:
        del patience_s
        octets = bytes(self._came[:count])
        del self._came[:count]
        self.waited += len(octets) < count
        return octets

    def discard(self) -> None:
        self._came.clear()


class PtyLine:
    """Serves a board on a pseudo terminal, in a thread; `path` is what a host opens.

    With `octet_s` both directions take the time of a wire, neither more nor less: what one sleep of
    ours took too long, the next is shorter.
    """

    def __init__(self, board: Board, *, octet_s: float = 0.0, link: Path | None = None) -> None:
        self._board = board
        self._octet_s = octet_s
        self._overslept_s = 0.0
        # The far end stays open here: a host that closes it must not hang up the line.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._link = link
        if link is not None:
            link.unlink(missing_ok=True)
            link.symlink_to(self.path)
            self.path = str(link)
        self._stop_in, self._stop_out = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="simulated board", daemon=True)
        self.failed: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_out, b"x")
        self._thread.join()
        for handle in (self._master, self._slave, self._stop_in, self._stop_out):
            os.close(handle)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        if self.failed is not None:
            raise self.failed

    def _serve(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self._master, self._stop_in], [], [])
                if self._stop_in in ready:
                    return
                self._pass_on(os.read(self._master, MANY))
        except Exception as error:  # noqa: BLE001 - the thread's root; whoever stops it hears
            self.failed = error

    def _pass_on(self, octets: bytes) -> None:
        self._take_time(len(octets))
        answer = self._board.feed(octets)
        self._take_time(len(answer))
        while answer:
            with suppress(InterruptedError):
                answer = answer[os.write(self._master, answer) :]

    def _take_time(self, octets: int) -> None:
        if not self._octet_s or not octets:
            return
        wanted = octets * self._octet_s - self._overslept_s
        began = time.monotonic()
        time.sleep(max(0.0, wanted))
        self._overslept_s = time.monotonic() - began - wanted
