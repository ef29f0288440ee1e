"""Every action of both versions, judged by the official schemas, and any order of events."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.uplink.ocpp.port import Done, Outcome
from edge_agent.uplink.ocpp.station import Connected, Performed
from protocols.agent_link import TransactionEvent
from protocols.ocpp.version import Version
from tests.cloud.ocpp import official
from tests.edge_agent.uplink.ocpp.bench import BOOTED, Bench, Drive, started

VERSIONS = [Version.V16, Version.V201]
EVERY = [
    (version, action)
    for version in VERSIONS
    for action in sorted({*official.asked(version), official.BOTH_WAYS})
]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Version, Bench]]:
    """One per version, connected."""
    made = {one: Bench(tmp_path_factory.mktemp("bench") / "journal", one) for one in VERSIONS}
    for bench in made.values():
        bench.connect()
        bench.charger.read()
    yield made
    for bench in made.values():
        bench.journal.close()


@pytest.mark.parametrize(("version", "action"), EVERY, ids=str)
def test_every_action_is_answered_as_its_schema_demands(
    benches: dict[Version, Bench], version: Version, action: str
) -> None:
    """Small and full requests; the answer and all that is said after it fit their schemas."""
    bench = benches[version]
    asked = official.request(version, action)
    for payload in (asked.minimal, asked.full):
        answer = bench.ask(action, **payload)
        if not isinstance(answer, dict | list):
            for outcome in Outcome:
                message_id = f"b{bench.asked}"
                bench.do(Performed(message_id, Done(outcome)))
                official.response(version, action).check(bench.answers[message_id])
                bench.ask(action, **payload)
            bench.do(Performed(f"b{bench.asked}", Done(Outcome.REJECTED)))
        elif isinstance(answer, dict):
            official.response(version, action).check(answer)
        else:
            assert answer[0] in {"NotSupported", "InternalError"}, answer
        while bench.said:
            _, said, told = bench.said[0]
            official.request(version, said).check(told)
            bench.answer(BOOTED if said == "BootNotification" else _small(version, said))
    assert json.dumps(bench.ask("ClearCache")) == '{"status": "Accepted"}'


def _small(version: Version, action: str) -> dict[str, Any]:
    return official.response(version, action).minimal


# --------------------------------------------------------------------------- any order

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 3)),
        st.tuples(st.just("sample"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 3)),
        st.tuples(st.just("answer"), st.just(0)),
        st.tuples(st.just("refuse"), st.sampled_from([0, 1])),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("connect"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("later"), st.sampled_from([250, 31_000, 61_000, 400_000])),
    ),
    max_size=60,
)


class Backend:
    """Takes what it is told; knows in which order it took the events of each transaction."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.taken: dict[Any, list[tuple[str, int]]] = defaultdict(list)
        self.number = 0
        self.of: dict[int, int] = {}

    def answer(self) -> None:
        """Take the oldest call, and answer."""
        _, action, payload = self.bench.said[0]
        answer: dict[str, Any] = {}
        if action == "BootNotification":
            answer = BOOTED
        elif action == "Heartbeat":
            answer = {"currentTime": BOOTED["currentTime"]}
        elif action == "StartTransaction":
            self.number += 1
            self.taken[self.number].append((action, 0))
            answer = started(self.number)
        elif action in {"MeterValues", "StopTransaction"}:
            value = payload.get("meterStop") or _energy(payload)
            self.taken[payload["transactionId"]].append((action, value))
        elif action == "TransactionEvent":
            name = payload["transactionInfo"]["transactionId"]
            self.taken[name].append((payload["eventType"], payload["seqNo"]))
        self.bench.answer(answer)


def _energy(payload: dict[str, Any]) -> int:
    return int(payload["meterValue"][0]["sampledValue"][0]["value"])


class World:
    """Four EVSEs' worth of vehicles, a connection that comes and goes, a process that restarts."""

    def __init__(self, bench: Bench, backend: Backend) -> None:
        self.bench, self.backend = bench, backend
        self.drives: list[Drive] = []
        self.running: dict[int, Drive] = {}
        self.connected = False

    def start(self, number: int) -> None:
        if number not in self.running:
            self.running[number] = Drive(self.bench, evse=number % 2 + 1)
            self.drives.append(self.running[number])
            self.running[number].start()

    def sample(self, number: int) -> None:
        if number in self.running:
            self.running[number].sample()

    def end(self, number: int) -> None:
        if number in self.running:
            self.running.pop(number).end()

    def answer(self, _: int) -> None:
        if self.bench.said:
            self.backend.answer()

    def refuse(self, number: int) -> None:
        if self.bench.said and self.bench.said[0][1] != "BootNotification":
            self.bench.refuse(["FormationViolation", "InternalError"][number])

    def lose(self, _: int) -> None:
        if self.connected:
            self.connected = False
            self.bench.lose()

    def connect(self, _: int) -> None:
        if not self.connected:
            self.connected = True
            self.bench.do(Connected())

    def restart(self, _: int) -> None:
        self.connected = False
        self.bench.said.clear()
        self.bench.restart()

    def later(self, ms: int) -> None:
        self.bench.later(ms)
        del self.bench.said[:-1]  # what was not answered in time is over

    def play(self, steps: list[tuple[str, int]]) -> list[Drive]:
        for what, number in steps:
            getattr(self, what)(number)
        for drive in self.running.values():
            drive.end()
        self.lose(0)
        return self.drives


def settle(bench: Bench, backend: Backend) -> None:
    """Everything is well from now on."""
    bench.do(Connected())
    for _ in range(2000):
        if bench.said:
            backend.answer()
        elif bench.journal.pending_billing:
            bench.later(10_000)
        else:
            return
    raise AssertionError("it never comes to an end")


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, version=st.sampled_from(VERSIONS))
def test_whatever_happens_nothing_is_lost_and_each_transaction_is_in_order(
    steps: list[tuple[str, int]], version: Version
) -> None:
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "journal", version)
        try:
            backend = Backend(bench)
            drives = World(bench, backend).play(steps)
            settle(bench, backend)
            refused = [one.fact for one in bench.journal.refused]
            _judge(bench, backend, drives, refused, version)
        finally:
            bench.journal.close()


def _judge(
    bench: Bench,
    backend: Backend,
    drives: list[Drive],
    refused: list[Any],
    version: Version,
) -> None:
    for told in backend.taken.values():
        numbers = [number for _, number in told]
        assert numbers == sorted(numbers)
    apart = {(fact.transaction, fact.type) for fact in refused}
    assert all(isinstance(fact, TransactionEvent) for fact in refused)
    if version is Version.V201:
        for drive in drives:
            told = {kind for kind, _ in backend.taken[str(drive.id)]}
            for kind in ("Started", "Ended"):
                assert kind in told or (drive.id, kind) in apart
        return
    stops = sum(kind == "StopTransaction" for told in backend.taken.values() for kind, _ in told)
    assert stops + sum(kind == "Ended" for _, kind in apart) >= len(drives)
    assert bench.journal.numbers() == {}
