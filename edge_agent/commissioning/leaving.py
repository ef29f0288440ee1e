"""Taking a controller out of service: nothing is lost unsaid, and no secret stays behind.

Each part may be done twice, so whoever is killed begins again: the configuration, without which no
agent runs, goes last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent import control, faultpoints, joining, station_key
from edge_agent.alone import alone
from edge_agent.commissioning import progress as state
from edge_agent.commissioning.dialog import CommissionError, Dialog
from edge_agent.commissioning.opening import open_gently
from edge_agent.commissioning.progress import Check, Progress, now_text
from edge_agent.commissioning.reporting import put
from edge_agent.config import Config, UplinkPart
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.addresses import written
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    FailsafeShown,
)
from edge_agent.hardware.metered_board import board_itself
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.joining import Credentials, JoinError
from edge_agent.journal import JournalError, JournalView
from edge_agent.main import hardware
from edge_agent.private import sync_folder, wipe
from edge_agent.rules.station import RefusedError
from protocols.quantities import MilliAmperes

POLL_S: Final = 0.5
SUFFIX: Final = ".decommissioned"


@dataclass(slots=True, kw_only=True)
class Leave:
    """What is taken out of service, and how."""

    path: Path
    config: Config
    dialog: Dialog
    force: bool
    """Go on with an open transaction, facts that nobody has, or chargers that do not answer."""
    wait_s: float
    """For the queue to drain, and for the agent to end."""

    @property
    def folder(self) -> Path:
        return self.config.path(self.config.journal.folder)


async def decommission(leave: Leave) -> list[Check]:
    """Raises CommissionError where something would be lost; what is done stays done."""
    try:
        known = state.read(leave.folder)
    except state.ProgressError:
        known = None  # then the chargers get their profiles' neutral values
    checks = await _drained(leave)
    await _ended(leave)
    try:
        with alone(leave.folder, make=True):
            checks += await _left(leave, known)
    except RefusedError as error:
        raise CommissionError(str(error)) from error
    return checks


async def _left(leave: Leave, known: Progress | None) -> list[Check]:
    checks = _nothing_open(leave)
    checks += await _failsafe_put_back(leave, known)
    faultpoints.reach(faultpoints.DECOMMISSION_STEP)
    checks.append(await _retired(leave))
    faultpoints.reach(faultpoints.DECOMMISSION_STEP)
    checks.append(_wiped(leave))
    faultpoints.reach(faultpoints.DECOMMISSION_STEP)
    put(
        leave.path.with_name("decommissioning.json"),
        msgspec.json.format(msgspec.json.encode(_report(leave, checks)), indent=2) + b"\n",
    )
    (leave.folder / state.NAME).unlink(missing_ok=True)
    leave.path.replace(leave.path.with_name(leave.path.name + SUFFIX))
    sync_folder(leave.path.parent)
    return checks


def _report(leave: Leave, checks: list[Check]) -> dict[str, Any]:
    return {
        "station": leave.config.station,
        "at": now_text(),
        "checks": msgspec.to_builtins(checks),
        "journal": str(leave.folder),
    }


def _check(what: str, verdict: state.Verdict, text: str) -> Check:
    return Check(step="decommission", what=what, verdict=verdict, text=text)


# --------------------------------------------------------------------------- the agent


async def _status(leave: Leave) -> dict[str, Any] | None:
    """Of the running agent; None: none runs."""
    try:
        answer: dict[str, Any] = await control.ask(leave.folder, Request(do="status"))
    except NotRunningError:
        return None
    return answer


async def _drained(leave: Leave) -> list[Check]:
    """While the agent runs it can still deliver: wait for that, as long as nobody charges."""
    status = await _status(leave)
    if status is None:
        return []
    _refuse_open(leave, [one["evse"] for one in status["evses"] if one.get("transaction")])
    if not await _comes(leave, lambda: _is_drained(leave), "draining"):
        left = _pending(await _status(leave))
        if left and not leave.force:
            raise CommissionError(leave.dialog.text("not_drained", n=left))
    return []


async def _is_drained(leave: Leave) -> bool:
    return not _pending(await _status(leave))


def _pending(status: dict[str, Any] | None) -> int:
    return 0 if status is None else int(status["status"]["pending_billing"])


async def _ended(leave: Leave) -> None:
    """Whoever runs the agent has to end it: it would set the failsafe anew."""

    async def is_gone() -> bool:
        return await _status(leave) is None

    if not await _comes(leave, is_gone, "end_the_agent"):
        raise CommissionError(leave.dialog.text("still_runs"))


async def _comes(leave: Leave, holds: Callable[[], Awaitable[bool]], why: str) -> bool:
    """Whether it is so within the time; what is waited for is said once."""
    until = time.monotonic() + leave.wait_s
    told = False
    while not await holds():
        if not told:
            told = True
            leave.dialog.say(why, seconds=round(leave.wait_s))
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _refuse_open(leave: Leave, evses: list[int]) -> None:
    if evses and not leave.force:
        named = ", ".join(map(str, evses))
        raise CommissionError(leave.dialog.text("somebody_charges", evses=named))


def _nothing_open(leave: Leave) -> list[Check]:
    """What the journal still holds that nobody else has."""
    dialog = leave.dialog
    try:
        with JournalView(leave.folder) as view:
            _refuse_open(leave, [one.evse for one in view.transactions()])
            left = view.queue().billing_facts
    except JournalError:
        return [_check(dialog.text("queue"), "pass", dialog.text("no_journal"))]
    if not left:
        return [_check(dialog.text("queue"), "pass", dialog.text("queue_empty"))]
    if leave.config.uplink is not None and not leave.force:
        raise CommissionError(dialog.text("facts_left", n=left, folder=leave.folder))
    text = dialog.text("facts_stay", n=left, folder=leave.folder)
    return [_check(dialog.text("queue"), "warn", text)]


# --------------------------------------------------------------------------- the chargers


async def _failsafe_put_back(leave: Leave, known: Progress | None) -> list[Check]:
    checks = []
    parts = {part.name: part for part in leave.config.boards}
    for line in hardware(leave.config).lines:
        board = board_itself(line.board)
        if not isinstance(board, ModbusBoard):
            text = leave.dialog.text("failsafe_unknown")
            checks.append(_check(line.name, "warn", text))
            continue
        before = None if known is None else known.failsafe_before(written(parts[line.name].link))
        try:
            text, exact = await _put_back(leave, board, before)
        except (BoardRefusedError, BoardUnreachableError) as error:
            if not leave.force:
                text = f"{line.name}: {error}; {leave.dialog.text('or_force')}"
                raise CommissionError(text, 3) from error
            checks.append(_check(line.name, "fail", str(error)))
        else:
            checks.append(_check(line.name, "pass" if exact else "warn", text))
    return checks


async def _put_back(
    leave: Leave, board: ModbusBoard, before: state.Before | None
) -> tuple[str, bool]:
    """What the charger shows afterwards, and whether that is what it had before."""
    try:
        await open_gently(board)
        had = None if before is None else _shown(before.raw)
        await board.put_back_failsafe(had)
        shown = await board.failsafe_now()
    finally:
        await board.close()
    if shown is None:
        return leave.dialog.text("no_failsafe_short"), True
    same = had is not None and shown.raw == had.raw
    told = ", ".join(f"EVSE {evse} {half} {value}" for evse, half, value in shown.raw)
    key = "as_before" if same else "not_as_before"
    return leave.dialog.text(key, shown=told or "-"), same


def _shown(raw: tuple[tuple[int, str, int], ...]) -> FailsafeShown:
    told = {half: value for _, half, value in raw}
    fallback = told.get("fallback")
    return FailsafeShown(
        timeout_s=told.get("timeout"),
        fallback=None if fallback is None else MilliAmperes(fallback),
        raw=raw,
    )


# --------------------------------------------------------------------------- the cloud, the keys


def _part(leave: Leave) -> UplinkPart:
    return leave.config.uplink or UplinkPart()


async def _retired(leave: Leave) -> Check:
    """The cloud voids credentials and certificates; without it that stays to be done there."""
    dialog, path = leave.dialog, leave.config.path(_part(leave).credentials)
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Credentials)
    except FileNotFoundError:
        return _check(dialog.text("cloud"), "pass", dialog.text("never_claimed"))
    except (OSError, msgspec.DecodeError) as error:
        return _check(dialog.text("cloud"), "warn", dialog.text("retire_there", why=str(error)))
    if not known.cloud:
        return _check(dialog.text("cloud"), "warn", dialog.text("retire_there", why="?"))
    try:
        station = await asyncio.to_thread(joining.retire, known)
    except JoinError as error:
        return _check(dialog.text("cloud"), "warn", dialog.text("retire_there", why=str(error)))
    return _check(dialog.text("cloud"), "pass", dialog.text("retired", station=station))


def _wiped(leave: Leave) -> Check:
    """Every secret of this station. Raises CommissionError where one cannot be removed."""
    gone = []
    for path in _secrets(leave):
        try:
            if wipe(path):
                gone.append(path.name)
        except OSError as error:
            text = f"{path}: {error}; {leave.dialog.text('wipe_by_hand')}"
            raise CommissionError(text) from error
    names = ", ".join(sorted(gone)) or "-"
    return _check(leave.dialog.text("keys"), "pass", leave.dialog.text("wiped", names=names))


def _secrets(leave: Leave) -> set[Path]:
    config = leave.config
    credentials = config.path(_part(leave).credentials)
    found = {
        credentials,
        credentials.with_name(station_key.NAME),
        credentials.with_name(station_key.DRAFT),
    }
    if config.ocpp is not None:
        named = (config.ocpp.password, config.ocpp.key)
        found |= {config.path(name) for name in named if name is not None}
    if config.site is not None:
        found.add(config.path(config.site.key))
    return found
