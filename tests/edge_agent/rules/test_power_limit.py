from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.power_limit import (
    Bound,
    CommandLimit,
    Offer,
    Ramp,
    SiteLoad,
    SiteRules,
    fair_split,
    headroom,
    site_budget,
    smallest,
)
from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes

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


def test_a_metered_site_gives_what_others_leave() -> None:
    site = SiteRules(limit=MA(63_000), metered=True)
    load = SiteLoad(current=MA(50_000), at_ms=0)
    assert site_budget(site, load, MA(20_000), 2, 1000) == 33_000


def test_a_stale_site_meter_leaves_the_safe_share() -> None:
    site = SiteRules(limit=MA(63_000), metered=True, safe_share=MA(7_000))
    load = SiteLoad(current=MA(0), at_ms=0)
    assert site_budget(site, load, MA(0), 3, 5001) == 21_000
    assert site_budget(site, None, MA(0), 3, 0) == 21_000


def test_a_site_too_small_for_all_serves_the_first() -> None:
    most = {1: MA(32_000), 2: MA(32_000), 3: MA(32_000)}
    assert fair_split(MA(13_000), most) == {1: 6_500, 2: 6_500, 3: 0}


@given(
    st.integers(0, 200_000), st.dictionaries(st.integers(1, 9), st.integers(6_000, 80_000).map(MA))
)
def test_shares_never_exceed_the_site(total: int, most: dict[int, MilliAmperes]) -> None:
    shares = fair_split(MA(total), most)
    assert sum(shares.values()) <= total
    assert all(share == 0 or IEC_MIN_CURRENT <= share <= most[e] for e, share in shares.items())
    unserved = [evse for evse, share in shares.items() if share == 0]
    served = sum(most[evse] for evse in shares if evse not in unserved)
    assert (
        not unserved
        or total - min(total, served) < IEC_MIN_CURRENT
        or (total // IEC_MIN_CURRENT == len(shares) - len(unserved))
    )


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), max_size=80))
def test_confirmed_limits_never_exceed_the_site_while_shares_move(
    moves: list[tuple[int, bool, bool]],
) -> None:
    """EVSEs come and go; each takes its share only as far as the others have given it up."""
    total = MA(40_000)
    active: set[int] = set()
    confirmed = {evse: MA(0) for evse in range(1, 5)}
    for evse, comes, obeys in moves:
        (active.add if comes else active.discard)(evse)
        share = fair_split(total, {each: MA(32_000) for each in sorted(active)}).get(evse, MA(0))
        wanted = smallest([Bound("site", share), Bound("site", headroom(total, evse, confirmed))])
        if obeys:
            confirmed[evse] = wanted.limit
        assert sum(confirmed.values()) <= total


def test_down_at_once_and_up_after_the_hold() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "board"), 0)
    assert ramp.offer.limit == 16_000
    ramp = ramp.follow(Offer(MA(8_000), "site"), 1_000)
    assert ramp.offer.limit == 8_000
    assert ramp.follow(Offer(MA(16_000), "board"), 10_999).offer.limit == 8_000
    assert ramp.follow(Offer(MA(16_000), "board"), 11_000).offer.limit == 16_000


def test_a_slightly_higher_target_is_not_worth_a_write() -> None:
    ramp = Ramp().follow(Offer(MA(16_000), "site"), 0)
    assert ramp.follow(Offer(MA(16_400), "site"), 60_000) == ramp


@given(st.lists(st.integers(0, 32_000), min_size=1, max_size=60))
def test_the_offer_is_never_above_the_target(targets: list[int]) -> None:
    ramp = Ramp()
    for now, target in enumerate(targets):
        ramp = ramp.follow(Offer(MA(target), "site"), now * 1000)
        assert ramp.offer.limit <= target
