from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response

from edge_agent.uplink.ocpp.station import Received, Send, Station
from edge_agent.uplink.ocpp.websocket import (
    Hands,
    OcppSettings,
    OcppUplink,
    explain,
    login,
    tls_context,
)
from edge_agent.uplink.pace import retry_delay
from protocols.ocpp.version import Version


def settings(**fields: object) -> OcppSettings:
    known = {"url": "wss://csms.example/ocpp/", "version": Version.V16, "identity": "UZ*KRV 01"}
    return OcppSettings(**{**known, **fields})  # type: ignore[arg-type]  # by field name


def test_the_identity_stands_behind_the_url_escaped() -> None:
    assert settings().address == "wss://csms.example/ocpp/UZ%2AKRV%2001"


@pytest.mark.parametrize("profile", [1, 2])
def test_the_login_is_identity_and_password(tmp_path: Path, profile: int) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"pass word:1 \r\n")
    headers = login(settings(security_profile=profile, password_file=file))
    assert base64.b64decode(headers["Authorization"][6:]) == b"UZ*KRV 01:pass word:1 "


def test_without_a_password_or_with_a_certificate_there_is_no_login(tmp_path: Path) -> None:
    assert login(settings()) == {}
    file = tmp_path / "password"
    file.write_text("unused")
    assert login(settings(security_profile=3, password_file=file)) == {}


def test_only_tls_has_a_context() -> None:
    assert tls_context(settings(url="ws://csms.example")) is None
    assert tls_context(settings()) is not None


def test_attempts_come_ever_farther_apart_and_never_together() -> None:
    slow = settings(longest_retry_s=60.0)
    assert [
        retry_delay(slow.first_retry_s, slow.longest_retry_s, n, 1.0) for n in (0, 1, 2, 6, 100)
    ] == [1, 2, 4, 60, 60]
    assert retry_delay(slow.first_retry_s, slow.longest_retry_s, 6, 0.0) == 30


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "identity and password"), (404, "the URL"), (503, "Trying again")]
)
def test_a_refusal_says_what_to_do(status: int, remedy: str) -> None:
    error = InvalidStatus(Response(status, "", Headers()))
    text = explain(settings(), error)
    assert text.startswith("no link to the OCPP backend wss://csms.example/ocpp/UZ%2AKRV%2001")
    assert remedy in text


def test_silence_is_no_answer_in_time() -> None:
    assert "no answer in time" in explain(settings(), TimeoutError())


class Talkative:
    """A station that answers everything at length."""

    def handle(self, event: Any, _now_ms: int) -> list[Send]:
        return [Send(b"x" * 20_000)] if isinstance(event, Received) else []


class Idle:
    async def upkeep(self) -> None: ...


async def test_a_backend_that_asks_and_takes_nothing_is_hung_up_on() -> None:
    ended = asyncio.Event()

    async def ask_for_ever(socket: ServerConnection) -> None:
        socket.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket's transport
        try:
            while True:
                await socket.send("well?")
        except ConnectionClosed:
            ended.set()

    async with serve(ask_for_ever, "127.0.0.1", 0, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        plain = settings(url=f"ws://127.0.0.1:{port}", ping_s=0, longest_retry_s=60.0)
        uplink = OcppUplink(plain, cast("Station", Talkative()), cast("Hands", Idle()))
        running = asyncio.create_task(uplink.run())
        async with asyncio.timeout(60):
            await ended.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
