"""All SQL of authorization."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import errors

from cloud.authorization.decision import TokenRules
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
from cloud.kernel.turns import Ask
from protocols.agent_link import IdToken


@dataclass(frozen=True)
class Group:
    id: int
    name: str
    created_at: datetime


@dataclass(frozen=True)
class Token:
    id: int
    value: str
    type: str
    group_id: int | None
    group_name: str | None
    label: str
    blocked: bool
    expires_at: datetime | None
    created_at: datetime


_COLUMNS: Final = (
    "t.id, t.value, t.type, t.group_id, g.name AS group_name, t.label, t.blocked,"
    " t.expires_at, t.created_at"
)
_SOURCE: Final = (
    '"authorization".id_token t LEFT JOIN "authorization".id_token_group g ON g.id = t.group_id'
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM {_SOURCE}"
_GROUP: Final = "id, name, created_at"

TOKENS: Final = Sorts(
    "value",
    Column("t.id", int),
    value=Column("lower(t.value)"),
    created_at=Column("t.created_at", datetime),
    expires_at=Column("t.expires_at", datetime, nullable=True),
)
GROUPS: Final = Sorts(
    "name",
    Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
)

# --------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class TokenFilters:
    """What a list of tokens is narrowed by; None does not narrow."""

    now: datetime
    group: int | None = None
    type: str | None = None
    blocked: bool | None = None
    expired: bool | None = None
    text: str | None = None


async def tokens(cursor: Cursor, part: Part, filters: TokenFilters) -> Cut[Token]:
    where = (
        Where()
        .add("t.group_id = {}", filters.group)
        .add("t.type = {}", filters.type)
        .add("t.blocked = {}", filters.blocked)
        .add("t.expires_at <= {}", filters.now if filters.expired else None)
        .add(
            "t.expires_at IS NULL OR t.expires_at > {}",
            filters.now if filters.expired is False else None,
        )
        .add("strpos(t.sought, lower({})) > 0", filters.text)
    )
    return await select_page(cursor, Token, part, _COLUMNS, _SOURCE, where)


async def all_tokens(cursor: Cursor, tenant: TenantId) -> list[Token]:
    """The tenant's whole list, for the commit role too, which sees every tenant's."""
    return await rows(cursor, Token, f"{_SELECT} WHERE t.tenant_id = %s ORDER BY t.id", (tenant,))


async def token(cursor: Cursor, value: str, *, lock: bool = False) -> Token | None:
    locked = " FOR UPDATE OF t" if lock else ""
    sql = f"{_SELECT} WHERE lower(t.value) = lower(%s){locked}"
    return await row(cursor, Token, sql, (value,))


async def find_tokens(cursor: Cursor, values: Sequence[str]) -> dict[str, Token]:
    """Those of the values that are entered, in whatever case, by the value as it was asked for."""
    await cursor.execute(
        'SELECT w.value, t.id FROM unnest(%s::text[]) AS w (value) JOIN "authorization".id_token t'
        " ON lower(t.value) = lower(w.value)",
        (list(values),),
    )
    asked = await cursor.fetchall()
    found = await rows(
        cursor, Token, f"{_SELECT} WHERE t.id = ANY(%s)", ([number for _, number in asked],)
    )
    by_id = {one.id: one for one in found}
    return {value: by_id[number] for value, number in asked if number in by_id}


async def rules(cursor: Cursor, value: str) -> TokenRules | None:
    return await row(
        cursor,
        TokenRules,
        'SELECT blocked, expires_at FROM "authorization".id_token WHERE lower(value) = lower(%s)',
        (value,),
    )


async def rules_of(
    cursor: Cursor, keys: Collection[tuple[TenantId, str]]
) -> dict[tuple[TenantId, str], TokenRules]:
    """The rules of tokens by tenant and value in lower case (commit role); the unknown left out."""
    tenants, values = zip(*keys, strict=True) if keys else ((), ())
    await cursor.execute(
        "SELECT t.tenant_id, lower(t.value), t.blocked, t.expires_at, g.name"
        " FROM unnest(%s::int[], %s::text[]) AS k (tenant_id, value)"
        ' JOIN "authorization".id_token t'
        " ON t.tenant_id = k.tenant_id AND lower(t.value) = k.value"
        ' LEFT JOIN "authorization".id_token_group g ON g.id = t.group_id',
        (list(tenants), list(values)),
    )
    return {
        (TenantId(row[0]), row[1]): TokenRules(row[2], row[3], row[4])
        for row in await cursor.fetchall()
    }


async def add_token(
    cursor: Cursor, tenant: TenantId, fields: dict[str, Any], now: datetime
) -> bool:
    """False when it is entered already, in whatever case."""
    await cursor.execute(f"{_INSERT} ON CONFLICT DO NOTHING", _entered(tenant, fields, now))
    return cursor.rowcount > 0


async def put_tokens(
    cursor: Cursor, tenant: TenantId, entries: Sequence[dict[str, Any]], now: datetime
) -> None:
    """Enter tokens; those that exist, in whatever case, are replaced."""
    await cursor.executemany(
        f"{_INSERT} ON CONFLICT (tenant_id, lower(value)) DO UPDATE SET value = excluded.value,"
        " type = excluded.type, group_id = excluded.group_id, label = excluded.label,"
        " blocked = excluded.blocked, expires_at = excluded.expires_at",
        [_entered(tenant, fields, now) for fields in entries],
    )


_INSERT: Final = (
    'INSERT INTO "authorization".id_token (tenant_id, value, type, group_id, label, blocked,'
    " expires_at, created_at) VALUES (%(tenant)s, %(value)s, %(type)s, %(group_id)s,"
    " %(label)s, %(blocked)s, %(expires_at)s, %(now)s)"
)


def _entered(tenant: TenantId, fields: dict[str, Any], now: datetime) -> dict[str, Any]:
    return {**fields, "tenant": tenant, "now": now}


async def change_token(cursor: Cursor, token_id: int, fields: dict[str, Any]) -> None:
    await cursor.execute(
        'UPDATE "authorization".id_token SET type = %(type)s, group_id = %(group_id)s,'
        " label = %(label)s, blocked = %(blocked)s, expires_at = %(expires_at)s WHERE id = %(id)s",
        {**fields, "id": token_id},
    )


async def delete_token(cursor: Cursor, token_id: int) -> None:
    await cursor.execute('DELETE FROM "authorization".id_token WHERE id = %s', (token_id,))


# --------------------------------------------------------------------------- groups


async def add_group(cursor: Cursor, tenant: TenantId, name: str, now: datetime) -> Group | None:
    """None when the name is taken."""
    return await row(
        cursor,
        Group,
        'INSERT INTO "authorization".id_token_group (tenant_id, name, created_at)'
        f" VALUES (%s, %s, %s) ON CONFLICT DO NOTHING RETURNING {_GROUP}",
        (tenant, name, now),
    )


async def groups(cursor: Cursor, part: Part, text: str | None) -> Cut[Group]:
    where = Where().add("strpos(lower(name), lower({})) > 0", text)
    return await select_page(cursor, Group, part, _GROUP, '"authorization".id_token_group', where)


async def group(cursor: Cursor, group_id: int, *, lock: bool = False) -> Group | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f'SELECT {_GROUP} FROM "authorization".id_token_group WHERE id = %s{locked}'
    return await row(cursor, Group, sql, (group_id,))


async def rename_group(cursor: Cursor, group_id: int, name: str) -> Group | None:
    """None when the name is taken; the unit of work has failed then."""
    try:
        return await row(
            cursor,
            Group,
            f'UPDATE "authorization".id_token_group SET name = %s WHERE id = %s RETURNING {_GROUP}',
            (name, group_id),
        )
    except errors.UniqueViolation:
        return None


async def delete_group(cursor: Cursor, group_id: int) -> bool:
    """False while tokens belong to it."""
    try:
        await cursor.execute(
            'DELETE FROM "authorization".id_token_group WHERE id = %s', (group_id,)
        )
    except errors.ForeignKeyViolation:
        return False
    return True


async def group_ids(cursor: Cursor, names: Collection[str]) -> dict[str, int]:
    """Numbers of groups by their name as it was asked for, in whatever case."""
    await cursor.execute(
        "SELECT w.name, g.id FROM unnest(%s::text[]) AS w (name)"
        ' JOIN "authorization".id_token_group g ON lower(g.name) = lower(w.name)',
        (list(names),),
    )
    return dict(await cursor.fetchall())


# --------------------------------------------------------------------------- the offline list


async def bump_version(cursor: Cursor, tenant: TenantId, now: datetime) -> int:
    """The list's next version; from the clock, so that a restored database does not reuse one."""
    await cursor.execute(
        'INSERT INTO "authorization".list_version AS v (tenant_id, version) VALUES (%s, %s)'
        " ON CONFLICT (tenant_id) DO UPDATE SET"
        " version = greatest(v.version + 1, excluded.version) RETURNING version",
        (tenant, int(now.timestamp())),
    )
    found = await cursor.fetchone()
    assert found is not None
    return int(found[0])


