"""The whole network on loopback: one cloud with its own database and broker, and stations."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from karvon.demo.places import TIME_ZONE, Plan
from karvon.demo.process import Child, DemoError, descendant, free_port, wait_for
from karvon.demo.rest import Rest, RestError
from karvon.demo.station import Station

PROGRAMS: Final = {"database": "postgres", "broker": "nats-server"}
"""What runs below the cloud, and the name of its program."""
START_S: Final = 60.0

T = TypeVar("T")


class Network:
    """Starts, breaks and stops real processes; everything lies in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        speed: float = 1.0,
        poll_s: float = 1.0,
        registration: str = "known",
    ) -> None:
        self.folder = folder.resolve()
        self.speed = speed
        self.poll_s = poll_s
        self.data = self.folder / "cloud"
        self.http_port = free_port()
        self.mqtt_port = free_port()
        self.key_file = self.folder / "admin.key"
        self.rest = Rest(f"http://127.0.0.1:{self.http_port}/api/v1")
        self.stations: dict[str, Station] = {}
        self._sites: dict[str, int] = {}
        self.cloud = Child("cloud", self._cloud_args(registration), self.folder)

    def _cloud_args(self, registration: str) -> list[str]:
        return [
            *("cloud", "serve", "--json", "--registration", registration),
            *("--data-dir", str(self.data), "--admin-key-file", str(self.key_file)),
            *("--http-port", str(self.http_port), "--mqtt-port", str(self.mqtt_port)),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ start and stop

    def start_cloud(self, env: Mapping[str, str] | None = None) -> None:
        """Start the cloud and wait until it serves; `env` holds for this run of it only."""
        self.cloud.start(env)
        self.cloud.ready(START_S)
        self.rest.key = self.key_file.read_text().strip()

    def add_station(
        self, plan: Plan, *, serial: bool = False, kind: type[Station] = Station
    ) -> Station:
        """Create the station in the cloud and claim it; its processes do not run yet."""
        created = self.rest.post(
            "/stations", {"station": plan.identity, "name": plan.name, "site": self._site(plan)}
        )
        folder = self.folder / plan.identity
        station = kind(plan, folder, speed=self.speed, poll_s=self.poll_s, serial=serial)
        claim = {"station": plan.identity, "code": created["claim"]["code"]}
        station.keep_claim(Rest(self.rest.base).post("/claims", claim))
        station.write_config()
        self.stations[plan.identity] = station
        return station

    def _site(self, plan: Plan) -> int:
        site = plan.site
        if site.name not in self._sites:
            body = {
                "name": site.name,
                "address": site.city,
                "latitude": site.latitude,
                "longitude": site.longitude,
                "time_zone": TIME_ZONE,
            }
            self._sites[site.name] = self.rest.post("/sites", body)["id"]
        return self._sites[site.name]

    def start_station(self, station: Station) -> None:
        """Start the board and the agent, and wait until the cloud sees it connected."""
        station.start()
        self.wait_online(station)

    def wait_online(self, station: Station, deadline_s: float = START_S) -> None:
        wait_for(lambda: self._online(station), deadline_s, f"{station.identity} to be online")

    def _online(self, station: Station) -> bool:
        if not station.agent.alive:
            raise DemoError(f"{station.agent.name} ended:\n{station.agent.tail()}")
        return bool(self.rest.get(f"/stations/{station.identity}")["online"])

    def stop(self) -> None:
        """End every process, the agents first and all at once."""
        for station in self.stations.values():
            station.agent.signal(signal.SIGTERM)
        for station in self.stations.values():
            station.stop()
        self.cloud.stop(30.0)

    # ------------------------------------------------------------------ breaking things

    def pid(self, name: str) -> int:
        """The process id of a child by name, or of the cloud's `database` or `broker`."""
        if name in PROGRAMS:
            found = descendant(self.cloud.pid, PROGRAMS[name])
            if found is None:
                raise DemoError(f"the cloud has no {name} running")
            return found
        return self.child(name).pid

    def child(self, name: str) -> Child:
        if name == "cloud":
            return self.cloud
        kind, _, identity = name.partition("-")
        station = self.stations[identity]
        return station.agent if kind == "agent" else station.sim

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to `cloud`, `database`, `broker`, `agent-<id>` or `sim-<id>`."""
        os.kill(self.pid(name), number)

    def restart(self, name: str) -> None:
        """Kill it if it runs, start it again, and wait until it is ready."""
        child = self.child(name)
        child.kill()
        if child is self.cloud:
            self.start_cloud()
            return
        child.start()
        if name.startswith("sim-"):
            child.ready()

    # ------------------------------------------------------------------ looking

    def wait_for(self, look: Callable[[], T | None], deadline_s: float, what: str) -> T:
        """As `process.wait_for`, forgiving a cloud that is away for the moment."""

        def patient() -> T | None:
            try:
                return look()
            except RestError as error:
                if error.status in {0, 502, 503, 504}:
                    return None
                raise

        return wait_for(patient, deadline_s, what)

    def transactions(self, station: Station) -> Sequence[dict[str, Any]]:
        """The station's transactions in the cloud, oldest first."""
        found = self.rest.items("/transactions", station=station.identity)
        return sorted(found, key=lambda item: str(item["started_at"]))


def port_open(port: int) -> bool:
    """Whether something listens on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
