"""Id tokens in memory: stations that ask in thousands are answered without asking the database.

What was looked up stays until somebody changes the tenant's tokens, of which the database tells
every process; without that news (a lost connection) nothing is remembered at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import datetime
from typing import Final

import psycopg

from cloud.authorization import store
from cloud.authorization.decision import Decision, TokenRules, decide
from cloud.kernel.database import Database, TenantId
from cloud.stations.api import to_ms
from protocols.agent_link import IdToken
from protocols.ocpp.messages import TokenInfo, TokenStatus
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

CHANNEL: Final = "karvon_token"
MOST: Final = 200_000
"""Tokens in memory; beyond that all are forgotten and looked up again."""
_FREE: Final = frozenset({"NoAuthorization", "Central"})
"""Id token types that nobody enters: the station itself, or we, let the driver charge (C02)."""


class TokensAtHand:
    """Implements TokenJudge."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[tuple[TenantId, str], TokenRules | None] = {}
        self._listening = False
        self._news = 0
        """Counts changes heard of: what was read before one may be out of date."""

    def at_hand(self, tenant: TenantId, token: IdToken, now: datetime) -> TokenInfo | None:
        """None when it must be looked up first."""
        if token.type in _FREE:
            return TokenInfo(TokenStatus.ACCEPTED)
        key = (tenant, token.value.lower())
        if key not in self._known:
            return None
        return _info(self._known[key], now)

    async def look_up(self, tokens: Collection[tuple[TenantId, IdToken]]) -> None:
        """Bring these into memory. Raises Unavailable."""
        keys = {(tenant, token.value.lower()) for tenant, token in tokens}
        before = -1
        while before != self._news:
            before = self._news
            async with self._database.glance() as cursor:
                found = await store.rules_of(cursor, keys)
        if len(self._known) > MOST:
            self._known.clear()
        self._known.update({key: found.get(key) for key in keys})
        if not self._listening:
            asyncio.get_running_loop().call_later(1, self._known.clear)

    async def run(self) -> None:
        """Hear of changes, for ever."""
        while True:
            try:
                async with self._database.listener() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._known.clear()
                    self._listening = True
                    async for note in connection.notifies():
                        self._forget(TenantId(int(note.payload)))
            except psycopg.Error as error:
                logger.warning("changes of id tokens are not heard: %s", error)
                await asyncio.sleep(1)
            finally:
                self._listening = False
                self._known.clear()

    def _forget(self, tenant: TenantId) -> None:
        self._news += 1
        self._known = {key: rules for key, rules in self._known.items() if key[0] != tenant}


def _info(rules: TokenRules | None, now: datetime) -> TokenInfo:
    decision = decide(rules, now)
    if rules is None or decision is Decision.UNKNOWN:
        return TokenInfo(TokenStatus.UNKNOWN)
    expires = Milliseconds(to_ms(rules.expires_at)) if rules.expires_at is not None else None
    return TokenInfo(TokenStatus(decision), expires_ms=expires, group=rules.group)
