"""An EVSE kept for one id token until a time (OCPP 1.6, 5.13; 2.0.1 Part 2, H01) (pure)."""

from __future__ import annotations

from uuid import UUID

import msgspec

from edge_agent.rules.authorization import same_token
from protocols.agent_link import ClockQuality, IdToken, Stamp


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend asked for."""

    id: int
    evse: int
    id_token: IdToken
    group: str | None
    until_wall_ms: int
    transaction: UUID | None = None
    """The one that it was kept for; it then no longer holds the EVSE."""

    def over(self, now: Stamp) -> bool:
        """Its time has passed; it cannot be judged while the clock is unset."""
        return now.quality is not ClockQuality.UNSET and now.wall_ms >= self.until_wall_ms

    def holds(self, now: Stamp) -> bool:
        return self.transaction is None and not self.over(now)

    def admits(self, token: IdToken, group: str | None) -> bool:
        """Whether this token may use the EVSE all the same."""
        if same_token(token, self.id_token):
            return True
        own = self.group
        return group is not None and own is not None and group.casefold() == own.casefold()
