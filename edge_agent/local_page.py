"""Serves the local page: read-only, without login, and never at the expense of charging.

It answers GET and nothing else, few clients at a time and so many a second; what it shows is made
at most once a second, however many ask. A page that cannot be served is tried again later.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec

from edge_agent import page
from edge_agent.serving import Connections
from edge_agent.wording import DEFAULT, LANGUAGES, Wording, wording

log = logging.getLogger(__name__)
MOST_CLIENTS: Final = 8
MOST_A_SECOND: Final = 20
LONGEST_HEAD: Final = 8192
DEADLINE_S: Final = 5.0
"""For a client to say what it wants, and to take the answer."""
ANSWER_S: Final = 30.0
AGAIN_S: Final = 30.0
FRESH_S: Final = 1.0
REGISTERS_FRESH_S: Final = 3.0
"""Reading a device takes turns of its line."""
PHRASES: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
HEADERS: Final = (
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "Cache-Control: no-store\r\nConnection: close\r\n"
)


class Answer(NamedTuple):
    """A status and a whole body."""

    code: int
    body: str
    kind: str = "text/html"


class Asked(NamedTuple):
    """What counts of a request."""

    method: str
    target: str
    headers: dict[str, str]


class LocalPage:
    """`kept` serves while its context lasts."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        status: Callable[[], Any],
        sessions: Callable[[], Any],
        read: Callable[[str], Awaitable[Any]],
        devices: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        again_s: float = AGAIN_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._where = (address, port)
        self._status, self._sessions, self._read = status, sessions, read
        self._devices = list(devices)
        self._clock = clock
        self._again_s = again_s
        self._deadline_s = deadline_s
        self._clients = 0
        self._connections = Connections(self._serve)
        self._second, self._in_second = 0, 0
        self._made: dict[tuple[str, ...], tuple[float, Answer]] = {}
        self._reading = asyncio.Lock()

    # ------------------------------------------------------------------ serving

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Serve while the context lasts, again and again where it cannot be done at once."""
        keeping = asyncio.create_task(self._keep(), name="local page")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep(self) -> None:
        trouble = ""
        while True:
            try:
                server = await asyncio.start_server(
                    self._connections.enter, *self._where, limit=LONGEST_HEAD
                )
            except OSError as error:
                if str(error) != trouble:
                    log.warning("no local page on %s:%s (%s); trying again", *self._where, error)
                trouble = str(error)
                await asyncio.sleep(self._again_s)
                continue
            log.info("local page on http://%s:%s/", *self._where)
            try:
                await server.serve_forever()
            finally:
                server.close()
                await self._connections.end()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= MOST_CLIENTS and self._may():
                await self._exchange(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return  # the reader has gone, or the agent ends
        except TimeoutError:
            writer.transport.abort()
        except Exception:  # the root of this task: a fault here must end nothing but this page
            log.exception("local page: a request failed")
        finally:
            self._clients -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _may(self) -> bool:
        """So many a second, whoever asks."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        return self._in_second <= MOST_A_SECOND

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: Asked | Answer
        try:
            async with asyncio.timeout(self._deadline_s):
                asked = parse(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            asked = Answer(431, "too long", "text/plain")
        if isinstance(asked, Answer):
            answer, bare = asked, False
        else:
            bare = asked.method == "HEAD"
            answer = await self._answer_in_time(asked)
        body = answer.body.encode()
        head = (
            f"HTTP/1.1 {answer.code} {PHRASES[answer.code]}\r\n"
            f"Content-Type: {answer.kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            f"{'Allow: GET, HEAD' + chr(13) + chr(10) if answer.code == 405 else ''}{HEADERS}\r\n"
        )
        writer.write(head.encode() + (b"" if bare else body))
        async with asyncio.timeout(self._deadline_s):
            await writer.drain()

    # ------------------------------------------------------------------ answering

    async def _answer_in_time(self, asked: Asked) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self.answer(asked)
        except TimeoutError:
            return Answer(503, "the device was not read in time; look at its line", "text/plain")

    async def answer(self, asked: Asked) -> Answer:
        """Whatever is asked, without changing anything."""
        if asked.method not in {"GET", "HEAD"}:
            return Answer(405, "this page is read-only", "text/plain")
        if not ours(asked.headers.get("host", "")):
            text = "open this page by the controller's address or name"
            return Answer(403, text, "text/plain")
        url = urlsplit(asked.target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        words = wording(language(query.get("lang", ""), asked.headers.get("accept-language", "")))
        if url.path == "/":
            return self._main(words)
        if url.path == "/registers":
            device = query.get("device", self._devices[0] if self._devices else "")
            return await self._registers(words, device)
        return Answer(404, "there is only / and /registers", "text/plain")

    def _main(self, words: Wording) -> Answer:
        key = ("main", words.language)
        if (known := self._known(key, FRESH_S)) is not None:
            return known
        status = msgspec.to_builtins(self._status())
        sessions = msgspec.to_builtins(self._sessions())
        return self._keep_made(
            key, Answer(200, page.main_page(status, sessions, words, time.time()))
        )

    async def _registers(self, words: Wording, device: str) -> Answer:
        if device not in self._devices:
            return Answer(404, f"there is no device {device[:100]!r} here", "text/plain")
        key = ("registers", words.language, device)
        async with self._reading:
            if (known := self._known(key, REGISTERS_FRESH_S)) is not None:
                return known
            dumps = msgspec.to_builtins(await self._read(device))
            text = page.registers_page(device, self._devices, dumps, words, time.time())
            return self._keep_made(key, Answer(200, text))

    def _known(self, key: tuple[str, ...], fresh_s: float) -> Answer | None:
        made_at, answer = self._made.get(key, (float("-inf"), None))
        return answer if self._clock() - made_at < fresh_s else None

    def _keep_made(self, key: tuple[str, ...], answer: Answer) -> Answer:
        self._made[key] = (self._clock(), answer)
        return answer


def parse(head: bytes) -> Asked | Answer:
    """The head of a request, or why it is none."""
    lines = head.decode("latin-1").split("\r\n")
    first = lines[0].split(" ")
    if len(first) != 3 or not first[2].startswith("HTTP/1.") or not first[1].startswith("/"):
        return Answer(400, "not a request that this page knows", "text/plain")
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Asked(first[0], first[1], headers)


def ours(host: str) -> bool:
    """Whether a Host header names this controller: by a number, or by a name that is its own.

    A web site elsewhere must not read this page through the technician's browser under its name.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    with suppress(ValueError):
        ipaddress.ip_address(name.partition("%")[0])
        return True
    mine = socket.gethostname().lower()
    return name in {"localhost", mine, mine.partition(".")[0], f"{mine.partition('.')[0]}.local"}


def language(chosen: str, accepted: str) -> str:
    """As chosen, else the first of the browser's that there is, else English."""
    wanted = [chosen, *(part.partition(";")[0].strip()[:2].lower() for part in accepted.split(","))]
    return next((each for each in wanted if each in LANGUAGES), DEFAULT)
