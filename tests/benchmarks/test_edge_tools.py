"""What the agent's benchmarks stand on: the optimum of a poll, and a month lived through."""

from __future__ import annotations

import contextlib
from pathlib import Path
from uuid import uuid4

import bus
import pytest
from offline_month import DAY_S, DAYS, live_through

from edge_agent.config import load
from edge_agent.hardware.registry import find_profile, profile_names
from edge_agent.journal import Journal, JournalBudget
from protocols.agent_link import Stream, TransactionEvent, TransactionEventType
from protocols.modbus.planning import plan_reads

CONFIG = """
station = "M-1"
[journal]
folder = "journal"
[times]
event_s = 60
[failsafe]
timeout_s = 120
[authorization]
unknown = "allow"
[[boards]]
name = "board1"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "127.0.0.1" }
"""
CHAINED = {"sunspec_inverter", "sunspec_meter"}


@pytest.mark.parametrize("name", sorted(set(profile_names()) - CHAINED))
def test_no_poll_takes_more_requests_than_it_must(name: str) -> None:
    profile = find_profile(name)
    wanted = bus.wanted_of(profile)
    least = bus.fewest(wanted, profile)
    assert 0 < least == len(plan_reads(wanted, profile.limits, profile.forbidden))


async def test_a_month_offline_is_in_the_journal_as_an_agent_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(CONFIG)
    found = await live_through(load(tmp_path / "agent.toml"), 600, 1, "04A1B2C3D4E5F6")
    journal = Journal.open(
        tmp_path / "journal", station="M-1", boot=uuid4(), budget=JournalBudget()
    )
    events: list[TransactionEvent] = []
    with contextlib.closing(journal):
        assert journal.pending_billing == found >= 600
        assert journal.pending_telemetry > 600
        while batches := journal.billing(limit=100):
            for batch in batches:
                events += [fact for fact in batch.facts if isinstance(fact, TransactionEvent)]
                journal.settle(Stream.BILLING, ((batch.seq, batch.seq),))
    ends = [event for event in events if event.type is TransactionEventType.ENDED]
    assert len(ends) == 2 * DAYS
    assert all(end.energy_wh > 0 for end in ends)
    lasted_ms = max(event.at.wall_ms for event in events) - min(e.at.wall_ms for e in events)
    assert (DAYS - 1) * DAY_S * 1000 <= lasted_ms <= DAYS * DAY_S * 1000
