"""Asks stations that came back and did not boot who they are, and how they stand (quirk S7).

A station that only lost its connection need not say anything when it has a new one; some never do,
though they were restarted. Each connection is asked once. A station may refuse: 2.x does, when its
boot is known to be accepted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from cloud.communication.api import KnownConnectors
from cloud.communication.conversation import Asked, Conversation, Reply
from cloud.communication.gateway import Gateway
from cloud.kernel.database import Database
from cloud.kernel.errors import Unavailable
from protocols.ocpp.dialect import Request
from protocols.ocpp.version import Version

logger = logging.getLogger(__name__)

ANSWER_S: Final = 60.0
PAUSE_S: Final = 2.0
"""For the boot that may follow the answer; after its own answer there is a pause too (S10)."""
MOST: Final = 16
"""Connectors whose status is asked for."""


class _Boot:
    """Marks our question for the boot."""


_BOOT: Final = _Boot()


class Rousing:
    def __init__(self, database: Database, connectors: KnownConnectors, wait_s: int) -> None:
        """`wait_s` after its connection a station is asked; 0: none is."""
        self._database = database
        self._connectors = connectors
        self._wait_s = wait_s
        self._gateway: Gateway | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, gateway: Gateway) -> None:
        """Say which gateway it works for."""
        self._gateway = gateway

    def entered(self, who: Conversation) -> None:
        """A station has come: look later whether it has booted."""
        if self._wait_s:
            asyncio.get_running_loop().call_later(self._wait_s, self._look, who)

    def _look(self, who: Conversation) -> None:
        if not (who.booted or who.pending):
            self._ask(who, [who.party.dialect.trigger("BootNotification")], _BOOT)

    def replied(self, who: Conversation, reply: Reply) -> None:
        """However it took the question for its boot, the next is about its connectors."""
        if reply.asked.token is _BOOT and not who.closed:
            asyncio.get_running_loop().call_later(PAUSE_S, self._go_on, who)

    def _go_on(self, who: Conversation) -> None:
        task = asyncio.create_task(self._ask_statuses(who))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_statuses(self, who: Conversation) -> None:
        """1.6 tells of all its connectors at once, 2.x of one that it is asked for."""
        trigger = who.party.dialect.trigger
        if who.party.dialect.version is Version.V16:
            self._ask(who, [trigger("StatusNotification")])
            return
        try:
            async with self._database.glance() as cursor:
                known = await self._connectors.connectors_of(cursor, who.party.station_id)
        except Unavailable as error:
            logger.warning("%r is not asked how it stands: %s", who.party.identity, error)
            return
        self._ask(who, [trigger("StatusNotification", *one) for one in known[:MOST]])

    def _ask(
        self, who: Conversation, requests: Sequence[Request], token: object | None = None
    ) -> None:
        if who.closed or self._gateway is None:
            return
        for request in requests:
            self._gateway.ask(who, Asked(request.action, request.payload, token), ANSWER_S)
