"""Broker credentials of stations: made here, kept hashed, handed to whichever broker serves.

A password is 256 random bits; its hashes are cheap on purpose (bcrypt at its lowest cost, PBKDF2 as
Mosquitto writes it), because there is nothing to guess and reconnects come in storms.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import bcrypt

from cloud.communication import store
from cloud.communication.api import Credential, Known
from cloud.communication.store import StoredCredential
from cloud.kernel.database import Cursor, Database, TenantId
from protocols.agent_link import escape

MOSQUITTO_ITERATIONS: Final = 101
"""mosquitto_passwd's own default."""
LONGEST: Final = 72
"""What bcrypt looks at; ours are shorter."""


class BrokerAccounts(Protocol):
    """The broker's list of stations that may connect."""

    async def publish(self, stations: Sequence[StoredCredential]) -> None: ...


class Credentials:
    def __init__(
        self, database: Database, accounts: BrokerAccounts, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._clock = clock

    async def issue(
        self, cursor: Cursor, tenant: TenantId, station_id: int, identity: str
    ) -> Credential:
        """A fresh credential; the earlier one is void as soon as `publish` has run."""
        credential = Credential(escape(identity), secrets.token_urlsafe(32))
        stored = StoredCredential(
            credential.username,
            bcrypt_hash(credential.password),
            mosquitto_hash(credential.password, os.urandom(12)),
        )
        await store.put_credential(cursor, tenant, station_id, stored, self._clock())
        return credential

    async def owner(self, cursor: Cursor, username: str, password: str) -> Known | None:
        """The station whose credential this is; hashing is cheap here, see above."""
        known = await store.credential(cursor, username)
        if known is None or len(password) > LONGEST or not password.isascii():
            return None
        right = bcrypt.checkpw(password.encode(), known.bcrypt.encode())
        return Known(known.station_id, known.tenant_id) if right else None

    async def publish(self) -> None:
        """Hand the whole list to the broker (after the commit that changed it)."""
        async with self._database.commit_unit() as cursor:
            known = await store.credentials(cursor)
        await self._accounts.publish(known)


def bcrypt_hash(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=4)).decode()


def mosquitto_hash(password: str, salt: bytes) -> str:
    """`$7$`: PBKDF2 with HMAC-SHA512, as mosquitto_passwd(1) of 2.0 writes it."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, MOSQUITTO_ITERATIONS)
    parts = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"$7${MOSQUITTO_ITERATIONS}$" + "$".join(parts)


class MosquittoFiles:
    """Accounts for a Mosquitto beside us: its password file, and a signal to read it again.

    `deploy/mosquitto/acl` holds the topic rules; they are the same for all stations, so only the
    passwords change.
    """

    def __init__(
        self, password_file: Path, cloud_user: str, cloud_hash: str, reload: Callable[[], None]
    ) -> None:
        self._file = password_file
        self._own = f"{cloud_user}:{cloud_hash}\n"
        self._reload = reload

    async def publish(self, stations: Sequence[StoredCredential]) -> None:
        lines = [f"{station.username}:{station.mosquitto}\n" for station in stations]
        fresh = self._file.with_name(self._file.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(self._own + "".join(lines))
        if self._file.exists():  # the broker's own user must go on reading it
            kept = self._file.stat()
            os.chown(fresh, kept.st_uid, kept.st_gid)
            fresh.chmod(kept.st_mode & 0o777)
        fresh.replace(self._file)
        self._reload()
