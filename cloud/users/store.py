"""All SQL of users."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import errors

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.http import Role
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
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
    person_id: int | None


@dataclass(frozen=True)
class Person:
    id: int
    tenant_id: int
    name: str
    role: Role
    language: str
    password_hash: str
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True)
class Tenant:
    id: int
    name: str
    created_at: datetime


_KEY: Final = (
    "id, name, role, created_at, created_by, expires_at, revoked_at, last_used_at, person_id"
)
_PERSON: Final = "id, tenant_id, name, role, language, password_hash, created_at, disabled_at"

KEYS: Final = Sorts(
    "id",
    Column("id", int),
    id=Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
    last_used_at=Column("last_used_at", datetime, nullable=True),
)
PERSONS: Final = Sorts(
    "name",
    Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
)


async def key_facts(cursor: Cursor, key_id: int) -> KeyFacts | None:
    """The key as it holds now; for the commit role, no tenant is known yet.

    A session has its person's present role, a person's own key no more than that.
    """
    await cursor.execute(
        "SELECT k.tenant_id, k.person_id, k.digest, k.role, p.role, k.session, k.expires_at,"
        " k.revoked_at, p.disabled_at, k.last_used_at"
        " FROM users.api_key k LEFT JOIN users.person p ON p.id = k.person_id WHERE k.id = %s",
        (key_id,),
    )
    found = await cursor.fetchone()
    if found is None:
        return None
    tenant, person, digest, given, persons_own, session, *times = found
    role = Role(given)
    if persons_own is not None and (session or role.covers(Role(persons_own))):
        role = Role(persons_own)
    return KeyFacts(tenant, person, bytes(digest), role, *times)


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
    session: bool = False,
) -> ApiKey:
    key = await row(
        cursor,
        ApiKey,
        "INSERT INTO users.api_key (tenant_id, name, role, digest, person_id, session,"
        " created_at, created_by, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        f" RETURNING {_KEY}",
        (tenant, name, role, digest, person, session, now, by, expires_at),
    )
    assert key is not None
    return key


@dataclass(frozen=True)
class KeyFilters:
    """What a list of keys is narrowed by; None does not narrow."""

    role: str | None = None
    person: int | None = None
    active_at: datetime | None = None
    text: str | None = None


async def keys(cursor: Cursor, part: Part, filters: KeyFilters) -> Cut[ApiKey]:
    """Keys; sessions are not among them."""
    where = (
        Where("NOT session")
        .add("role = {}", filters.role)
        .add("person_id = {}", filters.person)
        .add("revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {})", filters.active_at)
        .add("strpos(lower(name), lower({})) > 0", filters.text)
    )
    return await select_page(cursor, ApiKey, part, _KEY, "users.api_key", where)


async def key(cursor: Cursor, key_id: int, *, lock: bool = False) -> ApiKey | None:
    """A key, not a session."""
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_KEY} FROM users.api_key WHERE id = %s AND NOT session{locked}"
    return await row(cursor, ApiKey, sql, (key_id,))


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
        "UPDATE users.api_key SET revoked_at = %s"
        " WHERE person_id = %s AND session AND revoked_at IS NULL",
        (now, person),
    )


async def add_person(
    cursor: Cursor, tenant: TenantId, fields: dict[str, Any], now: datetime
) -> Person:
    """Fields: name, role, language, password_hash.

    Raises UserExists for a name that is taken, in whatever case and by whatever tenant.
    """
    person = await row(
        cursor,
        Person,
        "INSERT INTO users.person (tenant_id, name, role, language, password_hash, created_at)"
        " VALUES (%(tenant)s, %(name)s, %(role)s, %(language)s, %(password_hash)s, %(now)s)"
        f" ON CONFLICT DO NOTHING RETURNING {_PERSON}",
        {**fields, "tenant": tenant, "now": now},
    )
    if person is None:
        raise _user_exists(fields["name"])
    return person


def _user_exists(name: str) -> UserExists:
    return UserExists(f"a user named {name!r} exists; choose another name", name=name)


@dataclass(frozen=True)
class PersonFilters:
    """What a list of users is narrowed by; None does not narrow."""

    role: str | None = None
    disabled: bool | None = None
    text: str | None = None


async def persons(cursor: Cursor, part: Part, filters: PersonFilters) -> Cut[Person]:
    where = (
        Where()
        .add("role = {}", filters.role)
        .add("(disabled_at IS NOT NULL) = {}", filters.disabled)
        .add("strpos(lower(name), lower({})) > 0", filters.text)
    )
    return await select_page(cursor, Person, part, _PERSON, "users.person", where)


async def person(cursor: Cursor, person_id: int, *, lock: bool = False) -> Person | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_PERSON} FROM users.person WHERE id = %s{locked}"
    return await row(cursor, Person, sql, (person_id,))


async def person_by_name(cursor: Cursor, name: str) -> Person | None:
    """For the login: the commit role sees every tenant."""
    return await row(
        cursor,
        Person,
        f"SELECT {_PERSON} FROM users.person WHERE lower(name) = lower(%s)",
        (name,),
    )


async def change_person(cursor: Cursor, person_id: int, fields: dict[str, Any]) -> Person:
    """Set the given columns of a person that is there (of name, role, language, ...)."""
    known = ("name", "role", "language", "password_hash", "disabled_at")
    sets = ", ".join(f"{name} = %({name})s" for name in known if name in fields)
    try:
        changed = await row(
            cursor,
            Person,
            f"UPDATE users.person SET {sets or 'name = name'} WHERE id = %(id)s"
            f" RETURNING {_PERSON}",
            {**fields, "id": person_id},
        )
    except errors.UniqueViolation:
        raise _user_exists(fields["name"]) from None
    assert changed is not None
    return changed


async def erase_person(cursor: Cursor, person_id: int) -> None:
    """The person and their keys are gone for good; what they did stays under their number."""
    await cursor.execute("DELETE FROM users.api_key WHERE person_id = %s", (person_id,))
    await cursor.execute("DELETE FROM users.person WHERE id = %s", (person_id,))


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
