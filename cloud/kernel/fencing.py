"""One live connection per station: whose words count is settled in the database.

`kernel.live` holds each OCPP station's newest connection: its epoch, the gateway that owns it, the
tenant. A commit takes only what came over that connection; the row is locked until the commit, so
that a takeover, a move to another tenant, and another commit for the same station lie wholly before
it or wholly after: a writer may read what it holds of a station and write it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import literal
from cloud.kernel.turns import Ask

if TYPE_CHECKING:
    from cloud.kernel.facts import Spoken


_LIVE: Final = (
    "SELECT station_id, epoch, tenant_id FROM kernel.live WHERE station_id = ANY(%s::int[])"
    " ORDER BY station_id FOR NO KEY UPDATE"
)


def lives(said: Iterable[Spoken]) -> Ask | None:
    """What `unfenced` will ask; it is to be the first thing that a commit asks."""
    stations = sorted({one.station_id for one in said if one.epoch})
    return Ask(_LIVE, (literal(stations),)) if stations else None


async def unfenced(cursor: Cursor, said: Sequence[Spoken]) -> dict[int, Spoken]:
    """What still counts, by the `id()` of what was given, with the tenants of this moment.

    A connection's own beginning (epoch 0) counts always.
    """
    asked = lives(said)
    rows = await cursor.ask(*asked) if asked else []
    live = {row[0]: (row[1], TenantId(row[2])) for row in rows}
    counted: dict[int, Spoken] = {}
    for one in said:
        if one.epoch == 0:
            counted[id(one)] = one
            continue
        epoch, tenant = live.get(one.station_id, (0, one.tenant_id))
        if epoch == one.epoch:
            same = tenant == one.tenant_id
            counted[id(one)] = one if same else one._replace(tenant_id=tenant)
    return counted


async def take_over(
    cursor: Cursor, gateway: UUID, stations: Sequence[tuple[int, TenantId]]
) -> dict[int, int]:
    """Make this gateway the owner of the stations' newest connections; returns their epochs."""
    ordered = sorted(dict(stations).items())
    await cursor.execute(
        "INSERT INTO kernel.live AS l (station_id, tenant_id, epoch, gateway, since)"
        " SELECT station_id, tenant_id, 1, %s, clock_timestamp()"
        " FROM unnest(%s::int[], %s::int[]) AS k (station_id, tenant_id)"
        " ON CONFLICT (station_id) DO UPDATE SET epoch = l.epoch + 1, gateway = excluded.gateway,"
        " tenant_id = excluded.tenant_id, since = excluded.since"
        " RETURNING station_id, epoch",
        (
            gateway,
            literal(station for station, _ in ordered),
            literal(tenant for _, tenant in ordered),
        ),
    )
    return {row[0]: row[1] for row in await cursor.fetchall()}


async def let_go(cursor: Cursor, gone: Sequence[tuple[int, int]]) -> list[int]:
    """Give up connections, as (station, epoch); returns the stations whose newest they were."""
    await cursor.execute(
        "UPDATE kernel.live l SET gateway = NULL FROM unnest(%s::int[], %s::bigint[])"
        " AS k (station_id, epoch) WHERE l.station_id = k.station_id AND l.epoch = k.epoch"
        " AND l.gateway IS NOT NULL RETURNING l.station_id",
        (literal(station for station, _ in gone), literal(epoch for _, epoch in gone)),
    )
    return [row[0] for row in await cursor.fetchall()]


async def connected(cursor: Cursor, stations: Iterable[int]) -> set[int]:
    """Which of these stations have a live connection."""
    await cursor.execute(
        "SELECT station_id FROM kernel.live WHERE station_id = ANY(%s::int[])"
        " AND gateway IS NOT NULL",
        (literal(stations),),
    )
    return {row[0] for row in await cursor.fetchall()}
