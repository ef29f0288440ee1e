"""`karvon agent sniff`: what others say on a serial line, frame by frame, with names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import serial

from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import BoardPart, Config, ConfigError, Device, load
from edge_agent.hardware.line import is_pseudo
from edge_agent.hardware.modbus_port import EXCEPTIONS
from edge_agent.hardware.registry import UnknownProfileError, find_profile
from edge_agent.registers import BASE_UNITS
from protocols.modbus.binding import Binding, Facts
from protocols.modbus.document import ProfileError
from protocols.modbus.frames import spaced
from protocols.modbus.profile import Profile, Rtu
from protocols.modbus.sniffing import Kind, Seen, Sniffer, named, named_write

PARITIES: Final = ("none", "even", "odd")
BITS_A_CHARACTER: Final = 11
IDLE_CHARACTERS: Final = 3.5
SHORTEST_IDLE_S: Final = 0.03
"""USB adapters hand over what they have every 16 ms; a shorter pause tells nothing."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command line; what is None comes from the configuration or the profile."""

    port: Path
    profile: str | None
    baudrate: int | None
    parity: str | None
    stopbits: int | None
    frames: int | None


@dataclass(slots=True)
class Known:
    """What the configuration says of a line: its settings, and who is who on it."""

    rtu: Rtu = field(default_factory=Rtu)
    everyone: Profile | None = None
    units: dict[int, tuple[Profile, frozenset[str]]] = field(default_factory=dict)

    def binding(self, unit: int) -> Binding | None:
        profile, options = self.units.get(unit, (self.everyone, frozenset()))
        if profile is None:
            return None
        return Binding(profile=profile, unit=unit, facts=Facts(options=options))


def sniff(path: Path, asked: Asked, *, as_json: bool) -> int:
    """0 after the frames asked for or Ctrl-C, 2 wrong usage, 3 the port cannot be read."""
    if asked.parity not in {None, *PARITIES}:
        return complain(f"--parity is none, even or odd, not '{asked.parity}'", 2)
    try:
        known = _known(path, asked)
    except (UnknownProfileError, ProfileError) as error:
        return complain(str(error), 2)
    listener = Listener(known, asked.frames, as_json=as_json)
    try:
        line = _opened(asked.port, known.rtu)
    except (OSError, termios.error) as error:
        text = (
            f"{asked.port} cannot be opened ({error}); is it plugged in, and does another program "
            "hold it? To listen beside the agent use a second adapter on the same line"
        )
        return complain(text, 3)
    settings = f"{known.rtu.baudrate} baud, parity {known.rtu.parity}"
    complain(f"listening on {asked.port} at {settings}; Ctrl-C ends", 0)
    ended = ""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sums are told at either end
    with line, contextlib.suppress(KeyboardInterrupt):
        ended = asyncio.run(listener.listen(line.fileno()))
    listener.sum_up()
    return complain(f"{asked.port}: {ended}", 3) if ended else 0


def _opened(port: Path, settings: Rtu) -> serial.Serial:
    return serial.Serial(
        str(port),
        baudrate=settings.baudrate,
        parity="N" if is_pseudo(str(port)) else settings.parity[0].upper(),
        stopbits=settings.stopbits,
        timeout=0,
        exclusive=True,
    )


def _known(path: Path, asked: Asked) -> Known:
    """A line can be listened to without a configuration, or beside one that is wrong."""
    known = Known()
    try:
        _learn(known, load(path), asked.port)
    except ConfigError as error:
        if path.exists():
            complain(f"no names from the configuration: {error}", 0)
    if asked.profile is not None:
        known.everyone, known.units = find_profile(asked.profile), {}
        known.rtu = known.everyone.transports.rtu or known.rtu
    changes = {
        name: value
        for name in ("baudrate", "parity", "stopbits")
        if (value := getattr(asked, name)) is not None
    }
    known.rtu = msgspec.structs.replace(known.rtu, **changes)
    return known


def _learn(known: Known, config: Config, port: Path) -> None:
    parts: list[Device | BoardPart] = list(config.boards)
    parts += [board.meter for board in config.boards if board.meter is not None]
    if config.site is not None and config.site.meter is not None:
        parts.append(config.site.meter)
    for part in parts:
        if part.link.kind != "rtu" or Path(part.link.device).resolve() != port.resolve():
            continue
        profile = find_profile(part.profile)
        link = part.link.completed(profile)
        known.rtu = Rtu(
            baudrate=link.baudrate or 9600,
            parity=link.parity or "none",
            stopbits=link.stopbits or 1,
        )
        known.units[link.unit or 1] = (profile, frozenset(part.options))


