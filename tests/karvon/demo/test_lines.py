"""Questions over JSON lines, against a socket that answers what the test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from karvon.demo.lines import Address, ask
from karvon.demo.process import DemoError, free_port


@contextmanager
def _answering(server: socket.socket, answer: bytes) -> Iterator[list[bytes]]:
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            asked.append(stream.readline())
            stream.write(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    thread.join()
    server.close()


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[socket.socket, Address]:
    if request.param == "tcp":
        server = socket.create_server(("127.0.0.1", 0))
        return server, int(server.getsockname()[1])
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    return server, tmp_path / "s"


def test_question_and_answer(listening: tuple[socket.socket, Address]) -> None:
    server, address = listening
    with _answering(server, b'{"ok": true, "limit_ma": 16000}\n') as asked:
        assert ask(address, {"do": "status"})["limit_ma"] == 16000
    assert json.loads(asked[0]) == {"do": "status"}


def test_a_refusal_is_an_error(listening: tuple[socket.socket, Address]) -> None:
    server, address = listening
    answer = b'{"ok": false, "error": "no such EVSE"}\n'
    with _answering(server, answer), pytest.raises(DemoError, match="no such EVSE"):
        ask(address, {"do": "plug", "evse": 9})


def test_silence_is_an_error(listening: tuple[socket.socket, Address]) -> None:
    server, address = listening
    with _answering(server, b""), pytest.raises(DemoError, match="closed the connection"):
        ask(address, {"do": "status"})


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    for address in (free_port(), tmp_path / "nothing"):
        with pytest.raises(DemoError, match="does not answer"):
            ask(address, {"do": "status"})
