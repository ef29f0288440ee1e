"""Keys, users and logins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Forbidden, Unauthorized
from cloud.kernel.etags import ANYTHING, Expected, version_of
from cloud.kernel.http import Caller, Role
from cloud.kernel.limiter import Limiter
from cloud.kernel.paging import Cut, Part
from cloud.users import keys, store
from cloud.users.api import (
    ApiKeyNotFound,
    LoginRefused,
    LoginTooOften,
    TenantExists,
    TenantNotFound,
    UserNotFound,
)
from cloud.users.store import ApiKey, KeyFilters, Person, PersonFilters, Tenant

DEFAULT_TENANT = TenantId(1)
SESSION = timedelta(hours=12)
_USED_EVERY = timedelta(minutes=1)
_PARALLEL_HASHES = 2
"""Argon2 takes 64 MiB and a core for a while; more than this at once is refused."""


@dataclass(frozen=True)
class NewKey:
    """A fresh key; `secret` is the whole key as its holder sends it, shown this once."""

    key: ApiKey
    secret: str


@cache
def _nobodys_hash() -> str:
    """What a password is held against where there is no user, so that both take as long."""
    return PasswordHasher().hash(keys.new_secret())


class Users:
    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._hasher = PasswordHasher()
        self._hashing = 0
        self._limiter = Limiter(burst=5, every=timedelta(seconds=10))
        self._nobody = _nobodys_hash()

    # ------------------------------------------------------------------ tenants

    async def add_tenant(self, name: str) -> tuple[Tenant, NewKey]:
        """A new tenant and its first admin key. Raises TenantExists."""
        async with self._database.commit_unit() as cursor:
            tenant = await store.add_tenant(cursor, name)
            if tenant is None:
                raise TenantExists(f"a tenant named {name!r} exists; choose another", name=name)
            shell = Caller(TenantId(tenant.id), "shell", Role.ADMIN)
            key = await self._add_key(cursor, shell, "first admin key", Role.ADMIN, None)
        return tenant, key

    async def tenants(self) -> list[Tenant]:
        async with self._database.commit_unit() as cursor:
            return await store.tenants(cursor)

    async def tenant(self, named: str) -> Tenant:
        """By its name, in whatever case, or its number. Raises TenantNotFound."""
        known = await self.tenants()
        for tenant in known:
            if named.lower() == tenant.name.lower() or named == str(tenant.id):
                return tenant
        raise TenantNotFound(
            f"there is no tenant {named!r}; there are: {', '.join(one.name for one in known)}",
            tenant=named,
        )

    # ------------------------------------------------------------------ authentication

    async def authenticate(self, token: str) -> Caller:
        """The caller behind an API key. Raises Unauthorized when the key does not hold."""
        caller = await self._caller(token)
        if caller is None:
            raise Unauthorized("this API key is unknown, expired or revoked; ask for a new one")
        return caller

    async def _caller(self, token: str) -> Caller | None:
        parts = keys.read(token)
        if parts is None:
            return None
        key_id, secret = parts
        now = self._clock()
        async with self._database.glance() as cursor:
            facts = await store.key_facts(cursor, key_id)
        if facts is None or not keys.opens(facts, secret, now):
            return None
        if facts.last_used_at is None or now - facts.last_used_at > _USED_EVERY:
            async with self._database.commit_unit() as cursor:
                await store.touch_key(cursor, key_id, now)
        person = facts.person_id
        subject = f"key:{key_id}" if person is None else f"user:{person}"
        return Caller(TenantId(facts.tenant_id), subject, facts.role)

    async def login(self, asker: str, name: str, password: str) -> NewKey:
        """A session: a key that lives 12 hours and holds the user's role of the moment.

        Raises LoginRefused, and LoginTooOften for that name from that address.
        """
        if not self._limiter.allow(f"{asker} {name.lower()}", self._clock()):
            raise LoginTooOften("too many logins by this name; try again in a minute")
        async with self._database.commit_unit() as cursor:
            person = await store.person_by_name(cursor, name)
        known = person is not None and person.disabled_at is None
        hashed = person.password_hash if person is not None else self._nobody
        if not await self._verify(hashed, password) or not known or person is None:
            raise LoginRefused("the name or the password is wrong, or the user is disabled")
        now = self._clock()
        secret = keys.new_secret()
        async with self._database.unit(TenantId(person.tenant_id)) as cursor:
            key = await store.add_key(
                cursor,
                TenantId(person.tenant_id),
                name=f"session of {person.name}",
                role=Role(person.role),
                digest=keys.digest(secret),
                now=now,
                by=f"user:{person.id}",
                expires_at=now + SESSION,
                person=person.id,
                session=True,
            )
        return NewKey(key, keys.write(key.id, secret))

    async def _verify(self, hashed: str, password: str) -> bool:
        if self._hashing >= _PARALLEL_HASHES:
            raise LoginTooOften("too many logins at this moment; try again in a few seconds")
        self._hashing += 1
        try:
            return await asyncio.to_thread(self._hasher.verify, hashed, password)
        except (VerificationError, InvalidHashError):
            return False
        finally:
            self._hashing -= 1

    # ------------------------------------------------------------------ API keys

    async def create_key(
        self,
        caller: Caller,
        name: str,
        role: Role,
        expires_at: datetime | None,
        user: int | None = None,
    ) -> NewKey:
        """A key, a user's own if one is named. Raises Forbidden and UserNotFound."""
        if not caller.role.covers(role):
            raise Forbidden(f"you are {caller.role} and cannot give the role {role}", needs=role)
        async with self._database.unit(caller.tenant_id) as cursor:
            person = None if user is None else (await self._person(cursor, user)).id
            return await self._add_key(cursor, caller, name, role, expires_at, person)

    async def _add_key(
        self,
        cursor: Cursor,
        caller: Caller,
        name: str,
        role: Role,
        expires_at: datetime | None,
        person: int | None = None,
    ) -> NewKey:
        secret = keys.new_secret()
        key = await store.add_key(
            cursor,
            caller.tenant_id,
            name=name,
            role=role,
            digest=keys.digest(secret),
            now=self._clock(),
            by=caller.subject,
            expires_at=expires_at,
            person=person,
        )
        return NewKey(key, keys.write(key.id, secret))

    async def list_keys(
        self, caller: Caller, part: Part, *, active: bool, **filters: Any
    ) -> Cut[ApiKey]:
        """Filters are KeyFilters'."""
        at = self._clock() if active else None
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.keys(cursor, part, KeyFilters(active_at=at, **filters))

    async def key(self, caller: Caller, key_id: int) -> ApiKey:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return _found_key(await store.key(cursor, key_id), key_id)

    async def revoke_key(
        self, caller: Caller, key_id: int, expected: Expected = ANYTHING
    ) -> ApiKey:
        """The key holds no more, from its next request on. Raises ApiKeyNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            held = _found_key(await store.key(cursor, key_id, lock=True), key_id)
            expected.check(key_version(held))
            return _found_key(await store.revoke_key(cursor, key_id, self._clock()), key_id)

    async def ensure_admin_key(self, path: Path) -> bool:
        """Have a working admin key in the file (mode 600); True when it was written now."""
        held = await self._caller(await asyncio.to_thread(_read, path))
        if held is not None and held.role is Role.ADMIN:
            return False
        boss = Caller(DEFAULT_TENANT, "bootstrap", Role.ADMIN)
        made = await self.create_key(boss, f"admin key file {path.name}", Role.ADMIN, None)
        await asyncio.to_thread(_write_private, path, made.secret + "\n")
        return True

    # ------------------------------------------------------------------ users

    async def create_user(self, caller: Caller, fields: dict[str, Any]) -> Person:
        """Fields: name, role, language, password. Raises UserExists."""
        columns = await self._hashed(fields)
        async with self._database.unit(caller.tenant_id) as cursor:
            return await store.add_person(cursor, caller.tenant_id, columns, self._clock())

    async def _hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with the password's hash instead of the password."""
        given = dict(fields)
        password = given.pop("password", None)
        if password is not None:
            given["password_hash"] = await asyncio.to_thread(self._hasher.hash, password)
        return given

    async def list_users(self, caller: Caller, part: Part, **filters: Any) -> Cut[Person]:
        """Filters are PersonFilters'."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.persons(cursor, part, PersonFilters(**filters))

    async def user(self, caller: Caller, user: int) -> Person:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._person(cursor, user)

    async def myself(self, caller: Caller) -> Person | None:
        """The person behind a session or a personal key; None behind any other key."""
        kind, _, number = caller.subject.partition(":")
        return await self.user(caller, int(number)) if kind == "user" else None

    async def _person(self, cursor: Cursor, user: int, *, lock: bool = False) -> Person:
        person = await store.person(cursor, user, lock=lock)
        if person is None:
            raise UserNotFound(f"there is no user {user}; list them first", id=user)
        return person

    async def change_user(
        self, caller: Caller, user: int, changes: dict[str, Any], expected: Expected
    ) -> Person:
        """Change what is given; a new password or a disabled user ends its sessions.

        Changes: name, role, language, password, disabled. Raises UserNotFound, UserExists, Stale.
        """
        fields, now = await self._hashed(changes), self._clock()
        disabled = fields.pop("disabled", None)
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await self._person(cursor, user, lock=True)
            expected.check(version_of(held))
            if disabled is not None:
                fields["disabled_at"] = (held.disabled_at or now) if disabled else None
            person = await store.change_person(cursor, user, fields)
            if "password_hash" in fields or disabled:
                await store.revoke_sessions(cursor, user, now)
        return person

    async def erase_user(self, caller: Caller, user: int, expected: Expected) -> None:
        """Raises UserNotFound and Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._person(cursor, user, lock=True)))
            await store.erase_person(cursor, user)


def key_version(key: ApiKey) -> str:
    """What an If-Match is checked against: using a key is no change of it."""
    return version_of(replace(key, last_used_at=None))


def _found_key(key: ApiKey | None, key_id: int) -> ApiKey:
    if key is None:
        raise ApiKeyNotFound(f"there is no API key {key_id}; list them first", id=key_id)
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _write_private(path: Path, text: str) -> None:
    """Replace the file at once; never readable to others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
