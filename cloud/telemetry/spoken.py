"""Telemetry's part of what OCPP stations say: their readings become samples like everybody's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from cloud.stations.api import from_ms, plausible
from cloud.telemetry import store
from cloud.telemetry.columns import Dated
from cloud.telemetry.writer import TelemetryWriter
from protocols.agent_link import COLUMNS, ClockQuality, Series
from protocols.ocpp.messages import Meter, Reading, Transaction
from protocols.quantities import Milliseconds

EVERY_MS: Final = Milliseconds(60_000)
"""How long a reading stands for: stations do not say; a minute is what most are set to."""
_NO_BOOT: Final = UUID(int=0)
_values = attrgetter(*COLUMNS)


class SpokenReadings:
    """A SpokenWriter."""

    def __init__(self, writer: TelemetryWriter) -> None:
        self._writer = writer

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        surely: list[Dated] = []
        doubtful: list[Dated] = []
        for one in spoken:
            if isinstance(one.told, Meter | Transaction) and one.told.readings:
                (doubtful if one.doubtful else surely).extend(_dated(one, one.told))
        if doubtful:
            there = await store.there(
                cursor, [(d.station_id, d.series.evse, d.first_at) for d in doubtful]
            )
            surely += [
                d for d in doubtful if (d.station_id, d.series.evse, d.first_at) not in there
            ]
        if surely:
            await self._writer.copy(cursor, surely, spoken[-1].received_at)
        return []


def _dated(one: Spoken, told: Meter | Transaction) -> Iterator[Dated]:
    for reading in told.readings:
        series = _series(told.evse, reading)
        if series is not None:
            at = _when(reading, told, one.received_at)
            yield Dated(one.station_id, at, series)


def _when(reading: Reading, told: Meter | Transaction, received_at: datetime) -> datetime:
    """The station's time where it can be; a reading of 1970 was made just now (S11)."""
    at = from_ms(reading.at_ms)
    if told.clock_trusted and plausible(at, received_at):
        return min(at, received_at)
    return received_at


def _series(evse: int, reading: Reading) -> Series | None:
    """None when nothing was measured that has a place."""
    there = {
        name: (value,)
        for name, value in zip(COLUMNS, _values(reading), strict=True)
        if value is not None
    }
    columns: dict[str, Any] = there
    if not columns and not reading.more:
        return None
    return Series(
        evse=evse,
        boot=_NO_BOOT,
        wall_ms=reading.at_ms,
        mono_ms=Milliseconds(0),
        quality=ClockQuality.SYNCED,
        every_ms=EVERY_MS,
        dt_ms=(0,),
        more={name: (value,) for name, value in reading.more.items()},
        **columns,
    )
