"""Facts that leave the journal one by one, beside those that leave in numbered batches."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from edge_agent.journal import Journal, JournalBudget, JournalView
from edge_agent.uplink.session import Arrived, Connected, Send, Session, SessionSettings, Tick
from edge_agent.uplink.share import Share
from edge_agent.uplink.testing import ModelCloud
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    ConnectorStatus,
    EvseStatus,
    SecurityEvent,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
    Up,
)
from protocols.quantities import Milliseconds, WattHours

NOW = Stamp(Milliseconds(1_790_000_000_000), Milliseconds(1000), UUID(int=1), ClockQuality.SYNCED)
STARTED, UPDATED, ENDED = TransactionEventType


def open_journal(folder: Path) -> Journal:
    return Journal.open(folder, station="TAS-1", boot=UUID(int=1), budget=JournalBudget())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(open_journal(tmp_path)) as opened:
        yield opened


def event(
    transaction: UUID, kind: TransactionEventType = UPDATED, seq_no: int = 0
) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=kind,
        seq_no=seq_no,
        at=NOW,
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=NOW,
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(1),
        meter_wh=WattHours(1),
    )


def alarm() -> SecurityEvent:
    return SecurityEvent(id=uuid4(), at=NOW, type="MeterJumped", text="it jumped")


def session_of(journal: Journal, *carries: str) -> Session:
    settings = SessionSettings(station="TAS-1", agent_version="1")
    return Session(settings, Share(journal, carries), lambda: NOW)


def talk(session: Session, cloud: ModelCloud, now: int) -> set[Up]:
    """Until nothing more is said; returns the channels that were used."""
    used: set[Up] = set()
    actions = session.handle(Connected(), now) if session.cloud is None else []
    actions += session.handle(Tick(), now + 1000)
    while actions:
        action = actions.pop(0)
        if isinstance(action, Send):
            used.add(action.channel)
            answer = cloud.receive(action.channel, action.payload)
            if answer is not None:
                actions += session.handle(Arrived(*answer), now + 1000)
    return used


def test_lanes_come_oldest_first_and_each_in_its_order(journal: Journal) -> None:
    one, two = uuid4(), uuid4()
    told = [event(one, STARTED), event(two, STARTED), event(one, ENDED, 1)]
    journal.commit(facts=[*told, alarm()])
    order = []
    while (taken := journal.next_fact(others=False)) is not None:
        order.append(taken.fact)
        journal.delivered(taken)
    assert order == told
    assert journal.pending_billing == 1
    assert not journal.waits(None)


def test_a_lane_that_waits_holds_up_no_other(journal: Journal) -> None:
    one, two = uuid4(), uuid4()
    journal.commit(facts=[event(one, STARTED), event(two, STARTED)])
    taken = journal.next_fact(exclude=[str(one)])
    assert taken is not None
    assert taken.lane == str(two)
    assert journal.next_fact(after=journal.position) is None
    assert journal.next_fact(up_to=0) is None


def test_numbers_and_places_outlive_the_process(tmp_path: Path) -> None:
    one = uuid4()
    with closing(open_journal(tmp_path)) as journal:
        journal.commit(facts=[event(one, STARTED), event(one, ENDED, 1)])
        taken = journal.next_fact()
        assert taken is not None
        journal.delivered(taken, 42)
    with closing(open_journal(tmp_path)) as journal:
        assert journal.numbers() == {one: 42}
        taken = journal.next_fact()
        assert taken is not None
        assert taken.fact.type is ENDED  # type: ignore[union-attr]  # a transaction's
        journal.delivered(taken)
        assert journal.numbers() == {}
        assert journal.next_fact() is None


def test_refused_facts_are_kept_for_ever_and_can_go_again(tmp_path: Path) -> None:
    one = uuid4()
    with closing(open_journal(tmp_path)) as journal:
        told = event(one, STARTED)
        journal.commit(facts=[told, event(one, ENDED, 1)])
        taken = journal.next_fact()
        assert taken is not None
        journal.refuse(taken, "no such tag", NOW.wall_ms)
        last = journal.next_fact()
        assert last is not None
        journal.delivered(last)
        assert [one.synced for one in journal.sessions(5)] == [False]
        for days in (1, 400):
            journal.maintain(NOW.wall_ms + days * 86_400_000)
        (refused,) = journal.refused
        assert (refused.fact, refused.why) == (told, "no such tag")
        with JournalView(tmp_path) as view:
            assert view.queue().refused_facts == 1
            assert view.refused() == [refused]
    with closing(open_journal(tmp_path)) as journal:
        assert journal.refused_again() == 1
        assert journal.refused == []
        again = journal.next_fact()
        assert again is not None
        assert (again.fact, journal.pending_billing) == (told, 1)


def test_a_damaged_fact_is_put_apart_and_its_lane_goes_on(tmp_path: Path) -> None:
    one = uuid4()
    with closing(open_journal(tmp_path)) as journal:
        journal.commit(facts=[event(one, STARTED), event(one, ENDED, 1)])
    with closing(sqlite3.connect(tmp_path / "billing.sqlite")) as db:
        db.execute("UPDATE fact SET sum = 0 WHERE pos = 1")
        db.commit()
    with closing(open_journal(tmp_path)) as journal:
        taken = journal.next_fact()
        assert taken is not None
        assert taken.fact.type is ENDED  # type: ignore[union-attr]  # a transaction's
        assert any("put apart" in report for report in journal.reports)


def test_what_does_not_read_keeps_nobody_from_the_rest(tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        journal.commit(facts=[alarm(), alarm()])
        taken = journal.next_fact()
        assert taken is not None
        journal.refuse(taken, "no", NOW.wall_ms)
    with closing(sqlite3.connect(tmp_path / "billing.sqlite")) as db:
        for table in ("fact", "refused"):
            db.execute(f"UPDATE {table} SET body = substr(body, 1, 40) WHERE pos = 1")
        db.commit()
    with closing(open_journal(tmp_path)) as journal:
        assert len(journal.security_events()) == 1
        assert journal.refused == []
        assert journal.corrections() == []


def test_beside_a_backend_the_agent_link_carries_no_transaction(journal: Journal) -> None:
    one = uuid4()
    journal.commit(facts=[event(one, STARTED), alarm()])
    journal.put_state(
        EvseStatus(
            evse=1, at=NOW, status=ConnectorStatus.AVAILABLE, charging_state=ChargingState.IDLE
        )
    )
    cloud = ModelCloud()
    assert talk(session_of(journal, "telemetry"), cloud, 1000) == {Up.HELLO, Up.BILLING}
    assert cloud.order == []
    assert len(cloud.facts) == 1
    taken = journal.next_fact(others=False)
    assert taken is not None
    journal.delivered(taken, 3)
    assert journal.pending_billing == 0


def test_a_restored_cloud_never_gets_what_a_backend_has(journal: Journal) -> None:
    """It asks for everything again; a backend's transactions are none of its business."""
    cloud = ModelCloud()
    session = session_of(journal, "telemetry")
    journal.commit(facts=[alarm()])
    talk(session, cloud, 1000)
    journal.commit(facts=[event(uuid4(), STARTED)])
    taken = journal.next_fact(others=False)
    assert taken is not None
    journal.delivered(taken, 3)
    assert journal.reopen(()) == 1
    assert journal.next_fact(others=False) is None
    journal.new_outbox()
    assert journal.next_fact(others=False) is None
    (batch,) = journal.billing(limit=9)
    assert isinstance(batch.facts[0], SecurityEvent)


