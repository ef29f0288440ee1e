"""Uploads of images that nobody went on with: they go after a time, counted and logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from cloud.ota.storage import Files

logger = logging.getLogger(__name__)
EVERY: Final = timedelta(hours=1)


class Uploads:
    """Looks at what is coming in, in every process that has the folder."""

    def __init__(
        self,
        files: Files,
        keep: timedelta,
        clock: Callable[[], datetime],
        registry: CollectorRegistry,
    ) -> None:
        """`keep`: how long an upload may rest."""
        self._files = files
        self._keep = keep
        self._clock = clock
        self._abandoned = Counter(
            "karvon_ota_uploads_abandoned",
            "Uploads of release files that rested too long and were removed",
            registry=registry,
        )

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.sweep()
            await asyncio.sleep(EVERY.total_seconds())

    async def sweep(self) -> int:
        """Remove what has rested too long; returns how many uploads that were."""
        try:
            count, size = await self._files.forget_abandoned(self._clock() - self._keep)
        except OSError as error:
            logger.warning("abandoned uploads cannot be removed: %s; repair the disk", error)
            return 0
        if count:
            self._abandoned.inc(count)
            logger.info(
                "%d uploads got no part for %s and were removed (%d bytes)", count, self._keep, size
            )
        return count
