"""The versions of OCPP-J, named as their WebSocket subprotocols are (OCPP-J 1.6, 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Version(StrEnum):
    """The subprotocol's name in IANA's registry."""

    V16 = "ocpp1.6"
    V201 = "ocpp2.0.1"
    V21 = "ocpp2.1"


def choose(offered: Sequence[str]) -> Version | None:
    """The newest version among the offered subprotocols, whatever the station's own order."""
    names = {name.strip().lower() for name in offered}
    return next((version for version in reversed(Version) if version in names), None)
