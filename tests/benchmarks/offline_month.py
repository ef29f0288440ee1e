"""Thirty days without network, lived through by the agent's own parts on a clock that runs fast.

Configuration, rules, loop, ledger and journal are those of an agent in service; only the boards are
simulated in memory, and the time between two polls is a minute.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final
from uuid import uuid4

from edge_agent.agent import Agent
from edge_agent.clock import Clock
from edge_agent.config import Config
from edge_agent.hardware.testing import FakePowerBoard, ManualClock
from edge_agent.loop import Line
from edge_agent.main import SURELY_PAST_MS, Hardware, build, open_journal
from edge_agent.rules.clock import ClockRules, SystemTime
from protocols.agent_link import IdToken

DAYS: Final = 30
DAY_S: Final = 86_400
POLL_S: Final = 60.0
SESSIONS_A_DAY: Final = 2
QUIET: Final = 2
"""Polls between two vehicles at an EVSE."""


async def live_through(config: Config, facts: int, evses: int, token: str) -> int:
    """Fill the journal of `config` with about so many billing facts; returns how many they are."""
    passed = ManualClock(0.0)
    began_ms = time.time_ns() // 1_000_000 - DAYS * DAY_S * 1000

    def system_time() -> SystemTime:
        mono = round(passed() * 1000)
        return SystemTime(wall_ms=began_ms + mono, mono_ms=mono, synced=True)

    clock = Clock(ClockRules(uuid4(), SURELY_PAST_MS), system_time)
    clock.observe()
    boards = [FakePowerBoard(passed) for _ in range(evses)]
    lines = tuple(Line(f"board{n}", board, {1: n}) for n, board in enumerate(boards, 1))
    with contextlib.closing(open_journal(config, clock)) as journal:
        month = Month(build(config, Hardware(lines, None), journal, clock), boards, passed, token)
        for day in range(DAYS):
            await month.day(facts * (day + 1) // DAYS)
        return journal.pending_billing


class Month:
    """Vehicles that come to all EVSEs at once and charge for as long as there are facts to make."""

    def __init__(
        self, agent: Agent, boards: list[FakePowerBoard], passed: ManualClock, token: str
    ) -> None:
        self._agent, self._boards, self._passed = agent, boards, passed
        self._token = IdToken(token)
        self._day = 0

    async def day(self, facts: int) -> None:
        """Until so many facts wait in all; then nobody comes until the next morning."""
        journal = self._agent.journal
        each = max(1, (facts - journal.pending_billing) // SESSIONS_A_DAY)
        for _ in range(SESSIONS_A_DAY):
            await self._session(journal.pending_billing + each)
        self._day += 1
        journal.maintain(self._agent.loop.clock.now().wall_ms)
        assert self._passed() < self._day * DAY_S, "a day has too few minutes for so many facts"
        self._passed.advance(self._day * DAY_S - self._passed())

    async def _session(self, until: int) -> None:
        for board in self._boards:
            board.plug()
        await self._polls(QUIET)
        for evse in range(1, len(self._boards) + 1):
            await self._agent.desk.present(self._token, evse)
        while self._agent.journal.pending_billing < until:
            await self._polls(1)
        for board in self._boards:
            board.unplug()
        await self._polls(QUIET)

    async def _polls(self, count: int) -> None:
        for _ in range(count):
            self._passed.advance(POLL_S)
            for line in self._agent.loop.lines:
                await self._agent.loop.step(line)
