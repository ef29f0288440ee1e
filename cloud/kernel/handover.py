"""Whose facts a station's are, settled in the database at the moment of the commit.

A process that takes messages knows a station's tenant from a while ago. When a station moves to
another tenant, `hand_over` locks its stream marks and changes its outboxes; every commit locks the
marks too and asks `rightly_owned` after that, so each is wholly before or wholly after the move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import literal

if TYPE_CHECKING:
    from cloud.kernel.facts import Delivery


@dataclass(frozen=True)
class Move:
    """A station goes from one tenant to another."""

    station_id: int
    old: TenantId
    new: TenantId


class Follower(Protocol):
    """A module whose rows about a station change hands with it, in the move's transaction."""

    async def station_moved(self, cursor: Cursor, move: Move) -> None: ...


async def hand_over(cursor: Cursor, move: Move) -> None:
    """Give the station's outboxes to the new tenant (commit role), behind commits under way."""
    await cursor.execute(
        "SELECT FROM kernel.outbox_mark WHERE station_id = %s"
        " ORDER BY station_id, outbox, stream FOR UPDATE",
        (move.station_id,),
    )
    await cursor.execute(
        "UPDATE kernel.outbox SET tenant_id = %s WHERE station_id = %s",
        (move.new, move.station_id),
    )
    await cursor.execute(
        "UPDATE kernel.live SET tenant_id = %s WHERE station_id = %s",
        (move.new, move.station_id),
    )


async def rightly_owned(cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """The deliveries with the tenants that their outboxes belong to now; call with marks locked."""
    supposed = {(one.station_id, one.outbox, one.tenant_id) for one in deliveries}
    owners = await _owners(cursor, {(station, outbox) for station, outbox, _ in supposed})
    if all(owners.get((station, outbox), tenant) == tenant for station, outbox, tenant in supposed):
        return list(deliveries)
    return [
        one._replace(tenant_id=owners.get((one.station_id, one.outbox), one.tenant_id))
        for one in deliveries
    ]


async def _owners(
    cursor: Cursor, outboxes: set[tuple[int, UUID]]
) -> dict[tuple[int, UUID], TenantId]:
    await cursor.execute(
        "SELECT o.station_id, o.outbox, o.tenant_id FROM kernel.outbox o"
        " JOIN unnest(%s::int[], %s::uuid[]) AS k (station_id, outbox) USING (station_id, outbox)",
        (
            literal(station for station, _ in outboxes),
            literal(outbox for _, outbox in outboxes),
        ),
    )
    return {
        (station, outbox): TenantId(owner) for station, outbox, owner in await cursor.fetchall()
    }
