"""How an API key is written and recognised: `kv_<id>_<secret>`, of which only a digest is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from cloud.kernel.http import Role

_FORM = re.compile(r"kv_([0-9]{1,9})_([A-Za-z0-9_-]{20,100})\Z")
_SECRET_BYTES = 32


@dataclass(frozen=True)
class KeyFacts:
    """What the database knows of a key, as far as its validity goes."""

    tenant_id: int
    person_id: int | None
    digest: bytes
    role: Role
    expires_at: datetime | None
    revoked_at: datetime | None
    disabled_at: datetime | None
    last_used_at: datetime | None


def new_secret() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def digest(secret: str) -> bytes:
    """SHA-256; a random 256-bit secret needs no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def write(key_id: int, secret: str) -> str:
    return f"kv_{key_id}_{secret}"


def read(key: str) -> tuple[int, str] | None:
    """Number and secret, or None for what is no key of ours."""
    match = _FORM.match(key)
    return (int(match[1]), match[2]) if match else None


def opens(facts: KeyFacts, secret: str, now: datetime) -> bool:
    """Whether the key holds: right secret, not revoked, not expired, its person not disabled."""
    right = hmac.compare_digest(facts.digest, digest(secret))
    alive = facts.expires_at is None or now < facts.expires_at
    return right and alive and facts.revoked_at is None and facts.disabled_at is None
