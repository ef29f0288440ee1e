"""Where stations may be sent for firmware, or with logs: pure rules.

A station stands inside somebody's network, and fetches what it is told to. So an address inside a
network must be one that the operator of the cloud has named (attack A15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import unquote, urlsplit

_SCHEMES: Final = frozenset({"http", "https", "ftp", "ftps"})
_FIELDS: Final = frozenset({"location", "remoteLocation"})
_INSIDE: Final = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "arpa")
_LONGEST: Final = 2000


class Allowed:
    """Internal hosts that the operator named. Raises ValueError for what is none."""

    def __init__(self, hosts: str = "") -> None:
        named = [part.strip().lower() for part in hosts.split(",") if part.strip()]
        self._networks = [ip_network(one, strict=False) for one in named if _is_address(one)]
        self._names = frozenset(one for one in named if not _is_address(one))

    def holds(self, host: str) -> bool:
        address = _address(host)
        if address is None:
            return host in self._names
        return any(address in network for network in self._networks)


def refusal(url: str, allowed: Allowed) -> str | None:
    """Why a station must not be sent there; None when it may."""
    if len(url) > _LONGEST or not url.isprintable() or "\\" in url or " " in url:
        return "it is too long, or holds spaces, backslashes or control characters"
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme.lower() not in _SCHEMES or not host:
        return "it must begin with http://, https://, ftp:// or ftps:// and name a host"
    if ".." in _unquoted(parts.path).replace("\\", "/").split("/"):
        return "its path leads upwards (..)"
    if not allowed.holds(host) and _is_inside(host):
        return f"{host} is an internal host; KARVON_TRANSFER_HOSTS may name it"
    return None


def _unquoted(path: str) -> str:
    """Until nothing is quoted any more: what reads it next may unquote once more."""
    while (plain := unquote(path)) != path:
        path = plain
    return path


def _is_inside(host: str) -> bool:
    address = _address(host)
    if address is None:
        labels = host.split(".")
        return len(labels) < 2 or labels[-1] in _INSIDE or labels[-1].isdecimal() or "%" in host
    return not address.is_global or address.is_multicast


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return _short_address(host)
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or _translated(address) or address
    return address


def _short_address(host: str) -> IPv4Address | None:
    """`127.1`, `0x7f.1` and `2130706433` are addresses too, for those who ask inet_aton."""
    parts = host.split(".")
    try:
        numbers = [_number(part) for part in parts]
    except ValueError:
        return None
    *high, low = numbers
    if len(numbers) > 4 or any(n > 255 for n in high) or low >= 256 ** (5 - len(numbers)):
        return None
    whole = low + sum(n << (8 * (3 - at)) for at, n in enumerate(high))
    return IPv4Address(whole)


def _number(part: str) -> int:
    if not part.isascii() or not part.isalnum():
        raise ValueError(part)
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") and part != "0" else int(part)


_NAT64: Final = IPv6Network("64:ff9b::/96")


def _translated(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _is_address(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def addresses(payload: Any) -> Iterator[str]:
    """Every place in a request that its station would fetch from or bring to."""
    if isinstance(payload, Mapping):
        for name, value in payload.items():
            if name in _FIELDS and isinstance(value, str):
                yield value
            else:
                yield from addresses(value)
    elif isinstance(payload, Sequence) and not isinstance(payload, str):
        for one in payload:
            yield from addresses(one)
