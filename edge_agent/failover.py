"""Connects an uplink over one of the controller's links, notices when it is dead, and goes back.

Linux alone: a socket is bound to its interface, so that the route of that interface holds whatever
the default route says. The kernel is told to give up on data that nobody acknowledges.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.config import Config
from edge_agent.rules.failover import Failover, FailoverRules

log = logging.getLogger(__name__)
CONNECT_S: Final = 4.0
"""A TCP connection over LTE stands within a second; a link that needs longer is no use."""
RESOLVE_S: Final = 5.0
LOOK_S: Final = 1.0
UNACKNOWLEDGED_MS: Final = 15_000
IDLE_S: Final = 10
"""Silence after which the far end's kernel is asked for a sign, where that costs no money."""
SIGN_EVERY_S: Final = 5
SIGNS_MISSED: Final = 3
NO_CARRIER: Final = "no carrier"
SIOCGIFFLAGS: Final = 0x8913
IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40
Address = tuple[socket.AddressFamily, Any]


class LinkLeftError(ConnectionError):
    """The connection is given up for the sake of another link."""


def carries(link: str) -> bool:
    """Whether the interface is there, switched on, and has a carrier."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            told = fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack("16sH14x", link.encode(), 0))
        except OSError:  # no such interface
            return False
    flags = int(struct.unpack("16sH14x", told)[1])
    return flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING


def doubts(links: Iterable[str], proc: Path = Path("/proc")) -> list[str]:
    """What of this system's settings keeps a socket from using any link but the default route's."""
    strict = {
        name
        for name in ("all", *links)
        if _setting(proc / "sys/net/ipv4/conf" / name / "rp_filter") == "1"
    }
    found = []
    if strict:
        named = ", ".join(f"net.ipv4.conf.{name}.rp_filter" for name in sorted(strict))
        found.append(f"{named} is 1: answers over a link that is no default are dropped; set 2")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        except OSError as error:
            found.append(f"a socket cannot be bound to a link ({error}); give it CAP_NET_RAW")
    return found


def _setting(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:  # an interface that is not there; its carrier is told apart
        return ""


@dataclass(frozen=True, slots=True)
class Target:
    """The far end of an uplink."""

    host: str
    port: int


def link_chooser(config: Config, target: Target) -> LinkChooser | None:
    """Where there is something to choose: with two links or more; None: the system routes."""
    links = () if config.uplink is None else config.uplink.links
    if len(links) < 2:
        return None
    order = tuple(one.interface for one in links)
    return LinkChooser(FailoverRules(order=order, metered=config.metered), target)


class LinkChooser:
    """One uplink's way to its far end; `connect`, then `watch` beside the connection."""

    def __init__(
        self, rules: FailoverRules, target: Target, carrier: Callable[[str], bool] = carries
    ) -> None:
        self.state = Failover(rules)
        self._target = target
        self._carrier = carrier
        self._addresses: list[Address] = []
        """As last resolved: the resolver may be behind the link that is dead."""
        self._held = False
        """The connection in use was a good one, or is left for no fault of its own."""

    @property
    def in_use(self) -> str | None:
        return self.state.in_use

    def troubles(self) -> dict[str, str]:
        """Link -> why it does not serve, for a person."""
        rules = self.state.rules
        cut = {link: NO_CARRIER for link in rules.order if not self._carrier(link)}
        return {**self.state.troubles, **cut}

    async def connect(self) -> socket.socket:
        """A connected socket over the best link that answers.

        Raises OSError with what each link said when none did, or when the name is not known.
        """
        addresses = await self._resolve()
        for link in self.state.order(_now_ms()):
            try:
                found = await self._through(link, addresses)
            except OSError as error:
                self.state.unreached(link, _why(error))
                log.info("%s does not reach %s: %s", link, self._target.host, _why(error))
                continue
            self.state.connected(link)
            self._held = False
            log.info("the uplink to %s goes over %s", self._target.host, link)
            return found
        said = "; ".join(f"{link}: {why}" for link, why in self.state.troubles.items())
        raise ConnectionError(f"no link reaches it ({said})")

    def ended(self, why: str) -> None:
        """The connection is over, or its attempt was."""
        self.state.ended(held=self._held, why=why, now_ms=_now_ms())

    async def watch(self) -> None:
        """Beside a connection; raises LinkLeftError when it should be made anew."""
        began = _now_ms()
        while True:
            await asyncio.sleep(LOOK_S)  # a carrier's loss makes no event without netlink
            if not self._held and _now_ms() - began >= self.state.rules.held_ms:
                self._held = True
                self.state.proved()
            link = self.state.in_use
            if link is not None and not self._carrier(link):
                raise self._leave(f"{link} has no carrier any more")
            for better in self.state.due(_now_ms()):
                if await self._answers(better) and self.state.answered(better):
                    raise self._leave(f"{better} is back")

    def _leave(self, why: str) -> LinkLeftError:
        """Give the connection up, for no fault that the link would be distrusted for."""
        self._held = True
        return LinkLeftError(why)

    async def _answers(self, link: str) -> bool:
        try:
            probe = await self._through(link, self._addresses)
        except OSError as error:
            self.state.unreached(link, _why(error))
            return False
        probe.close()
        return True

    # ------------------------------------------------------------------ sockets

    async def _resolve(self) -> list[Address]:
        """All addresses of the far end, or those that it had before. Raises OSError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_S):
                told = await loop.getaddrinfo(
                    self._target.host, self._target.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            if not self._addresses:
                raise
            log.warning(
                "%s is not resolved (%s); trying the address that it had",
                self._target.host,
                _why(error),
            )
            return self._addresses
        self._addresses = list(dict.fromkeys((each[0], each[4]) for each in told))
        return self._addresses

    async def _through(self, link: str, addresses: Iterable[Address]) -> socket.socket:
        """A connected socket bound to this link. Raises OSError, TimeoutError among them."""
        if not self._carrier(link):
            raise OSError(NO_CARRIER)
        last: OSError = OSError("no address")
        async with asyncio.timeout(CONNECT_S):
            for family, address in addresses:
                try:
                    return await _connected(family, address, link, self.state.rules.metered)
                except TimeoutError:
                    raise
                except OSError as error:
                    last = error
        raise last


async def _connected(
    family: socket.AddressFamily, address: Any, link: str, metered: frozenset[str]
) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode() + b"\0")
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        if link not in metered:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SIGN_EVERY_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SIGNS_MISSED)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:  # the caller's timeout cancels this: nothing stays open
        made.close()
        raise
    return made


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    known = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
    return os.strerror(known) if known else str(error)


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
