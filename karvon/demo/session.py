"""One whole charging session, and whether everybody who measured it agrees."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from karvon.demo import witnesses
from karvon.demo.agreement import within_step
from karvon.demo.network import Network
from karvon.demo.process import DemoError
from karvon.demo.station import Station

WANT_WH: Final = 400
TOKEN: Final = "04A1B2C3D4E5F6"  # noqa: S105  an id token's number, no secret
CHARGE_S: Final = 45.0
SETTLE_S: Final = 30.0
POLL_S: Final = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Energy:
    """The session's energy in Wh as the four witnesses give it."""

    simulator: float
    agent: int
    cloud: int
    telemetry: int


@dataclass(frozen=True)
class Summary:
    ok: bool
    station: str
    transaction: str
    energy_wh: Energy
    seconds: float
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_session(network: Network, station: Station, say: Say) -> Summary:
    """Plug, remote start, charge until full, unplug, compare; raises DemoError when stuck."""
    began = time.monotonic()
    say(f"vehicle arrives at {station.identity} and wants {WANT_WH} Wh")
    station.plug(WANT_WH, station.plan.max_ma)
    transaction = _start(network, station, say)
    network.wait_for(station.full, CHARGE_S, "the vehicle to be full")
    say("vehicle is full and leaves")
    station.unplug()
    ended = network.wait_for(
        lambda: _ended(network, transaction), SETTLE_S, "the end of the transaction in the cloud"
    )
    return _compare(network, station, ended, time.monotonic() - began)


def _start(network: Network, station: Station, say: Say) -> str:
    """Remote start over REST; returns the transaction once the cloud says that it charges."""
    command = network.rest.post(
        f"/stations/{station.identity}/commands/remote-start",
        {"evse": 1, "id_token": {"value": TOKEN}},
    )
    say(f"remote start sent: command {command['command']}")
    found = network.wait_for(
        lambda: _open(network, station), SETTLE_S, "the started transaction in the cloud"
    )
    say(f"transaction {found} started")
    return found


def _open(network: Network, station: Station) -> str | None:
    for item in network.transactions(station):
        if item["state"] != "ended":
            return str(item["transaction"])
    return None


def _ended(network: Network, transaction: str) -> dict[str, Any] | None:
    detail: dict[str, Any] = network.rest.get(f"/transactions/{transaction}")
    return detail if detail["state"] == "ended" else None


def _compare(network: Network, station: Station, detail: dict[str, Any], seconds: float) -> Summary:
    truth = station.truth()[-1].energy_mwh
    telemetry = _telemetry(network, station, detail, truth)
    if telemetry is None:
        raise DemoError(f"the session's telemetry did not arrive within {SETTLE_S:.0f} s")
    journal = {one.transaction: one.energy_wh for one in witnesses.kept(station)}
    transaction = str(detail["transaction"])
    if transaction not in journal:
        raise DemoError(f"transaction {transaction} is not in the agent's journal: {journal}")
    energy = Energy(
        simulator=truth / 1000,
        agent=journal[transaction],
        cloud=detail["energy_wh"],
        telemetry=telemetry,
    )
    problems = _problems(network, station, energy, truth)
    return Summary(
        not problems, station.identity, transaction, energy, round(seconds, 1), tuple(problems)
    )


def _telemetry(
    network: Network, station: Station, detail: dict[str, Any], truth_mwh: int
) -> int | None:
    """The window's energy as soon as it is whole, else as it stands at the deadline."""
    start = datetime.fromisoformat(detail["started_at"])
    end = datetime.fromisoformat(detail["ended_at"])
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = witnesses.telemetry_wh(network, station, start, end)
        whole = found is not None and within_step(truth_mwh, found, 1)
        if whole or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def _problems(network: Network, station: Station, energy: Energy, truth_mwh: int) -> list[str]:
    found = witnesses.disagreements(network, station)
    if not within_step(truth_mwh, energy.telemetry, 1):
        found.append(f"telemetry adds up to {energy.telemetry} Wh")
    return found
