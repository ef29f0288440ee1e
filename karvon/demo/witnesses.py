"""What each part of the network says about a station's sessions, in the agreement's terms."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any, Final

from karvon.demo.agreement import Booked, Kept, complaints
from karvon.demo.network import Network
from karvon.demo.process import ROOT, DemoError
from karvon.demo.station import Station
from protocols.quantities import WattHours

AGENT_S: Final = 30.0
MOST_SESSIONS: Final = 100_000
MARGIN: Final = timedelta(seconds=5)


def booked(network: Network, station: Station) -> list[Booked]:
    """The station's transactions in the cloud, oldest first."""
    details = [
        network.rest.get(f"/transactions/{item['transaction']}")
        for item in network.transactions(station)
    ]
    return [_booked(detail) for detail in details]


def _booked(detail: dict[str, Any]) -> Booked:
    return Booked(
        transaction=detail["transaction"],
        energy_wh=WattHours(detail["energy_wh"]),
        over=detail["state"] == "ended",
        seq_nos=tuple(sorted(event["seq_no"] for event in detail["events"])),
    )


def agent_says(station: Station, *command: str) -> Any:
    """`karvon agent COMMAND --config … --json`; raises DemoError with what it said on failure."""
    argv = [sys.executable, "-m", "karvon", "agent", *command]
    argv += ["--config", str(station.config), "--json"]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=AGENT_S, check=False
    )
    if done.returncode:
        raise DemoError(f"agent {' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def kept(station: Station) -> list[Kept]:
    """The sessions in the agent's journal, oldest first."""
    sessions = agent_says(station, "sessions", "--limit", str(MOST_SESSIONS))
    found = [
        Kept(one["transaction"], WattHours(one["energy_wh"]), over=one["ended"]) for one in sessions
    ]
    return found[::-1]


def telemetry_wh(network: Network, station: Station, start: datetime, end: datetime) -> int | None:
    """Last minus first lifetime energy of the window around a session; None: no samples yet."""
    rows = network.rest.items(
        f"/stations/{station.identity}/telemetry",
        **{"from": (start - MARGIN).isoformat(), "to": (end + MARGIN).isoformat()},
        evse=1,
        every="1s",
    )
    energies = [row["energy_wh"] for row in rows if row["energy_wh"] is not None]
    return energies[-1] - energies[0] if energies else None


def disagreements(
    network: Network, station: Station, *, journal_lost: bool = False, step_wh: int = 1
) -> list[str]:
    """Every complaint about the station: sessions, energy, events, and forbidden current."""
    found = complaints(
        station.truth(),
        kept(station),
        booked(network, station),
        step_wh=step_wh,
        journal_lost=journal_lost,
    )
    return found + [f"the simulator saw: {line}" for line in station.violations()]
