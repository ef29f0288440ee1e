"""Ends transactions that nobody will end: of a car long gone, a station that was removed.

What a station says later is stronger: its own end replaces ours, and a sign of life opens the
transaction again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from cloud.kernel import events, fencing
from cloud.kernel.database import Cursor, Database
from cloud.stations.api import Dated, Dating, evse_states, existing_stations
from cloud.tariffs.api import PriceBook
from cloud.transactions import history_store as history
from cloud.transactions import store
from cloud.transactions.native import identified
from cloud.transactions.projection import State, Step
from cloud.transactions.sessions import conclusion
from cloud.transactions.writing import Arrived, record
from cloud.transactions.zombies import End, Open, Patience, Seen, over

EVERY_S: Final = 60.0
_AT_ONCE: Final = 500


class TransactionSweeper:
    def __init__(
        self, database: Database, clock: Callable[[], datetime], patience: Patience
    ) -> None:
        self._database = database
        self._clock = clock
        self._patience = patience
        self._book = PriceBook()

    async def run(self) -> None:
        """Sweep every minute, for ever."""
        while True:
            await self.sweep()
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> int:
        """Look at every open transaction once; returns how many of them are over."""
        ended, behind = 0, UUID(int=0)
        while True:
            async with self._database.commit_unit() as cursor:
                if not await store.sweep_alone(cursor):
                    return ended
                quiet = self._clock() - self._patience.available
                found = await store.quiet(cursor, quiet, behind, _AT_ONCE)
                ended += await self._conclude(cursor, await self._over(cursor, found))
            if len(found) < _AT_ONCE:
                return ended
            behind = found[-1].id

    async def _over(self, cursor: Cursor, found: Sequence[Open]) -> dict[UUID, End]:
        if not found:
            return {}
        named = {one.station for one in found}
        stations = await existing_stations(cursor, named)
        connected = await fencing.connected(cursor, named)
        evses = {
            (state.station_id, state.evse): Seen(state.status, state.at, state.received_at)
            for state in await evse_states(cursor, named)
        }
        now = self._clock()
        ends = (
            over(
                one, now, self._patience, stations=stations, connected=connected, evses=evses
            )
            for one in found
        )  # fmt: skip
        return {end.transaction: end for end in ends if end is not None}

    async def _conclude(self, cursor: Cursor, ends: dict[UUID, End]) -> int:
        if not ends:
            return 0
        held = await history.held(cursor, ends.keys())
        arrived: dict[tuple[UUID, UUID], Arrived] = {}
        now = self._clock()
        for transaction, row in held.items():
            end = ends[transaction]
            if row.projection.state is not State.OPEN or row.projection.last_at > end.at:
                continue  # it has gone on while we looked
            event, fact = identified(transaction, conclusion(end.reason, end.at))
            at = Dated(end.at, Dating.ESTIMATED)
            step = Step(event, at, at, None, fact)
            arrived[transaction, event.id] = Arrived(
                row.tenant_id, row.station_id, now, step, row.native
            )
        written = await record(cursor, arrived, held, now, self._book)
        await events.append(cursor, written.events)
        return len(written.events)
