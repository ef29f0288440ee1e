from __future__ import annotations

from uuid import UUID

import pytest

from edge_agent.records import LocalList
from edge_agent.rules.authorization import Authorizer, OfflinePolicy, Standing
from protocols.agent_link import ClockQuality, IdToken, LocalListEntry, Stamp
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

BOOT = UUID(int=1)
LIST = LocalList(
    version=3,
    entries=(
        LocalListEntry(IdToken("04a1b2c3")),
        LocalListEntry(IdToken("EXPIRES"), expires_ms=Milliseconds(5_000)),
        LocalListEntry(IdToken("BLOCKED"), blocked=True, group="family"),
        LocalListEntry(IdToken("ONE"), group="family"),
        LocalListEntry(IdToken("TWO"), group="family"),
    ),
)


def at(wall_ms: int, quality: ClockQuality = ClockQuality.SYNCED) -> Stamp:
    return Stamp(Milliseconds(wall_ms), Milliseconds(0), BOOT, quality)


@pytest.mark.parametrize(
    ("value", "wall_ms", "standing"),
    [
        ("04A1B2C3", 0, Standing.ACCEPTED),
        ("expires", 4_999, Standing.ACCEPTED),
        ("expires", 5_000, Standing.EXPIRED),
        ("blocked", 0, Standing.BLOCKED),
        ("nobody", 0, Standing.UNKNOWN),
    ],
)
def test_standing(value: str, wall_ms: int, standing: Standing) -> None:
    decision = Authorizer(LIST, OfflinePolicy()).decide(IdToken(value), at(wall_ms))
    assert decision.standing is standing
    assert decision.allowed is (standing is Standing.ACCEPTED)


def test_an_unset_clock_cannot_judge_an_expiry() -> None:
    now = at(9_999_999, ClockQuality.UNSET)
    assert Authorizer(LIST, OfflinePolicy()).decide(IdToken("EXPIRES"), now).allowed


def test_the_policy_may_let_strangers_in_under_a_cap() -> None:
    policy = OfflinePolicy(allow_unknown=True, unknown_cap=MilliAmperes(10_000))
    authorizer = Authorizer(LIST, policy)
    decision = authorizer.decide(IdToken("nobody"), at(0))
    assert (decision.allowed, decision.cap) == (True, 10_000)
    assert authorizer.cap(IdToken("nobody")) == 10_000
    assert authorizer.cap(IdToken("one")) is None


def test_a_stranger_gets_so_much_energy_until_the_token_is_known() -> None:
    authorizer = Authorizer(LIST, OfflinePolicy(unknown_energy=WattHours(5_000)))
    assert not authorizer.used_up(IdToken("nobody"), 4_999)
    assert authorizer.used_up(IdToken("nobody"), 5_000)
    assert not authorizer.used_up(IdToken("one"), 50_000)
    assert not Authorizer(LIST, OfflinePolicy()).used_up(IdToken("nobody"), 50_000)


def test_a_blocked_token_stays_out_under_any_policy() -> None:
    authorizer = Authorizer(LIST, OfflinePolicy(allow_unknown=True))
    assert not authorizer.decide(IdToken("BLOCKED"), at(0)).allowed


@pytest.mark.parametrize(
    ("presented", "owner", "may"),
    [
        ("one", "ONE", True),
        ("TWO", "ONE", True),
        ("BLOCKED", "ONE", False),
        ("04A1B2C3", "ONE", False),
        ("stranger", "STRANGER", True),
        ("ONE", None, False),
    ],
)
def test_who_may_stop(presented: str, owner: str | None, may: bool) -> None:
    authorizer = Authorizer(LIST, OfflinePolicy())
    own = None if owner is None else IdToken(owner)
    assert authorizer.may_stop(IdToken(presented), own) is may
