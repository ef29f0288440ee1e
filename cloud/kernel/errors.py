"""What can go wrong for a caller, as one shape for every wire.

A module's errors are subclasses in its `api.py`. HTTP answers them as problem+json (RFC 9457), the
CLI as one line; OCPP will answer a CALLERROR.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Kind(StrEnum):
    """What the caller can make of it; each wire maps these to its own codes."""

    INVALID = "invalid"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    STALE = "stale"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"


class KarvonError(Exception):
    """`code` is stable for machines (`station.not_found`), the text is for people.

    The text says what happened, why, and what to do; `params` carries its variable parts.
    """

    kind: ClassVar[Kind] = Kind.INVALID
    code: ClassVar[str] = "invalid"

    def __init__(self, detail: str, **params: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.params = params


class Unavailable(KarvonError):
    """The database (or another part that the answer needs) is out of reach just now."""

    kind = Kind.UNAVAILABLE
    code = "unavailable"


class Contended(Unavailable):
    """Others changed the same rows at the same moment; nothing was changed, try again at once."""

    code = "contended"


class Unauthorized(KarvonError):
    kind = Kind.UNAUTHORIZED
    code = "unauthorized"


class Forbidden(KarvonError):
    kind = Kind.FORBIDDEN
    code = "forbidden"


class BadCursor(KarvonError):
    kind = Kind.INVALID
    code = "cursor.invalid"
