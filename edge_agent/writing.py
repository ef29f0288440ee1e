"""A technician's write: only what the profile describes, checked first, read back afterwards.

What may be written is what the agent itself writes, so the profile's own rules hold: its ranges,
its order, its forbidden registers, its read-back. There is no way to write a bare register.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edge_agent.config import Config
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Failsafe
from edge_agent.hardware.metered_board import board_itself
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.modbus_port import describe
from edge_agent.loop import Line, Loop
from edge_agent.rules.station import RefusedError
from protocols.modbus.binding import ForbiddenError, WriteRequest
from protocols.modbus.commands import UnrepresentableError, failsafe_commands, limit_command
from protocols.modbus.frames import request_pdu, rtu_frame, spaced
from protocols.modbus.values import EncodingError
from protocols.quantities import MilliAmperes

LIMIT, TIMEOUT, FALLBACK = "limit", "failsafe_timeout", "failsafe_fallback"
UNITS: Final = {LIMIT: "mA", TIMEOUT: "s", FALLBACK: "mA"}
THROUGH_AGENT_S: Final = 30.0
IMPOSSIBLE: Final = (UnrepresentableError, EncodingError, ForbiddenError)
TROUBLE: Final = (BoardRefusedError, BoardUnreachableError)


class Frame(msgspec.Struct, frozen=True):
    """One request as it will be sent; `octets` with CRC on a serial line, else unit and PDU."""

    octets: str
    text: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, and what would be sent for it."""

    board: str
    evse: int
    field: str
    value: int
    unit: str
    frames: tuple[Frame, ...]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent, and what the device shows afterwards (None: it shows nothing)."""

    plan: Plan
    read_back: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """A board's EVSE, by both its numbers."""

    line: Line
    board: ModbusBoard
    mine: int
    evse: int


def target(lines: Sequence[Line], name: str, evse: int | None) -> Target:
    """The EVSE that is meant. Raises RefusedError."""
    line = next((line for line in lines if line.name == name), None)
    if line is None:
        have = ", ".join(line.name for line in lines)
        raise RefusedError(f"there is no board '{name}' here; this controller has {have}")
    itself = board_itself(line.board)
    if not isinstance(itself, ModbusBoard):
        raise RefusedError(f"board {name} has no registers to write")
    numbers = list(line.numbers.values())
    if evse is None and len(numbers) > 1:
        listed = ", ".join(map(str, numbers))
        raise RefusedError(f"board {name} has several EVSEs; name one of {listed} with --evse")
    if evse is not None and evse not in numbers:
        listed = ", ".join(map(str, numbers))
        raise RefusedError(f"EVSE {evse} is not behind board {name}; that has {listed}")
    number = numbers[0] if evse is None else evse
    return Target(line, itself, line.own(number), number)


def writable(board: ModbusBoard) -> dict[str, str]:
    """Names that may be written -> what they stand for; a register's own name counts too."""
    profile = board.device.profile
    names: dict[str, str] = {}
    if profile.setpoint is not None:
        names |= {LIMIT: LIMIT} | _alias(profile.setpoint.read_back, LIMIT)
    block = profile.failsafe
    if block is not None and block.timeout.write is not None:
        names |= {TIMEOUT: TIMEOUT} | _alias(block.timeout.read_back, TIMEOUT)
    if block is not None and block.fallback.write is not None:
        names |= {FALLBACK: FALLBACK} | _alias(block.fallback.read_back, FALLBACK)
    return names


def _alias(name: str | None, field: str) -> dict[str, str]:
    return {} if name is None else {name: field}


def plan(config: Config, at: Target, field: str, value: int) -> Plan:
    """What would be sent. The board is open, so that its firmware is known. Raises RefusedError."""
    names = writable(at.board)
    if field not in names:
        have = ", ".join(f"{name} ({UNITS[meant]})" for name, meant in names.items())
        raise RefusedError(
            f"board {at.line.name} has nothing to write named '{field}'; "
            f"its profile allows {have or 'no write at all'}"
        )
    meant = names[field]
    if meant == LIMIT:
        _check_limit(config, at, value)
    try:
        requests = _requests(config, at, meant, value)
    except IMPOSSIBLE as error:
        raise RefusedError(f"{meant} {value} {UNITS[meant]}: {error}") from error
    if not requests:
        raise RefusedError(f"board {at.line.name}: its own {meant} cannot be written")
    frames = tuple(_frame(at.board, each) for each in requests)
    return Plan(
        board=at.line.name,
        evse=at.evse,
        field=meant,
        value=value,
        unit=UNITS[meant],
        frames=frames,
    )


