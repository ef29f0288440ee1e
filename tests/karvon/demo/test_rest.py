"""The REST client against a plain HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from karvon.demo.process import free_port
from karvon.demo.rest import Rest, RestError

PAGES = {
    "/stations": {"items": [{"n": 1}, {"n": 2}], "next": "more"},
    "/stations?cursor=more": {"items": [{"n": 3}], "next": None},
}


class Handler(BaseHTTPRequestHandler):
    def _answer(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer right":
            self._answer(401, {"title": "Unauthorized", "detail": "no such key; make one"})
        elif self.path in PAGES:
            self._answer(200, PAGES[self.path])
        else:
            self._answer(404, "nothing here")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(201, {"got": body})

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_list_is_read_page_by_page(base: str) -> None:
    assert [item["n"] for item in Rest(base, "right").items("/stations")] == [1, 2, 3]


def test_a_body_goes_out_as_json(base: str) -> None:
    assert Rest(base, "right").post("/sites", {"name": "Chorsu"}) == {"got": {"name": "Chorsu"}}


def test_a_refusal_says_why(base: str) -> None:
    with pytest.raises(RestError, match="401 no such key; make one") as caught:
        Rest(base, "wrong").get("/stations")
    assert caught.value.status == 401


def test_a_refusal_without_problem_json_is_shown_as_it_came(base: str) -> None:
    with pytest.raises(RestError, match=r"404 .*nothing here"):
        Rest(base, "right").get("/nowhere")


def test_nobody_there_is_status_zero() -> None:
    with pytest.raises(RestError, match="no answer") as caught:
        Rest(f"http://127.0.0.1:{free_port()}").get("/stations")
    assert caught.value.status == 0
