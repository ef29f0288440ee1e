"""A small language for what a vehicle does by itself, in world time.

"plug after 2 s, want 5 kWh, unplug when full, repeat" - or "unplug after 60 s".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.vehicle import Vehicle

PHRASE: Final = re.compile(
    r"(?P<verb>plug|unplug) after (?P<seconds>[0-9.]+) s"
    r"|want (?P<kwh>[0-9.]+) kWh|(?P<full>unplug when full)|(?P<repeat>repeat)"
)


class ScriptError(Exception):
    """The script is not understood; the text names the part."""


@dataclass(slots=True)
class Script:
    """Plugs and unplugs by the world's clock; `step` is called after each advance."""

    plug_after_ms: int = 0
    unplug_after_ms: int | None = None
    unplug_when_full: bool = False
    wants_wh: int | None = None
    repeat: bool = False
    _since_ms: int = 0
    _done: bool = False

    def step(self, charger: SimulatedCharger, evse: int = 1) -> None:
        vehicle = charger.evses[evse].vehicle
        elapsed = charger.world_ms - self._since_ms
        if vehicle is None:
            if not self._done and elapsed >= self.plug_after_ms:
                phases = charger.profile.evses.phases
                charger.plug(Vehicle(wants_wh=self.wants_wh, phases=phases), evse)
                self._since_ms = charger.world_ms
            return
        timed_out = self.unplug_after_ms is not None and elapsed >= self.unplug_after_ms
        if timed_out or (self.unplug_when_full and vehicle.full and not vehicle.current):
            charger.unplug(evse)
            self._since_ms = charger.world_ms
            self._done = not self.repeat


def parse_script(text: str) -> Script:
    """Raises ScriptError."""
    script = Script()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found = PHRASE.fullmatch(part)
        if found is None:
            raise ScriptError(
                f"cannot read '{part}' in the script; write for example "
                "'plug after 2 s, want 5 kWh, unplug when full, repeat'"
            )
        _apply(script, found)
    return script


def _apply(script: Script, found: re.Match[str]) -> None:
    if found["verb"] == "plug":
        script.plug_after_ms = round(float(found["seconds"]) * 1000)
    elif found["verb"] == "unplug":
        script.unplug_after_ms = round(float(found["seconds"]) * 1000)
    elif found["kwh"]:
        script.wants_wh = round(float(found["kwh"]) * 1000)
    elif found["full"]:
        script.unplug_when_full = True
    else:
        script.repeat = True
