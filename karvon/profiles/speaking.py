"""How the tool speaks, finds profiles, and reads where a device is."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from edge_agent.hardware.addresses import EXAMPLES, parse_link
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import UnknownProfileError, find_profile
from protocols.modbus.describing import options_of
from protocols.modbus.document import ProfileError
from protocols.modbus.profile import Profile, Rtu, Tcp

WRONG, USAGE, UNREACHABLE = 1, 2, 3


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
        link = parse_link(text)
    except ValueError as error:
        raise ToolError(f"--device: {error}; write {EXAMPLES}") from error
    if profile is not None:
        return link.completed(profile)
    defaults: Tcp | Rtu = Tcp() if link.kind == "tcp" else Rtu()
    missing = [name for name in defaults.__struct_fields__ if getattr(link, name) is None]
    return msgspec.structs.replace(link, **{name: getattr(defaults, name) for name in missing})
