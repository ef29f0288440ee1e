"""A board whose energy and currents come from a meter beside it: it has none, or none that counts.

What the meter measures replaces what the board says of it, so the register that bills is the
meter's, with the meter's grade. A meter that does not answer costs a reading its energy, never the
board its commands; after a while the board is told lost, for nobody charges without being measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from edge_agent.hardware.board import (
    NO_PHASES,
    NO_VOLTAGES,
    BoardRefusedError,
    BoardUnreachableError,
    EnergyKind,
    EvseInfo,
    EvseReading,
    Failsafe,
    Meter,
    MeterReading,
    PowerBoard,
)
from edge_agent.hardware.modbus_board import ModbusMeter
from protocols.agent_link import SignedValue
from protocols.modbus.binding import STATION
from protocols.quantities import MilliAmperes, WattHours

METER_ERRORS: Final = (BoardUnreachableError, BoardRefusedError, TimeoutError)
ONE_WH: Final = WattHours(1)
MEASURED: Final = frozenset({"current", "voltage", "power", "energy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What a meter's register is, known before it is asked."""

    kind: EnergyKind = EnergyKind.LIFETIME
    step: WattHours = ONE_WH
    modulus: int | None = None
    """A narrow counter wraps at this many Wh."""
    billing: bool = False


class MeteredBoard:
    """A PowerBoard of one EVSE, made of a board and the meter in its feed."""

    def __init__(
        self,
        board: PowerBoard,
        meter: Meter,
        grade: Grade,
        *,
        patience_s: float,
        stale_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience_s` is for one question to the meter. Raises ValueError."""
        if len(board.evses) != 1:
            raise ValueError(f"one meter cannot tell {len(board.evses)} EVSEs apart")
        self.board, self.meter, self.grade = board, meter, grade
        self.meter_trouble = ""
        self._heard_at: float | None = None
        self._patience_s, self._stale_after_s = patience_s, stale_after_s
        self._clock = clock
        self._meter_opened = False
        self._since: float | None = None
        """When the meter was last heard, or else first missed."""

    @property
    def evses(self) -> tuple[EvseInfo, ...]:
        (info,) = self.board.evses
        grade = self.grade
        return (
            replace(
                info,
                energy_kind=grade.kind,
                energy_step=grade.step,
                energy_modulus=grade.modulus,
                billing_grade=grade.billing,
            ),
        )

    @property
    def identity(self) -> str:
        return self.board.identity

    @property
    def meter_age_s(self) -> float | None:
        """Since the meter was last heard; None: not yet."""
        return None if self._heard_at is None else self._clock() - self._heard_at

    async def open(self) -> None:
        await self.board.open()

    async def close(self) -> None:
        self._meter_opened = False
        try:
            await self.board.close()
        finally:
            await self.meter.close()

    async def read(self) -> tuple[EvseReading, ...]:
        told, measured = await asyncio.gather(
            self.board.read(), self._measure(), return_exceptions=True
        )
        if isinstance(told, BaseException):
            raise told
        if isinstance(measured, BaseException):
            raise measured
        (reading,) = told
        if measured is not None:
            return (_joined(reading, measured),)
        silent_s = self._clock() - (self._since or 0.0)
        if silent_s >= self._stale_after_s:
            raise BoardUnreachableError(
                f"its meter has not answered for {silent_s:.0f} s ({self.meter_trouble}); nobody "
                "charges without being measured"
            )
        return (_unmeasured(reading),)

    async def set_limit(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        return await self.board.set_limit(evse, limit)

    async def release(self, evse: int) -> None:
        await self.board.release(evse)

    async def withhold(self, evse: int) -> None:
        await self.board.withhold(evse)

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe | None:
        return await self.board.arm_failsafe(failsafe)

    async def note_signed(self, evse: int) -> None:
        """What is signed is the meter's, whatever the board itself would say."""
        del evse
        if isinstance(self.meter, ModbusMeter):
            await self.meter.signatures.note(STATION)

    async def signed(self, evse: int) -> tuple[SignedValue, ...]:
        del evse
        if not isinstance(self.meter, ModbusMeter):
            return ()
        return await self.meter.signatures.after(STATION)

    async def _measure(self) -> MeterReading | None:
        """What the meter says now; None: nothing."""
        if self._since is None:
            self._since = self._clock()
        try:
            async with asyncio.timeout(self._patience_s):
                if not self._meter_opened:
                    await self.meter.open()
                    self._meter_opened = True
                measured = await self.meter.read()
        except METER_ERRORS as error:
            self.meter_trouble = str(error) or f"no answer within {self._patience_s:g} s"
            return None
        self.meter_trouble = ""
        self._heard_at = self._since = self._clock()
        return measured


def board_itself(board: PowerBoard) -> PowerBoard:
    """What switches the power, without the meter that is put beside it."""
    return board.board if isinstance(board, MeteredBoard) else board


def _joined(reading: EvseReading, measured: MeterReading) -> EvseReading:
    doubted = {"energy" if name == "imported" else name for name in measured.suspect}
    return replace(
        reading,
        taken_at=min(reading.taken_at, measured.taken_at),
        current=measured.current,
        voltage=measured.voltage,
        power=measured.power,
        energy=measured.imported,
        suspect=frozenset((reading.suspect - MEASURED) | (doubted & MEASURED)),
    )


def _unmeasured(reading: EvseReading) -> EvseReading:
    """The board's own numbers must not slip in between the meter's."""
    return replace(
        reading,
        current=NO_PHASES,
        voltage=NO_VOLTAGES,
        power=None,
        energy=None,
        suspect=(reading.suspect - MEASURED) | {"energy"},
    )
