"""What transactions cost: by the version that held where and when they started, for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol
from uuid import UUID

from cloud.kernel.database import Cursor
from cloud.tariffs.api import (
    EXPONENTS,
    Cost,
    Measure,
    PriceBook,
    Start,
    TariffVersion,
    price,
    shown,
)
from cloud.transactions.history_store import Held
from cloud.transactions.projection import State
from protocols.quantities import Milliseconds, WattHours


class Measured(Protocol):
    """The part of a transaction that is paid for."""

    @property
    def state(self) -> str: ...

    @property
    def energy_wh(self) -> int: ...

    @property
    def duration_ms(self) -> int: ...


def cost(measured: Measured, version: TariffVersion) -> Cost:
    """What it costs, or has cost so far while it is open."""
    return price(
        version,
        Measure(
            WattHours(measured.energy_wh),
            Milliseconds(measured.duration_ms),
            ended=measured.state == State.ENDED,
        ),
    )


def in_major_units(total: Cost) -> str:
    """The total with all decimals that its currency has, such as `12.50`."""
    return shown(total.total, EXPONENTS[total.total.currency])


def settles_its_price(row: Held, before: Held | None) -> bool:
    """Whether where and when it started is first known now; later changes are no business of it."""
    if before is None:
        return True
    old, new = before.projection, row.projection
    return (new.start_seen and not old.start_seen) or (new.evse > 0 and old.evse == 0)


async def pin(cursor: Cursor, book: PriceBook, rows: Sequence[Held]) -> dict[UUID, Held]:
    """These rows with the version that holds for their start."""
    starts = [
        Start(row.tenant_id, row.station_id, row.projection.evse, row.projection.started_at)
        for row in rows
    ]
    pinned = await book.pins(cursor, starts)
    return {
        row.id: row._replace(tariff_version=version)
        for row, version in zip(rows, pinned, strict=True)
    }


async def totals(cursor: Cursor, book: PriceBook, rows: Collection[Held]) -> dict[UUID, Cost]:
    """What each of these costs; those without a price are left out."""
    wanted = {row.tariff_version for row in rows}
    versions = await book.versions(cursor, _known(wanted))
    return {
        row.id: cost(row.projection, versions[row.tariff_version])
        for row in rows
        if row.tariff_version is not None and row.tariff_version in versions
    }


def _known(versions: Iterable[int | None]) -> set[int]:
    return {version for version in versions if version is not None}
