"""What neighbours may know of authorization: decisions, references, errors."""

from __future__ import annotations

from typing import Protocol

from cloud.authorization.decision import Decision
from cloud.authorization.store import find_refs, refer, refer_ask, reveal
from cloud.kernel.database import Cursor
from cloud.kernel.errors import KarvonError, Kind

__all__ = [
    "Authorizer",
    "Decision",
    "GroupExists",
    "GroupInUse",
    "GroupNotFound",
    "IdTokenExists",
    "IdTokenNotFound",
    "find_refs",
    "refer",
    "refer_ask",
    "reveal",
]


class IdTokenNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "id_token.not_found"


class IdTokenExists(KarvonError):
    kind = Kind.CONFLICT
    code = "id_token.exists"


class GroupNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "id_token_group.not_found"


class GroupExists(KarvonError):
    kind = Kind.CONFLICT
    code = "id_token_group.exists"


class GroupInUse(KarvonError):
    kind = Kind.CONFLICT
    code = "id_token_group.in_use"


class Authorizer(Protocol):
    """Decides on id tokens of the unit of work's tenant."""

    async def decide(self, cursor: Cursor, value: str) -> Decision: ...
