"""The station over WebSocket: connects, stays connected, and does what the station says.

Security profiles (1.6 whitepaper and 2.0.1 Part 2, A00): 0 plain, 1 with Basic authentication,
2 TLS with Basic authentication, 3 TLS with a certificate of the station.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import random
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote
from uuid import UUID

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from edge_agent.journal import JournalError
from edge_agent.pulse import beat
from edge_agent.rules.authorization import Heard
from edge_agent.uplink.ocpp.port import Deed, Done
from edge_agent.uplink.ocpp.station import (
    Action,
    Asked,
    Close,
    CloudTime,
    Connected,
    Deauthorized,
    Disconnected,
    Event,
    Judged,
    LinkChanged,
    Perform,
    Performed,
    Received,
    Send,
    Station,
    Tick,
)
from protocols.agent_link import IdToken, Watch
from protocols.ocpp.version import Version

log = logging.getLogger(__name__)
TICK_S: Final = 0.25
UPKEEP_S: Final = 1.0
STEADY_S: Final = 30.0
"""A connection that held so long was a good one: the next attempt comes soon."""
LARGEST_FRAME: Final = 512 * 1024
FARTHEST_DOUBLING: Final = 10
ASK_S: Final = 10.0
"""So long a person at the charger waits for the backend before the local rules decide."""
RENEW_S: Final = 1.0
LINK_TROUBLE: Final = (OSError, InvalidHandshake, InvalidURI, ConnectionClosed, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class OcppSettings:
    """Where the backend is, and what proves who we are."""

    url: str
    """ws:// or wss://; the identity is put behind it."""
    version: Version
    identity: str
    security_profile: int = 0
    password_file: Path | None = None
    ca_file: Path | None = None
    """None trusts the system's authorities."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    ping_s: float = 30.0
    deadline_s: float = 15.0
    """For the connection to be there, handshakes included."""
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0

    @property
    def address(self) -> str:
        return f"{self.url.rstrip('/')}/{quote(self.identity, safe='')}"


class Hands(Protocol):
    """Who does what the backend asks for."""

    async def perform(self, deed: Deed) -> Done: ...

    async def deauthorize(self, transaction: UUID, why: str) -> None: ...

    async def cloud_time(self, now_ms: int) -> None: ...

    async def upkeep(self) -> None: ...


def tls_context(settings: OcppSettings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer; raises OSError (ssl.SSLError) for files that do not read."""
    if not settings.url.startswith("wss:"):
        return None
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context


def login(settings: OcppSettings) -> dict[str, str]:
    """The headers that say who we are. Raises OSError when the password cannot be read."""
    if settings.security_profile not in {1, 2} or settings.password_file is None:
        return {}
    password = settings.password_file.read_bytes().rstrip(b"\r\n")
    pair = base64.b64encode(settings.identity.encode() + b":" + password).decode()
    return {"Authorization": f"Basic {pair}"}


def explain(settings: OcppSettings, error: BaseException) -> str:
    """What happened, why, what to do, for a person."""
    where = f"no link to the OCPP backend {settings.address}: {str(error) or 'no answer in time'}"
    if isinstance(error, InvalidStatus):
        remedies = {
            401: "Check identity and password with the backend's operator",
            403: "Check identity and password with the backend's operator",
            404: "Check the URL, and that the backend knows this identity",
        }
        status = error.response.status_code
        return f"{where}. {remedies.get(status, 'Trying again')}"
    if isinstance(error, ssl.SSLError):
        return f"{where}. Check `uplink.ocpp.ca`, the backend's name, and this controller's clock"
    return f"{where}. Trying again; charging goes on, transactions wait in the journal"


def retry_delay(settings: OcppSettings, failures: int, chance: float) -> float:
    """Seconds before the next attempt: doubling, jittered by half (`chance` in 0..1)."""
    doubled = settings.first_retry_s * (1 << min(failures, FARTHEST_DOUBLING))
    return min(settings.longest_retry_s, doubled) * (0.5 + chance / 2)


