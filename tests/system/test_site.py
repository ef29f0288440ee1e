"""Three agents behind one fuse: real processes, boards and datagrams; what flows is added up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent import control
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.registry import find_profile
from edge_agent.rules.fuse import Strain
from karvon.demo.process import Child, free_port
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import Vehicle

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

FUSE = 30_000
SHARE = 6_000
NAMES = ("A", "B", "C")
PATIENCE_S = 60
CONFIG = """
station = "{name}"
[journal]
folder = "journal"
[[boards]]
name = "board"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = {port} }}
[site]
limit_ma = {fuse}
share_ma = {share}
lease_s = 2.0
key = "../site.key"
{role}
[failsafe]
timeout_s = 10
[authorization]
unknown = "allow"
[times]
poll_s = 0.5
deadline_s = 2.0
lost_after_s = 3.0
raise_after_s = 2
"""


class Wire(asyncio.DatagramProtocol):
    """A follower's way to its leader, which the test can cut; it repeats some datagrams, too."""

    def __init__(self, leader: tuple[str, int]) -> None:
        self.leader = leader
        self.cut = False
        self.passed = 0
        self.port = 0
        self._out: asyncio.DatagramTransport | None = None
        self._in: asyncio.DatagramTransport | None = None
        self._follower: Any = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._in, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._in.get_extra_info("sockname")[1]
        self._out, _ = await loop.create_datagram_endpoint(
            lambda: Back(self), local_addr=("127.0.0.1", 0)
        )

    def answered(self, data: bytes) -> None:
        self._pass(self._in, data, self._follower)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._follower = addr
        self._pass(self._out, data, self.leader)

    def _pass(self, through: asyncio.DatagramTransport | None, data: bytes, to: Any) -> None:
        if self.cut or through is None or to is None:
            return
        self.passed += 1
        for _ in range(2 if self.passed % 5 == 0 else 1):
            through.sendto(data, to)

    def close(self) -> None:
        for transport in (self._in, self._out):
            if transport is not None:
                transport.close()


