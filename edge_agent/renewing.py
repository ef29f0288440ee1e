"""Keeps the station's certificate good: a new key and certificate before the last one ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edge_agent import joining, pulse, station_key
from edge_agent.joining import Credentials, JoinError
from protocols.agent_link import ClockQuality, Stamp

log = logging.getLogger(__name__)
LOOK_S: Final = 6 * 3600.0
FIRST_S: Final = 60.0
"""The agent has better things to do when it starts; a clock that is not set yet is one of them."""

LONGEST_LOOK_S: Final = 120.0
"""Asking the cloud has deadlines of its own; behind them the supervision begins to count."""


class Clock(Protocol):
    def now(self) -> Stamp: ...


class Renewing:
    """Looks now and then; what goes wrong is told in `trouble` and tried again."""

    def __init__(
        self,
        credentials: Path,
        clock: Clock,
        *,
        renew: Callable[[Credentials, Path], str] = joining.renew,
        first_s: float = FIRST_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.trouble = ""
        self._credentials = credentials
        self._clock = clock
        self._renew = renew
        self._first_s, self._look_s = first_s, look_s

    async def run(self) -> None:
        wait = self._first_s
        while True:
            pulse.beat(wait)
            await asyncio.sleep(wait)
            wait = self._look_s
            pulse.beat(LONGEST_LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Renew the certificate where it is due; whether it was."""
        folder = self._credentials.parent
        try:
            held = station_key.held_in(folder)
            if held is None or not self._is_due(held):
                self.trouble = ""
                return False
            known = msgspec.json.decode(self._credentials.read_bytes(), type=Credentials)
            until = await asyncio.to_thread(self._renew, known, folder)
        except (JoinError, station_key.KeyFileError, OSError, msgspec.DecodeError) as error:
            self.trouble = f"the station's certificate was not renewed: {error}"
            log.warning("%s", self.trouble)
            return False
        self.trouble = ""
        log.info("the station's certificate was renewed and holds until %s", until)
        return True

    def _is_due(self, held: station_key.Held) -> bool:
        stamp = self._clock.now()
        if stamp.quality is ClockQuality.UNSET:
            return False  # whoever believes it to be 1970 would never renew, or for ever
        return held.is_due(datetime.fromtimestamp(stamp.wall_ms / 1000, UTC))
