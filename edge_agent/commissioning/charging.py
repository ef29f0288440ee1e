"""A test charge: one vehicle for a minute, and what the charger tells of it meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from edge_agent.commissioning.dialog import CommissionError, Dialog
from edge_agent.commissioning.progress import Charged, Check
from edge_agent.commissioning.safety import outlets
from edge_agent.commissioning.work import Work
from edge_agent.config import Config
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EvseReading,
    IecState,
    Phases,
    PowerBoard,
)
from edge_agent.loop import Line
from edge_agent.main import hardware
from edge_agent.shown import amperes
from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes

log = logging.getLogger(__name__)

FLOWS_MA: Final = 1000
"""Less is the vehicle's own electronics, or noise."""
POLL_S: Final = 1.0
TELL_S: Final = 5.0
ENDING_S: Final = 5.0
ABSENT: Final = frozenset({IecState.NO_VEHICLE, IecState.NO_POWER, IecState.FAULT})


@dataclass(frozen=True, slots=True)
class Target:
    """The EVSE that is tried, by both its numbers, and what it may give."""

    line: Line
    mine: int
    evse: int
    limit: MilliAmperes


async def charge(work: Work) -> list[Check]:
    """Skipped unless somebody wants it: it needs a vehicle."""
    dialog, options = work.dialog, work.options
    work.progress.charged = None
    if not dialog.confirm("--charge", "ask_charge", default=False, given=options.charge):
        text = dialog.text("charge_skipped")
        return [Check(step="charge", what=dialog.text("test_charge"), verdict="warn", text=text)]
    target = _target(work.config, options.evse)
    dialog.say("plug_in", evse=target.evse, current=amperes(target.limit), seconds=options.wait_s)
    try:
        charged = await _charge(work, target)
    except (BoardRefusedError, BoardUnreachableError) as error:
        return [_verdict(dialog, target, "fail", str(error))]
    if charged is None:
        return [_verdict(dialog, target, "fail", dialog.text("no_vehicle"))]
    work.progress.charged = charged
    highest = max((one or 0 for one in charged.highest_ma), default=0)
    if highest < FLOWS_MA:
        return [_verdict(dialog, target, "fail", dialog.text("no_current"))]
    energy = "?" if charged.energy_wh is None else str(charged.energy_wh)
    text = dialog.text("charged", current=_shown(charged.highest_ma), wh=energy, s=charged.seconds)
    return [_verdict(dialog, target, "pass", text)]


def _verdict(dialog: Dialog, target: Target, verdict: str, text: str) -> Check:
    what = f"{dialog.text('test_charge')}, EVSE {target.evse}"
    return Check(
        step="charge", what=what, verdict="pass" if verdict == "pass" else "fail", text=text
    )


def _target(config: Config, wanted: int | None) -> Target:
    """Nobody else charges now, so the site's fuse is the only other limit."""
    known = {one.evse: one for one in outlets(config)}
    evse = min(known) if wanted is None else wanted
    if evse not in known:
        have = ", ".join(map(str, known))
        raise CommissionError(f"--evse {evse}: this station has {have}", 2)
    site = min(config.site.lines) if config.site is not None else known[evse].most
    limit = MilliAmperes(min(known[evse].most, site))
    if limit < IEC_MIN_CURRENT:
        raise CommissionError(f"EVSE {evse}: {amperes(limit)} is less than a vehicle charges with")
    for line in hardware(config).lines:
        if evse in line.numbers.values():
            return Target(line, line.own(evse), evse, limit)
    raise LookupError(evse)  # outlets and lines come from the same boards


async def _charge(work: Work, target: Target) -> Charged | None:
    """None: no vehicle came. Whatever happens, the contactor is asked to open at the end."""
    board = target.line.board
    failsafe = work.config.failsafe
    await asyncio.sleep(POLL_S)  # the last connection's requests need their pause
    await board.open()
    try:
        reading = await _until_plugged(work, board, target)
        if reading is None:
            return None
        work.dialog.say("charging_now", seconds=work.options.charge_s, back=failsafe.timeout_s)
        await board.set_limit(target.mine, target.limit)
        await board.release(target.mine)
        return await _watched(work, board, target)
    finally:
        await _end(board, target.mine)


async def _end(board: PowerBoard, evse: int) -> None:
    """Let nothing flow any more; a board that does not hear it is left to its own failsafe."""
    try:
        async with asyncio.timeout(ENDING_S):
            await board.withhold(evse)
    except (BoardRefusedError, BoardUnreachableError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        log.warning("the test charge was not ended (%s); unplug, the failsafe takes over", why)
    await board.close()


async def _until_plugged(work: Work, board: PowerBoard, target: Target) -> EvseReading | None:
    until = time.monotonic() + work.options.wait_s
    while True:
        reading = await _read(board, target.mine)
        if reading.state not in ABSENT:
            return reading
        if time.monotonic() >= until:
            return None
        await asyncio.sleep(POLL_S)


async def _watched(work: Work, board: PowerBoard, target: Target) -> Charged:
    """For the wanted time since current flows, or as long without any."""
    began, flowing, told = time.monotonic(), None, 0.0
    highest: list[int | None] = [None, None, None]
    first = last = None
    while True:
        now, reading = time.monotonic(), await _read(board, target.mine)
        highest = [_higher(*pair) for pair in zip(highest, reading.current, strict=True)]
        if flowing is None and _flows(reading.current):
            flowing = now
        if reading.energy is not None:
            first = reading.energy if first is None else first
            last = reading.energy
        if now >= told + TELL_S:
            told = now
            _tell(work.dialog, reading)
        if now - (began if flowing is None else flowing) >= work.options.charge_s:
            break
        await asyncio.sleep(POLL_S)
    return Charged(
        board=target.line.name,
        evse=target.evse,
        seconds=round(time.monotonic() - (flowing or began)),
        highest_ma=(highest[0], highest[1], highest[2]),
        energy_wh=None if first is None or last is None else max(0, int(last - first)),
    )


async def _read(board: PowerBoard, mine: int) -> EvseReading:
    return next(one for one in await board.read() if one.evse == mine)


def _flows(currents: Phases) -> bool:
    return max((one or 0 for one in currents), default=0) >= FLOWS_MA


def _higher(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _shown(currents: Phases | tuple[int | None, ...]) -> str:
    return " / ".join("-" if one is None else amperes(one) for one in currents)


def _tell(dialog: Dialog, reading: EvseReading) -> None:
    power = "?" if reading.power is None else f"{reading.power} W"
    energy = "?" if reading.energy is None else f"{reading.energy} Wh"
    dialog.say(
        "seen", state=reading.state.value, current=_shown(reading.current), power=power, wh=energy
    )