class Listener:
    """Prints what is heard; counts it per unit."""

    def __init__(self, known: Known, most: int | None, *, as_json: bool) -> None:
        self._known = known
        self._left = most
        self._as_json = as_json
        character_s = BITS_A_CHARACTER / known.rtu.baudrate
        self._idle_s = max(SHORTEST_IDLE_S, IDLE_CHARACTERS * character_s)
        self._sniffer = Sniffer()
        self._counts: Counter[tuple[int, Kind]] = Counter()

    async def listen(self, handle: int) -> str:
        """Until enough was heard (""), or the port failed (why)."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        idle: asyncio.TimerHandle | None = None

        def quiet() -> None:
            self._show(self._sniffer.idle(time.monotonic()), ended)

        def readable() -> None:
            nonlocal idle
            try:
                octets = os.read(handle, 4096)
            except BlockingIOError:
                return
            except OSError as error:
                octets = b""
                _end(ended, f"it cannot be read any more ({error.strerror}); was it unplugged?")
            if not octets:
                loop.remove_reader(handle)
                _end(ended, "it was closed at its other end")
                return
            if idle is not None:
                idle.cancel()
            self._show(self._sniffer.feed(octets, time.monotonic()), ended)
            idle = loop.call_later(self._idle_s, quiet)

        loop.add_reader(handle, readable)
        try:
            return await ended
        finally:
            loop.remove_reader(handle)
            if idle is not None:
                idle.cancel()

    def _show(self, found: list[Seen], ended: asyncio.Future[str]) -> None:
        for seen in found:
            if self._left == 0:
                return
            self._counts[seen.unit or 0, seen.kind] += 1
            told = self._told(seen)
            print_json(told) if self._as_json else print_lines([_line(told)])
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    _end(ended, "")

    def _told(self, seen: Seen) -> dict[str, Any]:
        now = datetime.now(UTC)
        values = []
        binding = None if seen.unit is None else self._known.binding(seen.unit)
        if binding is not None:
            meter = binding.profile.kind == "meter"
            evses = range(1) if meter else range(1, binding.profile.evses.count + 1)
            fields = binding.fields()
            values = [
                {
                    "evse": evse,
                    "name": name,
                    "value": value.value,
                    "unit": BASE_UNITS.get(fields[name].unit, fields[name].unit),
                }
                for evse, name, value in named(seen, binding, evses)
            ]
            values += [
                {"evse": evse, "name": name, "value": None, "unit": ""}
                for evse, name in named_write(seen, binding, evses)
            ]
        return {
            "at": f"{now:%H:%M:%S}.{now.microsecond // 1000:03}",
            "gap_ms": None if seen.gap_s is None else round(seen.gap_s * 1000),
            "kind": seen.kind,
            "crc_fits": seen.crc_fits,
            "unit": seen.unit,
            "function": seen.function,
            "address": seen.address,
            "count": seen.count,
            "exception": seen.exception,
            "raw": spaced(seen.raw),
            "named": values,
        }

    def sum_up(self) -> None:
        """How each unit did, once the listening is over."""
        if self._as_json:
            return
        for unit in sorted({unit for unit, kind in self._counts if kind is not Kind.NOISE}):
            asked, answered, refused = (
                self._counts[unit, kind] for kind in (Kind.REQUEST, Kind.RESPONSE, Kind.EXCEPTION)
            )
            silent = max(0, asked - answered - refused)
            text = (
                f"{asked} requests, {answered} answers, {refused} exceptions, {silent} unanswered"
            )
            print_lines([f"unit {unit}: {text}"])
        noise = self._counts[0, Kind.NOISE]
        if noise:
            advice = "check speed and parity, A and B, termination, and who else sends"
            print_lines([f"noise (CRC fits nothing): {noise} times; {advice}"])


def _end(ended: asyncio.Future[str], why: str) -> None:
    if not ended.done():
        ended.set_result(why)


def _line(told: dict[str, Any]) -> str:
    gap = "" if told["gap_ms"] is None else f"+{told['gap_ms']} ms"
    head = f"{told['at']} {gap:>9}  {told['kind']:<9}"
    if told["kind"] is Kind.NOISE:
        return f"{head} {'':<9} CRC fits nothing  [{told['raw']}]"
    names = ", ".join(_named(one) for one in told["named"])
    shown = f"{head} unit {told['unit']:<4} {_what(told)}  [{told['raw']}]"
    return f"{shown}  {names}" if names else shown


def _what(told: dict[str, Any]) -> str:
    function = told["function"]
    if told["exception"] is not None:
        why = EXCEPTIONS.get(told["exception"], "exception")
        return f"function {function}: {why} (exception {told['exception']})"
    if told["address"] is None:
        return f"function {function}"
    verb = "read" if function < 5 else "write"
    return f"{verb} {told['count']} from {told['address']:#06x} (function {function})"


def _named(one: dict[str, Any]) -> str:
    value = "" if one["value"] is None else f"={one['value']}{one['unit']}"
    return f"{one['name']}{value}"
