"""The journal's promises one by one; restarts at any step are in test_journal_restarts.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from edge_agent.journal import Journal, JournalBudget, JournalError, JournalView
from edge_agent.journal.files import MIB, salvage
from edge_agent.journal.thinning import thin
from edge_agent.records import LocalList, Register, SiteLimit, Transaction
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    CommandResult,
    CommandStatus,
    ConnectorStatus,
    EvseStatus,
    IdToken,
    LocalListEntry,
    Sample,
    SeriesGap,
    Stamp,
    StoppedReason,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours, Watts
from protocols.series import to_samples

BOOT = UUID(int=1)
NOON = 1_790_000_000_000
DAY = 86_400_000
SMALL = JournalBudget(reserve_bytes=0)
Opener = Callable[..., Journal]


def stamp(mono_ms: int = 0) -> Stamp:
    return Stamp(Milliseconds(NOON + mono_ms), Milliseconds(mono_ms), BOOT, ClockQuality.SYNCED)


def event(
    transaction: UUID,
    seq_no: int,
    kind: TransactionEventType = TransactionEventType.UPDATED,
    energy: int = 0,
) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=kind,
        seq_no=seq_no,
        at=stamp(seq_no * 1000),
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=stamp(),
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(energy),
        meter_wh=WattHours(1000 + energy),
        id_token=IdToken("04A1"),
        reason=StoppedReason.LOCAL if kind is TransactionEventType.ENDED else None,
    )


def transaction(identity: UUID, energy: int = 0) -> Transaction:
    return Transaction(
        id=identity,
        evse=1,
        started=stamp(),
        id_token=IdToken("04A1"),
        seq_no=3,
        energy_wh=WattHours(energy),
        duration_ms=Milliseconds(60_000),
        charging_state=ChargingState.CHARGING,
    )


def samples(first_s: int, count: int, evse: int = 1) -> list[Sample]:
    return [
        Sample(
            evse=evse,
            at=stamp(second * 1000),
            energy_wh=WattHours(second * 2),
            power_w=Watts(7200 + second % 7),
        )
        for second in range(first_s, first_s + count)
    ]


def evse_status(evse: int, offered: int) -> EvseStatus:
    return EvseStatus(
        evse=evse,
        at=stamp(),
        status=ConnectorStatus.OCCUPIED,
        charging_state=ChargingState.CHARGING,
        offered_ma=MilliAmperes(offered),
    )


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Opens the journal of the test's folder; opening again closes the one before."""
    current: list[Journal] = []

    def open_again(
        station: str = "S1", budget: JournalBudget = SMALL, folder: Path = tmp_path
    ) -> Journal:
        if current:
            current.pop().close()
        current.append(Journal.open(folder, station=station, boot=uuid4(), budget=budget))
        return current[0]

    yield open_again
    for journal in current:
        journal.close()


def sent_facts(journal: Journal) -> list[UUID]:
    return [fact.id for batch in journal.billing(limit=99) for fact in batch.facts]


def test_state_and_facts_survive_a_restart_together(opened: Opener) -> None:
    journal = opened()
    one, first = uuid4(), event(uuid4(), 0, TransactionEventType.STARTED)
    local_list = LocalList(7, (LocalListEntry(IdToken("04A1"), group="fleet"),))
    journal.commit(
        facts=[first],
        put=[
            transaction(one),
            Register(1, WattHours(500), WattHours(42)),
            SiteLimit(0, MilliAmperes(16_000), Milliseconds(NOON)),
        ],
        local_list=local_list,
        availability={2: False},
    )
    journal = opened()
    assert journal.transactions() == [transaction(one)]
    assert journal.registers() == {1: Register(1, WattHours(500), WattHours(42))}
    assert journal.limits() == [SiteLimit(0, MilliAmperes(16_000), Milliseconds(NOON))]
    assert journal.local_list() == local_list
    assert journal.availability() == {2: False}
    assert sent_facts(journal) == [first.id]
    journal.commit(ended=[one], lifted=[0])
    journal = opened()
    assert journal.transactions() == []
    assert journal.limits() == []