class Back(asyncio.DatagramProtocol):
    """What the leader answers."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._wire.answered(data)


class Site:
    """The controllers, their boards with vehicles, and the referee at the fuse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: dict[str, Child] = {}
        self.boards: dict[str, Running] = {}
        self.wires: dict[str, Wire] = {}
        self.strain = Strain((FUSE, FUSE, FUSE))
        self.blown: list[int] = []
        self.most = 0
        self._referee: asyncio.Task[None] | None = None

    async def start(self) -> None:
        key = self.folder / "site.key"
        key.write_text("0123456789abcdef" * 4)
        key.chmod(0o600)
        listen = free_port()
        for name in NAMES:
            await self._board(name)
            role = f'role = "leader"\nlisten = "127.0.0.1:{listen}"\nmembers = ['
            role += ", ".join(f'{{ station = "{one}", share_ma = {SHARE} }}' for one in NAMES[1:])
            role += "]"
            if name != "A":
                self.wires[name] = Wire(("127.0.0.1", listen))
                await self.wires[name].open()
                role = f'role = "follower"\nleader = "127.0.0.1:{self.wires[name].port}"'
            self._agent(name, role)
        self._referee = asyncio.create_task(self._judge())

    async def _board(self, name: str) -> None:
        profile = find_profile("abb_terra_ac")
        device = SimulatedCharger(profile, evses=1, unit=1, speed=1.0, now=time.monotonic())
        running = Running(device=device, places=Places(tcp="127.0.0.1:0"))
        await running.start()
        self.boards[name] = running

    def _agent(self, name: str, role: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        config = folder / "agent.toml"
        port = self.boards[name].addresses["tcp"].rpartition(":")[2]
        config.write_text(CONFIG.format(name=name, port=port, fuse=FUSE, share=SHARE, role=role))
        args = ("agent", "run", "--config", str(config))
        self.agents[name] = Child(name, args, self.folder)
        self.agents[name].start()

    async def _judge(self) -> None:
        while True:
            flowing = sum(self.currents())
            now_ms = time.monotonic_ns() // 1_000_000
            self.most = max(self.most, flowing)
            self.blown += self.strain.take((flowing, flowing, flowing), now_ms)
            await asyncio.sleep(0.05)

    def currents(self) -> list[int]:
        found = []
        for board in self.boards.values():
            assert isinstance(board.device, SimulatedCharger)
            vehicle = board.device.evses[1].vehicle
            found.append(vehicle.current if vehicle else 0)
        return found

    async def close(self) -> None:
        if self._referee is not None:
            self._referee.cancel()
            await asyncio.gather(self._referee, return_exceptions=True)
        for agent in self.agents.values():
            await asyncio.to_thread(agent.stop)
        for board in self.boards.values():
            await board.close()
        for wire in self.wires.values():
            wire.close()

    async def until(self, look: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not look():
            logs = "\n".join(f"{name}: {agent.tail()}" for name, agent in self.agents.items())
            assert time.monotonic() < end, f"no {what}: {self.currents()}\n{logs}"
            await asyncio.sleep(0.05)

    async def plug(self, name: str, reaction_ms: int) -> None:
        device = self.boards[name].device
        assert isinstance(device, SimulatedCharger)
        device.plug(Vehicle(reaction_ms=reaction_ms))
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = await self.ask(name, Request(do="token", token=name, evse=1))
                if "text" in answer:
                    return
            except NotRunningError:
                pass
            assert time.monotonic() < end, f"{name} takes no card"
            await asyncio.sleep(0.2)

    async def ask(self, name: str, request: Request) -> Any:
        return await control.ask(self.folder / name / "journal", request)

    def share(self, *names: str, of: int, within: int = 600) -> bool:
        """All of these take so much, or nearly."""
        currents = dict(zip(NAMES, self.currents(), strict=True))
        return all(abs(currents[name] - of) <= within for name in names)

    async def kill_leader(self) -> None:
        await asyncio.to_thread(self.agents["A"].kill)

    async def all_share(self) -> None:
        await self.until(lambda: self.share(*NAMES, of=FUSE // 3), "fair share for all")

    async def leader_dies_and_returns(self) -> None:
        await self.kill_leader()
        await self.until(lambda: self.share("B", "C", of=SHARE), "safe share of the followers")
        assert (await self.ask("B", Request(do="status")))["site"]["neighbours"]["lease_ma"] is None
        self.agents["A"].start()

    async def follower_is_cut_off(self, name: str) -> None:
        self.wires[name].cut = True
        await self.until(lambda: self.share(name, of=SHARE), f"safe share of {name}")
        self.wires[name].cut = False


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(found.close)
        await found.start()
        yield found


async def test_the_fuse_holds_whoever_dies_or_is_cut_off(
    site: Site, sample_size: Callable[[int, int], int], record_property: Callable[..., None]
) -> None:
    for name, reaction_ms in zip(NAMES, (3_000, 500, 1_500), strict=True):
        await site.plug(name, reaction_ms)
    await site.all_share()
    await site.leader_dies_and_returns()
    await site.follower_is_cut_off("C")
    await site.all_share()
    for _ in range(sample_size(0, 20)):
        what = random.choice((site.leader_dies_and_returns, site.follower_is_cut_off))
        await (what(random.choice("BC")) if what == site.follower_is_cut_off else what())
        await site.all_share()
    status = await site.ask("A", Request(do="status"))
    members = status["site"]["neighbours"]["members"]
    assert [one["station"] for one in members] == ["B", "C"]
    assert all(one["heard_ms"] < 5_000 for one in members)
    record_property("most of the fuse in thousandths", site.most * 1000 // FUSE)
    assert not site.blown
    assert site.most <= FUSE
