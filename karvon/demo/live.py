"""The demo that runs until it is interrupted: drivers come and go, a table shows the network."""

from __future__ import annotations

import math
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from karvon.demo.drivers import Driver
from karvon.demo.network import Network
from karvon.demo.process import DemoError
from karvon.demo.rest import RestError
from karvon.demo.session import TOKEN
from karvon.demo.station import Station
from karvon.demo.table import TITLE, Row, live_table

SEED: Final = 2
STEP_S: Final = 1.0
RECENT: Final = timedelta(seconds=15)


def curl_line(network: Network) -> str:
    """What to paste into another terminal."""
    return f'curl -H "Authorization: Bearer $(cat {network.key_file})" {network.rest.base}/stations'


def run_live(network: Network, console: Console, seconds: float = math.inf) -> list[Row]:
    """Step the drivers and redraw once a second; returns the last rows when the time is over."""
    drivers = [
        Driver(station, TOKEN, random.Random(f"{SEED}{identity}"))  # noqa: S311  repeatable traffic
        for identity, station in network.stations.items()
    ]
    rows: list[Row] = []
    end = time.monotonic() + seconds
    with Live(console=console, auto_refresh=False) as live:
        while (now := time.monotonic()) < end:
            for driver in drivers:
                driver.step(now)
            rows = [row_of(network, station) for station in network.stations.values()]
            live.update(live_table(rows, TITLE), refresh=True)
            time.sleep(STEP_S)
    return rows


def row_of(network: Network, station: Station) -> Row:
    """One station as the cloud shows it; raises DemoError when one of its processes ended."""
    for child in (station.sim, station.agent, network.cloud):
        if not child.alive:
            raise DemoError(f"{child.name} ended with {child.exit_code}:\n{child.tail()}")
    detail = network.rest.get(f"/stations/{station.identity}")
    state = detail["evses"][0]["state"] if detail["evses"] else None
    value = state["value"] if state else {}
    transaction = value.get("transaction")
    sample = _newest(network, station)
    return Row(
        station=station.identity,
        site=station.plan.site.city,
        state=_shown(value),
        age_s=_age_s(state, sample),
        stale=state is None or state["stale"],
        power_w=sample["power_w"] if sample else None,
        energy_wh=_energy(network, transaction),
        transaction=transaction,
        online=detail["online"],
    )


def _age_s(state: dict[str, Any] | None, sample: dict[str, Any] | None) -> int | None:
    """A state is told when it changes; each sample after it says that it still holds."""
    ages = [int(state["age_s"])] if state else []
    if sample:
        measured = datetime.fromisoformat(sample["at"])
        ages.append(max(0, int((datetime.now(UTC) - measured).total_seconds())))
    return min(ages, default=None)


def _shown(value: dict[str, Any]) -> str | None:
    """The charging state while there is a vehicle, else the connector's status."""
    charging = value.get("charging_state")
    return value.get("status") if charging in {None, "Idle"} else str(charging)


def _energy(network: Network, transaction: str | None) -> int | None:
    if transaction is None:
        return None
    try:
        energy: int = network.rest.get(f"/transactions/{transaction}")["energy_wh"]
    except RestError as error:
        if error.status == 404:  # its state came before its first event
            return None
        raise
    return energy


def _newest(network: Network, station: Station) -> dict[str, Any] | None:
    """The newest telemetry of the last seconds."""
    now = datetime.now(UTC)
    window = {"from": (now - RECENT).isoformat(), "to": now.isoformat()}
    path = f"/stations/{station.identity}/telemetry"
    return max(
        network.rest.items(path, **window, evse=1, every="1s"),
        key=lambda item: str(item["at"]),
        default=None,
    )
