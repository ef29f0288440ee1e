"""The REST client against answers of every kind: pages, retries, refusals, streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from karvon.remote.client import (
    FAILED,
    OUT_OF_REACH,
    TRIES,
    USAGE,
    Remote,
    RemoteError,
    Sent,
    Target,
    at,
)

HERE = Target("http://127.0.0.1:1", "kv_test")
Answer = Callable[[httpx.Request], httpx.Response]


class Cloud:
    """Answers in order, the last one for ever; remembers what was asked and how long was waited."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []
        self.waited: list[float] = []
        self.remote = Remote(HERE, transport=httpx.MockTransport(self._answer), sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def page(items: list[Any], following: str | None) -> httpx.Response:
    return httpx.Response(200, json={"items": items, "next": following})


def problem(status: int, detail: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": detail, "code": "x", "status": status})


# --------------------------------------------------------------------------- which cloud, as whom


def test_the_key_comes_from_the_file_that_is_named_nearest(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.write_text("kv_near\n")
    far.write_text("kv_far\n")
    around = {"KARVON_API_KEY_FILE": str(far), "KARVON_API_KEY": "kv_plain"}
    assert Target.of(None, near, around).key == "kv_near"
    assert Target.of(None, None, around).key == "kv_far"
    assert Target.of(None, None, {"KARVON_API_KEY": "kv_plain"}).key == "kv_plain"


@pytest.mark.parametrize(
    ("url", "key", "word"),
    [
        ("http://cloud.example", "kv_x", "unencrypted"),
        ("ftp://cloud.example", "kv_x", "no address"),
        ("cloud.example:8080", "kv_x", "no address"),
        ("https://cloud.example", "", "--key-file"),
        ("https://cloud.example", "kv_\nx", "--key-file"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_sent(
    url: str, key: str, word: str
) -> None:
    with pytest.raises(RemoteError, match=word) as refused:
        Target.of(url, None, {"KARVON_API_KEY": key})
    assert refused.value.code == USAGE


def test_an_address_may_be_written_with_its_path() -> None:
    target = Target.of("https://cloud.example/api/v1/", None, {"KARVON_API_KEY": "kv_x"})
    assert target.url == "https://cloud.example"


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="nowhere"):
        Target.of(None, tmp_path / "nowhere", {})


def test_parts_of_a_path_are_quoted() -> None:
    assert at("/stations/{station}", station="UZ*KRV/1?x") == "/stations/UZ%2AKRV%2F1%3Fx"


# --------------------------------------------------------------------------- trying again


def test_a_post_is_sent_again_under_the_same_key() -> None:
    cloud = Cloud(
        httpx.ReadTimeout("slow"), problem(503, "starting"), httpx.Response(201, json={"id": 1})
    )
    assert cloud.remote.ask("POST", "/sites", body={"name": "a"}).json() == {"id": 1}
    assert len({request.headers["Idempotency-Key"] for request in cloud.asked}) == 1
    assert {request.content for request in cloud.asked} == {b'{"name":"a"}'}
    assert cloud.waited == [0.5, 1.0]


def test_a_request_that_is_still_under_way_is_waited_for() -> None:
    busy = httpx.Response(409, json={"detail": "busy", "code": "idempotency.busy"})
    cloud = Cloud(httpx.ReadTimeout("slow"), busy, httpx.Response(201, json={"id": 1}))
    assert cloud.remote.ask("POST", "/sites", body={}).json() == {"id": 1}


def test_two_posts_have_two_keys() -> None:
    cloud = Cloud(httpx.Response(201, json={}))
    for _ in range(2):
        cloud.remote.ask("POST", "/sites", body={})
    assert len({request.headers["Idempotency-Key"] for request in cloud.asked}) == 2


def test_a_cloud_that_is_away_is_told_in_one_line() -> None:
    cloud = Cloud(httpx.ConnectError("connection refused"))
    with pytest.raises(RemoteError, match="does not answer") as away:
        cloud.remote.get("/me")
    assert (away.value.code, len(cloud.asked)) == (OUT_OF_REACH, TRIES)


@pytest.mark.parametrize(
    ("status", "code"), [(401, USAGE), (422, USAGE), (403, FAILED), (404, FAILED), (409, FAILED)]
)
def test_a_refusal_is_the_clouds_own_words_and_is_not_repeated(status: int, code: int) -> None:
    cloud = Cloud(problem(status, "there is no station X"))
    with pytest.raises(RemoteError, match="there is no station X") as refused:
        cloud.remote.get("/stations/X")
    assert (refused.value.code, len(cloud.asked)) == (code, 1)


def test_an_answer_of_something_else_is_told() -> None:
    cloud = Cloud(httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(RemoteError, match="Karvon cloud"):
        cloud.remote.get("/me")


# --------------------------------------------------------------------------- lists


def test_pages_are_followed_as_far_as_wanted() -> None:
    pages = [page([1, 2], "a"), page([3, 4], "b"), page([5], None)]
    assert list(Cloud(*pages).remote.items("/sites", {}, None)) == [1, 2, 3, 4, 5]
    cloud = Cloud(*pages)
    assert list(cloud.remote.items("/sites", {"text": "x"}, 4)) == [1, 2, 3, 4]
    assert [dict(request.url.params) for request in cloud.asked] == [
        {"text": "x", "limit": "4"},
        {"text": "x", "limit": "2", "cursor": "a"},
    ]


def test_a_list_that_only_ever_polls_ends_at_its_first_empty_page() -> None:
    cloud = Cloud(page([1], "a"), page([], "a"))
    assert list(cloud.remote.items("/events", {}, None)) == [1]


def test_csv_pages_have_one_header() -> None:
    kind = {"content-type": "text/csv; charset=utf-8"}
    link = {**kind, "link": '</api/v1/sites?cursor=a&sort=name>; rel="next"'}
    cloud = Cloud(
        httpx.Response(200, text='id,name\r\n1,"a\nb"\r\n', headers=link),
        httpx.Response(200, text="id,name\r\n2,c\r\n", headers=kind),
    )
    text = "".join(cloud.remote.csv("/sites", {"sort": "name"}, None))
    assert text == 'id,name\r\n1,"a\nb"\r\n2,c\r\n'
    assert dict(cloud.asked[1].url.params) == {"cursor": "a", "sort": "name", "limit": "500"}
    assert {request.headers["accept"] for request in cloud.asked} == {"text/csv"}


def test_a_list_without_csv_says_so() -> None:
    with pytest.raises(RemoteError, match="not offered as CSV"):
        list(Cloud(page([], None)).remote.csv("/events", {}, None))


# --------------------------------------------------------------------------- streams


def test_events_are_read_as_the_standard_writes_them() -> None:
    text = ": heartbeat\n\nid: 7\nevent: sample\ndata: {\ndata: }\n\ndata:x\n\nid: 9\ndata: cut"
    cloud = Cloud(httpx.Response(200, text=text))
    found = list(cloud.remote.stream("/events/stream", {"kind": "a", "station": None}, "6"))
    assert found == [Sent("sample", "{\n}", "7"), Sent("message", "x", "7")]
    (request,) = cloud.asked
    assert request.headers["last-event-id"] == "6"
    assert dict(request.url.params) == {"kind": "a"}


def test_a_refused_stream_is_a_refusal() -> None:
    with pytest.raises(RemoteError, match="no such kind"):
        list(Cloud(problem(422, "no such kind")).remote.stream("/events/stream", {}, None))


def test_what_is_sent_is_json(tmp_path: Path) -> None:
    cloud = Cloud(httpx.Response(200, json={}))
    cloud.remote.ask("PATCH", "/sites/1", body={"name": "Чорсу"})
    assert json.loads(cloud.asked[0].content) == {"name": "Чорсу"}
    assert "Idempotency-Key" not in cloud.asked[0].headers
