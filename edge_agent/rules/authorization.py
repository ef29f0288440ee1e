"""Who may charge: the local list, and what to do with a token that it does not hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_agent.records import LocalList
from protocols.agent_link import ClockQuality, IdToken, LocalListEntry, Stamp
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

MOST_CACHED: Final = 500
"""Tokens that are not in the local list; about 60 bytes each on disk."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a backend just said of a token."""

    accepted: bool
    why: str
    expires_ms: int | None = None
    group: str | None = None


def same_token(one: IdToken, other: IdToken) -> bool:
    return _key(one) == _key(other)


def _key(token: IdToken) -> tuple[str, str]:
    return token.type.casefold(), token.value.casefold()


class Authorizer:
    """The local list made searchable, and before strangers what backends said of others.

    A new list makes a new one (`with_list`); `remember` adds to the cache.
    """

    def __init__(
        self, local: LocalList, policy: OfflinePolicy, cache: Iterable[LocalListEntry] = ()
    ) -> None:
        self.local = local
        self.version = local.version
        self.policy = policy
        self._entries = {_key(entry.id_token): entry for entry in local.entries}
        self._cache = {_key(entry.id_token): entry for entry in cache}

    def with_list(self, local: LocalList) -> Authorizer:
        """The same policy and cache under another list."""
        return Authorizer(local, self.policy, self._cache.values())

    @property
    def cached(self) -> tuple[LocalListEntry, ...]:
        """The cache, the latest last."""
        return tuple(self._cache.values())

    def remember(self, token: IdToken, heard: Heard) -> None:
        """Keep what a backend said, for when it cannot be asked; the oldest gives way."""
        self._cache.pop(_key(token), None)
        self._cache[_key(token)] = LocalListEntry(
            id_token=token,
            expires_ms=None if heard.expires_ms is None else Milliseconds(heard.expires_ms),
            group=heard.group,
            blocked=not heard.accepted,
        )
        while len(self._cache) > MOST_CACHED:
            del self._cache[next(iter(self._cache))]

    def group(self, token: IdToken) -> str | None:
        """Of a token that is known here."""
        known = self._known(token)
        return known.group if known else None

    def forget_cache(self) -> None:
        self._cache.clear()

    def _known(self, token: IdToken) -> LocalListEntry | None:
        return self._entries.get(_key(token)) or self._cache.get(_key(token))

    def decide(self, token: IdToken, now: Stamp, heard: Heard | None = None) -> Decision:
        """May this token start a transaction now? What a backend has just `heard` comes first.

        An expiry cannot be judged while the clock is unset: the entry then counts as valid.
        """
        if heard is not None:
            standing = Standing.ACCEPTED if heard.accepted else Standing.BLOCKED
            return Decision(allowed=heard.accepted, standing=standing, why=heard.why)
        entry = self._known(token)
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
        listed = _key(token) in self._entries
        why = "in the local list" if listed else "the backend accepted it before"
        return Decision(allowed=True, standing=Standing.ACCEPTED, why=why)

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
        if token is None or self._known(token) is not None:
            return None
        return self.policy.unknown_cap

    def used_up(self, token: IdToken | None, energy: int) -> bool:
        """A running transaction of this token has had all that a stranger gets."""
        if token is None or self._known(token) is not None or self.policy.unknown_energy is None:
            return False
        return energy >= self.policy.unknown_energy

    def may_stop(self, presented: IdToken, owner: IdToken | None) -> bool:
        """The token that started a transaction may stop it, and so may its group's others."""
        if owner is None:
            return False
        if same_token(presented, owner):
            return True
        entry, own = self._known(presented), self._known(owner)
        if entry is None or own is None or entry.blocked:
            return False
        return entry.group is not None and entry.group == own.group


def _expired(entry: LocalListEntry, now: Stamp) -> bool:
    if entry.expires_ms is None or now.quality is ClockQuality.UNSET:
        return False
    return now.wall_ms >= entry.expires_ms
