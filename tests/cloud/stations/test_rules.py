"""The pure rules of stations: joining, dating, freshness, rates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from cloud.communication.api import Presence
from cloud.kernel.limiter import Limiter
from cloud.stations.clock import BootClock, Dating, date, to_ms
from cloud.stations.liveness import freshness
from cloud.stations.registration import (
    ClaimCode,
    Policy,
    Standing,
    Verdict,
    digest,
    judge,
    new_code,
)
from protocols.agent_link import ClockQuality, Stamp
from protocols.quantities import Milliseconds

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def stamp(at: datetime, mono: int, quality: ClockQuality, boot: int = 1) -> Stamp:
    return Stamp(Milliseconds(to_ms(at)), Milliseconds(mono), UUID(int=boot), quality)


SENT = stamp(NOW, 1_000_000, ClockQuality.UNSET)


class TestJoining:
    @pytest.mark.parametrize(
        ("policy", "verdict"),
        [
            (Policy.OPEN, Verdict.CREATE),
            (Policy.PENDING, Verdict.ENLIST),
            (Policy.KNOWN, Verdict.UNKNOWN),
        ],
    )
    def test_a_stranger_meets_the_policy(self, policy: Policy, verdict: Verdict) -> None:
        assert judge(policy, None, None, None, NOW) is verdict

    @pytest.mark.parametrize("policy", list(Policy))
    def test_a_known_station_needs_its_code_whatever_the_policy(self, policy: Policy) -> None:
        claim = ClaimCode(digest("AAAAA-BBBBB"), NOW + HOUR)
        for standing in (Standing.EXPECTED, Standing.REGISTERED):
            assert judge(policy, standing, claim, None, NOW) is Verdict.WRONG_CODE
            assert judge(policy, standing, claim, "AAAAA-BBBBC", NOW) is Verdict.WRONG_CODE
            assert judge(policy, standing, None, "AAAAA-BBBBB", NOW) is Verdict.WRONG_CODE
            assert judge(policy, standing, claim, " aaaaabbbbb ", NOW) is Verdict.LET_IN
            late = judge(policy, standing, claim, "AAAAA-BBBBB", NOW + HOUR)
            assert late is Verdict.EXPIRED

    def test_who_waits_goes_on_waiting_with_the_right_code(self) -> None:
        claim = ClaimCode(digest("X"), NOW + HOUR)
        assert judge(Policy.PENDING, Standing.PENDING, claim, "X", NOW) is Verdict.WAIT

    def test_codes_are_typable_and_never_the_same(self) -> None:
        codes = {new_code() for _ in range(100)}
        assert len(codes) == 100
        assert not any(set(code) & set("01ILOU") for code in codes)


class TestDating:
    def test_a_trusted_stamp_stands_by_itself(self) -> None:
        at = NOW - HOUR
        dated = date(stamp(at, 5, ClockQuality.SYNCED, boot=3), NOW, SENT)
        assert (dated.at, dated.quality) == (at, Dating.SYNCED)

    @pytest.mark.parametrize("at", [datetime(1970, 1, 2, tzinfo=UTC), NOW + timedelta(days=9)])
    def test_an_absurd_time_is_not_trusted_whatever_it_says(self, at: datetime) -> None:
        dated = date(stamp(at, 400_000, ClockQuality.SYNCED), NOW, SENT)
        assert (dated.at, dated.quality) == (NOW - timedelta(minutes=10), Dating.ESTIMATED)

    def test_a_boot_with_a_known_clock_is_read_with_it(self) -> None:
        clock = BootClock(to_ms(NOW - HOUR), Dating.SYNCED)
        unset = stamp(datetime(1970, 1, 1, tzinfo=UTC), 60_000, ClockQuality.UNSET, boot=7)
        dated = date(unset, NOW, SENT, clock)
        assert dated.at == NOW - HOUR + timedelta(minutes=1)

    def test_a_sender_whose_clock_is_set_by_now_dates_its_boot_exactly(self) -> None:
        sent = stamp(NOW - HOUR, 1_000_000, ClockQuality.CLOUD)
        unset = stamp(datetime(1970, 1, 1, tzinfo=UTC), 400_000, ClockQuality.UNSET)
        dated = date(unset, NOW, sent)
        assert (dated.at, dated.quality) == (NOW - HOUR - timedelta(minutes=10), Dating.CLOUD)

    def test_an_unknown_boot_is_said_to_be_undated(self) -> None:
        other = stamp(datetime(1970, 1, 2, tzinfo=UTC), 5, ClockQuality.UNSET, boot=8)
        assert date(other, NOW, SENT).quality is Dating.UNSET

    def test_times_beyond_every_calendar_do_not_break_it(self) -> None:
        far = Stamp(Milliseconds(10**18), Milliseconds(10**18), UUID(int=8), ClockQuality.SYNCED)
        assert date(far, NOW, SENT).quality is Dating.UNSET


class TestFreshness:
    online = Presence(online=True, last_seen=NOW - timedelta(seconds=5))

    def test_a_connected_station_with_a_talking_board_is_fresh(self) -> None:
        at = NOW - timedelta(seconds=30)
        fresh = freshness(at, at - timedelta(seconds=1), self.online, NOW)
        assert (fresh.stale, fresh.source, fresh.age_s) == (False, "board", 30)

    def test_a_silent_board_makes_it_stale_and_ages_from_the_last_answer(self) -> None:
        fresh = freshness(NOW, NOW - timedelta(seconds=40), self.online, NOW)
        assert (fresh.stale, fresh.source, fresh.age_s) == (True, "agent", 40)

    @pytest.mark.parametrize(
        "presence",
        [
            None,
            Presence(online=False, last_seen=NOW),
            Presence(online=True, last_seen=NOW - timedelta(minutes=3)),
        ],
    )
    def test_who_is_not_heard_is_stale(self, presence: Presence | None) -> None:
        assert freshness(NOW, NOW, presence, NOW).stale


class TestLimiter:
    def test_a_burst_passes_and_then_one_at_a_time(self) -> None:
        limiter = Limiter(burst=3, every=timedelta(seconds=10))
        assert [limiter.allow("a", NOW) for _ in range(4)] == [True, True, True, False]
        assert limiter.allow("b", NOW)
        assert not limiter.allow("a", NOW + timedelta(seconds=9))
        assert limiter.allow("a", NOW + timedelta(seconds=10))
        assert not limiter.allow("a", NOW + timedelta(seconds=11))
