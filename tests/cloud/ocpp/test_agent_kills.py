"""The edge agent's process is killed while it charges and talks to our gateway over OCPP (F1)."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge_agent.control import NotRunningError, Request, ask
from edge_agent.journal import JournalError, JournalView
from karvon.simulator.vehicle import Vehicle
from tests.cloud.ocpp.conftest import Ocpp
from tests.edge_agent.uplink.ocpp.charging_site import PATIENCE_S, Site, site

TOKEN = "04A1B2C3"


class Process:
    """`karvon agent run` on a site's configuration."""

    def __init__(self, here: Site) -> None:
        self.here = here
        self.journal = here.folder / "journal"
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        config = str(self.here.folder / "agent.toml")
        with (self.here.folder / "agent.log").open("ab") as out:
            self._running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "karvon", "agent", "run", "--config", config),
                stdout=out,
                stderr=out,
            )

    async def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            await self._running.wait()
            self._running = None

    async def ask(self, **request: Any) -> dict[str, Any]:
        """An empty answer where nobody answers."""
        with suppress(NotRunningError):
            return dict(await ask(self.journal, Request(**request)))
        return {}

    async def until(self, seen: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await seen():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log = (self.here.folder / "agent.log").read_text()[-2000:]
            raise AssertionError(f"waited for {what} in vain: {log}") from None

    async def shows(self, status: str) -> bool:
        answer = await self.ask(do="status")
        return any(one["status"] == status for one in answer.get("evses", ()))

    async def taken(self) -> bool:
        with suppress(JournalError), JournalView(self.journal) as view:
            return view.queue().billing_facts == 0 and not view.transactions()
        return False


async def _session(process: Process, chance: random.Random) -> None:
    """Somebody charges; the agent is killed at some moment of it, and started again."""
    await process.until(lambda: process.shows("Available"), "a free charger")
    process.here.device.plug(Vehicle(reaction_ms=100, ramp_ma_per_s=32_000))
    await process.until(lambda: process.shows("Occupied"), "the vehicle to be seen")
    await process.until(lambda: process.ask(do="token", token=TOKEN), "the card to be taken")
    await asyncio.sleep(chance.uniform(0, 0.7))
    await process.kill()
    await process.start()
    await process.until(lambda: process.ask(do="status"), "the agent to be back")
    process.here.device.unplug()
    await process.until(process.taken, "the backend to take everything")


async def test_each_session_is_booked_once_whenever_the_agent_dies(
    ocpp: Ocpp,
    tmp_path: Path,
    sample_size: Callable[[int, int], int],
    kills: Any,
) -> None:
    chance, turns = random.Random(7), sample_size(1, 40)
    await ocpp.token(TOKEN)
    async with site(tmp_path, "KRV-1") as here:
        here.configure(f"ws://127.0.0.1:{ocpp.gateway.port}/ocpp", "1.6")
        process = Process(here)
        await process.start()
        try:
            for _ in range(turns):
                await _session(process, chance)
                kills.count("agent on OCPP")
        finally:
            await process.kill()
        booked = await ocpp.transactions(station="KRV-1", limit=500)
        with JournalView(here.folder / "journal") as view:
            sessions = view.sessions(500)
        assert len(booked) == len(sessions)
        assert {one["state"] for one in booked} == {"ended"}
        assert sum(one["energy_wh"] for one in booked) == pytest.approx(
            here.true_wh, abs=len(booked)
        )