async def version(cursor: Cursor, tenant: TenantId) -> int:
    """The list's version; 0 when nothing was ever entered."""
    await cursor.execute(
        'SELECT version FROM "authorization".list_version WHERE tenant_id = %s', (tenant,)
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def pushed(cursor: Cursor, tenant: TenantId) -> dict[int, tuple[int, datetime]]:
    """What each station was sent last, and when."""
    await cursor.execute(
        'SELECT station_id, version, pushed_at FROM "authorization".list_push WHERE tenant_id = %s',
        (tenant,),
    )
    return {station: (number, at) for station, number, at in await cursor.fetchall()}


async def note_push(
    cursor: Cursor, tenant: TenantId, station_id: int, number: int, command: UUID, now: datetime
) -> None:
    await cursor.execute(
        'INSERT INTO "authorization".list_push (tenant_id, station_id, version, command,'
        " pushed_at) VALUES (%s, %s, %s, %s, %s) ON CONFLICT (station_id) DO UPDATE SET"
        " version = excluded.version, command = excluded.command, pushed_at = excluded.pushed_at",
        (tenant, station_id, number, command, now),
    )


async def forget_push(cursor: Cursor, station_id: int) -> int | None:
    """Forget what the station was sent last; returns that list's version."""
    await cursor.execute(
        'DELETE FROM "authorization".list_push WHERE station_id = %s RETURNING version',
        (station_id,),
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else None


# --------------------------------------------------------------------------- references


async def refer(
    cursor: Cursor, seen: Collection[tuple[TenantId, IdToken]]
) -> dict[tuple[TenantId, IdToken], int]:
    """References of tokens that were used, known or not; made where there was none."""
    if not seen:
        return {}
    asked = refer_ask(seen)
    rows_ = await cursor.ask(*asked)
    if len(rows_) < len(set(seen)):
        await cursor.execute(
            'INSERT INTO "authorization".token_ref (tenant_id, value, type)'
            " SELECT * FROM unnest(%s::int[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING",
            asked.params,
        )
        rows_ = await cursor.ask(*asked)
    return {(TenantId(tenant), IdToken(value, kind)): ref for tenant, value, kind, ref in rows_}


_REFS: Final = (
    "SELECT w.tenant_id, w.value, w.type, r.id"
    " FROM unnest(%s::int[], %s::text[], %s::text[]) AS w (tenant_id, value, type)"
    ' JOIN "authorization".token_ref r ON r.tenant_id = w.tenant_id'
    " AND lower(r.value) = lower(w.value) AND r.type = w.type"
)


def refer_ask(seen: Collection[tuple[TenantId, IdToken]]) -> Ask:
    """What `refer` asks first."""
    unique = sorted({(tenant, t.value, t.type) for tenant, t in seen})
    return Ask(_REFS, tuple(list(column) for column in zip(*unique, strict=True)))


async def reveal(cursor: Cursor, refs: Collection[int]) -> dict[int, IdToken]:
    """The tokens behind references, as far as the caller may see them."""
    await cursor.execute(
        'SELECT id, value, type FROM "authorization".token_ref WHERE id = ANY(%s)', (list(refs),)
    )
    return {ref: IdToken(value, kind) for ref, value, kind in await cursor.fetchall()}


async def find_refs(cursor: Cursor, value: str) -> list[int]:
    """References of every token of that value, whatever its type."""
    await cursor.execute(
        'SELECT id FROM "authorization".token_ref WHERE lower(value) = lower(%s)', (value,)
    )
    return [ref for (ref,) in await cursor.fetchall()]
