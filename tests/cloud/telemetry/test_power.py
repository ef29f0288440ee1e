"""Power that no meter told is what its register moved by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloud.telemetry.power import with_power
from cloud.telemetry.store import Bucket

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def bucket(minutes: int, wh: int | None, watts: int | None = None, evse: int = 1) -> Bucket:
    rest = [None] * 8
    return Bucket(evse, NOW + timedelta(minutes=minutes), 1, wh, watts, *rest)


def powers(*buckets: Bucket) -> list[int | None]:
    return [one.power_w for one in with_power(buckets)]


def test_power_is_the_mean_since_the_bucket_before() -> None:
    assert powers(bucket(0, 0), bucket(1, 100), bucket(3, 100)) == [None, 6000, 0]


def test_what_was_told_stands() -> None:
    assert powers(bucket(0, 0, 5), bucket(1, 100, 7)) == [5, 7]


def test_buckets_without_a_register_are_passed_over() -> None:
    assert powers(bucket(0, 0), bucket(1, None), bucket(2, 200)) == [None, None, 6000]


def test_a_register_that_ran_back_and_another_evse_tell_nothing() -> None:
    assert powers(bucket(0, 500), bucket(1, 100), bucket(2, 900, evse=2)) == [None, None, None]