def test_events_of_a_transaction_never_overtake_each_other(opened: Opener) -> None:
    journal = opened()
    first, second = uuid4(), uuid4()
    journal.commit(facts=[event(first, 0), event(first, 1)])
    (out,) = journal.billing(limit=9)
    journal.commit(facts=[event(first, 2), event(second, 0)])
    (other,) = journal.billing(exclude=[out.seq], limit=9)
    assert [fact.transaction for fact in other.facts] == [second]
    assert journal.billing(exclude=[out.seq, other.seq], limit=9) == []
    journal.settle(Stream.BILLING, ((out.seq, out.seq),))
    (rest,) = journal.billing(exclude=[other.seq], limit=9)
    assert [fact.seq_no for fact in rest.facts] == [2]


def test_a_number_keeps_its_content_over_a_restart(opened: Opener) -> None:
    journal = opened()
    mine = uuid4()
    journal.commit(facts=[event(mine, 0)])
    before = journal.billing(limit=9)
    journal.commit(facts=[event(mine, 1)])
    assert opened().billing(limit=9) == before


def test_the_live_lane_skips_what_was_pending_before(opened: Opener) -> None:
    journal = opened()
    old, new = uuid4(), uuid4()
    journal.commit(facts=[event(old, 0)])
    mark = journal.position
    journal.commit(facts=[event(old, 1), event(new, 0)])
    (live,) = journal.billing(limit=9, after=mark)
    assert live.lane == str(new)


def test_a_long_lane_leaves_in_bounded_batches(opened: Opener) -> None:
    journal = opened()
    mine = uuid4()
    journal.commit(facts=[event(mine, n) for n in range(200)])
    seen: list[int] = []
    while batches := journal.billing(limit=9):
        assert len(batches) == 1
        seen += [fact.seq_no for fact in batches[0].facts]
        journal.settle(Stream.BILLING, ((batches[0].seq, batches[0].seq),))
    assert seen == list(range(200))
    assert journal.pending_billing == 0


def test_a_restored_cloud_gets_again_what_it_lost(opened: Opener) -> None:
    journal = opened()
    facts = [event(uuid4(), 0) for _ in range(5)]
    for fact in facts:
        journal.commit(facts=[fact])
        journal.settle(Stream.BILLING, ((1, journal.billing(limit=9)[-1].seq),))
    assert journal.pending_billing == 0
    assert journal.reopen(((1, 2), (4, 4))) == 2
    assert {batch.seq for batch in journal.billing(limit=9)} == {3, 5}
    assert journal.floor(Stream.BILLING) == 3
    assert journal.reopen(((1, 2), (4, 4))) == 0


def test_a_clone_numbers_its_pending_facts_anew(opened: Opener) -> None:
    journal = opened()
    done, waiting = event(uuid4(), 0), [event(uuid4(), 0) for _ in range(3)]
    journal.commit(facts=[done])
    (batch,) = journal.billing(limit=9)
    journal.settle(Stream.BILLING, ((batch.seq, batch.seq),))
    journal.commit(facts=waiting)
    journal.billing(limit=2)
    journal.add(samples(0, 5))
    assert journal.seal(live=True, max_samples=9)
    before = journal.outbox
    assert journal.new_outbox() != before
    journal = opened()
    assert journal.outbox != before
    assert [batch.seq for batch in journal.billing(limit=9)] == [1, 2, 3]
    assert sent_facts(journal) == [fact.id for fact in waiting]
    sealed = journal.seal(live=False, max_samples=9)
    assert sealed
    assert sealed.seq == 1


def test_a_cloud_from_before_the_new_outbox_gets_the_old_facts_too(opened: Opener) -> None:
    journal = opened()
    early, late = event(uuid4(), 0), event(uuid4(), 0)
    journal.commit(facts=[early])
    journal.settle(Stream.BILLING, ((1, journal.billing(limit=9)[0].seq),))
    journal.new_outbox()
    journal.commit(facts=[late])
    journal.settle(Stream.BILLING, ((1, journal.billing(limit=9)[0].seq),))
    assert journal.reopen(()) == 2
    assert set(sent_facts(journal)) == {early.id, late.id}


