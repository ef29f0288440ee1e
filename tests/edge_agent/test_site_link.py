"""The datagrams on real sockets: strangers are refused, silence and its end are told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any
from uuid import uuid4

import pytest

from edge_agent.rules.leases import Follower, Leader, LeaseRules
from edge_agent.rules.phases import everywhere
from edge_agent.rules.site import SiteRules
from edge_agent.rules.station import StationSettings
from edge_agent.site_link import FollowerLink, LeaderLink

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
KEY, OTHER = b"k" * 32, b"o" * 32
SHARE = everywhere(6_000)
SITE = StationSettings(site=SiteRules(limit=everywhere(40_000)))


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(look: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not look():
            await asyncio.sleep(0.01)


class Pair:
    """A leader and one follower, on one machine."""

    def __init__(self, make_rig: Callable[..., Rig], members: tuple[str, ...] = ("B",)) -> None:
        self.address = ("127.0.0.1", free_udp_port())
        self.a, self.b = make_rig(station=SITE), make_rig(station=SITE)
        now = self.a.clock.now().mono_ms
        shares = dict.fromkeys(members, SHARE)
        self.leader = Leader("A", uuid4(), shares, SHARE, LeaseRules(), now)
        self.follower = Follower("B", uuid4(), SHARE, LeaseRules(), now)
        self.a.station.site.neighbours = self.leader
        self.b.station.site.neighbours = self.follower

    def links(self, key: bytes = KEY) -> tuple[LeaderLink, FollowerLink]:
        leader = LeaderLink(self.leader, self.a.station, self.a.clock, KEY, self.address)
        return leader, FollowerLink(
            self.follower, self.b.station, self.b.clock, key, self.address, every_s=0.02
        )


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_follower_gets_its_lease(make_rig: Callable[..., Rig]) -> None:
    pair = Pair(make_rig)
    leader, follower = pair.links()
    assert "is silent" in follower.trouble()
    async with running(leader.run(), follower.run()):
        await until(lambda: pair.follower.lease)
    assert (leader.trouble(), follower.trouble()) == ("", "")
    assert leader.described()["refused"] == 0


async def test_another_key_is_refused_and_said(make_rig: Callable[..., Rig]) -> None:
    pair = Pair(make_rig)
    leader, follower = pair.links(OTHER)
    async with running(leader.run(), follower.run()):
        await until(lambda: leader.described()["refused"])
    assert "the same key file" in leader.described()["refused_why"]
    assert pair.follower.heard_ms is None


async def test_who_is_not_a_member_is_refused_and_said(make_rig: Callable[..., Rig]) -> None:
    pair = Pair(make_rig, members=("C",))
    leader, follower = pair.links()
    async with running(leader.run(), follower.run()):
        await until(lambda: leader.described()["refused"])
    assert leader.described()["refused_why"] == "of B, which is not one of site.members"


async def test_a_leader_that_comes_later_is_found(make_rig: Callable[..., Rig]) -> None:
    pair = Pair(make_rig)
    leader, follower = pair.links()
    async with running(follower.run()):
        await asyncio.sleep(0.1)  # some of its datagrams have found nobody by then
        assert pair.follower.heard_ms is None
        async with running(leader.run()):
            await until(lambda: pair.follower.lease)


async def test_a_port_in_use_ends_the_task_so_that_it_is_supervised(
    make_rig: Callable[..., Rig],
) -> None:
    pair = Pair(make_rig)
    one, _ = pair.links()
    two, _ = pair.links()
    async with running(one.run()):
        await asyncio.sleep(0.05)  # it binds in its first turns, and tells nobody that it has
        with pytest.raises(OSError, match="in use"):
            await two.run()
