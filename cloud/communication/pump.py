"""Between the commands in the database and the connections of this gateway, both ways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cloud.communication.conversation import Asked, Conversation, Reply
from cloud.communication.gateway import Gateway
from cloud.communication.ocpp_commands import Due, OcppCommands
from cloud.kernel.errors import Unavailable

logger = logging.getLogger(__name__)

LONGEST_ANSWER_S: Final = 60.0
"""For an answer to a call of ours; some stations look up their whole memory first."""


class Pump:
    """Hands due commands to conversations, and their answers to the commit path."""

    def __init__(self, commands: OcppCommands, clock: Callable[[], datetime]) -> None:
        self._commands = commands
        self._clock = clock
        self._gateway: Gateway | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, gateway: Gateway) -> None:
        """Say which gateway it works for; it and the pump know each other."""
        self._gateway = gateway

    async def run(self) -> None:
        """For ever."""
        assert self._gateway is not None
        await self._commands.run(self._gateway.id, self._hand_over)

    def entered(self, _: Conversation) -> None:
        """A station has come: perhaps something waits for it."""
        self._commands.wake()

    def _hand_over(self, due: Sequence[Due]) -> None:
        lost = [one for one in due if not self._ask(one)]
        if lost:
            self._start_giving_back(lost)

    def _ask(self, due: Due) -> bool:
        """False when the station's connection is another one now."""
        assert self._gateway is not None
        who = self._gateway.live(due.station_id)
        if who is None or who.epoch != due.epoch:
            return False
        left = (due.expires_at - self._clock()).total_seconds()
        timeout = max(1.0, min(LONGEST_ANSWER_S, left))
        self._gateway.ask(who, Asked(due.action, due.payload, due), timeout)
        return True

    def replied(self, who: Conversation, reply: Reply) -> None:
        """A call of ours has ended."""
        due = reply.asked.token
        if not isinstance(due, Due) or self._gateway is None:
            return
        if not reply.sent:
            self._start_giving_back([due])
            return
        if reply.response is None:
            self._gateway.commit_soon(who, due.failed(reply.text))
        else:
            self._conclude(who, due, reply)
        self._commands.wake()

    def _conclude(self, who: Conversation, due: Due, reply: Reply) -> None:
        assert self._gateway is not None
        outcome = who.party.dialect.outcome(due.action, due.payload, reply.response)
        further = self._commands.next_request(due, outcome)
        if further is not None and self._ask(further):
            return
        plain: Mapping[str, Any] = reply.plain or {}
        self._gateway.commit_soon(who, due.answered(outcome, dict(plain)))

    def _start_giving_back(self, due: Sequence[Due]) -> None:
        task = asyncio.create_task(self._give_back(due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_back(self, due: Sequence[Due]) -> None:
        while True:
            try:
                await self._commands.give_back(due)
            except Unavailable as error:
                logger.warning("%d commands cannot be given back yet: %s", len(due), error)
                await asyncio.sleep(1)
            else:
                break
        self._commands.wake()
