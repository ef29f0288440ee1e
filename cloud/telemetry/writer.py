"""Telemetry's part of the commit path: COPY, with a partition for every day it meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date as day
from datetime import datetime
from typing import Final
from uuid import UUID

from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.stations.api import Dating, boot_clocks, date, from_ms, trusted_at
from cloud.telemetry import store
from cloud.telemetry.columns import Dated, few, pack
from cloud.telemetry.tiers.keeper import ROLL_LAG
from protocols.agent_link import (
    BillingBatch,
    ClockCorrected,
    Series,
    SeriesGap,
    Stamp,
    TelemetryBatch,
)

FRESH: Final = ROLL_LAG / 2
"""What came sooner after it was measured is far from being late for the roll-ups."""


class TelemetryWriter:
    """A FactWriter; runs after stations', which keeps the boots' clocks."""

    name = "telemetry"

    def __init__(self) -> None:
        self._days: set[day] = set()
        """Days seen to have a partition in an earlier transaction; a rollback cannot undo those."""

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        told = await self._dated(cursor, deliveries)
        for delivery, fact in _corrections(deliveries):
            told += await self._unpark(cursor, delivery.station_id, fact.boot)
        if told:
            await self.copy(cursor, told)
        return [await self._gap(cursor, delivery, gap) for delivery, gap in _gaps(deliveries)]

    async def _dated(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Dated]:
        """Each series with its time; those of boots whose clock is not known are parked."""
        found: list[Dated] = []
        doubtful: list[tuple[Delivery, Stamp, Series]] = []
        for delivery, sent, series in _series(deliveries):
            first = trusted_at(series.wall_ms, series.quality, delivery.received_at)
            if first is None:
                doubtful.append((delivery, sent, series))
            else:
                found.append(Dated(delivery.station_id, first, series))
        if doubtful:
            found += await self._by_clocks(cursor, doubtful)
        return found

    async def _by_clocks(
        self, cursor: Cursor, doubtful: Sequence[tuple[Delivery, Stamp, Series]]
    ) -> list[Dated]:
        clocks = await boot_clocks(cursor, {(d.station_id, s.boot) for d, _, s in doubtful})
        found = []
        for delivery, sent, series in doubtful:
            known = clocks.get((delivery.station_id, series.boot))
            first = date(_stamp(series), delivery.received_at, sent, known)
            if first.quality is not Dating.UNSET:
                found.append(Dated(delivery.station_id, first.at, series))
                continue
            await store.park(
                cursor, delivery.tenant_id, delivery.station_id, series, delivery.received_at
            )
        return found

    async def _unpark(self, cursor: Cursor, station_id: int, boot: UUID) -> list[Dated]:
        clock = (await boot_clocks(cursor, {(station_id, boot)})).get((station_id, boot))
        if clock is None:
            return []
        return [
            Dated(station_id, from_ms(one.series.mono_ms + clock.offset_ms), one.series)
            for one in await store.unpark(cursor, station_id, boot)
        ]

    async def copy(
        self, cursor: Cursor, told: Sequence[Dated], received_at: datetime | None = None
    ) -> None:
        """Append samples that have their time; of fresh ones it is known when they came."""
        some = few(told)
        if some is not None and some.days <= self._days:
            if (
                cursor.holds_back
                and received_at is not None
                and min(one.first_at for one in told) >= received_at - FRESH
            ):
                await store.put_fresh(cursor, some)
                return
            if await store.put_live(cursor, some):
                return
        packed = pack(told)
        await store.note_late(cursor, packed.spans())
        if missing := packed.days - self._days:
            self._days |= await store.ensure_days(cursor, missing)
        await store.copy_samples(cursor, packed.copy_data)
        if packed.extras:
            await store.copy_extras(cursor, packed.extras)

    async def _gap(self, cursor: Cursor, delivery: Delivery, gap: SeriesGap) -> Event:
        first, last = from_ms(gap.first_ms), from_ms(gap.last_ms)
        await store.put_gap(cursor, delivery.tenant_id, delivery.station_id, gap, first, last)
        return Event(
            tenant_id=delivery.tenant_id,
            kind="telemetry.thinned",
            station_id=delivery.station_id,
            subject=f"gap:{gap.id}",
            data={
                "evse": gap.evse,
                "from": first.isoformat(),
                "to": last.isoformat(),
                "samples": gap.samples,
                "cause": gap.cause,
            },
        )


def _series(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, Stamp, Series]]:
    for delivery in deliveries:
        if isinstance(delivery.batch, TelemetryBatch):
            for series in delivery.batch.series:
                if series.dt_ms:
                    yield delivery, delivery.batch.sent, series


def _corrections(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, ClockCorrected]]:
    for delivery in deliveries:
        if isinstance(delivery.batch, BillingBatch):
            for fact in delivery.batch.facts:
                if isinstance(fact, ClockCorrected):
                    yield delivery, fact


def _gaps(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, SeriesGap]]:
    for delivery in deliveries:
        if isinstance(delivery.batch, BillingBatch):
            for fact in delivery.batch.facts:
                if isinstance(fact, SeriesGap):
                    yield delivery, fact


def _stamp(series: Series) -> Stamp:
    return Stamp(series.wall_ms, series.mono_ms, series.boot, series.quality)
