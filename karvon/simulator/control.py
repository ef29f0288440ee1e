"""The control port: JSON lines, `{"do": "plug", "evse": 1, "wants_wh": 5000}` and the like.

It is the test's hand and eye inside the simulated world; nothing of it exists on a real charger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.serving import Connections
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.serial_board import BoardAnswers
from karvon.simulator.server import Answers, TcpServer, hang_up
from karvon.simulator.vehicle import Vehicle

Command = dict[str, Any]


class ControlError(Exception):
    """The command cannot be done; the text says why and which can."""


class Control:
    """Executes commands on one simulated device."""

    def __init__(self, answers: Answers, tcp: TcpServer | None = None) -> None:
        self._answers, self._tcp = answers, tcp
        self._verbs: dict[str, Callable[[Command], None]] = {
            "status": lambda _: None,
            "silence": self._silence,
            "noise": self._noise,
            "late": self._late,
            "half_open": self._half_open,
        }
        if isinstance(answers.device, SimulatedCharger):
            self._add_charger(answers.device)
        if isinstance(answers, BoardAnswers):
            self._verbs |= {
                "double": lambda c: setattr(answers, "doubled", int(c.get("replies", 1))),
                "tear": lambda c: setattr(answers, "torn", int(c.get("replies", 1))),
            }
        elif isinstance(answers.device, SimulatedMeter):
            self._verbs["load"] = self._load

    def execute(self, command: Command) -> dict[str, Any]:
        """Runs one command; the reply always carries the status after it."""
        self._answers.device.advance(self._answers.clock())
        verb = self._verbs.get(str(command.get("do")))
        if verb is None:
            known = ", ".join(sorted(self._verbs))
            raise ControlError(f"cannot do '{command.get('do')}'; can do: {known}")
        try:
            verb(command)
        except (KeyError, ValueError, TypeError) as error:
            raise ControlError(f"{command.get('do')}: {error!r}") from error
        return self.status()

    def status(self) -> dict[str, Any]:
        self._answers.device.advance(self._answers.clock())
        counts = {
            "requests": self._answers.requests,
            "gap_violations": self._answers.gap_violations,
        }
        return {"ok": True, **counts, **self._answers.device.status()}

    def _add_charger(self, charger: SimulatedCharger) -> None:
        self._verbs |= {
            "plug": lambda c: charger.plug(vehicle_from(c, charger), c.get("evse", 1)),
            "unplug": lambda c: charger.unplug(c.get("evse", 1)),
            "fault": lambda c: charger.fault(c.get("code", 1), c.get("evse", 1)),
            "clear": lambda c: charger.clear(c.get("evse", 1)),
            "ceiling": lambda c: charger.set_ceiling(c.get("limit_ma"), c.get("evse", 1)),
            "reset_board": lambda _: charger.reset_board(),
            "jump_register": lambda c: charger.jump_register(int(c["wh"]), c.get("evse", 1)),
        }

    def _silence(self, command: Command) -> None:
        self._answers.silent_until = self._answers.clock() + float(command.get("seconds", 10))

    def _noise(self, command: Command) -> None:
        self._answers.noisy = int(command.get("replies", 5))

    def _late(self, command: Command) -> None:
        self._answers.late += [float(command.get("seconds", 2))] * int(command.get("replies", 1))

    def _half_open(self, _: Command) -> None:
        if self._tcp is None:
            raise ControlError("half_open needs TCP; on a serial line use silence")
        self._tcp.freeze()

    def _load(self, command: Command) -> None:
        meter = self._answers.device
        if isinstance(meter, SimulatedMeter):
            meter.load_w = int(command["watts"])
            meter.refresh()


def vehicle_from(command: Command, charger: SimulatedCharger) -> Vehicle:
    """`wants_wh` (none: without end), `max_current_ma`, `phases`, `reaction_ms`, `stubborn`."""
    wants = command.get("wants_wh")
    return Vehicle(
        wants_wh=None if wants is None else int(wants),
        max_current=int(command.get("max_current_ma", 32_000)),
        phases=min(int(command.get("phases", 3)), charger.profile.evses.phases),
        reaction_ms=int(command.get("reaction_ms", 2_000)),
        stubborn=bool(command.get("stubborn", False)),
    )


class ControlServer:
    """`host:port` or the path of a Unix socket."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._connections = Connections(self._serve)
        self.address = ""

    async def start(self, where: str) -> None:
        if "/" in where:
            self._path = Path(where)
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._connections.enter, where)
            self.address = where
            return
        host, _, port = where.rpartition(":")
        self._server = await asyncio.start_server(self._connections.enter, host, int(port))
        name = self._server.sockets[0].getsockname()
        self.address = f"{name[0]}:{name[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._connections.end()
            await self._server.wait_closed()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        await hang_up(writer)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            text = line.decode().strip()
            command = json.loads(text) if text.startswith("{") else {"do": text}
            return self._control.execute(command)
        except (ControlError, ValueError) as error:
            return {"ok": False, "error": str(error)}
