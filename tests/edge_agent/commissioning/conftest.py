"""A commissioning within the test's own loop, on simulated devices over TCP and a serial line."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_agent.commissioning import draft, progress
from edge_agent.commissioning.dialog import Dialog
from edge_agent.commissioning.progress import Progress
from edge_agent.commissioning.work import Options, Work
from edge_agent.hardware.registry import find_profile
from edge_agent.wording import wording
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running


class Bench:
    """Simulated devices, and commissionings of a controller that they are wired to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "agent.toml"
        self.journal = folder / "journal"
        self.said = io.StringIO()
        self.asked: list[str] = []
        self._running: list[Running] = []

    async def device(self, profile: str, *, serial: bool = False, speed: float = 1.0) -> Running:
        clock, found = asyncio.get_running_loop().time, find_profile(profile)
        transport = found.transports.rtu if serial else found.transports.tcp
        assert transport is not None
        settings: dict[str, Any] = {"unit": transport.unit, "speed": speed, "now": clock()}
        device = (
            SimulatedCharger(found, evses=1, **settings)
            if found.kind == "charger"
            else SimulatedMeter(found, **settings)
        )
        line = str(self.folder / f"line{len(self._running)}")
        places = Places(pty=line) if serial else Places(tcp="127.0.0.1:0")
        running = Running(device=device, places=places, clock=clock)
        await running.start()
        self._running.append(running)
        return running

    def work(
        self,
        *,
        yes: bool = True,
        answers: tuple[str, ...] = (),
        language: str = "en",
        **options: Any,
    ) -> Work:
        """As the command makes it; `answers` are what the installer types."""
        waiting = iter(answers)

        def prompt(question: str, **_: object) -> str:
            self.asked.append(question)
            return next(waiting)

        console = Console(file=self.said, width=100)
        plain = draft.changed(draft.read_plain(self.path), journal={"folder": "journal"})
        return Work(
            path=self.path,
            folder=self.journal,
            options=Options(**{"installer": "A. Karimov", **options}),
            dialog=Dialog(wording(language), console, yes=yes, prompt=prompt),
            progress=progress.read(self.journal) or Progress(station="TAS-1"),
            plain=plain,
        )

    async def close(self) -> None:
        for each in self._running:
            await each.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def use() -> Callable[[Running, str], str]:
    """How `--use` names a simulated device."""

    def text(running: Running, name: str = "left") -> str:
        profile = running.device.profile
        if "pty" in running.addresses:
            return f"{name}={profile.profile}@rtu://{running.addresses['pty']}"
        return f"{name}={profile.profile}@tcp://{running.addresses['tcp']}"

    return text
