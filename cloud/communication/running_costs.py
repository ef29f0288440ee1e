"""Tells stations what a transaction has cost so far, where their version takes it as a call.

OCPP 2.0.1 has CostUpdated for it (I02); 2.1 is told in the answers to its TransactionEvents, 1.6
has no words. A station that answers with CALLERROR does not take costs and is not told again on
that connection.
"""

from __future__ import annotations

import time
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

from cloud.communication.conversation import Asked, Call, Conversation, Reply
from cloud.communication.gateway import Gateway
from protocols.ocpp.dialect import Request

ANSWER_S: Final = 60.0
MOST_KEPT: Final = 100
"""Transactions of one connection; those that ended are forgotten with all others beyond it."""


class _Cost:
    """Marks our telling."""


_COST: Final = _Cost()


class RunningCosts:
    def __init__(self, every_s: int) -> None:
        """The same transaction's cost is told again after `every_s` at the soonest; 0: never."""
        self._every_s = every_s
        self._told: WeakKeyDictionary[Conversation, dict[str, tuple[float, Request]]] = (
            WeakKeyDictionary()
        )
        self._unable: WeakSet[Conversation] = WeakSet()
        self._gateway: Gateway | None = None

    def connect(self, gateway: Gateway) -> None:
        """Say which gateway it works for."""
        self._gateway = gateway

    def priced(self, call: Call) -> None:
        """A committed message changed what its transaction costs."""
        who, total = call.conversation, call.answer.total_cost
        if not self._every_s or total is None or who.closed or who in self._unable:
            return
        request = who.party.dialect.running_cost(call.told, total)
        if request is None:
            return
        now, told = time.monotonic(), self._told.setdefault(who, {})
        transaction = request.payload["transactionId"]
        last = told.get(transaction)
        if last is not None and (last[1] == request or now - last[0] < self._every_s):
            return
        if len(told) >= MOST_KEPT:
            told.clear()
        told[transaction] = (now, request)
        if self._gateway is not None:
            self._gateway.ask(who, Asked(request.action, request.payload, _COST), ANSWER_S)

    def replied(self, who: Conversation, reply: Reply) -> None:
        """Whether the station takes costs."""
        if reply.asked.token is _COST and reply.sent and reply.response is None:
            self._unable.add(who)