def test_state_keeps_the_latest_and_replaces_what_was_not_acknowledged(opened: Opener) -> None:
    journal = opened()
    journal.put_state(evse_status(1, 6000))
    journal.put_state(evse_status(2, 6000))
    first = journal.state()
    assert first
    journal.put_state(evse_status(1, 16_000))
    second = journal.state()
    assert second == (first[0] + 1, (evse_status(1, 16_000), evse_status(2, 6000)))
    assert journal.floor(Stream.STATE) == second[0]
    journal.settle(Stream.STATE, ((second[0], second[0]),))
    assert journal.state() is None
    assert journal.floor(Stream.STATE) == second[0] + 1


def test_no_number_of_any_stream_is_used_twice(opened: Opener) -> None:
    seen: set[tuple[Stream, int]] = set()
    for _ in range(4):
        journal = opened()
        journal.put_state(evse_status(1, 6000))
        state = journal.state()
        journal.add(samples(0, 3))
        sealed = journal.seal(live=True, max_samples=9)
        assert state
        assert sealed
        new = {(Stream.STATE, state[0]), (Stream.TELEMETRY, sealed.seq)}
        assert not new & seen
        seen |= new
        assert journal.marks()[Stream.STATE].next > state[0]


def test_telemetry_goes_newest_first_and_then_from_the_oldest(opened: Opener) -> None:
    journal = opened()
    journal.add(samples(0, 100))
    journal.flush()
    journal.add(samples(100, 10))
    live = journal.seal(live=True, max_samples=99)
    assert live
    assert [s.at.mono_ms for s in to_samples(live.series[0])] == [n * 1000 for n in range(100, 110)]
    old = journal.seal(live=False, max_samples=200)
    assert old
    assert to_samples(old.series[0]) == samples(0, 100)
    assert journal.seal(live=False, max_samples=200) is None
    journal = opened()
    assert journal.telemetry(limit=9) == [live, old]
    journal.settle(Stream.TELEMETRY, ((1, old.seq),))
    assert journal.pending_telemetry == 0


def test_samples_are_written_once_per_flush_interval(opened: Opener) -> None:
    journal = opened()
    for second in range(61):
        journal.add(samples(second, 1))
    assert (journal.buffered, journal.backlog) == (61, 0)
    journal.add(samples(62, 1))
    assert (journal.buffered, journal.backlog) == (0, 62)


def test_thinning_keeps_energy_and_means() -> None:
    thinned = thin(samples(0, 120), Milliseconds(60_000))
    assert [s.energy_wh for s in thinned] == [118, 238]
    assert [s.every_ms for s in thinned] == [60_000, 60_000]
    assert all(7200 <= (s.power_w or 0) <= 7206 for s in thinned)


def test_the_budget_thins_then_drops_and_never_touches_billing(opened: Opener) -> None:
    budget = JournalBudget(telemetry_bytes=200 * 1024, reserve_bytes=0)
    journal = opened(budget=budget)
    billed = event(uuid4(), 0)
    journal.commit(facts=[billed])
    for hour in range(40):
        for minute in range(60):
            journal.add(samples(hour * 3600 + minute * 60, 60))
            journal.flush()
        journal.maintain(NOON)
        journal.maintain(NOON)
    for _ in range(50):
        journal.maintain(NOON)
    assert journal._telemetry.used_bytes() <= budget.telemetry_bytes
    facts = [fact for batch in journal.billing(limit=99) for fact in batch.facts]
    gaps = [fact for fact in facts if isinstance(fact, SeriesGap)]
    assert billed in facts
    assert {gap.cause for gap in gaps} >= {"thinned to 1 min"}
    kept: list[Sample] = []
    while sealed := journal.seal(live=False, max_samples=900):
        kept += [sample for series in sealed.series for sample in to_samples(series)]
    assert kept == sorted(kept, key=lambda s: s.at.mono_ms)
    assert kept[-1].energy_wh == (40 * 3600 - 1) * 2
    for sample in kept:
        assert sample.energy_wh == sample.at.mono_ms // 1000 * 2


