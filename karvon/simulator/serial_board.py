"""A simulated board of our own language: the world of any charger, behind another wire.

Written from docs/serial-board.md with the codec of protocols/, which the vectors under
tests/vectors/serial_board prove by hand-made octets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from firmware_bridge.simulator.stm32 import Stm32
from karvon.simulator.charger import SimEvse, SimulatedCharger
from karvon.simulator.server import Answers
from karvon.simulator.vehicle import MIN_CURRENT, NANOJOULES_PER_WH
from protocols import serial_board as wire
from protocols.modbus.loading import load_profile
from protocols.quantities import MilliAmperes, MilliVolts, WattHours, Watts
from protocols.serial_board import (
    Abilities,
    Ability,
    BoardState,
    Command,
    Flag,
    FrameError,
    Identity,
    Message,
    Reading,
    Receiver,
    Status,
    encode,
)

IMAGE: Final = b"simulated board 1.0.0"
TIMEOUTS: Final = range(5, 601)
TEMPERATURE: Final = 412
"""Tenths of a degree Celsius."""
WORLD: Final = """
profile: serial_board
kind: charger
maker: Karvon
models: [simulated board]
source: docs/serial-board.md
status: manual
transports: {rtu: {baudrate: 115200}}
evses: {phases: %d, min_current_ma: 6000, max_current_ma: %d}
registers: {state: {address: 0, type: u16}}
states: {rules: [{when: {state: 0}, is: A}], otherwise: F}
setpoint:
  write: {address: 1, function: 6, scale: 0.01, unit: A}
  range: [6, 80]
  pause: {value: 0}
  confirm_by_effect: true
release: [{address: 2, function: 6, value: 1}]
withhold: [{address: 2, function: 6, value: 0}]
failsafe:
  timeout: {write: {address: 3, function: 6, unit: s}, range: [0, 600]}
  fallback: {write: {address: 4, function: 6, unit: A}, range: [0, 80]}
  fed_by: {by: reads}
simulator: {states: {empty: {state: 0}}}
"""
"""What the vehicle's world asks of a profile; no register of it is ever served."""
LETTERS: Final = {"empty": "A", "fault": "F", "charging": "C"}


