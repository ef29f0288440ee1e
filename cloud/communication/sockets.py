"""WebSockets towards stations: websockets' sans-IO protocol under a transport of our own.

One object and no task per connection, and messages are handed on as they are parsed: that costs a
third of what a task per connection costs (docs/benchmarks.md). Whole text messages do not go
through the protocol at all (`framing`). A request is judged before it is answered, by somebody who
may take time for it (RFC 6455, OCPP-J 3).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from cloud.communication.framing import Cutter, TooLong, text_frame, text_of
from cloud.communication.throttle import Arrivals

logger = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
"""From the connection's beginning to the end of its upgrade request."""
CLOSE_S: Final = 5.0
LONGEST_MESSAGE: Final = 512 * 1024
MOST_PARTS: Final = 1024
"""Of one message; empty ones add nothing to its length (A16)."""
MOST_UNSENT: Final = 1024 * 1024
"""Bytes that wait for a station that does not read; then its connection is cut."""
_QUIET: Final = logging.getLogger("websockets.server")
_QUIET.setLevel(logging.ERROR)


class Listener(Protocol):
    """What an admitted socket tells."""

    def on_message(self, data: bytes) -> None: ...

    def on_heard(self) -> None:
        """Any frame came in, a pong too: the station lives (quirk S23)."""
        ...

    def on_closed(self, reason: str) -> None:
        """Once, whichever side ended it."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What an upgrade request is answered with."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    text: str = ""
    subprotocol: str | None = None
    """Named in the answer; None for a station that named none itself (S6)."""
    listener: Listener | None = None


Judge = Callable[["Socket", Request], Awaitable[Verdict]]


class Socket(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, judge: Judge, arrivals: Arrivals) -> None:
        self._judge = judge
        self._arrivals = arrivals
        self._unjudged = False
        self._source = ""
        self._protocol = ServerProtocol(max_size=LONGEST_MESSAGE, logger=_QUIET)
        self._listener: Listener | None = None
        self._hasty = False
        """It spoke before it was let in: the protocol may hold a part of a frame."""
        self._cutter: Cutter | None = None
        self._parts: list[bytes] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._why = ""
        self._closing = False

    # ------------------------------------------------------------------ the other side

    @property
    def source(self) -> str:
        """The peer's address."""
        return self._source

    @property
    def tls(self) -> ssl.SSLObject | None:
        found = self.transport.get_extra_info("ssl_object")
        return found if isinstance(found, ssl.SSLObject) else None

    # ------------------------------------------------------------------ what we do

    def send(self, message: bytes) -> None:
        """A text message; nothing when the connection is over."""
        if self._protocol.state is State.OPEN:
            self.transport.write(text_frame(message))

    def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"karvon")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the connection is cut when the other side is slow in it."""
        if self._closing:
            return
        self._closing = True
        self._why = self._why or reason
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason[:120].encode()[:120].decode(errors="ignore"))
            self._flush()
        self._after(CLOSE_S, self.cut)

    def cut(self, reason: str = "") -> None:
        """End it at once."""
        self._why = self._why or reason
        self.transport.abort()

    def hold(self, *, seconds: float) -> None:
        """Read nothing for a while: what comes too fast waits in the station's own buffers."""
        if self.transport.is_closing():
            return
        if self._held is None:
            self.transport.pause_reading()
        else:
            self._held.cancel()
        self._held = asyncio.get_running_loop().call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._held = None
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self.transport.set_write_buffer_limits(high=MOST_UNSENT)
        peer = transport.get_extra_info("peername")
        self._source = str(peer[0]) if isinstance(peer, tuple) else "local"
        self._unjudged = self._arrivals.arrive(self.source)
        if not self._unjudged:
            self.cut("too many wait to be judged")
            return
        self._after(HANDSHAKE_S, lambda: self.cut("no upgrade request in time"))

    def pause_writing(self) -> None:
        self.cut(f"it did not read {MOST_UNSENT} bytes")

    def data_received(self, data: bytes) -> None:
        if self._cutter is None:
            self._hasty = self._hasty or self._task is not None
            self._parse(data)
            return
        try:
            for frame in self._cutter.cut(data):
                self._receive(frame)
        except TooLong as error:
            self._cutter = None
            self._parse(error.rest)

    def _receive(self, frame: bytes) -> None:
        protocol, listener = self._protocol, self._listener
        if self._parts or listener is None or protocol.parser_exc or protocol.close_rcvd:
            message = None
        else:
            message = text_of(frame)
        if message is None:
            self._parse(frame)
        elif listener is not None:
            listener.on_message(message)

    def _parse(self, data: bytes) -> None:
        """What is not a whole text message, or comes before the station is let in."""
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
            elif isinstance(event, Request):
                self._hasty = bool(protocol.reader.buffer)
                self._ask(event)
        self._flush()

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._judged()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_closed(self._reason(exc))

    def _judged(self) -> None:
        if self._unjudged:
            self._unjudged = False
            self._arrivals.leave(self.source)

    def _reason(self, exc: Exception | None) -> str:
        if self._why:
            return self._why
        if self._protocol.close_rcvd is not None:
            return f"closed by the station: {self._protocol.close_rcvd}"
        return f"connection lost: {exc}" if exc else "connection lost"

    # ------------------------------------------------------------------ the upgrade

    def _ask(self, request: Request) -> None:
        self._task = asyncio.get_running_loop().create_task(self._admit(request))

    async def _admit(self, request: Request) -> None:
        try:
            verdict = await self._judge(self, request)
        except Exception:
            logger.exception("an upgrade request could not be judged")
            verdict = Verdict(500, text="internal error")
        finally:
            self._task = None
            self._judged()
        self._answer(request, verdict)

    def _answer(self, request: Request, verdict: Verdict) -> None:
        if self.transport.is_closing():
            if verdict.listener is not None:
                verdict.listener.on_closed("gone before it was let in")
            return
        response = self._response(request, verdict)
        self._protocol.send_response(response)
        admitted = response.status_code == 101
        if admitted:
            self._listener = verdict.listener
            self._cutter = None if self._hasty else Cutter(LONGEST_MESSAGE)
            if self._timer is not None:
                self._timer.cancel()
        else:
            self._why = f"refused: {response.status_code}"
            if verdict.listener is not None:
                verdict.listener.on_closed(self._why)
        self._flush()
        if not admitted:
            self.transport.close()

    def _response(self, request: Request, verdict: Verdict) -> Response:
        if verdict.status != 101:
            response = self._protocol.reject(verdict.status, verdict.text + "\n")
        else:
            response = self._protocol.accept(request)
            if response.status_code == 101 and verdict.subprotocol is not None:
                response.headers["Sec-WebSocket-Protocol"] = verdict.subprotocol
        for name, value in verdict.headers:
            response.headers[name] = value
        return response

    # ------------------------------------------------------------------ frames

    def _take(self, frame: Frame) -> None:
        listener = self._listener
        if listener is None:
            return
        if frame.opcode is Opcode.TEXT and frame.fin and not self._parts:
            listener.on_message(bytes(frame.data))  # of a station that spoke before it was let in
        elif frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            self._gather(frame, listener)
        else:
            listener.on_heard()

    def _gather(self, frame: Frame, listener: Listener) -> None:
        """A message in parts; a binary one too, which some stations send."""
        if len(self._parts) >= MOST_PARTS:
            self.close(1009, "a message of too many parts")
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            data = b"".join(self._parts)
            self._parts = []
            listener.on_message(data)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.transport.write(data)
            elif not self.transport.is_closing():
                self.transport.close()

    def _after(self, seconds: float, work: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, work)


def header(request: Request, name: str) -> str | None:
    """A request's header; several of one name as one line (RFC 9110, 5.3)."""
    found = request.headers.get_all(name)
    return ", ".join(found) if found else None


def subprotocols(request: Request) -> list[str]:
    """Those that the station offers, in its order."""
    offered = header(request, "Sec-WebSocket-Protocol") or ""
    return [name.strip() for name in offered.split(",") if name.strip()]