class OcppUplink:
    """Keeps the station connected; `run` ends by cancellation only."""

    def __init__(
        self,
        settings: OcppSettings,
        station: Station,
        hands: Hands,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.station = station
        self.link = "not connected yet"
        self._hands = hands
        self._chance = chance
        self._something = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._tickets = itertools.count(1)
        self._asking: dict[int, asyncio.Future[Heard | None]] = {}
        self._doing: set[asyncio.Task[None]] = set()
        self._upkeep_trouble = ""

    # ------------------------------------------------------------------ for the agent

    def wake(self) -> None:
        """There may be something new to say."""
        self._something.set()

    def thin(self, times: int | None) -> None:
        """What is no transaction leaves so many times as seldom; None: it waits."""
        self.station.thin(times)

    def watch(self, watch: Watch) -> None:
        """Nobody can ask for this over OCPP."""

    async def authorize(self, token: IdToken) -> Heard | None:
        """What the backend says of a token; None when it cannot be asked or is too slow."""
        ticket = next(self._tickets)
        future: asyncio.Future[Heard | None] = asyncio.get_running_loop().create_future()
        self._asking[ticket] = future
        self._do(Asked(ticket, token))
        try:
            async with asyncio.timeout(ASK_S):
                return await future
        except TimeoutError:
            return None
        finally:
            del self._asking[ticket]

    def tell(self, event: Event) -> None:
        """Something happened that the backend is to hear of."""
        self._do(event)

    def renewed(self) -> None:
        """The password is another one now: the connection is made anew with it."""
        asyncio.get_running_loop().call_later(RENEW_S, self._outgoing.put_nowait, None)

    # ------------------------------------------------------------------ staying connected

    async def run(self) -> None:
        """Stay connected. Every failure is told in `link` and tried again."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upkeep(), name="ocpp: upkeep")
                group.create_task(self._stay(), name="ocpp: stay connected")
        finally:
            for task in self._doing:
                task.cancel()

    async def _stay(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._connection()
                reason = "the connection was closed"
            except* LINK_TROUBLE as group:
                reason = explain(self.settings, _first(group))
            except* Exception as group:  # the loop's root: a fault here must not end the link
                log.exception("the OCPP uplink failed and starts again", exc_info=group)
                reason = explain(self.settings, _first(group))
            self._do(Disconnected(reason))
            self.link = reason
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            delay = retry_delay(self.settings, failures - 1 if failures else 0, self._chance())
            log.info("%s (next attempt in %.1f s)", reason, delay)
            await asyncio.sleep(delay)

    async def _connection(self) -> None:
        settings = self.settings
        async with connect(
            settings.address,
            ssl=tls_context(settings),
            subprotocols=[settings.version.value],  # type: ignore[list-item]  # a NewType of str
            additional_headers=login(settings),
            user_agent_header="karvon",
            proxy=None,
            compression=None,
            max_size=LARGEST_FRAME,
            open_timeout=settings.deadline_s,
            ping_interval=settings.ping_s or None,
            ping_timeout=settings.ping_s or None,
            close_timeout=2,
        ) as socket:
            if socket.subprotocol is None:
                log.warning(
                    "the backend does not name the subprotocol; %s is spoken all the same",
                    settings.version,
                )
            await self._serve(socket)

    async def _serve(self, socket: ClientConnection) -> None:
        self._socket, self._outgoing = socket, asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(socket), name="ocpp: write")
                group.create_task(self._tick(), name="ocpp: tick")
                group.create_task(self._read(socket), name="ocpp: read")
                self._do(Connected())
        finally:
            self._socket = None

    async def _read(self, socket: ClientConnection) -> None:
        async for frame in socket:
            self._do(Received(frame))
        raise ConnectionError(
            f"the backend closed the connection ({socket.close_code} {socket.close_reason or ''})"
        )

    async def _write(self, socket: ClientConnection) -> None:
        while (frame := await self._outgoing.get()) is not None:
            await socket.send(frame.decode())
        await socket.close()

    async def _tick(self) -> None:
        while True:
            beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._something.wait()
            self._something.clear()
            self._do(Tick())

    async def _upkeep(self) -> None:
        while True:
            try:
                await self._hands.upkeep()
                self._upkeep_trouble = ""
            except JournalError as error:
                if not self._upkeep_trouble:
                    log.warning("OCPP upkeep waits for the journal: %s", error)
                self._upkeep_trouble = str(error)
            await asyncio.sleep(UPKEEP_S)

    # ------------------------------------------------------------------ doing

    def _do(self, event: Event) -> None:
        for action in self.station.handle(event, int(time.monotonic() * 1000)):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Send):
            self._outgoing.put_nowait(action.frame)
        elif isinstance(action, Judged):
            future = self._asking.get(action.ticket)
            if future is not None and not future.done():
                future.set_result(action.heard)
        elif isinstance(action, LinkChanged):
            self.link = "connected" if action.up else action.reason
            log.info("OCPP link %s: %s", "up" if action.up else "down", action.reason)
        elif isinstance(action, Close):
            log.warning("the OCPP connection is closed: %s", action.reason)
            self._outgoing.put_nowait(None)
        else:
            self._begin(action)

    def _begin(self, action: Perform | Deauthorized | CloudTime) -> None:
        """Beside the connection: what the agent does may take a board's time."""
        task = asyncio.create_task(self._act(action), name=f"ocpp: {type(action).__name__}")
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _act(self, action: Perform | Deauthorized | CloudTime) -> None:
        try:
            if isinstance(action, Perform):
                done = await self._hands.perform(action.deed)
                self._do(Performed(action.message_id, done))
            elif isinstance(action, Deauthorized):
                await self._hands.deauthorize(action.transaction, action.why)
            else:
                await self._hands.cloud_time(action.now_ms)
        except Exception:  # one request that fails must not end the link
            log.exception("the agent failed on %s", type(action).__name__)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
