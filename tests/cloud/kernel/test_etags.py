"""What If-Match and If-None-Match let through."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fastapi import Response

from cloud.kernel.etags import ANYTHING, Expected, Stale, Tagged, etag, version_of


@pytest.mark.parametrize("header", ['"v"', '"a", "v"', "*", '"v-live"'])
def test_a_version_that_was_seen_may_be_changed(header: str) -> None:
    Expected(header).check("v")
    ANYTHING.check("v")


@pytest.mark.parametrize("header", ['"a"', "v", 'W/"v"', "", '"', '"a-v"'])
def test_another_version_may_not(header: str) -> None:
    with pytest.raises(Stale):
        Expected(header).check("v")


@pytest.mark.parametrize(
    ("header", "known"),
    [('"v-1"', True), ('W/"v-1"', True), ('"x", "v-1"', True), ("*", True), ('"v"', False),
     ('"v-2"', False), (None, False)],
)  # fmt: skip
def test_what_is_known_is_not_sent_again(header: str | None, known: bool) -> None:
    response = Response()
    answer = Tagged(response, header).answer("view", "v", "1")
    if known:
        assert isinstance(answer, Response)
        assert (answer.status_code, answer.headers["ETag"]) == (304, etag("v", "1"))
    else:
        assert (answer, response.headers["ETag"]) == ("view", '"v-1"')


def test_a_version_is_of_the_content() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert version_of(now, "a", 1) == version_of(now, "a", 1)
    assert (
        len({version_of("a", 1), version_of("a", 2), version_of(["a"], 1), version_of("a1")}) == 4
    )
