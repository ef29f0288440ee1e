"""The local page of a real agent, and all that must not work on it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from edge_agent import config, page
from edge_agent.local_page import (
    MOST_A_SECOND,
    MOST_CLIENTS,
    Answer,
    Asked,
    LocalPage,
    language,
    ours,
    parse,
)
from edge_agent.wording import LANGUAGES, wording
from karvon.demo.process import free_port

Live = Any  # the fixtures' classes live in conftest, which cannot be imported
CARD = "04A2B3C4D5E6F7"
STATUS: dict[str, Any] = {
    "station": "TAS-1",
    "status": {"agent_version": "1"},
    "links": [],
    "evses": [],
    "limits": [],
    "sessions": [],
}


async def say(port: int, text: str) -> tuple[str, str]:
    """Head and body of whatever is answered, until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    try:
        async with asyncio.timeout(60):
            answer = (await reader.read()).decode()
    except ConnectionError:
        answer = ""
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[str, str]:
    return await say(port, f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")


async def until(port: int, path: str, holds: Callable[[str], bool]) -> str:
    async with asyncio.timeout(60):
        while True:
            try:
                _, body = await get(port, path)
            except ConnectionError:
                body = ""  # it does not listen yet
            if holds(body):
                return body
            await asyncio.sleep(0.1)  # the page tells nobody when it changes


async def test_it_shows_links_with_advice_in_every_language(paged: tuple[Live, int]) -> None:
    live, port = paged
    live.charger.control.execute({"do": "silence", "seconds": 3600})
    await live.until_link("board", "board.silent")
    for each in LANGUAGES:
        what, why, todo = wording(each).told("board.silent", {})
        body = await until(port, f"/?lang={each}", lambda body, what=what: what in unescaped(body))
        assert why in unescaped(body)
        assert todo in unescaped(body)
        assert f'<html lang="{each}">' in body
        assert wording(each)("ui", "sessions") in body


def unescaped(body: str) -> str:
    return body.replace("&#x27;", "'").replace("&quot;", '"').replace("&amp;", "&")


async def test_it_loads_nothing_from_elsewhere_and_runs_no_script(paged: tuple[Live, int]) -> None:
    _, port = paged
    await until(port, "/", bool)
    for path in ("/", "/registers"):
        head, body = await get(port, path)
        assert head.startswith("HTTP/1.1 200 OK")
        assert "Content-Security-Policy: default-src 'none'" in head
        assert not re.search(r"<script|<link|<img|<iframe|src=|@import|url\(|https?:", body)
        assert all(place.startswith("/") for place in re.findall(r'href="([^"]*)"', body))


async def test_it_shows_sessions_and_registers_but_no_whole_token(
    paged: tuple[Live, int],
) -> None:
    live, port = paged
    live.charger.control.execute({"do": "plug", "evse": 1})
    await live.ask("token", token=CARD)
    body = await until(port, "/", lambda body: body.count("…E6F7") == 2)
    assert CARD not in body
    body = await until(port, "/registers?device=left", lambda body: "voltage_l1" in body)
    assert re.search(r"<td>[0-9A-F]{4} [0-9A-F]{4}</td><td>230000</td><td>mV</td>", body)


async def test_what_is_not_a_look_is_refused(paged: tuple[Live, int]) -> None:
    live, port = paged
    await until(port, "/", bool)
    here = f"Host: 127.0.0.1:{port}\r\n\r\n"
    for method in ("POST", "PUT", "DELETE"):
        head, body = await say(port, f"{method} / HTTP/1.1\r\n{here}")
        assert head.startswith("HTTP/1.1 405 ")
        assert "\r\nAllow: GET, HEAD\r\n" in head
        assert body == "this page is read-only"
    assert (await get(port, "/", "evil.example"))[0].startswith("HTTP/1.1 403 ")
    assert (await get(port, "/journal"))[0].startswith("HTTP/1.1 404 ")
    head, body = await get(port, "/registers?device=%3Cscript%3E")
    assert head.startswith("HTTP/1.1 404 ")
    assert "Content-Type: text/plain" in head
    assert (await say(port, "nonsense\r\n\r\n"))[0].startswith("HTTP/1.1 400 ")
    assert (await say(port, f"GET /{'x' * 9000} HTTP/1.1\r\n{here}"))[0].startswith("HTTP/1.1 431 ")
    head, body = await say(port, f"HEAD / HTTP/1.1\r\n{here}")
    assert (head.startswith("HTTP/1.1 200 "), body) == (True, "")
    await live.until_link("board", "board.ok")


def a_page(port: int, **more: Any) -> LocalPage:
    async def read(_: str) -> list[Any]:
        return []

    known: dict[str, Any] = {
        "status": lambda: STATUS,
        "sessions": list,
        "read": read,
        "devices": ["left"],
    }
    return LocalPage("127.0.0.1", port, **(known | more))


async def test_a_port_in_use_keeps_no_agent_from_running_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    holder = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with a_page(port, again_s=0.01).kept():
        async with asyncio.timeout(60):
            while "trying again" not in caplog.text:
                await asyncio.sleep(0.01)
        holder.close()
        await holder.wait_closed()
        await until(port, "/", lambda body: "TAS-1" in body)


async def test_many_requests_cost_one_look_and_then_are_turned_away() -> None:
    port, looks, now = free_port(), [], [100.0]

    def status() -> Any:
        looks.append(1)
        return STATUS

    async with a_page(port, status=status, clock=lambda: now[0]).kept():
        await until(port, "/", lambda body: "TAS-1" in body)
        answers = [await get(port, "/") for _ in range(MOST_A_SECOND + 5)]
        assert len(looks) == 1
        assert [bool(head) for head, _ in answers][-5:] == [False] * 5
        now[0] += 1
        assert (await get(port, "/"))[0]
        assert len(looks) == 2


async def test_silent_clients_take_no_more_than_their_places() -> None:
    port = free_port()
    async with a_page(port, deadline_s=600).kept():
        await until(port, "/", lambda body: "TAS-1" in body)
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CLIENTS)]
        head, _ = await get(port, "/")
        assert head == ""
        for _, writer in held:
            writer.close()
        await until(port, "/", lambda body: "TAS-1" in body)


