"""What a transaction's event or a reading says, as the values of both versions (pure)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from protocols.agent_link import Sample, SignedMoment, Stamp, TransactionEvent

ENERGY: Final = "Energy.Active.Import.Register"
WHITE_SPACE: Final = dict.fromkeys(map(ord, "\t\n\r"), " ")
"""What JSON allows between its values besides the blank."""
SAME_MOMENT_MS: Final = 2_500
"""A reading so near to an event is of the same moment."""


class Reading(NamedTuple):
    """One value, in the unit's whole or thousandth parts."""

    measurand: str
    phase: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """Without an exponent or trailing zeros."""
        return f"{self.value:.3f}".rstrip("0").rstrip(".")


def signed_text(data: bytes) -> str:
    """What was signed, as 1.6 carries it: as it is where it is text, else in Base64.

    OCMF allows JSON's white space between its values, and names and tariffs in any script (1.2,
    Table 4): both are text, whose octets come back from it.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return b64encode(data).decode("ascii")
    if text.translate(WHITE_SPACE).isprintable():
        return text
    return b64encode(data).decode("ascii")


def register_at(event: TransactionEvent, moment: SignedMoment) -> int:
    """The register at the signed moment (Wh)."""
    return event.meter_wh - (event.energy_wh if moment is SignedMoment.BEGIN else 0)


def of_event(
    event: TransactionEvent, latest: Sample | None, measurands: Collection[str]
) -> list[Reading]:
    """The event's register, and what the board read beside it if that is of the same moment."""
    found = [Reading(ENERGY, "", event.meter_wh, "Wh")]
    if latest is not None and _near(latest.at, event.at):
        found += [one for one in of_sample(latest, measurands) if one.measurand != ENERGY]
    return found


def _near(one: Stamp, other: Stamp) -> bool:
    return one.boot == other.boot and abs(one.mono_ms - other.mono_ms) <= SAME_MOMENT_MS


def of_sample(sample: Sample, measurands: Collection[str]) -> list[Reading]:
    """What is asked for and was read."""
    return [one for one in _all(sample) if one.measurand in measurands]


def _all(sample: Sample) -> Iterator[Reading]:
    if sample.energy_wh is not None:
        yield Reading(ENERGY, "", sample.energy_wh, "Wh")
    if sample.power_w is not None:
        yield Reading("Power.Active.Import", "", sample.power_w, "W")
    if sample.offered_ma is not None:
        yield Reading("Current.Offered", "", sample.offered_ma / 1000, "A")
    currents = (sample.current_l1_ma, sample.current_l2_ma, sample.current_l3_ma)
    voltages = (sample.voltage_l1_mv, sample.voltage_l2_mv, sample.voltage_l3_mv)
    for number, current in enumerate(currents, start=1):
        if current is not None:
            yield Reading("Current.Import", f"L{number}", current / 1000, "A")
    for number, voltage in enumerate(voltages, start=1):
        if voltage is not None:
            yield Reading("Voltage", f"L{number}-N", voltage / 1000, "V")
