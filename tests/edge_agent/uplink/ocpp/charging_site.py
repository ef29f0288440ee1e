"""A whole charging site in this process: a simulated ABB board on TCP, and the real agent on it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from edge_agent.agent import Agent
from edge_agent.clock import Clock
from edge_agent.config import load
from edge_agent.hardware.registry import find_profile
from edge_agent.main import SURELY_PAST_MS, build, connect, hardware, open_journal
from edge_agent.rules.clock import ClockRules
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import Vehicle
from protocols.agent_link import IdToken

SPEED: Final = 60.0
PATIENCE_S: Final = 45
TOML: Final = """\
station = "{station}"

[journal]
folder = "journal"

[uplink.ocpp]
url = "{url}"
version = "{version}"
longest_retry_s = 0.2
{ocpp}

[[boards]]
name = "board"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = {port}, unit = 1 }}

[times]
poll_s = 0.1
lost_after_s = 20
event_s = 1
raise_after_s = 1

[metering]
margin = {margin}
"""


async def until(condition: Callable[[], Any], what: str) -> Any:
    """What a check gives once it is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited for {what} in vain") from None
    return found


class Site:
    """One station: its vehicle's side, its card reader, its agent."""

    def __init__(self, folder: Path, station: str, running: Running) -> None:
        self.folder = folder
        self.station = station
        self.agent: Agent
        self.restarts = 0
        self._running = running
        self._task: asyncio.Task[None] | None = None

    @property
    def device(self) -> SimulatedCharger:
        device = self._running.device
        assert isinstance(device, SimulatedCharger)
        return device

    def configure(self, url: str, version: str, *, mqtt: str = "", **ocpp: Any) -> None:
        """`mqtt` is what `[uplink]` says, where that is used too."""
        port = self._running.addresses["tcp"].rpartition(":")[2]
        more = "\n".join(f"{name} = {json.dumps(value)}" for name, value in ocpp.items())
        text = TOML.format(
            station=self.station,
            url=url,
            version=version,
            port=port,
            ocpp=more,
            margin=math.ceil(2 * SPEED),
        )
        (self.folder / "agent.toml").write_text(text + mqtt)

    async def start(self) -> None:
        config = load(self.folder / "agent.toml")
        clock = Clock(ClockRules(uuid4(), SURELY_PAST_MS))
        clock.observe()
        found = hardware(config)
        self.journal = open_journal(config, clock)
        self.agent = build(config, found, self.journal, clock)
        connect(config, self.agent)
        self.agent.end = self._restarted
        self._task = asyncio.create_task(self.agent.run())

    def _restarted(self) -> None:
        self.restarts += 1

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self.journal.close()

    async def connected(self) -> None:
        assert self.agent.ocpp is not None
        link = self.agent.ocpp
        await until(lambda: link.link == "connected", "the link to the backend")

    # ------------------------------------------------------------------ people

    async def plug(self, wants_wh: int | None = None) -> None:
        self.device.plug(Vehicle(wants_wh=wants_wh, reaction_ms=100, ramp_ma_per_s=32_000))
        await self.status("Occupied")

    async def unplug(self) -> None:
        self.device.unplug()
        await self.status("Available")

    async def card(self, value: str) -> str:
        return await self.agent.desk.present(IdToken(value))

    async def status(self, wanted: str) -> None:
        told = self.agent.loop.told
        await until(lambda: 1 in told and told[1].status == wanted, f"EVSE 1 to be {wanted}")

    async def charging(self, wh: int = 1) -> None:
        """Until so much of the running transaction was charged."""
        await until(lambda: self.charged() >= wh, f"{wh} Wh")

    def charged(self) -> int:
        state = self.agent.loop.station.connectors[1].state
        return state.session.energy(state.meter) if state.session else 0

    async def idle(self) -> None:
        connector = self.agent.loop.station.connectors[1]
        await until(lambda: connector.state.session is None, "the end of the transaction")

    async def delivered(self) -> None:
        """Until the backend has taken all that matters."""
        await until(lambda: self.journal.pending_billing == 0, "the backend to take everything")

    async def session(self, token: str, wh: int = 50) -> None:
        """Plug, card, charge, card, unplug."""
        await self.plug()
        await self.card(token)
        await self.charging(wh)
        await self.card(token)
        await self.idle()
        await self.unplug()

    @property
    def true_wh(self) -> float:
        """What the simulated meter has counted in its life."""
        return float(self._running.control.status()["evses"][0]["energy_wh"])


@asynccontextmanager
async def site(folder: Path, station: str = "KRV-1") -> AsyncIterator[Site]:
    """The board runs; `configure` and `start` the agent on it."""
    loop = asyncio.get_running_loop()
    device = SimulatedCharger(
        find_profile("abb_terra_ac"), evses=1, unit=1, speed=SPEED, now=loop.time()
    )
    running = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=loop.time)
    await running.start()
    made = Site(folder, station, running)
    try:
        yield made
    finally:
        await made.stop()
        await running.close()
