"""Random interleavings of everything that can happen to an EVSE: the rules hold at every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.rules.actions import (
    Authorized,
    ConnectorSettings,
    Lost,
    Offered,
    Operative,
    Read,
    StopAsked,
    Tick,
)
from edge_agent.rules.power_limit import Offer
from protocols.agent_link import (
    ConnectorStatus,
    IdToken,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import MilliAmperes

Bench = Any  # the fixture's class lives in conftest, which cannot be imported

PATIENT = ConnectorSettings(lost_patience_ms=10**12)
"""A board that stays lost ends a stopped transaction with what is known; no board here does."""

STEPS = st.one_of(
    st.sampled_from(
        ["plug", "unplug", "card", "stop", "break", "mend", "lost", "tick", "crash", "out", "in"]
    ),
    st.tuples(st.just("poll"), st.sampled_from([1, 2, 5, 20, 90])),
    st.tuples(st.just("charge"), st.sampled_from([1, 2, 40])),
    st.tuples(st.just("dark"), st.sampled_from([1, 30, 600])),
    st.tuples(st.just("killed"), st.integers(0, 8)),
    st.tuples(st.just("offer"), st.sampled_from([0, 6_000, 16_000])),
)


def do(bench: Bench, step: str | tuple[str, int]) -> None:
    name, amount = step if isinstance(step, tuple) else (step, 0)
    deeds: dict[str, Callable[[], object]] = {
        "plug": bench.plug,
        "unplug": bench.unplug,
        "card": bench.present,
        "stop": lambda: bench.tell(
            StopAsked(reason=StoppedReason.REMOTE, trigger=Trigger.REMOTE_STOP)
        ),
        "break": lambda: setattr(bench, "broken", True),
        "mend": lambda: setattr(bench, "broken", False),
        "killed": lambda: bench.killed_in(
            Authorized(id_token=IdToken("04A1B2C3"), trigger=Trigger.AUTHORIZED), amount
        ),
        "lost": lambda: bench.tell(Lost("silent")),
        "tick": lambda: bench.tell(Tick()),
        "crash": bench.die,
        "out": lambda: bench.tell(Operative(operative=False)),
        "in": lambda: bench.tell(Operative(operative=True)),
        "poll": lambda: bench.poll(amount),
        "charge": lambda: bench.charge(amount),
        "dark": lambda: bench.wait(amount),
        "offer": lambda: bench.tell(Offered(Offer(MilliAmperes(amount), "site"))),
    }
    deeds[name]()


def check_history(bench: Bench) -> None:
    """One Started first, at most one Ended last, numbers without a gap, energy never less."""
    by_transaction: dict[UUID, list[TransactionEvent]] = defaultdict(list)
    for event in bench.events():
        by_transaction[event.transaction].append(event)
    for events in by_transaction.values():
        assert [e.seq_no for e in events] == list(range(len(events)))
        kinds = [e.type for e in events]
        assert kinds[0] is TransactionEventType.STARTED
        assert kinds.count(TransactionEventType.STARTED) == 1
        assert TransactionEventType.ENDED not in kinds[:-1]
        for one, two in pairwise(events):
            assert one.energy_wh <= two.energy_wh
            assert one.meter_wh <= two.meter_wh
            assert one.duration_ms <= two.duration_ms
    ended = sum(e.type is TransactionEventType.ENDED for e in bench.events())
    assert len(by_transaction) - ended == len(bench.kept) <= 1


def check_now(bench: Bench) -> None:
    state = bench.connector.state
    if bench.released:
        assert bench.kept, "released without a persisted transaction"
    if state.reading is not None and state.session is None:
        assert not bench.released
        assert bench.limit == 0
    if state.fault or state.lost:
        assert state.session is None or not state.session.proven or not bench.released
    if bench.status is not None and bench.status.transaction is not None:
        assert bench.status.status in {ConnectorStatus.OCCUPIED, ConnectorStatus.FAULTED}


def test_every_interleaving_leaves_a_legal_state_and_true_accounts(
    make_bench: Callable[..., Bench],
    sample_size: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    count = sample_size(300, 5_000)

    @settings(max_examples=count, deadline=None)
    @example(steps=[("charge", 1), ("dark", 1), "stop", ("dark", 30), "card"])
    @example(steps=[("charge", 1), ("dark", 1), "stop", ("dark", 600), "card"])
    @example(
        steps=[
            *(("charge", 40), "unplug", ("poll", 2), "plug", ("poll", 1), ("killed", 4)),
            ("dark", 600),
        ]
    )
    @given(steps=st.lists(STEPS, max_size=40))
    def check(steps: list[str | tuple[str, int]]) -> None:
        bench = make_bench(settings=PATIENT)
        for step in steps:
            do(bench, step)
            check_now(bench)
            check_history(bench)
        finish(bench)
        billed = sum(e.energy_wh for e in bench.events(TransactionEventType.ENDED))
        assert billed == bench.true_wh

    check()
    record_property("random interleavings", count)


def finish(bench: Bench) -> None:
    """Mend everything, let the vehicle go, and let the last transaction end."""
    bench.broken = False
    bench.tell(Read(bench.reading()))
    bench.unplug()
    bench.poll(30)
    check_now(bench)
    check_history(bench)
    assert not bench.kept
    assert bench.drawn == 0
