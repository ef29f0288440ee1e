"""The MQTT uplink: connect, keep the session going, come back when the line is lost.

Plain MQTT 3.1.1 with a clean session: nothing rests on the broker. Every wait has a deadline, the
CONNECT included, because brokers exist that accept a connection and never answer it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiomqtt

from edge_agent import faultpoints
from edge_agent.journal import Journal, JournalError
from edge_agent.uplink.session import (
    Description,
    Heard,
    LinkSilentError,
    Pace,
    Send,
    Session,
)
from protocols.agent_link import (
    Command,
    Down,
    LinkError,
    Presence,
    Stamp,
    Up,
    Welcome,
    down_filter,
    encode,
    escape,
    up_topic,
)

log = logging.getLogger(__name__)
QOS: Final = 1
KEEPALIVE_S: Final = 30
DEADLINE_S: Final = 15.0
GOODBYE_S: Final = 2.0
PUBLISH_S: Final = 20.0
EXPECTED: Final = (aiomqtt.MqttError, OSError, LinkSilentError, JournalError)
"""What a line and a disk do to us; anything else is our own mistake and goes up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """Where the broker is and who we are to it; `mqtts` demands TLS 1.3."""

    url: str
    station: str
    password: str
    ca_file: Path | None = None
    pace: Pace = field(default_factory=Pace)
    retry_s: float = 1.0
    """First wait after a failure; doubles up to `retry_most_s`, always with jitter."""
    retry_most_s: float = 60.0


class Listener(Protocol):
    """The rest of the agent, as far as the cloud has something to tell it."""

    async def welcomed(self, welcome: Welcome) -> None: ...

    async def command(self, command: Command) -> None: ...

    def link_changed(self, up: bool, reason: str) -> None: ...


class MqttUplink:
    """Runs for ever by `run`; `wake` says that the journal has something new."""

    def __init__(
        self,
        settings: MqttSettings,
        journal: Journal,
        listener: Listener,
        describe: Callable[[], Description],
        stamp: Callable[[], Stamp],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._listener = listener
        self._describe = describe
        self._stamp = stamp
        self._wake = asyncio.Event()
        self._failures = 0
        self._reported: str | None = None

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Connect and converse; after a loss wait with jitter and begin again."""
        while True:
            reason = await self._connection()
            self._report(up=False, reason=reason)
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Full jitter over the upper half, so that a fleet does not return in step."""
        most = min(self._settings.retry_most_s, self._settings.retry_s * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        return random.uniform(most / 2, most)  # noqa: S311  # spreading load, no secret

    async def _connection(self) -> str:
        """One connection's life; returns why it ended."""
        try:
            async with self._client() as client:
                await self._converse(client)
        except EXPECTED as error:
            return self._why(error)
        except ExceptionGroup as errors:
            if errors.split(EXPECTED)[1] is not None:
                raise
            return self._why(_root(errors))
        return "the broker closed the connection"

    def _why(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._settings.url} did not answer within {DEADLINE_S:g} s"
        if isinstance(error, JournalError):
            return f"the journal stands in the way: {error}"
        if isinstance(error, LinkSilentError):
            return str(error)
        return f"no connection to {self._settings.url}: {error}"

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[aiomqtt.Client]:
        settings = self._settings
        address = urlsplit(settings.url)
        secure = address.scheme == "mqtts"
        client = aiomqtt.Client(
            address.hostname or "",
            address.port or (8883 if secure else 1883),
            identifier=f"karvon-{escape(settings.station)}",
            username=escape(settings.station),
            password=settings.password,
            keepalive=KEEPALIVE_S,
            timeout=DEADLINE_S,
            tls_context=_tls(settings.ca_file) if secure else None,
            will=aiomqtt.Will(self._topic(Up.PRESENCE), self._presence(online=False), QOS, True),
            max_queued_outgoing_messages=1000,
        )
        client.pending_calls_threshold = 1000
        async with asyncio.timeout(DEADLINE_S + 1):
            await client.__aenter__()
        try:
            yield client
        finally:
            await self._goodbye(client)

    async def _goodbye(self, client: aiomqtt.Client) -> None:
        """Say offline and close, as far as the line still allows."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                presence = self._presence(online=False)
                await client.publish(self._topic(Up.PRESENCE), presence, QOS, retain=True)
                await client.__aexit__(None, None, None)
        except (aiomqtt.MqttError, TimeoutError, OSError) as error:
            log.debug("no goodbye: %s", error)

    def _topic(self, channel: Up) -> str:
        return up_topic(self._settings.station, channel)

    def _presence(self, *, online: bool) -> bytes:
        return encode(Presence(online, self._journal.boots[0]))

    # ------------------------------------------------------------------ conversation

    async def _converse(self, client: aiomqtt.Client) -> None:
        session = Session(self._journal, self._describe, self._stamp, self._settings.pace)
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        async with asyncio.timeout(DEADLINE_S):
            await client.subscribe(down_filter(self._settings.station), QOS)
            presence = self._presence(online=True)
            await client.publish(self._topic(Up.PRESENCE), presence, QOS, retain=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(client, session, group, heard))
            group.create_task(self._speak(client, session, group))
            group.create_task(self._tell(heard))
            self._publish(client, group, session.greet(time.monotonic()))

    async def _listen(
        self,
        client: aiomqtt.Client,
        session: Session,
        group: asyncio.TaskGroup,
        heard: asyncio.Queue[Heard],
    ) -> None:
        async for message in client.messages:
            try:
                channel = Down(message.topic.value.rsplit("/", 1)[-1])
                payload = message.payload if isinstance(message.payload, bytes) else b""
                sends, news = session.received(channel, payload, time.monotonic())
            except (LinkError, ValueError) as error:
                log.warning("refused a message on %s: %s", message.topic, error)
                continue
            faultpoints.reach("agent.after_ack")
            for send in sends:
                self._publish(client, group, send)
            if isinstance(news, Welcome):
                self._failures = 0
                self._report(up=True, reason="")
            if news is not None:
                heard.put_nowait(news)
            self._wake.set()
        raise aiomqtt.MqttError("the connection ended")

    async def _speak(
        self, client: aiomqtt.Client, session: Session, group: asyncio.TaskGroup
    ) -> None:
        while True:
            self._wake.clear()
            for send in session.step(time.monotonic()):
                self._publish(client, group, send)
            try:
                async with asyncio.timeout(session.delay(time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _publish(self, client: aiomqtt.Client, group: asyncio.TaskGroup, send: Send) -> None:
        """In the order of the calls; the wait for the broker's acknowledgement is beside it."""
        faultpoints.reach("agent.before_publish")
        group.create_task(
            client.publish(self._topic(send.channel), send.payload, QOS, timeout=PUBLISH_S)
        )

    async def _tell(self, heard: asyncio.Queue[Heard]) -> None:
        while True:
            news = await heard.get()
            if isinstance(news, Welcome):
                await self._listener.welcomed(news)
            else:
                await self._listener.command(news)

    def _report(self, *, up: bool, reason: str) -> None:
        """One line when the link comes or goes, not one per attempt."""
        state = "up" if up else reason
        if state == self._reported:
            return
        if up:
            log.info("connected to the cloud by %s", self._settings.url)
        else:
            log.warning("no link to the cloud: %s", reason)
        self._reported = state
        self._listener.link_changed(up, reason)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _root(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _root(first) if isinstance(first, BaseExceptionGroup) else first
