"""Whose a status is, and when an update is concluded to be done: rules without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloud.diagnostics.transfers import Standing, addressee, concluded, is_over

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def standing(number: int, **fields: Any) -> Standing:
    given: dict[str, Any] = {
        "station_id": 1, "kind": "firmware", "request_id": number, "expected_version": "",
        "status": "Asked", "is_open": True, "asked_at": NOON,
    }  # fmt: skip
    return Standing(id=number, **{**given, **fields})


def test_a_status_with_a_number_is_of_that_request() -> None:
    held = [standing(2), standing(1), standing(1, kind="log")]
    assert addressee(held, "firmware", 1, NOON) == held[1]
    assert addressee(held, "log", 1, NOON) == held[2]
    assert addressee(held, "firmware", 3, NOON) is None


def test_a_status_without_a_number_is_of_the_latest_that_is_not_too_old() -> None:
    held = [standing(2, request_id=None), standing(1, request_id=None)]
    assert addressee(held, "firmware", None, NOON + timedelta(days=1)) == held[0]
    assert addressee(held, "firmware", None, NOON + timedelta(days=31)) is None
    assert addressee([], "log", None, NOON) is None


@pytest.mark.parametrize(
    ("expected", "told", "done"),
    [
        ("2.1", "2.1", True),
        ("2.1", "V2.1 ", True),
        ("v2.1", "2.1", True),
        ("2.1", "2.10", False),
        ("2.1", "", False),
        ("", "", False),
        ("", "2.1", False),
    ],
)
def test_a_boot_with_the_expected_firmware_concludes_the_update(
    expected: str, told: str, done: bool
) -> None:
    held = [standing(1, expected_version=expected)]
    assert bool(concluded(held, told)) is done
    assert concluded([standing(1, expected_version=expected, is_open=False)], told) == []
    assert concluded([standing(1, expected_version=expected, kind="log")], told) == []


def test_when_a_transfer_is_over() -> None:
    assert is_over("firmware", "Installed")
    assert is_over("firmware", "Published")
    assert is_over("firmware", "PublishFailed")
    assert is_over("firmware", "InvalidChecksum")
    assert not is_over("firmware", "ChecksumVerified")
    assert not is_over("firmware", "Downloaded")
    assert is_over("log", "UploadFailure")
    assert not is_over("log", "Uploading")
