"""The PowerBoard port: what the agent asks of the electronics that switch and measure the power.

A driver never repeats an old value: `read` either returns what the hardware said just now, or
raises. A field that the hardware does not offer, or whose value is a sentinel or implausible, is
None; the latter two are also named in `suspect`. How old a reading may be is the caller's rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from protocols.agent_link import SignedValue
from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts

Phases = tuple[MilliAmperes | None, MilliAmperes | None, MilliAmperes | None]
PhaseVoltages = tuple[MilliVolts | None, MilliVolts | None, MilliVolts | None]
NO_PHASES: Phases = (None, None, None)
NO_VOLTAGES: PhaseVoltages = (None, None, None)


class IecState(StrEnum):
    """Vehicle states of IEC 61851-1 table A.1; D counts as C for everything but ventilation."""

    NO_VEHICLE = "A"
    CONNECTED = "B"
    CHARGING = "C"
    VENTILATION = "D"
    NO_POWER = "E"
    FAULT = "F"


class EnergyKind(StrEnum):
    """What the board's energy register counts."""

    SESSION = "session"
    LIFETIME = "lifetime"


class BoardUnreachableError(Exception):
    """The board did not answer in time or the line is down; the text says which and how often."""


class BoardRefusedError(Exception):
    """The board answered, but would not take or did not apply what was written; the text says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvseReading:
    """One EVSE as the board reported it at `taken_at` (monotonic seconds)."""

    evse: int
    taken_at: float
    state: IecState
    current: Phases = NO_PHASES
    voltage: PhaseVoltages = NO_VOLTAGES
    power: Watts | None = None
    energy: WattHours | None = None
    """The energy register as `EvseInfo.energy_kind` says, already scaled."""
    applied_limit: MilliAmperes | None = None
    error_code: int = 0
    awaits_release: bool = False
    """The board says that nobody was authorized since this vehicle was plugged in; False also
    where it cannot say so."""
    restarted: bool = False
    """The board says that it has restarted and was told nothing since; False also where it cannot
    say so."""
    suspect: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvseInfo:
    """What an EVSE can do, from its profile."""

    evse: int
    phases: int
    min_current: MilliAmperes
    max_current: MilliAmperes
    energy_kind: EnergyKind
    energy_step: WattHours
    energy_modulus: int | None
    """A narrow counter wraps at this many Wh; None: it does not wrap within its life."""
    billing_grade: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failsafe:
    """The board's own fallback when the agent falls silent (seconds, mA)."""

    timeout_s: int
    fallback: MilliAmperes


@dataclass(frozen=True, slots=True, kw_only=True)
class FailsafeShown:
    """What a board tells of its fallback now; None: it does not tell this half of it."""

    timeout_s: int | None
    fallback: MilliAmperes | None
    raw: tuple[tuple[int, str, int], ...] = ()
    """(EVSE, half, value in s or mA) as far as it tells, for putting it back."""


class PowerBoard(Protocol):
    """One power board, with one or more EVSEs. Every method may raise BoardUnreachableError."""

    @property
    def evses(self) -> tuple[EvseInfo, ...]: ...

    @property
    def identity(self) -> str:
        """Maker, model, serial and firmware as one line; "" until the first successful open."""
        ...

    async def open(self) -> None:
        """Connect, read the identity, check that the profile fits the device.

        Raises BoardRefusedError where the device is not the one the profile describes.
        """
        ...

    async def close(self) -> None: ...

    async def read(self) -> tuple[EvseReading, ...]:
        """All EVSEs, fresh; also feeds the board's watchdog where reads or a life register do."""
        ...

    async def set_limit(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        """Set the current limit; below the EVSE's minimum means pause, by the profile's own rule.

        Returns the limit as read back, None where the profile confirms by effect. Raises
        BoardRefusedError when the read-back differs by more than the register's step.
        """
        ...

    async def release(self, evse: int) -> None:
        """Let the vehicle charge (authorized): the board may close its contactor."""
        ...

    async def withhold(self, evse: int) -> None:
        """End or forbid charging: the board opens its contactor."""
        ...

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe | None:
        """Write the board's own failsafe; returns it as read back, None where it has none."""
        ...


@runtime_checkable
class Signs(Protocol):
    """A board whose meter signs what a transaction has counted, where its profile says so."""

    async def note_signed(self, evse: int) -> None:
        """At the start: what stands there now is another transaction's."""
        ...

    async def signed(self, evse: int) -> tuple[SignedValue, ...]:
        """After the end, as soon as it is signed; () where it signs nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """A site or EVSE meter at `taken_at` (monotonic seconds); power is positive when consumed."""

    taken_at: float
    current: Phases = NO_PHASES
    voltage: PhaseVoltages = NO_VOLTAGES
    power: Watts | None = None
    imported: WattHours | None = None
    exported: WattHours | None = None
    suspect: frozenset[str] = field(default_factory=frozenset)


class Meter(Protocol):
    """An energy meter beside the boards."""

    @property
    def identity(self) -> str: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self) -> MeterReading: ...