def _check_limit(config: Config, at: Target, value: int) -> None:
    """Never more than the weakest part of the installation bears."""
    info = next(info for info in at.board.evses if info.evse == at.mine)
    cable = next(part.cable_ma for part in config.boards if part.name == at.line.name)
    site = min(config.site.lines) if config.site is not None else None
    bounds = {"the board": info.max_current, "boards.cable_ma": cable, "site.limit_ma": site}
    for name, most in bounds.items():
        if most is not None and value > most:
            raise RefusedError(f"limit {value} mA is more than {name} allows: {most} mA")
    if value < 0:
        raise RefusedError(f"limit {value} mA: not below 0, which pauses the vehicle")


def _requests(config: Config, at: Target, meant: str, value: int) -> tuple[WriteRequest, ...]:
    binding = at.board.device.binding
    if meant == LIMIT:
        return limit_command(binding, at.mine, MilliAmperes(value)).writes
    wanted = _failsafe(config, meant, value)
    return tuple(
        request
        for mine in at.board.device.evses
        for request in failsafe_commands(binding, mine, wanted.timeout_s, wanted.fallback)
    )


def _failsafe(config: Config, meant: str, value: int) -> Failsafe:
    """Both halves are always written, in the device's order: the other one as configured."""
    kept = config.failsafe
    timeout = value if meant == TIMEOUT else kept.timeout_s
    fallback = value if meant == FALLBACK else kept.current_ma
    return Failsafe(timeout_s=timeout, fallback=MilliAmperes(fallback))


def _frame(board: ModbusBoard, request: WriteRequest) -> Frame:
    pdu = request_pdu(request)
    serial = board.device.line_health().kind == "rtu"
    octets = rtu_frame(request.unit, pdu) if serial else bytes((request.unit,)) + pdu
    return Frame(spaced(octets), describe(request))


async def carry_out(config: Config, at: Target, planned: Plan) -> Written:
    """Write, read back, compare. Raises RefusedError; what was written before stays then."""
    shown: int | None
    try:
        if planned.field == LIMIT:
            shown = await at.board.set_limit(at.mine, MilliAmperes(planned.value))
        else:
            wanted = _failsafe(config, planned.field, planned.value)
            armed = await at.board.arm_failsafe(wanted) or wanted
            shown = armed.timeout_s if planned.field == TIMEOUT else armed.fallback
    except TROUBLE as error:
        raise RefusedError(
            f"{error}. Look at what the device has now: karvon agent read"
        ) from error
    return Written(plan=planned, read_back=shown)


async def through_agent(
    loop: Loop, config: Config, *, board: str, field: str, value: int, evse: int | None, dry: bool
) -> Plan | Written:
    """The same while the agent runs, between two of its polls.

    Raises RefusedError for what the agent itself governs, and for a failsafe that would be weaker
    than the one it was commissioned with.
    """
    at = target(loop.lines, board, evse)
    if not at.line.opened:
        raise RefusedError(f"board {board} does not answer: {at.line.trouble or 'not open yet'}")
    planned = plan(config, at, field, value)
    _refuse_what_the_agent_governs(config, planned)
    if dry:
        return planned
    try:
        async with asyncio.timeout(THROUGH_AGENT_S), at.line.lock:
            return await carry_out(config, at, planned)
    except TimeoutError:
        raise RefusedError(f"board {board} did not take it within {THROUGH_AGENT_S:g} s") from None


def _refuse_what_the_agent_governs(config: Config, planned: Plan) -> None:
    times, kept = config.times, config.failsafe
    if planned.field == LIMIT:
        raise RefusedError(
            "the running agent sets the limit; have the operator limit the EVSE, or stop the agent "
            "first (systemctl stop karvon-agent)"
        )
    if planned.field == FALLBACK and planned.value > kept.current_ma:
        raise RefusedError(
            f"failsafe_fallback {planned.value} mA is more than the agent was commissioned with "
            f"({kept.current_ma} mA); change failsafe.current_ma and restart the agent"
        )
    if planned.field == TIMEOUT and planned.value > kept.timeout_s:
        raise RefusedError(
            f"failsafe_timeout {planned.value} s is more than the agent was commissioned with "
            f"({kept.timeout_s} s); change failsafe.timeout_s and restart the agent"
        )
    least = 2 * times.poll_s + times.deadline_s
    if planned.field == TIMEOUT and planned.value <= least:
        raise RefusedError(
            f"failsafe_timeout {planned.value} s is too short: one late poll would already stop a "
            f"vehicle; more than {least:g} s"
        )
