"""Stations' OCPP passwords: how they are made, kept and verified.

Those that we make are 160 random bits: nothing can be guessed, so a salted SHA-256 keeps them and
a storm of reconnects costs nothing. Those that people choose are kept as argon2id, verified by a
few threads only. Whichever was right once is known again by a keyed digest in memory.

The same key comes in three forms: a station that was told 40 hex digits may send these, or the 20
bytes they stand for, and one that was told a text may send its hex digits. So a key is kept as its
bytes, hex digits decoded, and compared with what was sent as it is and decoded.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST: Final = 8
LONGEST: Final = 64
"""BasicAuthPassword of OCPP 2.1; longer than AuthorizationKey of 1.6 can be."""
REMEMBERED: Final = 50_000
_GENERATED_BYTES: Final = 20
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2}){16,64}")
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_CHEAP, _DEAR = "sha256", "argon2"


class Form(StrEnum):
    """In which form a station sends the key that it was given."""

    TEXT = "text"
    BYTES = "bytes"
    """It was given hex digits, and sends the bytes they stand for."""
    HEX = "hex"
    """It was given a text, and sends that text's hex digits."""


@dataclass(frozen=True)
class Match:
    """Which of the stored passwords was right, by its place, and in which form it came."""

    place: int
    form: Form


def generate() -> str:
    """40 hex digits: the longest that every OCPP version can take (1.6: 20 bytes as hex)."""
    return secrets.token_hex(_GENERATED_BYTES)


def keep(password: str, *, generated: bool) -> str:
    """What is stored of a password: `<kind>:<text|hex>:<hash>`. Argon2id takes some 30 ms."""
    key, form = password.encode(), "text"
    if _HEX.fullmatch(key):
        key, form = bytes.fromhex(password), "hex"
    if generated:
        salt = os.urandom(16)
        return f"{_CHEAP}:{form}:{_b64(salt)}:{_b64(_digest(salt, key))}"
    return f"{_DEAR}:{form}:{_HASHER.hash(key)}"


def chosen(stored: str) -> bool:
    """Whether a person chose it, as far as can be told from what is stored."""
    return stored.startswith(f"{_DEAR}:")


class Passwords:
    """Verifies what stations send; one per process."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, "passwords")
        self._key = os.urandom(32)
        self._known: dict[bytes, Form] = {}

    def close(self) -> None:
        """Forget the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def at_once(self, sent: bytes, stored: Sequence[str]) -> Match | None:
        """As far as it can be told without argon2: by memory, and of generated ones."""
        for place, kept in enumerate(stored):
            form = self._known.get(self._mark(sent, kept))
            if form is None and not chosen(kept):
                form = _form(sent, kept)
            if form is not None:
                self._remember(sent, kept, form)
                return Match(place, form)
        return None

    async def verify(self, sent: bytes, stored: Sequence[str]) -> Match | None:
        """Which of the stored ones it is; None: a wrong one. Takes as long whatever is wrong."""
        known = self.at_once(sent, stored)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        for place, kept in enumerate(stored):
            if chosen(kept):
                form = await loop.run_in_executor(self._pool, _form, sent, kept)
                if form is not None:
                    self._remember(sent, kept, form)
                    return Match(place, form)
        return None

    def _remember(self, sent: bytes, kept: str, form: Form) -> None:
        mark = self._mark(sent, kept)
        self._known.pop(mark, None)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[mark] = form

    def _mark(self, sent: bytes, kept: str) -> bytes:
        """Bound to what is stored: a password that was changed is not known any more."""
        return hmac.digest(self._key, kept.encode() + b"\0" + sent, "sha256")


def _form(sent: bytes, kept: str) -> Form | None:
    """The form in which `sent` is the stored key; None when it is not.

    Both readings are always computed, so that the time does not tell which one was near.
    """
    kind, told, rest = kept.split(":", 2)
    same = _same_cheap if kind == _CHEAP else _same_dear
    decoded = bytes.fromhex(sent.decode()) if _HEX.fullmatch(sent) else None
    as_sent = same(sent, rest)
    as_decoded = decoded is not None and same(decoded, rest)
    if as_decoded:
        return Form.TEXT if told == "hex" else Form.HEX
    if as_sent:
        return Form.BYTES if told == "hex" else Form.TEXT
    return None


def _same_cheap(key: bytes, rest: str) -> bool:
    salt, _, digest = rest.partition(":")
    return hmac.compare_digest(_digest(base64.b64decode(salt), key), base64.b64decode(digest))


def _same_dear(key: bytes, rest: str) -> bool:
    try:
        return _HASHER.verify(rest, key)
    except (VerificationError, InvalidHashError):
        return False


def _digest(salt: bytes, key: bytes) -> bytes:
    return hmac.digest(salt, key, hashlib.sha256)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
