"""The fault proxy against a plain echo server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from karvon.demo.faults import FaultProxy


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            return


@pytest.fixture
def echo_port() -> Iterator[int]:
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[FaultProxy]:
    with FaultProxy(echo_port) as proxy:
        yield proxy


def _connect(proxy: FaultProxy, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)


def _until_end(connection: socket.socket) -> bytes:
    """All that still arrives, until the connection ends or is reset."""
    got = b""
    try:
        while data := connection.recv(4096):
            got += data
    except ConnectionResetError:
        pass
    return got


def test_bytes_pass_both_ways_untouched(proxy: FaultProxy) -> None:
    sent = bytes(range(256)) * 100
    with _connect(proxy) as connection:
        connection.sendall(sent)
        got = b""
        while len(got) < len(sent):
            got += connection.recv(4096)
    assert got == sent
    assert proxy.connections == 1


def test_a_blackhole_swallows_but_keeps_the_connection(proxy: FaultProxy) -> None:
    proxy.blackhole = True
    with _connect(proxy, timeout=0.3) as connection:
        connection.sendall(b"lost")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.blackhole = False
        connection.sendall(b"kept")
        assert connection.recv(16) == b"kept"
    assert proxy.swallowed == 4


def test_a_connection_is_reset_after_its_allowance(proxy: FaultProxy) -> None:
    proxy.reset_every = 100
    with _connect(proxy) as connection:
        connection.sendall(b"x" * 80)
        assert len(_until_end(connection)) <= 20
    assert proxy.resets == 1


def test_cut_resets_what_stands_and_the_next_connection_works(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        proxy.cut()
        assert _until_end(connection) == b""
    with _connect(proxy) as connection:
        connection.sendall(b"b")
        assert connection.recv(1) == b"b"
