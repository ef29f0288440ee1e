"""Telemetry's part of the commit path: COPY, with a partition for every day it meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date as day
from uuid import UUID

from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.stations.api import BootClock, Dated, Dating, boot_clocks, date, from_ms
from cloud.telemetry import store
from cloud.telemetry.columns import Rows, rows
from protocols.agent_link import (
    BillingBatch,
    ClockCorrected,
    Series,
    SeriesGap,
    Stamp,
    TelemetryBatch,
)

Clocks = Mapping[tuple[int, UUID], BootClock]


class TelemetryWriter:
    """A FactWriter; runs after stations', which keeps the boots' clocks."""

    name = "telemetry"

    def __init__(self) -> None:
        self._days: set[day] = set()
        """Days seen to have a partition in an earlier transaction; a rollback cannot undo those."""

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        gathered = await self._gather(cursor, deliveries)
        gathered += [
            rows for delivery, fact in _corrections(deliveries)
            for rows in await self._unpark(cursor, delivery.station_id, fact.boot)
        ]  # fmt: skip
        await self._copy(cursor, gathered)
        return [await self._gap(cursor, delivery, gap) for delivery, gap in _gaps(deliveries)]

    async def _gather(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Rows]:
        told = list(_series(deliveries))
        clocks = await boot_clocks(cursor, {(d.station_id, s.boot) for d, _, s in told})
        gathered = []
        for delivery, sent, series in told:
            first = _first(delivery, sent, series, clocks)
            if first.quality is Dating.UNSET:
                await store.park(
                    cursor, delivery.tenant_id, delivery.station_id, series, delivery.received_at
                )
            else:
                gathered.append(rows(series, delivery.station_id, first.at))
        return gathered

    async def _unpark(self, cursor: Cursor, station_id: int, boot: UUID) -> list[Rows]:
        clock = (await boot_clocks(cursor, {(station_id, boot)})).get((station_id, boot))
        if clock is None:
            return []
        return [
            rows(one.series, station_id, from_ms(one.series.mono_ms + clock.offset_ms))
            for one in await store.unpark(cursor, station_id, boot)
        ]

    async def _copy(self, cursor: Cursor, gathered: Sequence[Rows]) -> None:
        days = {row[0].date() for one in gathered for row in one.samples}
        if missing := days - self._days:
            self._days |= await store.ensure_days(cursor, missing)
        if days:
            await store.copy_samples(cursor, (row for one in gathered for row in one.samples))
        if any(one.extras for one in gathered):
            await store.copy_extras(cursor, (row for one in gathered for row in one.extras))

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


def _first(delivery: Delivery, sent: Stamp, series: Series, clocks: Clocks) -> Dated:
    """When the series' first sample was."""
    stamp = Stamp(series.wall_ms, series.mono_ms, series.boot, series.quality)
    known = clocks.get((delivery.station_id, series.boot))
    return date(stamp, delivery.received_at, sent, known)
