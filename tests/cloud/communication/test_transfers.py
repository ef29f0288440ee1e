"""Stations are not sent into networks, or upwards (A15)."""

from __future__ import annotations

import pytest

from cloud.communication.transfers import Allowed, addresses, refusal


@pytest.mark.parametrize(
    "url",
    [
        "https://firmware.example.com/v2/station.bin",
        "http://fw.example.com:8080/a..b/c?x=..",
        "ftp://user:secret@files.example.com/upload/",
        "ftps://1.1.1.1/x",
        "https://[2606:4700::1111]/x",
    ],
)
def test_the_world_outside_is_free(url: str) -> None:
    assert refusal(url, Allowed()) is None


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://example.com/",
        "firmware.bin",
        "https:///x",
        "http://localhost/x",
        "http://LOCALHOST./x",
        "http://127.0.0.1/x",
        "http://127.1/x",
        "http://0x7f.0.0.1/x",
        "http://2130706433/x",
        "http://0177.0.0.1/x",
        "http://[::1]/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://[64:ff9b::a00:1]/x",
        "http://[fe80::1]/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.1.2.3/x",
        "http://192.168.0.1/x",
        "http://100.64.0.1/x",
        "http://0.0.0.0/x",
        "http://postgres/x",
        "http://db.internal/x",
        "http://printer.local/x",
        "http://example.com@127.0.0.1/x",
        "https://example.com/../x",
        "https://example.com/a/%2e%2e/x",
        "https://example.com/a/%252e%252e/x",
        "https://example.com/a\\..\\x",
        "https://example.com/a\r\nb",
        "https://example.com:99999/x",
        "http://[broken/x",
    ],
)
def test_what_lies_inside_or_leads_upwards_is_refused(url: str) -> None:
    assert refusal(url, Allowed())


def test_what_the_operator_named_is_allowed() -> None:
    allowed = Allowed("files.lan, 10.1.0.0/16,192.168.0.7")
    for host in ("files.lan", "10.1.2.3", "192.168.0.7"):
        assert refusal(f"ftp://{host}/x", allowed) is None
    for host in ("other.lan", "10.2.0.1", "192.168.0.8"):
        assert refusal(f"ftp://{host}/x", allowed)
    assert refusal("http://files.lan/../x", allowed)


def test_every_address_of_a_request_is_found() -> None:
    payload = {
        "location": "a", "firmware": {"location": "b"}, "log": {"remoteLocation": "c"},
        "list": [{"location": "d"}], "location2": "e", "requestId": 1,
    }  # fmt: skip
    assert list(addresses(payload)) == ["a", "b", "c", "d"]
