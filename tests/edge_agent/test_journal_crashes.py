"""The journal under kill -9, a full disk and a cut of power: what was committed is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.journal import Journal, JournalBudget, JournalError
from edge_agent.records import Register
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    Sample,
    SeriesGap,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours
from protocols.series import to_samples

NOON = 1_790_000_000_000
BUDGET = JournalBudget(reserve_bytes=0)
ROOT: Final = Path(__file__).parent.parent.parent
Sizes = Callable[[int, int], int]

WRITER: Final = """
import sys
from pathlib import Path
from uuid import UUID, uuid4
from edge_agent.journal import Journal, JournalBudget
from edge_agent.records import Register
from protocols.agent_link import *

journal = Journal.open(
    Path(sys.argv[1]), station="S1", boot=uuid4(), budget=JournalBudget(reserve_bytes=0)
)
registers = journal.registers()
number = registers[1].meter_wh if registers else 0
while True:
    number += 1
    at = Stamp(0, number, UUID(int=1), ClockQuality.UNSET)
    fact = SecurityEvent(UUID(int=number), at, "Count", str(number))
    journal.commit(facts=[fact], put=[Register(1, number)])
    journal.add([Sample(evse=1, at=at, energy_wh=number)])
    if number % 7 == 0:
        journal.flush()
    if number % 11 == 0:
        journal.billing(limit=9)
    print(number, flush=True)
"""


def stamp(mono_ms: int) -> Stamp:
    return Stamp(
        Milliseconds(NOON + mono_ms), Milliseconds(mono_ms), UUID(int=1), ClockQuality.SYNCED
    )


def event(transaction: UUID, seq_no: int) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=TransactionEventType.UPDATED,
        seq_no=seq_no,
        at=stamp(0),
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=stamp(0),
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(seq_no),
        meter_wh=WattHours(seq_no),
    )


# --------------------------------------------------------------------------- any step, then a crash


class JournalMachine(RuleBasedStateMachine):
    """The journal against plain dictionaries; a crash takes the files as they lie on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="karvon-journal-"))
        self.generation = 0
        self.transactions = [uuid4() for _ in range(3)]
        self.facts: dict[UUID, TransactionEvent] = {}
        self.settled: set[UUID] = set()
        self.out: dict[int, tuple[Any, ...]] = {}
        self.registers: dict[int, Register] = {}
        self.numbers: dict[int, Any] = {}
        self.buffered: list[int] = []
        self.at_rest: set[int] = set()
        self.now = 0
        self.outbox: UUID | None = None
        self._open()

    def _open(self) -> None:
        self.journal = Journal.open(
            self.folder / str(self.generation), station="S1", boot=uuid4(), budget=BUDGET
        )
        assert self.journal.reports == []
        assert self.outbox in {None, self.journal.outbox}
        self.outbox = self.journal.outbox
        self.out.clear()

    @rule(which=st.integers(0, 2), count=st.integers(1, 4), meter=st.integers(0, 10**6))
    def commit(self, which: int, count: int, meter: int) -> None:
        mine = self.transactions[which]
        first = sum(1 for fact in self.facts.values() if fact.transaction == mine)
        new = [event(mine, first + n) for n in range(count)]
        self.registers[which] = Register(which, WattHours(meter))
        self.journal.commit(facts=new, put=[self.registers[which]])
        self.facts |= {fact.id: fact for fact in new}

    @rule(limit=st.integers(1, 3))
    def take(self, limit: int) -> None:
        for batch in self.journal.billing(exclude=list(self.out), limit=limit):
            assert self.numbers.setdefault(batch.seq, batch.facts) == batch.facts
            assert not {fact.id for fact in batch.facts} & self.settled
            self.out[batch.seq] = batch.facts

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if self.out:
            seq = data.draw(st.sampled_from(sorted(self.out)))
            self.settled |= {fact.id for fact in self.out.pop(seq)}
            self.journal.settle(Stream.BILLING, ((seq, seq),))

    @rule(committed=st.integers(0, 5))
    def cloud_restored(self, committed: int) -> None:
        self.journal.reopen(((1, committed),) if committed else ())
        self.out.clear()
        lost = [facts for seq, facts in self.numbers.items() if seq > committed]
        self.settled -= {fact.id for facts in lost for fact in facts}

    @rule(count=st.integers(1, 90))
    def measure(self, count: int) -> None:
        for _ in range(count):
            self.now += 1000
            self.journal.add([Sample(evse=1, at=stamp(self.now), energy_wh=WattHours(self.now))])
            self.buffered.append(self.now)
            if self.journal.buffered == 0:
                self._flushed()

    @rule()
    def flush(self) -> None:
        self.journal.flush()
        self._flushed()

    def _flushed(self) -> None:
        self.at_rest |= set(self.buffered)
        self.buffered.clear()

    @rule(live=st.booleans(), most=st.integers(1, 200))
    def seal(self, live: bool, most: int) -> None:
        sealed = self.journal.seal(live=live, max_samples=most)
        if sealed is None:
            return
        times = {s.at.mono_ms for one in sealed.series for s in to_samples(one)}
        if live:
            assert times == set(self.buffered[-most:])
            self._flushed()
        assert times <= self.at_rest
        if times:
            self.journal.settle(Stream.TELEMETRY, ((sealed.seq, sealed.seq),))
            self.at_rest -= times

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self._flushed()
        self._open()

    @rule()
    def crash(self) -> None:
        before = self.folder / str(self.generation)
        self.generation += 1
        after = self.folder / str(self.generation)
        shutil.copytree(before, after, ignore=shutil.ignore_patterns("*-shm"))
        self.journal.close()
        shutil.rmtree(before)
        self.buffered.clear()
        self._open()

    @invariant()
    def holds(self) -> None:
        assert self.journal.registers() == self.registers
        assert self.journal.pending_billing == len(self.facts) - len(self.settled)
        assert self.journal.pending_telemetry == len(self.at_rest) + len(self.buffered)

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# --------------------------------------------------------------------------- real processes


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that counts in a journal and says each number once it is committed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def last_said(process: subprocess.Popen[str], already: str = "") -> int:
    assert process.stdout
    said = [line for line in (already + process.stdout.read()).split("\n")[:-1] if line]
    return int(said[-1])


