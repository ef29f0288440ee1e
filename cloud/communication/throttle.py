"""How many may come at once, and how often somebody may try: pure, time comes in.

After an outage every station returns in the same minute. Letting in what can be served and telling
the others when to come back is faster than serving all of them slowly, since a slow answer makes a
station give up and begin anew.
"""

from __future__ import annotations

import ipaddress
import zlib
from datetime import datetime, timedelta
from typing import Final

from cloud.communication.admission import Reason, Refuse
from cloud.kernel.limiter import Limiter

SOONEST_S: Final = 5
LATEST_S: Final = 300
_A_SECOND: Final = timedelta(seconds=1)


class Handshakes:
    """Bounds the upgrades that are under way, in all and of one source, and those of a second.

    One source gets half of the places at most: many stations share the address of a mobile
    operator's gateway, so that less would lock out the honest.
    """

    def __init__(self, places: int = 256, per_second: int = 200) -> None:
        self._places = places
        self._per_second = per_second
        self._inside: dict[str, int] = {}
        self._count = 0
        self._window: datetime | None = None
        self._begun = 0
        self._turned_away = 0

    @property
    def inside(self) -> int:
        """How many are under way."""
        return self._count

    def enter(self, source: str, who: str, now: datetime) -> Refuse | None:
        """None: begin, and call `leave` at its end whatever it was; else refuse with this."""
        self._roll(now)
        own = self._inside.get(source, 0)
        full = self._count >= self._places or own >= max(1, self._places // 2)
        if full or self._begun >= self._per_second:
            self._turned_away += 1
            return Refuse(503, Reason.BUSY, self._retry_after(who))
        self._begun += 1
        self._count += 1
        self._inside[source] = own + 1
        return None

    def leave(self, source: str) -> None:
        """Give the place back."""
        self._count -= 1
        self._inside[source] -= 1
        if not self._inside[source]:
            del self._inside[source]

    def _roll(self, now: datetime) -> None:
        """Begin the next second; what was turned away before is expected back, less each second."""
        if self._window is not None and _same_second(self._window, now):
            return
        seconds = 1 if self._window is None else int(abs(now - self._window) / _A_SECOND)
        self._turned_away = max(0, self._turned_away - seconds * self._per_second)
        self._window = now
        self._begun = 0

    def _retry_after(self, who: str) -> int:
        return retry_after(who, self._turned_away / self._per_second)


class Arrivals:
    """Bounds the sockets that have not been judged yet: idlers hold a place, never all of them."""

    def __init__(self, places: int = 2000) -> None:
        self._places = places
        self._here: dict[str, int] = {}
        self._count = 0

    def arrive(self, source: str) -> bool:
        """Whether the socket may stay for its deadline; then call `leave` when it is judged."""
        network = network_of(source)
        own = self._here.get(network, 0)
        if self._count >= self._places or own >= max(1, self._places // 2):
            return False
        self._here[network] = own + 1
        self._count += 1
        return True

    def leave(self, source: str) -> None:
        """It was judged, or it is gone."""
        network = network_of(source)
        self._count -= 1
        self._here[network] -= 1
        if not self._here[network]:
            del self._here[network]


def _same_second(begun: datetime, now: datetime) -> bool:
    """A clock that was set back begins a new one."""
    return timedelta(0) <= now - begun < _A_SECOND


def retry_after(who: str, spread_s: float = 0) -> int:
    """Seconds, spread by who asks over the time that all who wait need, and over 10 s at least."""
    spread = min(LATEST_S - SOONEST_S, max(10, round(spread_s * 2)))
    return SOONEST_S + zlib.crc32(who.encode()) % (spread + 1)


class Guesses:
    """Wrong passwords of one identity from one source, and unknown identities from one source.

    An attempt is charged before it is judged and given back when it was right: so a thousand at
    the same moment are no way around it. Others' failures never touch another source.
    """

    def __init__(
        self,
        passwords: int = 10,
        passwords_every: timedelta = timedelta(seconds=30),
        strangers: int = 60,
        strangers_every: timedelta = timedelta(seconds=1),
    ) -> None:
        self._passwords = Limiter(passwords, passwords_every)
        self._strangers = Limiter(strangers, strangers_every)

    def may_guess(self, identity: str, source: str, now: datetime) -> bool:
        """Charge one attempt."""
        return self._passwords.allow(_asker(identity, source), now)

    def right(self, identity: str, source: str) -> None:
        """The attempt was no guess."""
        self._passwords.give_back(_asker(identity, source))

    def may_be_unknown(self, source: str, now: datetime) -> bool:
        """Charge one unknown identity."""
        return self._strangers.allow(network_of(source), now)


def _asker(identity: str, source: str) -> str:
    return f"{network_of(source)} {identity}"


def network_of(source: str) -> str:
    """The address; of IPv6 the /64, which is one customer's."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
