"""`karvon agent claim` against a cloud that answers as ours does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli.claiming import claim

AGENT = """
station = "TAS-0001"
journal = { folder = "journal" }
uplink = {}
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = { host = "127.0.0.1" }
"""
Answering = Callable[[int, dict[str, Any]], tuple[str, list[dict[str, Any]]]]


@contextmanager
def _cloud(status: int, body: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Nothing on the test's stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def answering() -> Iterator[Answering]:
    with ExitStack() as stack:
        yield lambda status, body: stack.enter_context(_cloud(status, body))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(AGENT)
    return path


def test_a_station_on_the_list_is_told_the_code_to_come_back_with(
    answering: Answering, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = {"station": "TAS-0001", "status": "pending", "code": "AB2-CD3", "detail": "waits"}
    url, asked = answering(202, waits)
    assert claim(config, url, None, as_json=False) == 1
    assert {**asked[0], "csr": ""} == {"station": "TAS-0001", "code": None, "csr": ""}
    assert asked[0]["csr"].startswith("-----BEGIN CERTIFICATE REQUEST-----")
    assert "--code AB2-CD3" in capsys.readouterr().out
    assert not (config.parent / "credentials.json").exists()


def test_credentials_are_kept_where_only_their_owner_reads_them(
    answering: Answering, config: Path
) -> None:
    let_in = {
        "station": "TAS-0001",
        "mqtt_url": "mqtts://cloud.example:8883",
        "username": "TAS-0001",
        "password": "s3cret",
        "ca_pem": "a certificate",
    }
    url, _ = answering(200, let_in)
    assert claim(config, url, "AB2-CD3", as_json=True) == 0
    kept = config.with_name("credentials.json")
    assert json.loads(kept.read_text())["password"] == "s3cret"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_refusal_is_told_with_the_clouds_own_reason(
    answering: Answering, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = answering(403, {"title": "Forbidden", "detail": "the claim code has expired"})
    assert claim(config, url, "AB2-CD3", as_json=False) == 1
    assert "the claim code has expired" in capsys.readouterr().err


def test_a_password_never_crosses_the_network_in_the_clear(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claim(config, "http://cloud.example", "AB2-CD3", as_json=False) == 2
    assert "use https" in capsys.readouterr().err