def check_count(folder: Path, at_least: int) -> int:
    """Facts and register tell the same count, and none that was said is missing."""
    journal = Journal.open(folder, station="S1", boot=uuid4(), budget=BUDGET)
    try:
        assert journal.reports == []
        count = int(journal.registers()[1].meter_wh)
        assert count >= at_least
        seen: list[int] = []
        while batches := journal.billing(limit=9):
            for batch in batches:
                seen += [fact.id.int for fact in batch.facts]
                journal.settle(Stream.BILLING, ((batch.seq, batch.seq),))
        assert seen == list(range(count - len(seen) + 1, count + 1))
        return count
    finally:
        journal.close()


def test_kill_at_random_moments_loses_nothing_committed(
    tmp_path: Path, sample_size: Sizes, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(7)
    kills = sample_size(4, 200)
    for _ in range(kills):
        with writer(tmp_path / "j") as process:
            assert process.stdout
            head = "".join(process.stdout.readline() for _ in range(chance.randint(1, 60)))
            process.send_signal(signal.SIGKILL)
            said = last_said(process, head)
        check_count(tmp_path / "j", said)
    record_property("kills of a committing journal", kills)


@contextmanager
def mounted(what: list[str], at: Path) -> Iterator[None]:
    at.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: mounting file systems needs root")
    done = subprocess.run(["mount", *what, str(at)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"NOT RUN: cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_full_disk_takes_billing_longest_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(["-t", "tmpfs", "-o", "size=3m", "none"], disk):
        budget = JournalBudget(reserve_bytes=512 * 1024)
        journal = Journal.open(disk / "j", station="S1", boot=uuid4(), budget=budget)
        try:
            ballast = disk / "ballast"
            ballast.write_bytes(b"x" * (1024 * 1024))
            for minute in range(200):
                journal.add(
                    [
                        Sample(
                            evse=n,
                            at=stamp(minute * 60_000 + n),
                            energy_wh=WattHours(random.Random(minute).getrandbits(40)),
                        )
                        for n in range(60)
                    ]
                )
                journal.flush()
            committed = []
            refusal = None
            while refusal is None and len(committed) < 20_000:
                fact = event(uuid4(), 0)
                try:
                    journal.commit(facts=[fact])
                    committed.append(fact.id)
                except JournalError as error:
                    refusal = error
            assert "Free space" in str(refusal)
            assert journal.pending_billing == len(committed)
            assert any("reserve is in use" in report for report in journal.reports)
            assert any("telemetry was dropped" in report for report in journal.reports)
            ballast.unlink()
            last = event(uuid4(), 0)
            journal.commit(facts=[last])
            journal.add([Sample(evse=1, at=stamp(99_000_000))])
            journal.flush()
            journal.maintain(NOON)
            assert journal.backlog >= 1
        finally:
            journal.close()
        journal = Journal.open(disk / "j", station="S1", boot=uuid4(), budget=budget)
        try:
            pending: list[Any] = []
            while batches := journal.billing(limit=999):
                for batch in batches:
                    pending += batch.facts
                    journal.settle(Stream.BILLING, ((batch.seq, batch.seq),))
            assert {*committed, last.id} <= {fact.id for fact in pending}
            gaps = [fact for fact in pending if isinstance(fact, SeriesGap)]
            assert {gap.cause for gap in gaps} >= {"disk full"}
        finally:
            journal.close()


def test_a_cut_of_power_loses_nothing_committed(
    tmp_path: Path, sample_size: Sizes, record_property: Callable[[str, object], None]
) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(24 * 1024 * 1024)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("NOT RUN: no mkfs.ext4 here")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    cuts = sample_size(2, 100)
    counted = 0
    for number in range(cuts):
        copy = tmp_path / "cut"
        with mounted(["-o", "loop", str(image)], disk), writer(disk / "j") as process:
            assert process.stdout
            for _ in range(20 + number % 50):
                counted = int(process.stdout.readline())
            process.send_signal(signal.SIGSTOP)
            shutil.copyfile(image, copy)
            process.kill()
            process.wait()
        copy.replace(image)
        with mounted(["-o", "loop", str(image)], disk):
            check_count(disk / "j", counted)
    record_property("cuts of power", cuts)
