"""The chargers' own failsafe, and what the site bears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from edge_agent import faultpoints
from edge_agent.commissioning.dialog import CommissionError, Dialog
from edge_agent.commissioning.meaning import (
    Meaning,
    Outlet,
    current_of,
    fuse_of,
    meaning,
    overload,
)
from edge_agent.commissioning.opening import open_gently
from edge_agent.commissioning.progress import Armed, Before, Check
from edge_agent.commissioning.work import Work
from edge_agent.config import BoardPart, Config
from edge_agent.hardware.addresses import written
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Failsafe
from edge_agent.hardware.metered_board import board_itself
from edge_agent.hardware.modbus_board import ModbusBoard
from edge_agent.hardware.registry import find_profile
from edge_agent.loop import Line
from edge_agent.main import hardware
from edge_agent.rules.phases import ROTATIONS, Lines, everywhere
from edge_agent.shown import amperes
from protocols.modbus.profile import Evses, Profile
from protocols.quantities import MilliAmperes

TROUBLE: Final = (BoardRefusedError, BoardUnreachableError)


async def failsafe(work: Work) -> list[Check]:
    """Note what the chargers have, set what the installer wants, read it back."""
    config, dialog = work.config, work.dialog
    lines = hardware(config).lines
    parts = {part.name: part for part in config.boards}
    await _note_before(work, lines, parts)
    given = work.options.failsafe_timeout
    timeout = dialog.ask(
        "--failsafe-timeout",
        "ask_timeout",
        _seconds,
        given=None if given is None else str(given),
        default=str(_usual_timeout(config)),
    )
    current = dialog.ask(
        "--failsafe-current",
        "ask_failsafe_current",
        current_of,
        given=work.options.failsafe_current,
        default=amperes(config.failsafe.current_ma),
    )
    work.place(failsafe={"timeout_s": timeout, "current_ma": current})
    wanted = Failsafe(timeout_s=timeout, fallback=MilliAmperes(current))
    armed = [await _armed(work, line, wanted) for line in lines]
    work.progress.armed = tuple(armed)
    return list(_failsafe_checks(dialog, armed))


def _usual_timeout(config: Config) -> int:
    """Some devices have one of their own that cannot be changed."""
    fixed = [
        block.timeout.fixed
        for block in (_profile(part).failsafe for part in config.boards if part.profile)
        if block is not None and block.timeout.write is None and block.timeout.fixed
    ]
    return max([config.failsafe.timeout_s, *fixed])


def _profile(part: BoardPart) -> Profile:
    return find_profile(part.profile)


async def _note_before(work: Work, lines: Sequence[Line], parts: dict[str, BoardPart]) -> None:
    """Once for each device, whatever happens afterwards: it is what decommissioning puts back."""
    for line in lines:
        address = written(parts[line.name].link)
        if work.progress.failsafe_before(address) is not None:
            continue
        board = board_itself(line.board)
        if not isinstance(board, ModbusBoard):
            continue  # what the agent sets in a board of another kind does not outlive it
        try:
            await open_gently(board)
            shown = await board.failsafe_now()
        except TROUBLE as error:
            raise CommissionError(f"{line.name}: {error}", 3) from error
        finally:
            await board.close()
        if shown is not None:
            before = Before(address=address, raw=shown.raw)
            work.progress.before = (*work.progress.before, before)
            work.save()
            faultpoints.reach(faultpoints.COMMISSION_NOTED)


async def _armed(work: Work, line: Line, wanted: Failsafe) -> Armed:
    board = line.board
    try:
        await open_gently(board)
        shown = await board.arm_failsafe(wanted)
    except TROUBLE as error:
        raise CommissionError(f"{line.name}: {error}") from error
    finally:
        await board.close()
    if shown is None:
        work.dialog.warn("no_failsafe", board=line.name)
        return Armed(board=line.name, has=False)
    return Armed(
        board=line.name, has=True, timeout_s=shown.timeout_s, current_ma=int(shown.fallback)
    )


def _failsafe_checks(dialog: Dialog, armed: list[Armed]) -> Iterator[Check]:
    for one in armed:
        if not one.has:
            text = dialog.text("no_failsafe_short")
            yield Check(step="failsafe", what=one.board, verdict="warn", text=text)
            continue
        seconds, current = one.timeout_s or 0, amperes(one.current_ma or 0)
        text = dialog.text("failsafe_read_back", seconds=seconds, current=current)
        yield Check(step="failsafe", what=one.board, verdict="pass", text=text)


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 5 <= int(text) <= 3600:
        raise ValueError(f"'{text}': 5 to 3600 seconds")
    return int(text)


# --------------------------------------------------------------------------- limits


async def limits(work: Work) -> list[Check]:
    """Ask for fuse, phases and connectors, and say what that means."""
    config, dialog = work.config, work.dialog
    there = config.site.lines if config.site is not None and min(config.site.lines) else None
    fuse = dialog.ask(
        "--fuse",
        "ask_fuse",
        fuse_of,
        given=work.options.fuse,
        default=None if there is None else "/".join(amperes(line) for line in there),
    )
    most, turned = _by_board(work.options.connector_max), _by_board(work.options.rotation)
    _known("--connector-max", most, config)
    _known("--rotation", turned, config)
    boards = [_limited(dialog, part, most, turned) for part in config.boards]
    limit: int | list[int] = fuse[0] if len(set(fuse)) == 1 else list(fuse)
    plain = [{**table, **board} for table, board in zip(work.plain["boards"], boards, strict=True)]
    work.place(boards=plain, site={"limit_ma": limit})
    config = work.config
    shown = _meaning(config)
    work.progress.limits = dict(_told(dialog, shown, config))
    dialog.table((dialog.text("limit"), ""), list(work.progress.limits.items()))
    return list(_limit_checks(dialog, shown, config))


def _by_board(given: tuple[str, ...]) -> dict[str, str]:
    """`left=16` for one board, `16` for all (under "")."""
    pairs = (text.rpartition("=") for text in given)
    return {name: value for name, _, value in pairs}


def _known(option: str, given: dict[str, str], config: Config) -> None:
    names = {part.name for part in config.boards}
    for name in given.keys() - names - {""}:
        have = ", ".join(sorted(names))
        raise CommissionError(f"{option}: there is no board '{name}'; there are {have}", 2)


def _limited(
    dialog: Dialog, part: BoardPart, most: dict[str, str], turned: dict[str, str]
) -> dict[str, Any]:
    """The settings of one board."""
    highest = _evses(part).max_current_ma

    def within(text: str) -> int:
        current = current_of(text)
        if not 0 < current <= highest:
            raise ValueError(f"'{text}': at most {amperes(highest)}")
        return current

    def rotation(text: str) -> str:
        if text.upper() not in ROTATIONS:
            raise ValueError(f"'{text}': one of {', '.join(ROTATIONS)}")
        return text.upper()

    cable = dialog.ask(
        "--connector-max",
        "ask_connector_max",
        within,
        given=most.get(part.name, most.get("")),
        default=amperes(part.cable_ma or highest),
        board=part.name,
    )
    lines = dialog.ask(
        "--rotation",
        "ask_rotation",
        rotation,
        given=turned.get(part.name, turned.get("")),
        default=part.phase_rotation,
        board=part.name,
    )
    return {"cable_ma": cable, "phase_rotation": lines}


def _evses(part: BoardPart) -> Evses:
    """What the profile says of them; where there is none, the usual."""
    return _profile(part).evses if part.profile else Evses()


def outlets(config: Config) -> list[Outlet]:
    found = []
    for part in config.boards:
        evses = _evses(part)
        highest = min(evses.max_current_ma, part.cable_ma or evses.max_current_ma)
        found += [
            Outlet(evse=number, most=highest, phases=evses.phases, rotation=part.phase_rotation)
            for number in part.evses
        ]
    return found


def _meaning(config: Config) -> Meaning:
    site = config.site
    fuse, share = (site.lines, site.safe_share_ma) if site else (everywhere(0), 0)
    failsafe_ma = config.failsafe.current_ma
    return meaning(fuse, outlets(config), failsafe_ma, share)


def _told(dialog: Dialog, shown: Meaning, config: Config) -> Iterator[tuple[str, str]]:
    yield dialog.text("main_fuse"), _lines(shown.fuse)
    curve = ", ".join(
        dialog.text("bears", current=amperes(current), time=_time(seconds))
        for current, seconds in overload(shown.fuse)
    )
    yield dialog.text("curve"), curve
    yield dialog.text("all_at_once"), _lines(shown.all_at_once)
    turns = "" if shown.each >= 6000 else f" ({dialog.text('turns', n=shown.at_once)})"
    yield dialog.text("each"), f"{amperes(shown.each)}{turns}"
    yield dialog.text("dead"), _lines(shown.dead)
    if config.site is not None and config.site.meter is not None:
        yield dialog.text("silent_meter"), _lines(shown.safe)


def _time(seconds: int) -> str:
    return f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds} s"


def _lines(currents: Lines) -> str:
    if len(set(currents)) == 1:
        return amperes(currents[0])
    return " / ".join(f"L{n} {amperes(one)}" for n, one in enumerate(currents, start=1))


def _limit_checks(dialog: Dialog, shown: Meaning, config: Config) -> Iterator[Check]:
    def check(key: str, lines: Lines) -> Check:
        fits = all(one <= rated for one, rated in zip(lines, shown.fuse, strict=True))
        text = dialog.text("fits" if fits else "too_much", what=_lines(lines))
        return Check(
            step="limits", what=dialog.text(key), verdict="pass" if fits else "warn", text=text
        )

    yield check("dead", shown.dead)
    if config.site is not None and config.site.meter is not None:
        yield check("silent_meter", shown.safe)
