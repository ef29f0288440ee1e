"""How the tool speaks, finds profiles, and reads where a device is."""

from __future__ import annotations

import sys
import urllib.parse
from typing import Any

import msgspec

from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import UnknownProfileError, find_profile
from protocols.modbus.describing import options_of
from protocols.modbus.document import ProfileError
from protocols.modbus.profile import Profile, Rtu, Tcp

WRONG, USAGE, UNREACHABLE = 1, 2, 3
EXAMPLES = "tcp://192.0.2.10:502/1 or rtu:///dev/ttyUSB0?baudrate=9600&parity=none&unit=1"
SERIAL_SETTINGS = ("baudrate", "stopbits", "unit")


class ToolError(Exception):
    """What was asked cannot be done; the text says what, why, and what to do."""

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code


def complain(error: ToolError) -> int:
    sys.stderr.write(f"karvon agent profile: {error}\n")
    return error.code


def told(line: str) -> None:
    sys.stdout.write(line + "\n")


def told_json(value: Any) -> None:
    told(msgspec.json.encode(value).decode())


def profile_named(name: str, options: tuple[str, ...] = ()) -> Profile:
    """Raises ToolError; an option that the profile does not know is one."""
    try:
        profile = find_profile(name)
    except (UnknownProfileError, ProfileError) as error:
        raise ToolError(str(error), WRONG if isinstance(error, ProfileError) else USAGE) from error
    known = options_of(profile)
    for option in options:
        if option not in known:
            raise ToolError(
                f"profile {profile.profile} has no option '{option}'; "
                + (f"it has {', '.join(known)}" if known else "it has none at all")
            )
    return profile


def device_link(text: str, profile: Profile | None = None) -> ModbusLink:
    """The address as people write it; what it leaves out comes from the profile.

    Raises ToolError.
    """
    try:
        link = _link(text)
    except ValueError as error:
        raise ToolError(f"--device: {error}; write {EXAMPLES}") from error
    if profile is not None:
        return link.completed(profile)
    defaults: Tcp | Rtu = Tcp() if link.kind == "tcp" else Rtu()
    missing = [name for name in defaults.__struct_fields__ if getattr(link, name) is None]
    return msgspec.structs.replace(link, **{name: getattr(defaults, name) for name in missing})


def _link(text: str) -> ModbusLink:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme == "tcp" and parts.hostname:
        unit = parts.path.strip("/")
        return ModbusLink(host=parts.hostname, port=parts.port, unit=_byte(unit) if unit else None)
    if parts.scheme in {"rtu", "ascii"} and parts.path.startswith("/"):
        return _serial(parts)
    raise ValueError(f"'{text}' is no address of a device")


def _serial(parts: urllib.parse.SplitResult) -> ModbusLink:
    settings: dict[str, Any] = {"framing": parts.scheme}
    for name, value in urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)):
        if name == "parity":
            known = {"n": "none", "e": "even", "o": "odd"}
            settings[name] = known.get(value.lower(), value.lower())
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
