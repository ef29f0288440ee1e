"""A site as an installer builds it: two RTU buses at 19200 baud and a charger on TCP, one agent.

Eight connectors: three ABB Terra AC on each bus (ptys paced at the baud rate, `paced_bus.py`) and a
CHARX with two EVSEs on TCP. Everything is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud_process import ROOT, CloudProcess

UNITS = (1, 2, 3)
TCP_EVSES = 2
BAUD = 19_200
TOKEN = "04A1B2C3D4E5F6"  # an RFID card's UID
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Spot:
    """One connector: who simulates it, and its number at the station."""

    number: int
    control: str
    """Path of the simulator's control socket."""
    where: dict[str, int]
    """What the control needs to know besides: the unit, or the EVSE."""

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        told = ask(self.control, {"do": do, **self.where, **more})
        assert told is not None, f"the simulator of connector {self.number} does not answer"
        return told

    def evse(self) -> dict[str, Any]:
        """What the simulated EVSE is now."""
        return dict(self.ask("status")["evses"][self.where.get("evse", 1) - 1])

    def requests(self) -> int:
        return int(self.ask("status")["requests"])


@dataclass
class EdgeSite:
    folder: Path
    buses: tuple[str, ...] = ("a", "b")
    dead: tuple[int, ...] = ()
    """Units that are configured on the first bus, and of which nobody answers."""
    spots: list[Spot] = field(default_factory=list)
    boards: list[str] = field(default_factory=list)

    def control(self, name: str) -> str:
        return str(self.folder / f"{name}.control")

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @contextlib.contextmanager
    def chargers(self, *, tcp: bool = True) -> Iterator[None]:
        """Start the simulators; `spots` and `boards` are what stands behind them."""
        processes = [self._bus(name) for name in self.buses]
        if tcp:
            processes.append(self._charx())
        try:
            for spot in self.spots:
                await_(lambda spot=spot: ask(spot.control, {"do": "status", **spot.where}), 30)
            yield
        finally:
            for process in processes:
                process.terminate()
                process.wait(20)

    def _bus(self, name: str) -> subprocess.Popen[bytes]:
        line = self.folder / name
        units = ",".join(map(str, UNITS))
        for unit in (*UNITS, *(self.dead if name == self.buses[0] else ())):
            number = len(self.boards) + 1
            if unit in UNITS:
                self.spots.append(Spot(number, self.control(name), {"unit": unit}))
            self.boards.append(
                f'[[boards]]\nname = "{name}{unit}"\nprofile = "abb_terra_ac"\nevses = [{number}]\n'
                f'link = {{ kind = "rtu", device = "{line}", unit = {unit} }}\n'
            )
        return _python(
            *(str(ROOT / "tests/benchmarks/paced_bus.py"), "--pty", str(line)),
            *("--control", self.control(name), "--units", units, "--baud", str(BAUD)),
            log=self.folder / "sim.log",
        )

    def _charx(self) -> subprocess.Popen[bytes]:
        first, port = len(self.boards) + 1, free_port()
        numbers = list(range(first, first + TCP_EVSES))
        for evse, number in enumerate(numbers, 1):
            self.spots.append(Spot(number, self.control("tcp"), {"evse": evse}))
        self.boards.append(
            f'[[boards]]\nname = "tcp"\nprofile = "phoenix_charx"\nevses = {numbers}\n'
            f'link = {{ kind = "tcp", host = "127.0.0.1", port = {port} }}\n'
        )
        return _python(
            *("-m", "karvon", "sim", "charger", "--profile", "phoenix_charx"),
            *("--tcp", f"127.0.0.1:{port}", "--evses", str(TCP_EVSES)),
            *("--control", self.control("tcp")),
            log=self.folder / "sim.log",
        )

    def configure(self, station: str = "", mqtt_url: str = "", more: str = "") -> None:
        """Write `agent.toml`; with a station that was joined, there is an uplink too."""
        uplink = f'[uplink]\nurl = "{mqtt_url}"\n' if mqtt_url else "[uplink]\n" if station else ""
        self.config.write_text(
            f'station = "{station or "BENCH"}"\n[journal]\nfolder = "journal"\n'
            f"{uplink}{more}{''.join(self.boards)}"
        )

    def join(self, cloud: CloudProcess, station: str) -> str:
        """Claim the station, put down what that gave, admit the card; returns the broker's URL."""
        joined = cloud.join(station)
        (self.folder / "ca.pem").write_text(joined.ca_pem)
        names = ("station", "mqtt_url", "username", "password")
        secrets = self.folder / "credentials.json"
        secrets.write_text(json.dumps({name: getattr(joined, name) for name in names}))
        secrets.chmod(0o600)
        cloud.call("POST", "/api/v1/id-tokens", {"value": TOKEN, "type": "ISO14443"})
        return joined.mqtt_url

    @contextlib.contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        process = _python(
            *("-m", "karvon", "agent", "run", "--config", str(self.config)),
            log=self.folder / "agent.log",
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def all_charge(self) -> None:
        """Vehicles that never get full at all connectors, a card at each, until current flows."""
        for spot in self.spots:
            spot.ask("plug", wants_wh=None, max_current_ma=16_000)
        for spot in self.spots:
            await_(lambda spot=spot: self._present(spot.number), 60)
        await_(lambda: all(spot.evse()["current_ma"] > 6000 for spot in self.spots), 90)

    def _present(self, number: int) -> bool:
        """A card at the reader, as a driver would; False while the agent does not take it."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "karvon", "agent", "token", TOKEN),
                *("--evse", str(number), "--config", str(self.config)),
            ],
            cwd=ROOT,
            check=False,
            capture_output=True,
            env=ENVIRONMENT,
        )
        return done.returncode == 0


def _python(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output, env=ENVIRONMENT
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(path: str, command: dict[str, Any]) -> dict[str, Any] | None:
    """One command to a simulator's control; None where nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5)
            line.connect(path)
            with line.makefile("rw") as io:
                io.write(json.dumps(command) + "\n")
                io.flush()
                return dict(json.loads(io.readline()))
    except (OSError, json.JSONDecodeError):
        return None


def await_(holds: Callable[[], Any], seconds: float, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come about in time"
        time.sleep(0.02)  # polls other processes, which send no signal when it holds
