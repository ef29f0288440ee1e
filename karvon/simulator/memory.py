"""What a simulated charger keeps through its own restart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from karvon.simulator.charger import Session, SimulatedCharger
from karvon.simulator.vehicle import Vehicle


def saved(charger: SimulatedCharger) -> dict[str, Any]:
    """What a charger keeps through a restart: its meter, its sessions, what is plugged in."""
    return {
        "world_ms": charger.world_ms,
        "violations": list(charger.violations),
        "sessions": [asdict(session) for session in charger.sessions],
        "evses": [
            {
                "number": e.number,
                "lifetime_nj": e.lifetime_nj,
                "shown_nj": e.shown_nj,
                "limit": e.limit,
                "released": e.released,
                "stopped": e.stopped,
                "paused": e.paused,
                "error": e.error,
                "timeout_s": e.timeout_s,
                "fallback": e.fallback,
                "session": e.session.number if e.session else None,
                "vehicle": _vehicle(e.vehicle),
            }
            for e in charger.evses.values()
        ],
    }


def restore(charger: SimulatedCharger, state: dict[str, Any]) -> None:
    charger.world_ms = state["world_ms"]
    charger.violations = list(state["violations"])
    charger.sessions = [Session(**each) for each in state["sessions"]]
    by_number = {session.number: session for session in charger.sessions}
    for each in state["evses"]:
        evse = charger.evses.get(each.pop("number"))
        if evse is None:
            continue
        session, vehicle = each.pop("session"), each.pop("vehicle")
        for name, value in each.items():
            setattr(evse, name, value)
        evse.session = by_number.get(session) if session else None
        evse.vehicle = Vehicle(**vehicle) if vehicle else None
    charger.refresh()


def _vehicle(vehicle: Vehicle | None) -> dict[str, Any] | None:
    if vehicle is None:
        return None
    kept = ("wants_wh", "max_current", "phases", "ramp_ma_per_s", "reaction_ms", "taken_nj")
    return {name: getattr(vehicle, name) for name in kept}
