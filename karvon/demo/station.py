"""One station of the network: a simulated board, the agent that runs it, and their wires."""

from __future__ import annotations

import json
import math
import urllib.parse
from pathlib import Path
from typing import Any, Final

from karvon.demo.agreement import Truth
from karvon.demo.lines import ask
from karvon.demo.places import Plan
from karvon.demo.process import Child, free_port

NANOJOULES_PER_MWH: Final = 3_600_000_000
AGENT_TOML: Final = """\
station = {station}

[journal]
folder = "journal"

[uplink]
url = {mqtt_url}
ca = "ca.pem"
credentials = "credentials.json"
telemetry_every_s = 1.0
longest_retry_s = 4

[[boards]]
name = "board"
profile = "abb_terra_ac"

[boards.link]
{link}
unit = 1

[site]
limit_ma = {limit_ma}

[times]
poll_s = {poll_s}
checkpoint_s = 10
event_s = 10
raise_after_s = 2

[metering]
margin = {margin}
"""


class Station:
    """Owns the simulator's and the agent's processes and folder of one station.

    `board_port` and `mqtt_url` may be turned to a proxy before `write_config`. With `serial` the
    board hangs on a serial line (a pseudo terminal) instead of TCP.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, speed: float, poll_s: float, serial: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan
        self.folder = folder
        self.speed = speed
        self.poll_s = poll_s
        self.config = folder / "agent.toml"
        self.journal = folder / "journal"
        self.line = folder / "line" if serial else None
        self.modbus_port = free_port()
        self.control_port = free_port()
        self.board_port = self.modbus_port
        self.mqtt_url = ""
        name = plan.identity
        self.sim = Child(f"sim-{name}", self._sim_args(), folder)
        self.agent = Child(f"agent-{name}", ["agent", "run", "--config", str(self.config)], folder)

    @property
    def identity(self) -> str:
        return self.plan.identity

    def _sim_args(self) -> list[str]:
        tcp = ("--tcp", f"127.0.0.1:{self.modbus_port}")
        return [
            *("sim", "charger", "--profile", "abb_terra_ac", "--json"),
            *(("--pty", str(self.line)) if self.line else tcp),
            *("--control", f"127.0.0.1:{self.control_port}"),
            *("--speed", str(self.speed)),
            *("--state", str(self.folder / "charger.json")),
        ]

    @property
    def control_socket(self) -> Path:
        return self.journal / "control.sock"

    def keep_claim(self, claim: dict[str, Any]) -> None:
        """Store what the cloud answered to the claim, as `karvon agent claim` does."""
        (self.folder / "ca.pem").write_text(claim["ca_pem"])
        credentials = self.folder / "credentials.json"
        credentials.touch(mode=0o600)
        kept = {name: value for name, value in claim.items() if name != "ca_pem"}
        credentials.write_text(json.dumps(kept))
        self.mqtt_url = claim["mqtt_url"]

    def write_config(self) -> None:
        text = AGENT_TOML.format(
            station=json.dumps(self.identity),
            mqtt_url=json.dumps(self.mqtt_url),
            link=self._link(),
            limit_ma=self.plan.max_ma,
            poll_s=self.poll_s,
            margin=math.ceil(2 * self.speed),
        )
        self.config.write_text(text)

    def _link(self) -> str:
        if self.line is not None:
            return f'kind = "rtu"\ndevice = {json.dumps(str(self.line))}'
        return f'kind = "tcp"\nhost = "127.0.0.1"\nport = {self.board_port}'

    def through(self, port: int) -> None:
        """Reach the broker through this loopback port (a proxy's) from the next start on."""
        parts = urllib.parse.urlsplit(self.mqtt_url)
        self.mqtt_url = parts._replace(netloc=f"127.0.0.1:{port}").geturl()
        self.write_config()

    def board(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask the simulator's control port."""
        return ask(self.control_port, {"do": do, **arguments})

    # ------------------------------------------------------------------ what people do

    def plug(self, want_wh: int, max_ma: int) -> None:
        """A vehicle comes that wants so much energy and takes up to so much current."""
        self.board("plug", evse=1, wants_wh=want_wh, max_current_ma=max_ma)

    def unplug(self) -> None:
        self.board("unplug", evse=1)

    def present(self, token: str) -> None:
        """Hold an id token to the reader."""
        ask(self.control_socket, {"do": "token", "token": token, "evse": 1})

    def agent_status(self) -> dict[str, Any]:
        """What the running agent says of itself; raises DemoError when it does not run."""
        return ask(self.control_socket, {"do": "status"})

    # ------------------------------------------------------------------ what the simulator saw

    def full(self) -> bool:
        """Whether the vehicle has what it wanted."""
        return bool(self.board("status")["evses"][0]["full"])

    def current_ma(self) -> int:
        """What flows at this moment."""
        return int(self.board("status")["evses"][0]["current_ma"])

    def truth(self) -> list[Truth]:
        """The charging sessions that took place, oldest first."""
        return [
            Truth(one["energy_nj"] // NANOJOULES_PER_MWH, over=one["ended_ms"] is not None)
            for one in self.board("status")["sessions"]
        ]

    def violations(self) -> list[str]:
        """Current that flowed where the rules forbid it."""
        return [str(line) for line in self.board("status")["violations"]]

    def start(self) -> None:
        """Start the board, and once it answers, the agent."""
        self.sim.start()
        self.sim.ready()
        self.agent.start()

    def stop(self) -> None:
        self.agent.stop()
        self.sim.stop()