def test_what_was_under_way_over_the_agent_link_can_be_taken_over(journal: Journal) -> None:
    """The configuration gave transactions to a backend while a batch was not acknowledged."""
    one = uuid4()
    journal.commit(facts=[event(one, STARTED), event(one, ENDED, 1)])
    assert len(journal.billing(limit=1)[0].facts) == 2
    assert journal.floor(Stream.BILLING) == 1
    for _ in range(2):
        taken = journal.next_fact(others=False)
        assert taken is not None
        journal.delivered(taken)
    assert journal.floor(Stream.BILLING) == 2
    assert journal.pending_billing == 0


def test_a_journal_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    one = uuid4()
    with closing(open_journal(tmp_path)) as journal:
        journal.commit(facts=[event(one, STARTED)])
    with closing(sqlite3.connect(tmp_path / "billing.sqlite")) as db:
        db.execute("DROP TABLE refused")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    with JournalView(tmp_path) as view:
        assert (view.refused(), view.queue().refused_facts) == ([], 0)
        assert [one.synced for one in view.sessions(5)] == [False]
    with closing(open_journal(tmp_path)) as journal:
        taken = journal.next_fact()
        assert taken is not None
        journal.refuse(taken, "no", NOW.wall_ms)
        assert len(journal.refused) == 1
