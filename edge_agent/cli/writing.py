"""`karvon agent write`: show what would be sent, ask, send, read back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent import control, writing
from edge_agent.alone import alone
from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import Config, ConfigError, load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.main import hardware
from edge_agent.rules.station import RefusedError
from edge_agent.writing import Plan, Written

DEADLINE_S: Final = 30.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command line."""

    board: str
    field: str
    value: int
    evse: int | None
    yes: bool
    dry: bool


class DeclinedError(Exception):
    """The technician said no."""


def write(path: Path, asked: Asked, *, as_json: bool) -> int:
    """0 written and read back, 1 refused or declined, 2 wrong usage, 3 not reachable."""
    if as_json and not (asked.yes or asked.dry):
        return complain("--json asks nobody; add --yes to write or --dry-run to look", 2)
    ask = _confirmed(asked, as_json=as_json)
    try:
        config = load(path)
        done = asyncio.run(_write(config, asked, ask))
    except ConfigError as error:
        return complain(str(error), 2)
    except RefusedError as error:
        return complain(str(error), 1)
    except DeclinedError:
        return complain("nothing was written", 1)
    except (BoardRefusedError, BoardUnreachableError) as error:
        return complain(str(error), 3)
    except TimeoutError:
        text = f"no answer within {DEADLINE_S:g} s; check cabling, address and line settings"
        return complain(text, 3)
    if as_json:
        print_json(done)
    elif isinstance(done, Written):
        print_lines([_outcome(done)])
    return 0


def _outcome(done: Written) -> str:
    if done.read_back is None:
        return "written; this device does not show what it applies, so look at the current"
    return f"written; the device shows {done.read_back} {done.plan.unit}"


def _confirmed(asked: Asked, *, as_json: bool) -> Callable[[Plan], None]:
    """Shows the plan and asks; raises DeclinedError."""

    def ask(plan: Plan) -> None:
        if not as_json:
            what = f"{plan.field} = {plan.value} {plan.unit}"
            print_lines([f"board {plan.board}, EVSE {plan.evse}: {what}"])
            print_lines([f"sends {frame.octets}   ({frame.text})" for frame in plan.frames])
        if asked.yes or asked.dry:
            return
        sys.stdout.write("Write it? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise DeclinedError

    return ask


async def _write(config: Config, asked: Asked, ask: Callable[[Plan], None]) -> Plan | Written:
    folder = config.path(config.journal.folder)
    try:
        return await _through_agent(folder, asked, ask)
    except NotRunningError:
        return await _directly(config, folder, asked, ask)


async def _through_agent(folder: Path, asked: Asked, ask: Callable[[Plan], None]) -> Plan | Written:
    """Raises NotRunningError before anything was asked or written."""
    request = Request(
        do="write",
        device=asked.board,
        field=asked.field,
        value=asked.value,
        evse=asked.evse,
        dry=True,
    )
    plan = msgspec.convert(_told(await control.ask(folder, request)), Plan)
    ask(plan)
    if asked.dry:
        return plan
    try:
        answer = await control.ask(folder, msgspec.structs.replace(request, dry=False))
    except NotRunningError as error:
        raise RefusedError(f"{error}; it is not known whether it was written") from error
    return msgspec.convert(_told(answer), Written)


def _told(answer: Any) -> Any:
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer


async def _directly(
    config: Config, folder: Path, asked: Asked, ask: Callable[[Plan], None]
) -> Plan | Written:
    """Without an agent; while it is written none can start."""
    at = writing.target(hardware(config).lines, asked.board, asked.evse)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await at.board.open()
        plan = writing.plan(config, at, asked.field, asked.value)
        ask(plan)
        if asked.dry:
            return plan
        with alone(folder):
            async with asyncio.timeout(DEADLINE_S):
                return await writing.carry_out(config, at, plan)
    finally:
        await at.board.close()
