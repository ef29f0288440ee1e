"""Who may join: pure rules of a claim, and how a claim code is written."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""No letters that a technician on a ladder takes for digits."""
_GROUPS, _GROUP = 3, 5


class Policy(StrEnum):
    """What happens to a station that nobody has announced."""

    OPEN = "open"
    """It is created and let in."""
    PENDING = "pending"
    """It is put on a list and waits for an operator."""
    KNOWN = "known"
    """It is refused."""


class Standing(StrEnum):
    """Where a station's registration is."""

    PENDING = "pending"
    EXPECTED = "expected"
    REGISTERED = "registered"


class Verdict(StrEnum):
    LET_IN = "let_in"
    CREATE = "create"
    ENLIST = "enlist"
    WAIT = "wait"
    WRONG_CODE = "wrong_code"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


REPEAT: Final = timedelta(days=1)
"""So long the controller that used a code may use it again: the answer may never have arrived."""


@dataclass(frozen=True)
class ClaimCode:
    digest: bytes
    expires_at: datetime
    used_by: bytes | None = None
    """Digest of the key that it was used with; only that key's owner may repeat it."""


def new_code() -> str:
    """15 characters, 73 bits, e.g. `7KQ2M-9RTXA-4WB3E`."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups)


def digest(code: str) -> bytes:
    """A code's digest, whatever case and dashes it was typed with."""
    plain = "".join(code.upper().replace("-", "").split())
    return hashlib.sha256(plain.encode()).digest()


def judge(
    policy: Policy,
    standing: Standing | None,
    claim: ClaimCode | None,
    code: str | None,
    now: datetime,
    key: bytes | None = None,
) -> Verdict:
    """What to do with a claim for a station of that standing (None: unheard of).

    `key` is the digest of the key that the claim asks a certificate for.
    """
    if standing is None:
        return {
            Policy.OPEN: Verdict.CREATE,
            Policy.PENDING: Verdict.ENLIST,
            Policy.KNOWN: Verdict.UNKNOWN,
        }[policy]
    if claim is None or code is None or not hmac.compare_digest(claim.digest, digest(code)):
        return Verdict.WRONG_CODE
    if claim.used_by is not None and claim.used_by != key:
        return Verdict.WRONG_CODE
    if now >= claim.expires_at:
        return Verdict.EXPIRED
    return Verdict.WAIT if standing is Standing.PENDING else Verdict.LET_IN
