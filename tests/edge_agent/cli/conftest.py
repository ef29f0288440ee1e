"""A whole agent as `karvon agent run` puts it together, on a simulated charger."""

from __future__ import annotations

import asyncio
import logging
import os
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent import control, main
from edge_agent.config import load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.registry import find_profile
from karvon.demo.process import free_port
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running

CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = {port}, timeout_s = 0.3 }}
[authorization]
unknown = "allow"
[times]
poll_s = 0.1
deadline_s = 1
lost_after_s = 0.5
"""


@dataclass
class Live:
    """The running agent and the charger under it."""

    config: Path
    charger: Running
    agent: asyncio.Task[None]

    @property
    def folder(self) -> Path:
        return self.config.with_name("journal")

    @staticmethod
    def say(text: str) -> None:
        """Something goes wrong in the agent's process, and it says so."""
        logging.getLogger("edge_agent.uplink").warning("%s", text)

    async def ask(self, do: str, **more: Any) -> Any:
        return await control.ask(self.folder, Request(do=do, **more))

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that is so."""
        async with asyncio.timeout(60):
            while True:
                try:
                    status: dict[str, Any] = await self.ask("status")
                    if holds(status):
                        return status
                except NotRunningError:
                    pass  # the agent has not made its socket yet
                await asyncio.sleep(0.02)

    async def until_link(self, kind: str, code: str) -> dict[str, Any]:
        """The link of this kind, once it says so."""

        def said(status: dict[str, Any]) -> bool:
            return any(link["code"] == code for link in status["links"] if link["kind"] == kind)

        status = await self.until(said)
        return next(link for link in status["links"] if link["kind"] == kind)


@asynccontextmanager
async def running(folder: Path, more: str = "") -> AsyncIterator[Live]:
    clock = asyncio.get_running_loop().time
    device = SimulatedCharger(find_profile("abb_terra_ac"), evses=1, unit=1, speed=1, now=clock())
    charger = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=clock)
    await charger.start()
    path = folder / "agent.toml"
    path.write_text(CONFIG.format(port=charger.addresses["tcp"].rpartition(":")[2]) + more)
    agent = asyncio.create_task(main.run(load(path)))
    try:
        live = Live(path, charger, agent)
        await live.until_link("board", "board.ok")
        yield live
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
        await charger.close()


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as live:
        yield live


@pytest.fixture
async def paged(tmp_path: Path) -> AsyncIterator[tuple[Live, int]]:
    """An agent with a local page, and the page's port."""
    port = free_port()
    async with running(tmp_path, f"[local_page]\nport = {port}\n") as live:
        yield live, port


class Tap:
    """A serial line with a third one on it: what two say to each other, a listener hears too."""

    def __init__(self, folder: Path, device: str) -> None:
        self.said = bytearray()
        """What went from the client to the device."""
        self.client, self.listener = folder / "client", folder / "listener"
        self._client, far = _pty(self.client)
        self._listener, ear = _pty(self.listener)
        self._device = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._device)
        self._open = [self._client, far, self._listener, ear, self._device]
        loop = asyncio.get_running_loop()
        loop.add_reader(self._client, self._pass, self._client, self._device)
        loop.add_reader(self._device, self._pass, self._device, self._client)

    def _pass(self, source: int, sink: int) -> None:
        octets = os.read(source, 4096)
        if source == self._client:
            self.said += octets
        os.write(sink, octets)
        self.hear(octets)

    def hear(self, octets: bytes) -> None:
        """The listener hears this."""
        os.write(self._listener, octets)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for handle in (self._client, self._device):
            loop.remove_reader(handle)
        for handle in self._open:
            os.close(handle)


def _pty(link: Path) -> tuple[int, int]:
    near, far = os.openpty()
    tty.setraw(far)
    link.symlink_to(os.ttyname(far))
    return near, far


@dataclass
class TappedLine:
    """A simulated charger on a serial line that is listened to; no agent runs."""

    config: Path
    charger: Running
    tap: Tap


RTU = CONFIG.replace(
    'kind = "tcp", host = "127.0.0.1", port = {port}', 'kind = "rtu", device = "{device}"'
)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[TappedLine]:
    clock = asyncio.get_running_loop().time
    device = SimulatedCharger(find_profile("abb_terra_ac"), evses=1, unit=1, speed=1, now=clock())
    charger = Running(device=device, places=Places(pty=str(tmp_path / "charger")), clock=clock)
    await charger.start()
    tap = Tap(tmp_path, str(tmp_path / "charger"))
    path = tmp_path / "agent.toml"
    path.write_text(RTU.format(device=tap.client))
    try:
        yield TappedLine(path, charger, tap)
    finally:
        tap.close()
        await charger.close()
