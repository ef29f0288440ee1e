"""Who may charge: the local list, and what to do with a token that it does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge_agent.records import LocalList
from protocols.agent_link import ClockQuality, IdToken, LocalListEntry, Stamp
from protocols.quantities import MilliAmperes, WattHours


class Standing(StrEnum):
    """What is known of a token."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflinePolicy:
    """What the operator allows to tokens that the local list does not hold."""

    allow_unknown: bool = False
    unknown_cap: MilliAmperes | None = None
    """They get no more than this; None: no cap of their own."""
    unknown_energy: WattHours | None = None
    """After so much a transaction of theirs pauses until its token is known; None: no cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a token may start, and why; `cap` limits an allowed stranger."""

    allowed: bool
    standing: Standing
    why: str
    cap: MilliAmperes | None = None


def same_token(one: IdToken, other: IdToken) -> bool:
    return _key(one) == _key(other)


def _key(token: IdToken) -> tuple[str, str]:
    return token.type.casefold(), token.value.casefold()


class Authorizer:
    """The local list made searchable; replaced as a whole when a new list comes."""

    def __init__(self, local: LocalList, policy: OfflinePolicy) -> None:
        self.version = local.version
        self.policy = policy
        self._entries = {_key(entry.id_token): entry for entry in local.entries}

    def decide(self, token: IdToken, now: Stamp) -> Decision:
        """May this token start a transaction now?

        An expiry cannot be judged while the clock is unset: the entry then counts as valid.
        """
        entry = self._entries.get(_key(token))
        if entry is None:
            return self._stranger()
        if entry.blocked:
            return Decision(
                allowed=False, standing=Standing.BLOCKED, why="this id token is blocked"
            )
        if _expired(entry, now):
            return Decision(
                allowed=False, standing=Standing.EXPIRED, why="this id token has expired"
            )
        return Decision(allowed=True, standing=Standing.ACCEPTED, why="in the local list")

    def _stranger(self) -> Decision:
        if self.policy.allow_unknown:
            return Decision(
                allowed=True,
                standing=Standing.UNKNOWN,
                why="not in the local list; the policy allows unknown id tokens",
                cap=self.policy.unknown_cap,
            )
        return Decision(
            allowed=False,
            standing=Standing.UNKNOWN,
            why=f"not in the local list (version {self.version}); "
            "add it in the cloud, or allow unknown tokens in the agent's configuration",
        )

    def cap(self, token: IdToken | None) -> MilliAmperes | None:
        """The current that a running transaction of this token is capped to, if it is."""
        if token is None or _key(token) in self._entries:
            return None
        return self.policy.unknown_cap

    def used_up(self, token: IdToken | None, energy: int) -> bool:
        """A running transaction of this token has had all that a stranger gets."""
        if token is None or _key(token) in self._entries or self.policy.unknown_energy is None:
            return False
        return energy >= self.policy.unknown_energy

    def may_stop(self, presented: IdToken, owner: IdToken | None) -> bool:
        """The token that started a transaction may stop it, and so may its group's others."""
        if owner is None:
            return False
        if same_token(presented, owner):
            return True
        entry, own = self._entries.get(_key(presented)), self._entries.get(_key(owner))
        if entry is None or own is None or entry.blocked:
            return False
        return entry.group is not None and entry.group == own.group


def _expired(entry: LocalListEntry, now: Stamp) -> bool:
    if entry.expires_ms is None or now.quality is ClockQuality.UNSET:
        return False
    return now.wall_ms >= entry.expires_ms
