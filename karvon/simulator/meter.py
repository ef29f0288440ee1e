"""A simulated energy meter: a load that the test sets, behind a meter's register bank."""

from __future__ import annotations

from typing import Any

from karvon.simulator.bank import ILLEGAL_FUNCTION, RefusedError, RegisterBank, Values
from karvon.simulator.vehicle import NANOJOULES_PER_WH
from protocols.modbus.binding import Binding
from protocols.modbus.profile import Profile
from protocols.modbus.values import Words

MILLIVOLTS = 230_000


class SimulatedMeter:
    """Integrates `load_w` (negative is export) exactly, in nJ."""

    def __init__(self, profile: Profile, *, unit: int, speed: float, now: float) -> None:
        self.profile, self.speed = profile, speed
        self.bank = RegisterBank(Binding(profile=profile, unit=unit), (0,))
        self.load_w = 0
        self.imported_nj = self.exported_nj = 0
        self._real = now
        self._left_ms = 0.0
        self.refresh()

    def advance(self, now: float) -> None:
        self._left_ms += (now - self._real) * 1000 * self.speed
        self._real = now
        whole = int(self._left_ms)
        self._left_ms -= whole
        energy = self.load_w * whole * 1_000_000
        self.imported_nj += max(energy, 0)
        self.exported_nj += max(-energy, 0)
        self.refresh()

    def read(self, span: Any, now: float) -> Words:
        self.advance(now)
        return self.bank.read(span)

    def write(self, *_: object) -> None:
        """A meter takes no writes."""
        raise RefusedError(ILLEGAL_FUNCTION)

    def status(self) -> dict[str, Any]:
        return {
            "load_w": self.load_w,
            "imported_wh": self.imported_nj / NANOJOULES_PER_WH,
            "exported_wh": self.exported_nj / NANOJOULES_PER_WH,
        }

    def refresh(self) -> None:
        values: Values = dict(self.profile.simulator.defaults) if self.profile.simulator else {}
        per_phase = self.load_w * 1_000_000 // (3 * MILLIVOLTS)
        for phase in (1, 2, 3):
            values[f"voltage_l{phase}"] = MILLIVOLTS
            values[f"current_l{phase}"] = abs(per_phase)
            values[f"power_l{phase}"] = self.load_w // 3
        values["power"] = self.load_w
        values["current_sum"] = abs(3 * per_phase)
        values["imported"] = self.imported_nj // NANOJOULES_PER_WH
        values["exported"] = self.exported_nj // NANOJOULES_PER_WH
        values["energy_total"] = (self.imported_nj + self.exported_nj) // NANOJOULES_PER_WH
        self.bank.show({0: values})
