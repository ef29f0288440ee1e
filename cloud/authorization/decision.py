"""Whether an id token may charge: a pure rule, the same as the agents' offline one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Decision(StrEnum):
    """OCPP 2.0.1 AuthorizationStatusEnumType, the part that we use."""

    ACCEPTED = "Accepted"
    BLOCKED = "Blocked"
    EXPIRED = "Expired"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class TokenRules:
    blocked: bool
    expires_at: datetime | None
    group: str | None = None


def decide(rules: TokenRules | None, now: datetime) -> Decision:
    """The decision for a token (None: nobody has entered it)."""
    if rules is None:
        return Decision.UNKNOWN
    if rules.blocked:
        return Decision.BLOCKED
    if rules.expires_at is not None and now >= rules.expires_at:
        return Decision.EXPIRED
    return Decision.ACCEPTED
