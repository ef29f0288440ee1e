"""All SQL of users."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import errors

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.http import Role
from cloud.kernel.rows import row, rows
from cloud.users.api import UserExists
from cloud.users.keys import KeyFacts


@dataclass(frozen=True)
class ApiKey:
    id: int
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class Person:
    id: int
    tenant_id: int
    name: str
    role: Role
    password_hash: str
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True)
class Tenant:
    id: int
    name: str
    created_at: datetime


_KEY = "id, name, role, created_at, created_by, expires_at, revoked_at, last_used_at"
_PERSON = "id, tenant_id, name, role, password_hash, created_at, disabled_at"


async def key_facts(cursor: Cursor, key_id: int) -> KeyFacts | None:
    """The key with its person's present role; for the commit role, no tenant is known yet."""
    await cursor.execute(
        "SELECT k.tenant_id, k.digest, coalesce(p.role, k.role), k.expires_at, k.revoked_at,"
        " p.disabled_at, k.last_used_at"
        " FROM users.api_key k LEFT JOIN users.person p ON p.id = k.person_id WHERE k.id = %s",
        (key_id,),
    )
    found = await cursor.fetchone()
    if found is None:
        return None
    tenant, digest, role, expires, revoked, disabled, used = found
    return KeyFacts(tenant, bytes(digest), Role(role), expires, revoked, disabled, used)


async def touch_key(cursor: Cursor, key_id: int, now: datetime) -> None:
    await cursor.execute("UPDATE users.api_key SET last_used_at = %s WHERE id = %s", (now, key_id))


async def add_key(
    cursor: Cursor,
    tenant: TenantId,
    *,
    name: str,
    role: Role,
    digest: bytes,
    now: datetime,
    by: str,
    expires_at: datetime | None,
    person: int | None = None,
) -> ApiKey:
    key = await row(
        cursor,
        ApiKey,
        "INSERT INTO users.api_key (tenant_id, name, role, digest, person_id, created_at,"
        " created_by, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
        f" RETURNING {_KEY}",
        (tenant, name, role, digest, person, now, by, expires_at),
    )
    assert key is not None
    return key


async def keys(
    cursor: Cursor, after: int, limit: int, role: str | None, *, active_at: datetime | None
) -> list[ApiKey]:
    """Keys in order of their number; sessions of persons are not among them."""
    return await rows(
        cursor,
        ApiKey,
        f"SELECT {_KEY} FROM users.api_key WHERE id > %(after)s AND person_id IS NULL"
        " AND (%(role)s::text IS NULL OR role = %(role)s)"
        " AND (%(at)s::timestamptz IS NULL OR (revoked_at IS NULL"
        "      AND (expires_at IS NULL OR expires_at > %(at)s)))"
        " ORDER BY id LIMIT %(limit)s",
        {"after": after, "limit": limit, "role": role, "at": active_at},
    )


async def revoke_key(cursor: Cursor, key_id: int, now: datetime) -> ApiKey | None:
    return await row(
        cursor,
        ApiKey,
        "UPDATE users.api_key SET revoked_at = coalesce(revoked_at, %s) WHERE id = %s"
        f" RETURNING {_KEY}",
        (now, key_id),
    )


async def revoke_sessions(cursor: Cursor, person: int, now: datetime) -> None:
    await cursor.execute(
        "UPDATE users.api_key SET revoked_at = %s WHERE person_id = %s AND revoked_at IS NULL",
        (now, person),
    )


async def add_person(
    cursor: Cursor, tenant: TenantId, name: str, role: Role, password_hash: str, now: datetime
) -> Person:
    """Raises UserExists for a name that is taken, in whatever case."""
    try:
        person = await row(
            cursor,
            Person,
            "INSERT INTO users.person (tenant_id, name, role, password_hash, created_at)"
            f" VALUES (%s, %s, %s, %s, %s) RETURNING {_PERSON}",
            (tenant, name, role, password_hash, now),
        )
    except errors.UniqueViolation:
        raise UserExists(f"a user named {name!r} exists; choose another name", name=name) from None
    assert person is not None
    return person


async def persons(cursor: Cursor, after: int, limit: int, role: str | None) -> list[Person]:
    return await rows(
        cursor,
        Person,
        f"SELECT {_PERSON} FROM users.person WHERE id > %(after)s"
        " AND (%(role)s::text IS NULL OR role = %(role)s) ORDER BY id LIMIT %(limit)s",
        {"after": after, "limit": limit, "role": role},
    )


async def person_by_name(cursor: Cursor, name: str) -> Person | None:
    """For the login: the commit role sees every tenant."""
    return await row(
        cursor,
        Person,
        f"SELECT {_PERSON} FROM users.person WHERE lower(name) = lower(%s)",
        (name,),
    )


async def change_person(
    cursor: Cursor,
    person: int,
    *,
    role: Role | None,
    password_hash: str | None,
    disabled: bool | None,
    now: datetime,
) -> Person | None:
    return await row(
        cursor,
        Person,
        "UPDATE users.person SET role = coalesce(%(role)s, role),"
        " password_hash = coalesce(%(hash)s, password_hash),"
        " disabled_at = CASE %(disabled)s::boolean WHEN true THEN coalesce(disabled_at, %(now)s)"
        "   WHEN false THEN NULL ELSE disabled_at END"
        f" WHERE id = %(id)s RETURNING {_PERSON}",
        {
            "role": role,
            "hash": password_hash,
            "disabled": disabled,
            "now": now,
            "id": person,
        },
    )


# --------------------------------------------------------------------------- tenants


async def add_tenant(cursor: Cursor, name: str) -> Tenant | None:
    """None when the name is taken, in whatever case."""
    return await row(
        cursor,
        Tenant,
        "INSERT INTO users.tenant (name) VALUES (%s) ON CONFLICT DO NOTHING"
        " RETURNING id, name, created_at",
        (name,),
    )


async def tenants(cursor: Cursor) -> list[Tenant]:
    return await rows(cursor, Tenant, "SELECT id, name, created_at FROM users.tenant ORDER BY id")
