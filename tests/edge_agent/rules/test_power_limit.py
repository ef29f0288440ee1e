from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.power_limit import (
    Bound,
    CommandLimit,
    Offer,
    Ramp,
    smallest,
)
from protocols.quantities import MilliAmperes

MA = MilliAmperes


def test_the_smallest_bound_holds_and_is_named() -> None:
    bounds = [Bound("cable", MA(32_000)), Bound("site", MA(9_000)), Bound("board", MA(16_000))]
    assert smallest(bounds) == Offer(MA(9_000), "site")


def test_below_six_amperes_is_a_pause() -> None:
    assert smallest([Bound("command", MA(5_999))]) == Offer(MA(0), "command")


def test_an_expired_command_leaves_the_failsafe_current() -> None:
    command = CommandLimit(limit=MA(20_000), until_ms=1000)
    assert command.bound(999, MA(8_000)) == Bound("command", MA(20_000))
    assert command.bound(1000, MA(8_000)) == Bound("failsafe", MA(8_000))


def test_down_at_once_and_up_after_the_hold() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "board"), 0)
    assert ramp.offer.limit == 16_000
    ramp = ramp.follow(Offer(MA(8_000), "site"), 1_000)
    assert ramp.offer.limit == 8_000
    assert ramp.follow(Offer(MA(16_000), "board"), 10_999).offer.limit == 8_000
    assert ramp.follow(Offer(MA(16_000), "board"), 11_000).offer.limit == 16_000


def test_who_was_paused_for_want_of_a_share_waits_longer() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "site"), 0).follow(Offer(MA(0), "site"), 1_000)
    assert ramp.follow(Offer(MA(8_000), "site"), 60_999).offer.limit == 0
    assert ramp.follow(Offer(MA(8_000), "site"), 61_000).offer.limit == 8_000
    lost = Ramp().follow(Offer(MA(16_000), "site"), 0).follow(Offer(MA(0), "failsafe"), 1_000)
    assert lost.follow(Offer(MA(8_000), "site"), 11_000).offer.limit == 8_000


def test_the_ceiling_keeps_from_raising_but_lowers_nobody() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "board"), 0)
    held = ramp.follow(Offer(MA(20_000), "board"), 1_000, Offer(MA(10_000), "site"))
    assert held.offer == Offer(MA(16_000), "site")
    risen = held.follow(Offer(MA(20_000), "board"), 2_000, Offer(MA(18_000), "site"))
    assert risen.offer == Offer(MA(18_000), "site")


def test_a_slightly_higher_target_is_not_worth_a_write() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "site"), 0)
    assert ramp.follow(Offer(MA(16_400), "site"), 60_000) == ramp


@given(st.lists(st.integers(0, 32_000), min_size=1, max_size=60))
def test_the_offer_is_never_above_the_target(targets: list[int]) -> None:
    ramp = Ramp()
    for now, target in enumerate(targets):
        ramp = ramp.follow(Offer(MA(target), "site"), now * 1000)
        assert ramp.offer.limit <= target
