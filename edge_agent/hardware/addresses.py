"""Where a device is, as people write it: `tcp://HOST:PORT/UNIT`, `rtu:///dev/…?baudrate=9600`."""

from __future__ import annotations

import ipaddress
import urllib.parse
from typing import Any, Final

import msgspec

from edge_agent.hardware.modbus_port import ModbusLink

EXAMPLES: Final = "tcp://192.0.2.10:502/1 or rtu:///dev/ttyUSB0?baudrate=9600&parity=none&unit=1"
SERIAL_SETTINGS: Final = ("baudrate", "stopbits", "unit")
MOST_HOSTS: Final = 256
"""A range beyond that is a mistake, and a scan of it no longer polite."""
PARITIES: Final = {"n": "none", "e": "even", "o": "odd"}


def parse_link(text: str) -> ModbusLink:
    """What is left out stays None, for the profile to complete. Raises ValueError."""
    parts = urllib.parse.urlsplit(text)
    if parts.scheme == "tcp" and parts.hostname:
        unit = parts.path.strip("/")
        return ModbusLink(host=parts.hostname, port=parts.port, unit=_byte(unit) if unit else None)
    if parts.scheme in {"rtu", "ascii"} and parts.path.startswith("/"):
        return _serial(parts)
    raise ValueError(f"'{text}' is no address of a device")


def written(link: ModbusLink) -> str:
    """The address of a link, which `parse_link` reads again."""
    unit = link.unit or 1
    if link.kind == "tcp":
        host = f"[{link.host}]" if ":" in link.host else link.host
        return f"tcp://{host}:{link.port or 502}/{unit}"
    settings = {
        "baudrate": link.baudrate,
        "parity": link.parity,
        "stopbits": link.stopbits,
        "unit": unit,
    }
    told = {name: value for name, value in settings.items() if value is not None}
    return f"{link.framing or 'rtu'}://{link.device}?{urllib.parse.urlencode(told)}"


def hosts_in(text: str) -> tuple[str, ...]:
    """`charger.lan`, `192.0.2.10`, `192.0.2.10-20` or `192.0.2.0/28`. Raises ValueError."""
    if "/" in text:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise ValueError(f"'{text}' is no network ({error})") from error
        if network.num_addresses > MOST_HOSTS:
            raise ValueError(f"'{text}' has more than {MOST_HOSTS} addresses; name a smaller part")
        return tuple(str(host) for host in network.hosts())
    first, dash, last = text.rpartition("-")
    if not dash or not last.isdecimal():
        return (text,)
    return _counted(text, first, last)


def _counted(text: str, first: str, last: str) -> tuple[str, ...]:
    try:
        begin = ipaddress.IPv4Address(first)
        end = ipaddress.IPv4Address(f"{first.rpartition('.')[0]}.{int(last)}")
    except ValueError:
        return (text,)  # a host's name may end with -2
    if end < begin:
        raise ValueError(f"'{text}' ends before it begins")
    return tuple(str(begin + step) for step in range(int(end) - int(begin) + 1))


def _serial(parts: urllib.parse.SplitResult) -> ModbusLink:
    settings: dict[str, Any] = {"framing": parts.scheme}
    for name, value in urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)):
        if name == "parity":
            settings[name] = PARITIES.get(value.lower(), value.lower())
        elif name in SERIAL_SETTINGS:
            settings[name] = _byte(value) if name == "unit" else int(value)
        else:
            raise ValueError(f"'{name}' is no setting of a serial line")
    try:
        return msgspec.convert({"kind": "rtu", "device": parts.path, **settings}, ModbusLink)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _byte(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 255:
        raise ValueError(f"unit '{text}' is not a number from 0 to 255")
    return int(text)
