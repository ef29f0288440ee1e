"""One uplink's way to its far end, on real sockets of this machine's loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.config import parse
from edge_agent.failover import (
    NO_CARRIER,
    LinkChooser,
    LinkLeftError,
    Target,
    carries,
    doubts,
    link_chooser,
)
from edge_agent.rules.failover import FailoverRules

CONFIG = """
station = "S-1"
[journal]
folder = "journal"
[uplink]
url = "mqtt://127.0.0.1:1883"
links = {links}
[[boards]]
name = "board"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1" }}
"""
QUICK = FailoverRules(order=("cable", "lo"), probe_ms=1, answers=1)


@asynccontextmanager
async def somebody() -> AsyncIterator[Target]:
    """A far end that accepts and says nothing."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1])


def run(work: Callable[[Target], Awaitable[None]]) -> None:
    async def both() -> None:
        async with asyncio.timeout(60), somebody() as target:
            await work(target)

    asyncio.run(both())


def test_a_link_without_carrier_is_passed_over_and_the_reason_kept() -> None:
    async def work(target: Target) -> None:
        chooser = LinkChooser(QUICK, target)
        found = await chooser.connect()
        with found:
            assert found.getpeername()[1] == target.port
            bound = found.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            assert bound.rstrip(b"\0") == b"lo"
        assert chooser.in_use == "lo"
        assert chooser.troubles() == {"cable": NO_CARRIER}

    run(work)


def test_when_no_link_reaches_it_each_says_why() -> None:
    async def work(target: Target) -> None:
        nobody = Target("127.0.0.1", 1)
        chooser = LinkChooser(QUICK, nobody)
        with pytest.raises(ConnectionError, match=r"cable: no carrier; lo: .*refused"):
            await chooser.connect()
        assert chooser.in_use is None
        assert target.port != 1

    run(work)


def test_a_name_that_is_not_resolved_any_more_keeps_its_address() -> None:
    async def work(target: Target) -> None:
        chooser = LinkChooser(QUICK, target)
        (await chooser.connect()).close()
        chooser._target = Target("nowhere.invalid", target.port)  # as a dead resolver leaves it
        (await chooser.connect()).close()
        with pytest.raises(OSError, match=r"nowhere|[Nn]ame|resol"):
            await LinkChooser(QUICK, Target("nowhere.invalid", target.port)).connect()

    run(work)


def test_a_carrier_that_is_lost_ends_the_connection() -> None:
    async def work(target: Target) -> None:
        there = {"lo": True}
        rules = FailoverRules(order=("lo", "cable"))
        chooser = LinkChooser(rules, target, carrier=lambda link: there.get(link, False))
        found = await chooser.connect()
        with found:
            watching = asyncio.create_task(chooser.watch())
            there["lo"] = False
            with pytest.raises(LinkLeftError, match="lo has no carrier any more"):
                await watching

    run(work)


def test_it_goes_back_when_the_better_link_answers() -> None:
    async def work(target: Target) -> None:
        there = {"lo": False, "cable": True}
        rules = FailoverRules(order=("lo", "cable"), probe_ms=1, answers=2)
        chooser = LinkChooser(rules, target, carrier=lambda link: there[link])
        chooser._addresses = [(socket.AF_INET, ("127.0.0.1", target.port))]  # as connect leaves it
        chooser.state.connected("cable")
        watching = asyncio.create_task(chooser.watch())
        while "lo" not in chooser.state.troubles:
            await asyncio.sleep(0.05)  # polls: nobody tells of a link that is given up
        assert not watching.done()
        there["lo"] = True
        with pytest.raises(LinkLeftError, match="lo is back"):
            await watching

    run(work)


def test_only_where_there_is_a_choice_is_anything_bound() -> None:
    def made(links: str) -> LinkChooser | None:
        return link_chooser(parse(CONFIG.format(links=links), "test"), Target("h", 1))

    assert made("[]") is None
    assert made('[{ interface = "wwan0", metered = true }]') is None
    both = made('[{ interface = "eth0" }, { interface = "wwan0", metered = true }]')
    assert both is not None
    assert both.state.rules.order == ("eth0", "wwan0")
    assert both.state.rules.metered == {"wwan0"}


def test_the_loopback_carries_and_what_is_not_there_does_not() -> None:
    assert carries("lo")
    assert not carries("no-such-link")


def test_a_strict_filter_of_the_way_back_is_named(tmp_path: Path) -> None:
    def setting(name: str, value: int) -> None:
        folder = tmp_path / "sys/net/ipv4/conf" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rp_filter").write_text(f"{value}\n")

    setting("all", 0)
    setting("wwan0", 2)
    assert doubts(["eth0", "wwan0"], tmp_path) == []
    setting("wwan0", 1)
    (told,) = doubts(["eth0", "wwan0"], tmp_path)
    assert told.startswith("net.ipv4.conf.wwan0.rp_filter is 1")