class BoardAnswers(Answers):
    """Frames for frames, or none; with the faults of a serial line."""

    def __init__(self, board: SimulatedSerialBoard, clock: Callable[[], float]) -> None:
        super().__init__(board, clock)
        self.board = board
        self.doubled = self.torn = 0
        self._receiver = Receiver()

    def hear(self, octets: bytes) -> list[bytes]:
        said = self.board.in_rom(octets)
        if said is not None:
            return [said] if said else []
        frames: list[bytes] = []
        for message in self._receiver.feed(octets):
            now = self.clock()
            if now < self.silent_until:
                continue
            answer = self.board.answer(message, now)
            if answer is not None:
                self.requests += 1
                frames += self._on_the_line(encode(answer))
        return frames

    def _on_the_line(self, frame: bytes) -> list[bytes]:
        if self.torn > 0:
            self.torn -= 1
            frame = frame[: len(frame) // 2] + frame[len(frame) // 2 + 1 :]
        frame = self.spoiled(frame)
        if self.doubled > 0:
            self.doubled -= 1
            return [frame, frame]
        return [frame]


class SimulatedSerialBoard(SimulatedCharger):
    """A charger that answers frames instead of registers; starts withheld and with 0 mA."""

    def __init__(
        self,
        *,
        evses: int = 1,
        address: int = 1,
        phases: int = 3,
        max_current: int = 32_000,
        speed: float = 1.0,
        now: float = 0.0,
        chip: Stm32 | None = None,
    ) -> None:
        """`chip`: what its application lies in, and whose ROM it leaves for."""
        world = load_profile(WORLD % (phases, max_current), "serial_board.yaml")
        super().__init__(world, evses=evses, unit=address, speed=speed, now=now)
        self.address = address
        self.chip = chip
        self.in_loader = False
        self._serial = f"SIM{address:05d}"
        self._untold = set(self.evses)
        """EVSEs whose contactor was told nothing since the board's start."""
        for evse in self.evses.values():
            evse.limit = 0

    def answer(self, asked: Message, now: float) -> Message | None:
        """The reply; None: it was not for this board."""
        if asked.address != self.address or asked.answers:
            return None
        if self.chip is not None and self.chip.running() is None:
            return None
        self.advance(now)
        self._feed(now)
        status, payload = self._result(asked)
        octets = bytes((status,)) + payload
        self.refresh()
        return Message(asked.address, asked.message | wire.ANSWER, asked.sequence, octets)

    def in_rom(self, octets: bytes) -> bytes | None:
        """What the chip's own loader says to that; None: it does not run."""
        if self.chip is None or not self.chip.in_loader:
            return None
        said = self.chip.feed(octets)
        if self.chip.running() is not None:
            self.reset_board()
        return said

    def reset_board(self) -> None:
        super().reset_board()
        self.in_loader = False
        self._untold = set(self.evses)
        for evse in self.evses.values():
            evse.limit = 0

    def _result(self, asked: Message) -> tuple[Status, bytes]:
        served: dict[int, Callable[[bytes], tuple[Status, bytes]]] = {
            Command.IDENTITY: lambda _: (Status.DONE, self._identity().encode())
        }
        if not self.in_loader:
            served |= {
                Command.ABILITIES: lambda _: (Status.DONE, self._abilities().encode()),
                Command.READ: lambda _: (Status.DONE, self._readings()),
                Command.LIMIT: self._limit_it,
                Command.CONTACTOR: self._switch,
                Command.FAILSAFE: self._keep_failsafe,
                Command.LOADER: self._enter_loader,
            }
        serve = served.get(asked.command)
        if serve is None:
            return Status.UNKNOWN_COMMAND, b""
        try:
            return serve(asked.payload)
        except FrameError:
            return Status.BAD_LENGTH, b""

    def _identity(self) -> Identity:
        runs = None if self.chip is None else self.chip.running()
        if runs is not None:
            major, minor, patch = map(int, runs.version.split("."))
            return Identity(
                state=BoardState.APPLICATION,
                hw_id=runs.hw_id or "",
                firmware=(major, minor, patch),
                build=hashlib.sha256(runs.version.encode()).digest()[:8],
                loader=(0, 0, 0),
                serial=self._serial,
                evses=len(self.evses) if runs.healthy else 0,
                protocol=(runs.protocol or wire.MAJOR, wire.MINOR),
            )
        return Identity(
            state=BoardState.LOADER if self.in_loader else BoardState.APPLICATION,
            hw_id="KPB-SIM",
            firmware=(1, 0, 0),
            build=hashlib.sha256(IMAGE).digest()[:8],
            loader=(1, 0, 0),
            serial=self._serial,
            evses=0 if self.in_loader else len(self.evses),
        )

    def _abilities(self) -> Abilities:
        evses = self.profile.evses
        return Abilities(
            flags=Ability.ONE_PHASE if evses.phases == 1 else Ability(0),
            min_current=MilliAmperes(evses.min_current_ma),
            max_current=MilliAmperes(evses.max_current_ma),
            shortest_timeout_s=TIMEOUTS.start,
            longest_timeout_s=TIMEOUTS.stop - 1,
        )

    def _readings(self) -> bytes:
        return b"".join(self._told(evse).encode() for evse in self.evses.values())

    def _told(self, evse: SimEvse) -> Reading:
        limit = self.limit(evse)
        situation = evse.situation(limit)
        vehicle = evse.vehicle
        current = MilliAmperes(vehicle.current if vehicle else 0)
        phases = vehicle.phases if vehicle else self.profile.evses.phases
        flags = Flag(0)
        flags |= Flag.CONTACTOR if self._closed(evse) else Flag(0)
        flags |= Flag.AWAITS_RELEASE if situation == "waiting" else Flag(0)
        flags |= Flag.FALLBACK if self._starving else Flag(0)
        flags |= Flag.RESTARTED if evse.number in self._untold else Flag(0)
        return Reading(
            evse=evse.number,
            state=LETTERS.get(situation, "B"),
            flags=flags,
            fault=evse.error,
            current=tuple(current if n < phases else MilliAmperes(0) for n in range(3)),
            voltage=tuple(
                MilliVolts(self.millivolts) if n < self.profile.evses.phases else None
                for n in range(3)
            ),
            power=Watts(self._power(evse)),
            energy=WattHours(evse.lifetime_nj // NANOJOULES_PER_WH),
            temperature=TEMPERATURE,
            applied_limit=MilliAmperes(limit),
        )

    def _limit_it(self, payload: bytes) -> tuple[Status, bytes]:
        number, asked = wire.limit_of(payload)
        evse = self.evses.get(number)
        if evse is None:
            return Status.NO_SUCH_EVSE, b""
        highest = self.profile.evses.max_current_ma
        if 0 < asked < MIN_CURRENT or asked > highest:
            return Status.BAD_VALUE, b""
        evse.limit = asked
        ceiling = asked if evse.ceiling is None else min(asked, evse.ceiling)
        return Status.DONE, wire.limit(number, ceiling)

    def _switch(self, payload: bytes) -> tuple[Status, bytes]:
        number, released = wire.contactor_of(payload)
        evse = self.evses.get(number)
        if evse is None:
            return Status.NO_SUCH_EVSE, b""
        self._untold.discard(number)
        if released and evse.error:
            return Status.FAULT, b""
        if released:
            self._release(evse)
        else:
            evse.stopped, evse.released = evse.vehicle is not None, False
            self._cut(evse)
        return Status.DONE, wire.contactor(number, released=released)

    def _keep_failsafe(self, payload: bytes) -> tuple[Status, bytes]:
        timeout_s, fallback = wire.failsafe_of(payload)
        good = fallback == 0 or MIN_CURRENT <= fallback <= self.profile.evses.max_current_ma
        if not good or (timeout_s and timeout_s not in TIMEOUTS):
            return Status.BAD_VALUE, b""
        for evse in self.evses.values():
            evse.timeout_s, evse.fallback = timeout_s, int(fallback)
        return Status.DONE, wire.failsafe(timeout_s, fallback)

    def _enter_loader(self, payload: bytes) -> tuple[Status, bytes]:
        if payload != wire.LOADER_KEY:
            return Status.BAD_VALUE, b""
        if any(self._closed(evse) for evse in self.evses.values()):
            return Status.NOT_NOW, b""
        if self.chip is None:
            self.in_loader = True
        else:
            self.chip.enter_loader()
        return Status.DONE, b""

    def status(self) -> dict[str, Any]:
        if self.chip is None:
            return {**super().status(), "in_loader": self.in_loader}
        runs = self.chip.running()
        firmware = None if runs is None else runs.version
        return {**super().status(), "in_loader": self.chip.in_loader, "firmware": firmware}
