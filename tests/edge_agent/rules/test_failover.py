"""Which link an uplink goes over, whatever answers and whatever falls silent."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.rules.failover import Failover, FailoverRules

RULES = FailoverRules(order=("eth0", "wlan0", "wwan0"), metered=frozenset({"wwan0"}))
TWO = FailoverRules(order=("eth0", "wwan0"), metered=frozenset({"wwan0"}))


def on(link: str, rules: FailoverRules = TWO) -> Failover:
    state = Failover(rules)
    state.connected(link)
    state.proved()
    return state


def test_the_preferred_link_is_tried_first() -> None:
    assert Failover(RULES).order(0) == ["eth0", "wlan0", "wwan0"]


def test_a_link_on_which_nothing_holds_comes_last_for_longer_each_time() -> None:
    state, now = Failover(TWO), 0
    for distrust in (30_000, 60_000, 120_000, 240_000, 480_000, 600_000, 600_000):
        state.connected("eth0")
        state.ended(held=False, why="the handshake took too long", now_ms=now)
        assert state.order(now + distrust - 1) == ["wwan0", "eth0"]
        assert state.order(now + distrust) == ["eth0", "wwan0"]
        now += distrust
    assert state.troubles == {"eth0": "the handshake took too long"}
    state.connected("eth0")
    state.proved()
    state.ended(held=True, why="reset", now_ms=now)
    assert state.order(now) == ["eth0", "wwan0"], "what ends after it held is not the link's fault"
    assert not state.troubles


def test_what_was_wrong_with_a_worse_link_is_forgotten_once_a_better_one_carries() -> None:
    state = Failover(TWO)
    for link in TWO.order:
        state.unreached(link, "no answer in time")
    state.connected("eth0")
    assert state.troubles == {}
    state.ended(held=True, why="reset", now_ms=0)
    state.unreached("eth0", "no carrier")
    state.connected("wwan0")
    assert state.troubles == {"eth0": "no carrier"}


def test_when_all_are_distrusted_the_preferred_one_comes_first_again() -> None:
    state = Failover(TWO)
    for link in TWO.order:
        state.connected(link)
        state.ended(held=False, why="the cloud is down", now_ms=0)
    assert state.order(1) == ["eth0", "wwan0"]


def test_it_goes_back_after_answers_in_a_row() -> None:
    state = on("wwan0")
    assert state.due(0) == [], "the first attempt waits, too"
    assert state.due(4_999) == []
    assert state.due(5_000) == ["eth0"]
    assert not state.answered("eth0")
    assert state.due(9_999) == []
    assert state.due(10_000) == ["eth0"]
    assert not state.answered("eth0")
    state.unreached("eth0", "no answer in time")
    assert [state.answered("eth0") for _ in range(3)] == [False, False, True]


def test_a_better_link_that_costs_money_is_tried_seldom() -> None:
    state = on("eth0", FailoverRules(order=("wwan0", "eth0"), metered=frozenset({"wwan0"})))
    assert state.due(0) == []
    assert state.due(299_999) == []
    assert state.due(300_000) == ["wwan0"]


def test_a_worse_link_is_never_tried() -> None:
    state = on("eth0")
    assert state.due(0) == []
    assert state.due(10_000_000) == []


class Links(RuleBasedStateMachine):
    """Attempts, connections and probes in any order, beside the simplest account of them."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now, self.answers = Failover(RULES), 0, dict.fromkeys(RULES.order, 0)

    @rule(passed=st.integers(0, 700_000))
    def time_passes(self, passed: int) -> None:
        self.now += passed

    @precondition(lambda self: self.state.in_use is None)
    @rule(reached=st.integers(0, 3), held=st.booleans())
    def connect(self, reached: int, held: bool) -> None:
        """The first `reached` in order do not answer."""
        order = self.state.order(self.now)
        for link in order[:reached]:
            self.state.unreached(link, "no answer in time")
        if reached < len(order):
            self.state.connected(order[reached])
            self.answers = dict.fromkeys(RULES.order, 0)
            if held:
                self.state.proved()

    @precondition(lambda self: self.state.in_use is not None)
    @rule(held=st.booleans())
    def end(self, held: bool) -> None:
        self.state.ended(held=held, why="gone", now_ms=self.now)
        assert self.state.in_use is None

    @precondition(lambda self: self.state.in_use is not None)
    @rule(there=st.booleans())
    def probe(self, there: bool) -> None:
        for link in self.state.due(self.now):
            better = RULES.order.index(link) < RULES.order.index(self.state.in_use or "")
            assert better, "only a better link is worth an attempt"
            if there:
                self.answers[link] += 1
                assert self.state.answered(link) is (self.answers[link] >= RULES.answers)
            else:
                self.answers[link] = 0
                self.state.unreached(link, "no answer in time")

    @invariant()
    def every_link_is_always_tried(self) -> None:
        assert sorted(self.state.order(self.now)) == sorted(RULES.order)

    @invariant()
    def nothing_is_distrusted_for_ever(self) -> None:
        late = self.now + RULES.longest_distrust_ms
        assert self.state.order(late) == list(RULES.order)


TestLinks = Links.TestCase
