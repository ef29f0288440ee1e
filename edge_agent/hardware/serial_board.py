"""PowerBoard over our own serial language: a board made for this agent, without a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EnergyKind,
    EvseInfo,
    EvseReading,
    Failsafe,
    IecState,
    Phases,
    PhaseVoltages,
)
from edge_agent.hardware.line import LineHealth
from edge_agent.hardware.serial_port import RefusedError, SerialPort
from protocols import serial_board as wire
from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes, MilliVolts, WattHours
from protocols.serial_board import (
    Abilities,
    Ability,
    BoardState,
    Command,
    Flag,
    FrameError,
    Identity,
    Reading,
    Status,
)

ONE_PHASE: Final = "one_phase"
BILLING_GRADE: Final = "billing_grade"
OPTIONS: Final = {ONE_PHASE: Ability.ONE_PHASE, BILLING_GRADE: Ability.BILLING_GRADE}
"""What the configuration says of a board before it is asked; the board must agree."""
MAX_CURRENT: Final = MilliAmperes(32_000)
"""Until the board says what it is good for; a stronger one is used up to this."""
T = TypeVar("T")


class SerialBoard:
    """A PowerBoard at an address of a line."""

    def __init__(
        self,
        port: SerialPort,
        address: int,
        *,
        evses: Sequence[int] = (1,),
        options: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError where this cannot be a board."""
        unknown = sorted(options - set(OPTIONS))
        if unknown:
            raise ValueError(
                f"a serial board has no option '{unknown[0]}'; it has {', '.join(OPTIONS)}"
            )
        if address not in wire.ADDRESSES:
            raise ValueError(f"link.unit: addresses are 1 to 247, not {address}")
        if not 1 <= len(evses) <= wire.MOST_EVSES:
            raise ValueError(f"a serial board has 1 to {wire.MOST_EVSES} EVSEs, not {len(evses)}")
        self.address = address
        self.told: Identity | None = None
        self.temperature: int | None = None
        """Tenths of a degree Celsius, the warmest EVSE of the last reading."""
        self._port, self._numbers, self._options = port, tuple(evses), options
        self._clock = clock
        self._abilities: Abilities | None = None
        self._attached = False

    @property
    def identity(self) -> str:
        told = self.told
        if told is None:
            return ""
        words = ("Karvon board", told.hw_id, told.serial, wire.dotted(told.firmware))
        return " ".join(word for word in words if word)

    @property
    def evses(self) -> tuple[EvseInfo, ...]:
        able = self._abilities
        return tuple(
            EvseInfo(
                evse=evse,
                phases=1 if ONE_PHASE in self._options else 3,
                min_current=IEC_MIN_CURRENT if able is None else able.min_current,
                max_current=MAX_CURRENT if able is None else min(MAX_CURRENT, able.max_current),
                energy_kind=EnergyKind.LIFETIME,
                energy_step=WattHours(1),
                energy_modulus=None,
                billing_grade=BILLING_GRADE in self._options,
            )
            for evse in self._numbers
        )

    def line_health(self) -> LineHealth:
        return self._port.health()

    async def open(self) -> None:
        if not self._attached:
            self._port.attach()
            self._attached = True
        told = self._understood(Identity.decode, await self._ask(Command.IDENTITY))
        self._check(told)
        able = self._understood(Abilities.decode, await self._ask(Command.ABILITIES))
        self._compare(told, able)
        self.told, self._abilities = told, able

    async def close(self) -> None:
        if self._attached:
            self._attached = False
            await self._port.detach()

    async def read(self) -> tuple[EvseReading, ...]:
        taken_at = self._clock()
        found = self._understood(wire.readings, await self._ask(Command.READ))
        self.temperature = max(
            (r.temperature for r in found if r.temperature is not None), default=None
        )
        here = {reading.evse: reading for reading in found}
        if not set(self._numbers) <= set(here):
            raise BoardUnreachableError(
                f"{self._name}: tells of EVSE {', '.join(map(str, here))} only"
            )
        return tuple(_reading(here[evse], taken_at) for evse in self._numbers)

    async def blocks(self) -> list[tuple[Reading, bytes]]:
        """Each EVSE's reading as understood and as it came, for a technician."""
        answer = await self._ask(Command.READ)
        size = wire.READING.size
        found = self._understood(wire.readings, answer)
        return [(told, answer[n * size : (n + 1) * size]) for n, told in enumerate(found)]

    async def set_limit(self, evse: int, limit: MilliAmperes) -> MilliAmperes | None:
        info = self._info(evse)
        asked = min(limit, info.max_current) if limit >= info.min_current else MilliAmperes(0)
        answer = await self._ask(Command.LIMIT, wire.limit(evse, asked))
        known, applied = self._understood(wire.limit_of, answer)
        if (known, applied) != (evse, asked):
            raise BoardRefusedError(
                f"{self._name} EVSE {evse}: asked for {asked} mA, but it applies {applied} mA; "
                "is a dial or another limit inside set lower?"
            )
        return applied

    async def release(self, evse: int) -> None:
        await self._switch(evse, released=True)

    async def withhold(self, evse: int) -> None:
        await self._switch(evse, released=False)

    async def _switch(self, evse: int, *, released: bool) -> None:
        answer = await self._ask(Command.CONTACTOR, wire.contactor(evse, released=released))
        if self._understood(wire.contactor_of, answer) != (evse, released):
            done = "release" if released else "withhold"
            raise BoardRefusedError(f"{self._name} EVSE {evse}: did not {done}")

    async def arm_failsafe(self, failsafe: Failsafe) -> Failsafe | None:
        asked = wire.failsafe(failsafe.timeout_s, failsafe.fallback)
        answer = await self._ask(Command.FAILSAFE, asked)
        timeout_s, fallback = self._understood(wire.failsafe_of, answer)
        kept = Failsafe(timeout_s=timeout_s, fallback=fallback)
        if kept != failsafe:
            raise BoardRefusedError(
                f"{self._name}: keeps a failsafe of {kept.timeout_s} s, {kept.fallback} mA instead "
                f"of {failsafe.timeout_s} s, {failsafe.fallback} mA"
            )
        return kept

    async def restore_failsafe(self) -> None:
        """For taking the agent away: without one the board charges as it was last told."""
        await self._ask(Command.FAILSAFE, wire.failsafe(0, 0))

    async def enter_loader(self) -> None:
        """Leave the application for the loader; the board refuses while a contactor is closed.

        Afterwards only its identity and the loader's own language are answered.
        """
        await self._ask(Command.LOADER, wire.LOADER_KEY)
        self.told = self._abilities = None

    # ------------------------------------------------------------------------------------ inside

    @property
    def _name(self) -> str:
        return f"{self._port.link.line} unit {self.address}"

    def _info(self, evse: int) -> EvseInfo:
        return next(info for info in self.evses if info.evse == evse)

    async def _ask(self, command: Command, payload: bytes = b"") -> bytes:
        try:
            return await self._port.request(self.address, command, payload)
        except RefusedError as error:
            text = f"{self._name}: {error}"
            if error.status == Status.NOT_NOW:
                raise BoardUnreachableError(f"{text}; ask again later") from error
            raise BoardRefusedError(text) from error

    def _understood(self, read: Callable[[bytes], T], answer: bytes) -> T:
        try:
            return read(answer)
        except FrameError as error:
            raise BoardRefusedError(
                f"{self._name}: answers with {error}; its firmware does not follow the protocol"
            ) from error

    def _check(self, told: Identity) -> None:
        if told.protocol[0] != wire.MAJOR:
            theirs = ".".join(map(str, told.protocol))
            raise BoardRefusedError(
                f"{self._name}: speaks protocol {theirs}, this agent {wire.MAJOR}.{wire.MINOR}; "
                "update the one that is older"
            )
        if told.state is BoardState.LOADER:
            raise BoardRefusedError(
                f"{self._name}: {told.hw_id} is in its loader {wire.dotted(told.loader)}, without "
                "an application; install its firmware"
            )
        if told.evses < max(self._numbers):
            raise BoardRefusedError(
                f"{self._name}: has {told.evses} EVSEs, {len(self._numbers)} are configured; "
                "correct boards.evses"
            )

    def _compare(self, told: Identity, able: Abilities) -> None:
        for option, flag in OPTIONS.items():
            said = flag in able.flags
            if said and option == BILLING_GRADE:
                continue  # nobody has to use it for billing
            if said != (option in self._options):
                what = "is" if said else "is not"
                do = "add it to" if said else "take it out of"
                raise BoardRefusedError(
                    f"{self._name}: {told.hw_id} {what} '{option}'; {do} the board's options"
                )


def _reading(told: Reading, taken_at: float) -> EvseReading:
    state = IecState.FAULT if told.fault else IecState(told.state)
    return EvseReading(
        evse=told.evse,
        taken_at=taken_at,
        state=state,
        current=_three(told.current),
        voltage=_voltages(told.voltage),
        power=told.power,
        energy=told.energy,
        applied_limit=told.applied_limit,
        error_code=told.fault,
        awaits_release=Flag.AWAITS_RELEASE in told.flags,
        restarted=Flag.RESTARTED in told.flags,
    )


def _three(values: Sequence[MilliAmperes | None]) -> Phases:
    one, two, three = values
    return one, two, three


def _voltages(values: Sequence[MilliVolts | None]) -> PhaseVoltages:
    one, two, three = values
    return one, two, three
