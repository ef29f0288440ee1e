"""What an uplink's dialogue hears of its connection, and says of it, whatever is spoken (pure)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Connected:
    """The connection is there, and ready for what is said first."""


@dataclass(frozen=True)
class Disconnected:
    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed, or there may be something new to say."""


@dataclass(frozen=True)
class LinkChanged:
    up: bool
    reason: str


class LinkState:
    """Whether the other side hears us; each change is told once."""

    def __init__(self) -> None:
        self._up = False

    def changed(self, *, up: bool, reason: str) -> list[LinkChanged]:
        if up == self._up:
            return []
        self._up = up
        return [LinkChanged(up, reason)]
