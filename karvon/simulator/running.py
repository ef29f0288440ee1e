"""Runs one simulated device: its lines, its control port, its clock, its memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.control import Control, ControlServer
from karvon.simulator.memory import restore, saved
from karvon.simulator.script import Script
from karvon.simulator.serial_board import BoardAnswers, SimulatedSerialBoard
from karvon.simulator.server import Answers, Device, PtyServer, TcpServer

TICK_S = 0.05
SAVE_EVERY_S = 1.0


@dataclass(slots=True, kw_only=True)
class Places:
    """Where the device can be reached; None: not there."""

    tcp: str | None = None
    pty: str | None = None
    control: str | None = None
    state: str | None = None
    echo: bool = False
    """The line hands back what is said on it, as a half-duplex adapter may."""


@dataclass(slots=True, kw_only=True)
class Running:
    """`start`, then the device lives until `close`."""

    device: Device
    places: Places
    script: Script | None = None
    clock: Callable[[], float] = time.monotonic
    addresses: dict[str, str] = field(default_factory=dict)
    answers: Answers = field(init=False)
    control: Control = field(init=False)
    _servers: list[TcpServer | PtyServer | ControlServer] = field(default_factory=list)
    _ticker: asyncio.Task[None] | None = None
    _saved_at: float = 0.0

    async def start(self) -> None:
        self._load()
        self.answers = (
            BoardAnswers(self.device, self.clock)
            if isinstance(self.device, SimulatedSerialBoard)
            else Answers(self.device, self.clock)
        )
        tcp = TcpServer(self.answers) if self.places.tcp else None
        self.control = Control(self.answers, tcp)
        if tcp is not None and self.places.tcp:
            host, _, port = self.places.tcp.rpartition(":")
            await tcp.start(host, int(port))
            self._add("tcp", tcp)
        if self.places.pty:
            pty = PtyServer(self.answers, echo=self.places.echo)
            await pty.start(self.places.pty)
            self._add("pty", pty)
        if self.places.control:
            server = ControlServer(self.control)
            await server.start(self.places.control)
            self._add("control", server)
        self._ticker = asyncio.create_task(self._tick(), name="simulator")

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        for server in self._servers:
            await server.close()
        self._save()

    def _add(self, name: str, server: TcpServer | PtyServer | ControlServer) -> None:
        self._servers.append(server)
        self.addresses[name] = server.address

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.clock()
            self.device.advance(now)
            if self.script is not None and isinstance(self.device, SimulatedCharger):
                self.script.step(self.device)
            if now - self._saved_at >= SAVE_EVERY_S:
                self._saved_at = now
                self._save()

    def _load(self) -> None:
        path = self._state_file()
        if path is not None and path.exists() and isinstance(self.device, SimulatedCharger):
            restore(self.device, json.loads(path.read_text()))

    def _save(self) -> None:
        path = self._state_file()
        if path is None or not isinstance(self.device, SimulatedCharger):
            return
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(saved(self.device)))
        fresh.replace(path)

    def _state_file(self) -> Path | None:
        return Path(self.places.state) if self.places.state else None