async def test_a_fault_while_it_is_made_ends_only_that_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, broken = free_port(), [True]

    def status() -> Any:
        if broken[0]:
            raise ZeroDivisionError
        return STATUS

    async with a_page(port, status=status).kept():
        async with asyncio.timeout(60):
            while "a request failed" not in caplog.text:
                with_trouble = asyncio.gather(get(port, "/"), return_exceptions=True)
                await with_trouble
        broken[0] = False
        await until(port, "/", lambda body: "TAS-1" in body)


async def test_a_client_that_says_nothing_is_let_go() -> None:
    port = free_port()
    async with a_page(port, deadline_s=0.05).kept():
        async with asyncio.timeout(60):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except ConnectionError:
                    await asyncio.sleep(0.02)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


def test_what_a_device_says_is_text_and_never_markup() -> None:
    link = {
        "kind": "board",
        "name": "<b>left</b>",
        "state": "trouble",
        "code": "board.silent",
        "why": "<script>alert(1)</script>",
        "age_ms": 0,
        "facts": {},
    }
    shown = page.main_page(STATUS | {"links": [link]}, [], wording("en"), 0)
    assert "<script>" not in shown
    assert "&lt;b&gt;left&lt;/b&gt;" in shown
    dump = {
        "name": "serial",
        "address": "3:4000",
        "raw": "0000",
        "value": "<i>",
        "unit": "",
        "note": "",
    }
    assert "<i>" not in page.registers_page('"><i>', ['"><i>'], [dump], wording("en"), 0)


@pytest.mark.parametrize(
    ("token", "shown"), [("", ""), ("1", "…"), ("12345678", "…"), ("123456789", "…6789")]
)
def test_a_token_is_shown_by_its_end(token: str, shown: str) -> None:
    assert page.mask(token) == shown


@pytest.mark.parametrize(
    ("host", "mine"),
    [
        ("127.0.0.1:8080", True),
        ("[fe80::1]:8080", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_only_this_controllers_own_names_are_answered(host: str, mine: bool) -> None:
    assert ours(host) is mine


@pytest.mark.parametrize(
    ("chosen", "accepted", "found"),
    [
        ("de", "ru", "de"),
        ("", "fr-FR, uz;q=0.9, en;q=0.8", "uz"),
        ("xx", "", "en"),
        ("../en", "fr", "en"),
    ],
)
def test_the_language_is_chosen_or_the_browsers(chosen: str, accepted: str, found: str) -> None:
    assert language(chosen, accepted) == found


def test_a_request_is_read_or_refused() -> None:
    assert parse(b"GET /?a=1 HTTP/1.1\r\nHost: x\r\n\r\n") == Asked("GET", "/?a=1", {"host": "x"})
    for head in (b"\r\n\r\n", b"GET http://x/ HTTP/1.1\r\n\r\n", b"GET / FTP/1.1\r\n\r\n"):
        answer = parse(head)
        assert isinstance(answer, Answer)
        assert answer.code == 400


def test_it_is_off_by_default_and_its_address_is_checked() -> None:
    small = (
        'station = "TAS-1"\njournal = { folder = "j" }\n[[boards]]\nname = "left"\n'
        'profile = "abb_terra_ac"\nlink = { host = "192.0.2.1" }\n'
    )
    assert config.parse(small, "small").local_page is None
    on = config.parse(f"{small}[local_page]\nport = 8080\n", "small").local_page
    assert on is not None
    assert on.address == "127.0.0.1"
    with pytest.raises(config.ConfigError, match=r"local_page\.address: an address such as"):
        config.parse(f'{small}[local_page]\nport = 1\naddress = "everywhere"\n', "small")