def test_a_tiny_budget_drops_the_oldest_with_a_gap(opened: Opener) -> None:
    journal = opened(budget=JournalBudget(telemetry_bytes=32 * 1024, reserve_bytes=0))
    for minute in range(2000):
        at = stamp(minute * 900_000)
        journal.add([Sample(evse=1, at=at, every_ms=Milliseconds(900_000), power_w=Watts(minute))])
        journal.flush()
    before = journal.pending_telemetry
    for _ in range(60):
        journal.maintain(NOON)
    facts = [fact for batch in journal.billing(limit=99) for fact in batch.facts]
    gaps = [fact for fact in facts if isinstance(fact, SeriesGap)]
    assert {gap.cause for gap in gaps} == {"evicted"}
    assert sum(gap.samples for gap in gaps) == before - journal.pending_telemetry
    assert min(gap.first_ms for gap in gaps) == NOON


def test_another_stations_journal_is_set_aside(opened: Opener, tmp_path: Path) -> None:
    journal = opened("S1")
    journal.commit(facts=[event(uuid4(), 0)])
    journal.add(samples(0, 3))
    journal = opened("S2")
    assert journal.billing(limit=9) == []
    assert journal.pending_telemetry == 0
    assert "belonged to station 'S1'" in journal.reports[0]
    assert (tmp_path / "billing.sqlite.other-station-1").exists()
    journal = opened("S2")
    assert journal.reports == []


def test_two_agents_do_not_share_a_journal(opened: Opener, tmp_path: Path) -> None:
    opened()
    with pytest.raises(JournalError, match="another agent holds"):
        Journal.open(tmp_path, station="S1", boot=BOOT, budget=SMALL)


@pytest.mark.parametrize("where", ["header", "middle"])
def test_a_damaged_billing_file_is_kept_and_rebuilt(
    opened: Opener, tmp_path: Path, where: str
) -> None:
    journal = opened()
    facts = [event(uuid4(), 0) for _ in range(200)]
    for fact in facts:
        journal.commit(facts=[fact], put=[Register(1, WattHours(9))])
    before = journal.outbox
    journal.close()
    path = tmp_path / "billing.sqlite"
    raw = bytearray(path.read_bytes())
    at = 0 if where == "header" else len(raw) // 2 // 2048 * 2048
    raw[at : at + 2048] = b"\xa5" * 2048
    path.write_bytes(raw)
    rebuilt = Journal.open(tmp_path, station="S1", boot=BOOT, budget=SMALL)
    try:
        assert "was damaged" in rebuilt.reports[0]
        assert (tmp_path / "billing.sqlite.damaged-1").exists()
        assert rebuilt.outbox != before
        if where == "middle":
            assert rebuilt.pending_billing > 50
            assert set(sent_facts(rebuilt)) <= {fact.id for fact in facts}
        rebuilt.commit(facts=[event(uuid4(), 0)])
    finally:
        rebuilt.close()


def test_a_changed_fact_is_put_apart_and_the_rest_goes_on(opened: Opener, tmp_path: Path) -> None:
    journal = opened()
    good, bad = event(uuid4(), 0, energy=11), event(uuid4(), 0, energy=22_222)
    journal.commit(facts=[bad, good], put=[Register(1, WattHours(33_333))])
    journal.close()
    with sqlite3.connect(tmp_path / "billing.sqlite") as db:
        db.execute(
            "UPDATE fact SET body = CAST(replace(body, '22222', '22822') AS BLOB) WHERE pos = 1"
        )
        db.execute("UPDATE kept SET body = replace(body, '33333', '33833')")
    db.close()
    journal = Journal.open(tmp_path, station="S1", boot=BOOT, budget=SMALL)
    try:
        assert sent_facts(journal) == [good.id]
        assert journal.registers() == {}
        assert len(journal.reports) == 2
        assert journal.pending_billing == 1
    finally:
        journal.close()


