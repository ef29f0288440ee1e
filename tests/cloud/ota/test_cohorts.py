"""Who is in a cohort, and in which wave."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from cloud.ota.cohorts import Candidate, Cohort, place, waves
from cloud.ota.windows import Daily


def one(number: int = 1, **said: object) -> Candidate:
    told: dict[str, object] = {
        "site_id": 1, "models": ("ABB Terra AC",), "version": "1.9.0", "tags": frozenset({"pilot"}),
    }  # fmt: skip
    return Candidate(number, f"CP-{number}", **{**told, **said})  # type: ignore[arg-type]  # as above


def test_each_field_narrows_and_any_of_its_values_will_do() -> None:
    assert Cohort().holds(one())
    assert Cohort(sites=(2, 1), models=("terra",), versions=("1.", "0."), tags=("pilot",)).holds(
        one()
    )
    for narrow in (
        Cohort(sites=(2,)),
        Cohort(models=("KEBA",)),
        Cohort(versions=("2.",)),
        Cohort(tags=("canary",)),
        Cohort(hardware=("linux-aarch64-cp311",)),
        Cohort(percent=0),
    ):
        assert not narrow.holds(one())


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 10_000))
def test_a_larger_share_holds_all_of_a_smaller_one(less: int, more: int, number: int) -> None:
    less, more = sorted((less, more))
    assert Cohort(percent=more).holds(one(number)) or not Cohort(percent=less).holds(one(number))


def test_shares_are_about_what_they_say_and_are_for_ever() -> None:
    held = sum(Cohort(percent=10).holds(one(number)) for number in range(10_000))
    assert 900 < held < 1100
    assert place("cohort", "CP-1") == 6438


@given(
    st.sets(st.integers(1, 500), max_size=60),
    st.lists(st.integers(1, 99), max_size=4, unique=True).map(sorted),
)
def test_waves_take_everyone_once_in_their_shares(numbers: set[int], percents: list[int]) -> None:
    members = [one(number) for number in numbers]
    shares = [*percents, 100]
    placed = waves("campaign", members, shares)
    assert {member.station_id for member, _ in placed} == numbers
    assert [wave for _, wave in placed] == sorted(wave for _, wave in placed)
    for wave, percent in enumerate(shares):
        upto = sum(at <= wave for _, at in placed)
        assert upto == -(-percent * len(members) // 100)
    assert waves("campaign", reversed(members), shares) == placed


# --------------------------------------------------------------------------- windows


@given(
    st.times().map(lambda t: time(t.hour, t.minute)),
    st.times().map(lambda t: time(t.hour, t.minute)),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)).map(  # noqa: DTZ001  # made aware
        lambda at: at.replace(tzinfo=UTC)
    ),
    st.sampled_from(["UTC", "Asia/Tashkent", "Europe/Berlin", "Pacific/Apia"]),
)
def test_the_next_window_is_never_over_and_comes_within_two_days(
    start: time, end: time, now: datetime, zone: str
) -> None:
    begins, ends = Daily(start, end, zone).next(now)
    assert now < ends
    assert begins < ends <= begins + timedelta(hours=26)
    assert begins - now <= timedelta(hours=50)
    there = begins.astimezone(ZoneInfo(zone))
    assert abs(there.hour * 60 + there.minute - start.hour * 60 - start.minute) in {0, 60}


def test_a_window_over_midnight() -> None:
    night = Daily(time(23), time(5), "Asia/Tashkent")
    begins, ends = night.next(datetime(2026, 5, 1, 20, tzinfo=UTC))  # 1 o'clock there
    assert (begins, ends) == (
        datetime(2026, 5, 1, 18, tzinfo=UTC),
        datetime(2026, 5, 2, 0, tzinfo=UTC),
    )
