"""The datagrams between controllers behind one fuse: the shell around the rules of leases.

A follower asks once a second, the leader answers each. What cannot be sent, arrives broken or from
strangers is counted and dropped: the rules expect loss, and fall back on their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from edge_agent.clock import Clock
from edge_agent.pulse import beat, waiting
from edge_agent.rules.leases import Follower, Leader
from edge_agent.rules.station import Station
from protocols.site_link import Grant, Message, Report, SiteLinkError, seal, unseal

log = logging.getLogger(__name__)
Address = tuple[str, int]
ANEW_S: Final = 30
"""A silent leader may have another address: its name is looked up again after so long."""


class SiteLink(Protocol):
    """What the agent runs, and what its status shows."""

    async def run(self) -> None: ...

    def trouble(self) -> str:
        """What keeps the controllers from working together now; "" when nothing does."""
        ...

    def described(self) -> dict[str, Any]: ...


class Port(asyncio.DatagramProtocol):
    """One UDP socket: opens what arrives, counts what is refused."""

    def __init__(self, key: bytes, take: Callable[[Message, Address], None]) -> None:
        self._key, self._take = key, take
        self._transport: asyncio.DatagramTransport | None = None
        self.closed = asyncio.Event()
        self.refused = 0
        self.why = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed.set()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        try:
            self._take(unseal(data, self._key), (addr[0], addr[1]))
        except SiteLinkError as error:
            self.refused += 1
            if str(error) != self.why:
                log.warning("site link: a datagram from %s is %s", addr[0], error)
            self.why = str(error)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there (ICMP): what follows from silence follows anyway."""
        log.debug("site link: %s", exc)

    def send(self, message: Message, to: Address | None = None) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(seal(message, self._key), to)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class LeaderLink:
    """Answers the followers' reports on a port of our own."""

    def __init__(
        self, leader: Leader, station: Station, clock: Clock, key: bytes, listen: Address
    ) -> None:
        self._leader, self._station, self._clock = leader, station, clock
        self._key, self._listen = key, listen
        self._port = Port(key, self._take)

    async def run(self) -> None:
        self._port = Port(self._key, self._take)
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self._port, local_addr=self._listen)
        log.info("site link: leading on %s:%s", *self._listen)
        try:
            with waiting():
                await self._port.closed.wait()
        finally:
            self._port.close()

    def _take(self, message: Message, sender: Address) -> None:
        if not isinstance(message, Report):
            return
        now, site = self._clock.now(), self._station.site
        if message.station not in self._leader.members:
            raise SiteLinkError(f"of {message.station}, which is not one of site.members")
        views = self._station.views(now)
        whole = site.whole(views, now.mono_ms)
        grant = self._leader.answer(message, whole, views, site, now.mono_ms)
        if grant is not None:
            self._port.send(grant, sender)

    def trouble(self) -> str:
        return "; ".join(filter(None, (each.trouble for each in self._leader.members.values())))

    def described(self) -> dict[str, Any]:
        return {"refused": self._port.refused, "refused_why": self._port.why}


class FollowerLink:
    """Reports to the leader, and acts on its grants."""

    def __init__(
        self,
        follower: Follower,
        station: Station,
        clock: Clock,
        key: bytes,
        leader: Address,
        every_s: float = 1.0,
    ) -> None:
        self._follower, self._station, self._clock = follower, station, clock
        self._key, self._to, self._every_s = key, leader, every_s
        self._port = Port(key, self._take)
        self._unreachable = ""

    async def run(self) -> None:
        while True:
            beat()
            try:
                await self._talk()
                self._unreachable = ""
            except OSError as error:
                if not self._unreachable:
                    log.warning("site link: %s:%s: %s", *self._to, error)
                self._unreachable = str(error)
                await asyncio.sleep(self._every_s)

    async def _talk(self) -> None:
        """Report until the leader has been silent for long, or the socket fails."""
        port = self._port = Port(self._key, self._take)
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: port, remote_addr=self._to)
        began = loop.time()
        try:
            while not port.closed.is_set():
                beat()
                now = self._clock.now()
                views = self._station.views(now)
                port.send(self._follower.report(views, self._station.site, now.mono_ms))
                await asyncio.sleep(self._every_s)
                heard = self._follower.heard_ms
                silent_ms = self._clock.now().mono_ms - heard if heard is not None else None
                silent = silent_ms is None or silent_ms > ANEW_S * 1000
                if silent and loop.time() - began > ANEW_S:
                    return
        finally:
            port.close()

    def _take(self, message: Message, _sender: Address) -> None:
        if isinstance(message, Grant):
            self._follower.take(message, self._clock.now().mono_ms)

    def trouble(self) -> str:
        now_ms = self._clock.now().mono_ms
        heard = self._follower.heard_ms
        if heard is None or now_ms - heard > ANEW_S * 1000:
            why = f" ({self._unreachable})" if self._unreachable else ""
            host, port = self._to
            return f"site: the leader at {host}:{port} is silent{why}; the safe share holds"
        return f"site: {self._follower.trouble}" if self._follower.trouble else ""

    def described(self) -> dict[str, Any]:
        return {"refused": self._port.refused, "refused_why": self._port.why}
