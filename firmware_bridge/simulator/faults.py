"""What can go wrong on a line and in a board, and when."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """A test writes into it what shall happen; positions count from the board's start, from 0."""

    lose_in: set[int] = field(default_factory=set)
    """Octets from the host that never arrive, by position."""
    spoil_in: set[int] = field(default_factory=set)
    lose_out: set[int] = field(default_factory=set)
    spoil_out: set[int] = field(default_factory=set)
    refuse: set[int] = field(default_factory=set)
    """Requests that are refused without reason, by number."""
    busy: int = 0
    """So many times BUSY goes before each ACK."""
    cut_at_block: int | None = None
    """The power fails while this block is programmed: half of it gets there."""
    cut_at_erase: int | None = None
    """The power fails after this erased page."""
    cut_at_swap: int | None = None
    """The power fails after so many sectors of a swap."""
    silent_writes: int = 0
    """So many writes are acknowledged and not done, as on a write-protected page."""
    lose_replies: set[int] = field(default_factory=set)
    """Requests that are carried out and never answered, by number."""


@dataclass(slots=True)
class Wire:
    """Spoils the octets that pass it, as told. `position` is that of the next octet."""

    lose: set[int]
    spoil: set[int]
    position: int = 0

    def through(self, octets: bytes) -> bytes:
        if not self.lose and not self.spoil:
            self.position += len(octets)
            return octets
        passed = bytearray()
        for octet in octets:
            if self.position not in self.lose:
                passed.append(octet ^ 0x24 if self.position in self.spoil else octet)
            self.position += 1
        return bytes(passed)