def test_damaged_telemetry_never_stops_the_agent(opened: Opener, tmp_path: Path) -> None:
    journal = opened()
    journal.add(samples(0, 60))
    journal.close()
    (tmp_path / "telemetry.sqlite").write_bytes(b"no database" * 999)
    journal = Journal.open(tmp_path, station="S1", boot=BOOT, budget=SMALL)
    try:
        assert "begun anew" in journal.reports[0]
        journal.add(samples(0, 5))
        assert journal.seal(live=True, max_samples=9)
    finally:
        journal.close()


def test_salvage_reads_from_both_ends_of_a_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 500) for n in range(200)])
    db.commit()
    db.close()
    raw = bytearray(path.read_bytes())
    at = len(raw) // 2 // 4096 * 4096
    raw[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(raw)
    rows = [row[0] for row in salvage(path, "t", ("id", "body"))]
    assert rows[0] == 0
    assert rows[-1] == 199
    assert 100 < len(rows) < 200


def test_answers_and_acknowledged_facts_are_kept_for_their_time(opened: Opener) -> None:
    journal = opened()
    command = uuid4()
    result = CommandResult(uuid4(), command, stamp(), CommandStatus.EXECUTED)
    journal.commit(facts=[result])
    journal.settle(Stream.BILLING, ((1, journal.billing(limit=9)[0].seq),))
    journal.maintain(0)  # the clock is not set: nothing may be judged old
    journal.maintain(NOON)
    journal = opened()
    journal.maintain(NOON + 6 * DAY)
    assert journal.result_of(command) == result
    journal.maintain(NOON + 8 * DAY)
    assert journal.result_of(command) is None
    assert journal.reopen(()) == 1
    journal.settle(Stream.BILLING, ((1, 99),))
    journal.maintain(NOON + 9 * DAY)
    journal.maintain(NOON + 40 * DAY)
    assert journal.reopen(()) == 0


def test_sessions_show_energy_end_and_whether_the_cloud_has_them(
    opened: Opener, tmp_path: Path
) -> None:
    journal = opened()
    done, running = uuid4(), uuid4()
    journal.commit(facts=[event(done, 0, TransactionEventType.STARTED)])
    journal.commit(facts=[event(done, 1, TransactionEventType.ENDED, energy=777)])
    for batch in journal.billing(limit=9):
        journal.settle(Stream.BILLING, ((batch.seq, batch.seq),))
    journal.commit(facts=[event(running, 0, TransactionEventType.STARTED)])
    journal.commit(put=[transaction(running, energy=55)])
    newest, oldest = journal.sessions(limit=9)
    assert (newest.transaction, newest.ended, newest.energy_wh) == (running, False, 55)
    assert (oldest.energy_wh, oldest.reason, oldest.id_token) == (777, StoppedReason.LOCAL, "04A1")
    assert (newest.synced, oldest.synced) == (False, True)
    assert journal.sessions(limit=9, before=newest.number) == [oldest]
    journal.add(samples(0, 4))
    journal.flush()
    with JournalView(tmp_path) as view:
        assert view.sessions(limit=9) == [newest, oldest]
        assert view.queue().billing_facts == 1
        assert view.queue().telemetry_samples == 4
        assert [one.id for one in view.transactions()] == [running]


def test_a_missing_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="does not exist"):
        JournalView(tmp_path)


def test_lost_billing_beside_telemetry_is_reported(opened: Opener, tmp_path: Path) -> None:
    journal = opened()
    journal.add(samples(0, 3))
    journal.close()
    (tmp_path / "billing.sqlite").write_bytes(b"")
    journal = Journal.open(tmp_path, station="S1", boot=BOOT, budget=SMALL)
    try:
        assert "missing or empty" in journal.reports[0]
        assert journal.pending_telemetry == 3
    finally:
        journal.close()


def test_boots_are_remembered_newest_first(tmp_path: Path) -> None:
    boots = [uuid4() for _ in range(20)]
    for boot in boots:
        journal = Journal.open(tmp_path, station="S1", boot=boot, budget=SMALL)
        seen = journal.boots
        journal.close()
    assert seen == tuple(reversed(boots[-16:]))


def test_the_reserve_is_set_apart(opened: Opener, tmp_path: Path) -> None:
    opened(budget=JournalBudget(reserve_bytes=MIB))
    assert (tmp_path / "reserve").stat().st_size == MIB
