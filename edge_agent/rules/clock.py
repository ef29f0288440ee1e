"""How far the controller's wall clock can be trusted, and what time it is by our own account.

Order and durations rest on the monotonic clock alone; wall time is that clock plus an offset. The
offset is learned from a disciplined system clock, or from the cloud's welcome. Without either,
stamps carry the system's time and say that it is unset; they are re-dated when the offset of
their boot becomes known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from protocols.agent_link import ClockCorrected, ClockQuality, Stamp
from protocols.quantities import Milliseconds

STEP_MS: Final = 2000
"""A difference that is no slew: the system clock was set."""
BACK_PATIENCE_MS: Final = 600_000
"""So long our time runs on before a synchronised clock that stepped back is believed."""


@dataclass(frozen=True, slots=True)
class SystemTime:
    """Both clocks, read together; `synced` is what the kernel's NTP discipline says."""

    wall_ms: int
    mono_ms: int
    synced: bool


class ClockRules:
    """One boot's account of time; `floor_ms` is a wall time that has surely passed."""

    def __init__(self, boot: UUID, floor_ms: int) -> None:
        self.boot = boot
        self.floor_ms = floor_ms
        self.offset_ms: int | None = None
        self.quality = ClockQuality.UNSET
        self._behind_since: int | None = None

    def stamp(self, system: SystemTime) -> Stamp:
        """A stamp for now; never runs back while the offset is trusted."""
        wall = system.wall_ms if self.offset_ms is None else system.mono_ms + self.offset_ms
        return Stamp(Milliseconds(wall), Milliseconds(system.mono_ms), self.boot, self.quality)

    def observe(self, system: SystemTime, identity: UUID) -> ClockCorrected | None:
        """Look at the system clock; returns the fact to record when the offset changed."""
        if not system.synced or system.wall_ms < self.floor_ms:
            return None
        offset = system.wall_ms - system.mono_ms
        if self._stepped_back(offset, system.mono_ms):
            return None
        return self._take(offset, ClockQuality.SYNCED, identity)

    def cloud_time(self, now_ms: int, mono_ms: int, identity: UUID) -> ClockCorrected | None:
        """The cloud's time, received at `mono_ms`; a synchronised clock is better and stays."""
        if self.quality is ClockQuality.SYNCED or now_ms < self.floor_ms:
            return None
        return self._take(now_ms - mono_ms, ClockQuality.CLOUD, identity)

    def _stepped_back(self, offset: int, mono_ms: int) -> bool:
        """True while a step back of the system clock is not yet believed."""
        if self.offset_ms is None or offset >= self.offset_ms - STEP_MS:
            self._behind_since = None
            return False
        if self._behind_since is None:
            self._behind_since = mono_ms
        return mono_ms - self._behind_since < BACK_PATIENCE_MS

    def _take(self, offset: int, quality: ClockQuality, identity: UUID) -> ClockCorrected | None:
        """Small differences are slewing and change nothing; larger ones are a correction."""
        known = self.offset_ms is not None and abs(offset - self.offset_ms) <= STEP_MS
        if known and quality is self.quality:
            return None
        self.offset_ms = self.offset_ms if known else offset
        self.quality = quality
        self._behind_since = None
        return ClockCorrected(
            id=identity,
            boot=self.boot,
            offset_ms=Milliseconds(self.offset_ms or 0),
            quality=quality,
        )


def redate(stamp: Stamp, correction: ClockCorrected) -> Stamp:
    """An untrusted stamp of the corrected boot with its true wall time; others as they are."""
    if stamp.boot != correction.boot or stamp.quality is not ClockQuality.UNSET:
        return stamp
    wall = Milliseconds(stamp.mono_ms + correction.offset_ms)
    return msgspec.structs.replace(stamp, wall_ms=wall, quality=correction.quality)
