"""The installer of board firmware: a process of its own flashes, and has the line meanwhile.

Boards with firmware of the same name always run the same version, or nobody charges at them. Which
image belongs to which agent is kept with the slots: an agent that was rolled back brings its boards
back to what they had under it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.config import BoardPart, FirmwarePart
from edge_agent.hardware.serial_board import SerialBoard
from edge_agent.loop import Line, Loop
from edge_agent.updates import images
from edge_agent.updates.flashing import Ended, FlashJob, FlashWord, Reached
from edge_agent.updates.installing import Outcome
from edge_agent.updates.messages import Component, Ready
from firmware_bridge import whole_file
from firmware_bridge.flashing import Result
from firmware_bridge.journal import Journal, Phase
from firmware_bridge.loader import StoreError
from firmware_bridge.ways import Kind as Loader
from firmware_bridge.ways import Parity
from protocols import serial_board as wire
from protocols.agent_link import UpdateState
from protocols.release import Kind

log = logging.getLogger(__name__)
WORKER: Final = "edge_agent.updates.flashing"
WANTED: Final = "wanted.json"
STATE: Final = "boards"
"""Below the folder of updates: journals, and the images that they name."""
AWAY: Final = "firmware is being installed"
SPEED: Final = 115_200
FOR_EVER_MS: Final = 2**53
END_S: Final = 5.0
_Wanted = dict[str, dict[str, Ready]]
"""By slot and firmware: what was installed while that agent ran."""


@dataclass(frozen=True, kw_only=True)
class Flashable:
    """A board whose firmware comes from here."""

    line: Line
    part: BoardPart
    firmware: FirmwarePart

    @property
    def reached(self) -> Reached:
        own = self.part.kind == "serial_board"
        part, link = self.firmware, self.part.link
        return Reached(
            board=self.part.name,
            device=part.device or link.device or f"tcp://{link.host}:{link.port or 502}",
            loader=Loader(part.loader),
            baudrate=part.baudrate,
            parity=None if part.parity is None else Parity(part.parity),
            unit=part.unit,
            pins=part.pins,
            hw_id=part.hw_ids[0] if len(part.hw_ids) == 1 else None,
            address=link.unit or 1 if own and not part.device else None,
            speed=link.baudrate or SPEED,
        )

    def version(self) -> str | None:
        """What it told the agent it runs; None where it does not tell, or nothing yet."""
        board = self.line.board
        # what was told before the line was given away is of the firmware before
        told = board.told if isinstance(board, SerialBoard) and self.line.opened else None
        return None if told is None else wire.dotted(told.firmware)


class BoardInstaller:
    """An Installer of kind board."""

    kind: Final = Kind.BOARD

    def __init__(
        self, loop: Loop, parts: Sequence[BoardPart], *, root: Path, state: Path, slot: str
    ) -> None:
        """`parts` as the loop's lines are, in their order."""
        self._loop = loop
        self._media = [part.link.line for part in parts]
        self._boards = tuple(_flashables(parts, loop.lines))
        self._root, self._state, self._slot = root, state / STATE, slot
        self._word: FlashWord | None = None
        self._failure = ""

    # ------------------------------------------------------------------ what there is

    def takes(self) -> tuple[Component, ...]:
        return tuple(
            Component(
                kind=Kind.BOARD,
                name=name,
                hw_ids=tuple(dict.fromkeys(hw for one in boards for hw in one.firmware.hw_ids)),
                running=self._confirmed(boards),
                protocols=_protocols(boards),
            )
            for name, boards in self._by_name().items()
        )

    def _by_name(self) -> dict[str, list[Flashable]]:
        found: dict[str, list[Flashable]] = {}
        for one in self._boards:
            found.setdefault(one.firmware.name, []).append(one)
        return found

    def _confirmed(self, boards: Sequence[Flashable]) -> str:
        """The image that all of them run, as far as journals say; empty: none is known."""
        told = {self._journalled(one) for one in boards}
        return told.pop() if len(told) == 1 else ""

    def _journalled(self, one: Flashable) -> str:
        try:
            entry = Journal(self._state / f"{one.part.name}.json").load()
        except StoreError as error:
            log.warning("%s", error)
            return ""
        return entry.image if entry is not None and entry.phase is Phase.INSTALLED else ""

    def needed(self) -> frozenset[str]:
        kept = (ready for named in self._wanted().values() for ready in named.values())
        return frozenset(ready.slot for ready in kept)

    def described(self) -> dict[str, Any]:
        word = self._word
        told: dict[str, Any] = {one.part.name: one.version() for one in self._boards}
        if word is not None and word.board:
            told |= {"flashing": word.board, "phase": word.phase}
            told |= {"done": word.done, "total": word.total}
        return told

    def trouble(self) -> str:
        if self._failure:
            return self._failure
        return self.forbids()

    def forbids(self) -> str:
        """Why nobody may charge: boards of one firmware run different versions."""
        for name, boards in self._by_name().items():
            versions = {version for one in boards if (version := one.version()) is not None}
            if len(versions) > 1:
                listed = ", ".join(f"{one.part.name} {one.version() or '?'}" for one in boards)
                return f"boards with firmware {name} run different versions ({listed})"
        return ""

    # ------------------------------------------------------------------ what should be

    def proving(self) -> bool:
        """Boards prove themselves while they are flashed."""
        return False

    def came_to(self, ready: Ready) -> Outcome | None:
        """The flashing is journalled; it is simply gone through once more."""
        del ready
        return None

    def behind(self) -> Ready | None:
        """What is to be installed again: a board was swapped, cut, or the agent rolled back."""
        for name, ready in self._wanted().get(self._slot, {}).items():
            release = ready.release
            if release is None or not images.usable(self._root, ready.slot):
                continue
            boards = self._by_name().get(name, [])
            told = {version for one in boards if (version := one.version()) is not None}
            cut = any(self._journalled(one) != ready.slot for one in boards)
            if cut or told - {release.version}:
                # it was verified when it was installed; nobody has to ask for it again
                return msgspec.structs.replace(ready, valid_until_ms=FOR_EVER_MS, window=None)
        return None

    def _wanted(self) -> _Wanted:
        try:
            return msgspec.json.decode(self._wanted_file.read_bytes(), type=_Wanted)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read (%s)", self._wanted_file, error)
            return {}

    @property
    def _wanted_file(self) -> Path:
        return self._root / images.FOLDER / WANTED

    def _want(self, ready: Ready, name: str) -> None:
        """Raises OSError."""
        wanted = self._wanted()
        slots = {slot for slot in wanted if slot == "" or (self._root / "slots" / slot).exists()}
        kept = {slot: named for slot, named in wanted.items() if slot in slots}
        kept.setdefault(self._slot, {})[name] = ready
        whole_file.write(self._wanted_file, msgspec.json.encode(kept))

    # ------------------------------------------------------------------ doing it

    async def install(self, ready: Ready, image: Path) -> Outcome:
        release = ready.release
        boards = [] if release is None else self._by_name().get(release.name, [])
        if release is None or not boards:
            return Outcome(UpdateState.INSTALLATION_FAILED, "no board here takes it")
        job = FlashJob(
            boards=tuple(one.reached for one in boards),
            state=str(self._state),
            image=str(image),
            version=release.version,
            hw_ids=release.hw_ids,
            protocol=_major(release.requires.board_protocol),
            protocols=_protocols(boards),
        )
        lines = self._lines(boards)
        for line in lines:
            await self._loop.give_away(line, AWAY)
        try:
            last = await self._flash(job)
        finally:
            self._word = None
            for line in lines:
                await self._loop.take_back(line)
        if last is None or last.outcomes is None:
            return Outcome(UpdateState.INSTALLATION_FAILED, "the flashing process ended; see log")
        outcome = _judged(last.outcomes, last.failure)
        if outcome.state is UpdateState.INSTALLED:
            self._want(ready, release.name)
        self._failure = "" if outcome.state is UpdateState.INSTALLED else _faulted(last.outcomes)
        return outcome

    def _lines(self, boards: Sequence[Flashable]) -> list[Line]:
        """Theirs, and all others on the same media: the ports are opened by somebody else."""
        media = {one.part.link.line for one in boards}
        both = zip(self._media, self._loop.lines, strict=True)
        return [line for medium, line in both if medium in media]

    async def _flash(self, job: FlashJob) -> FlashWord | None:
        last: FlashWord | None = None
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-B", "-m", WORKER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise OSError("a process without the pipes that were asked for")
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
            async for line in process.stdout:
                last = self._word = msgspec.json.decode(line, type=FlashWord)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return last


def _protocols(boards: Sequence[Flashable]) -> tuple[int, ...]:
    """Major versions that this agent speaks with them; empty: theirs has none."""
    own = any(one.part.kind == "serial_board" for one in boards)
    return (wire.MAJOR,) if own else ()


def _major(version: str) -> int | None:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else None


def _judged(outcomes: Mapping[str, Ended], failure: str) -> Outcome:
    bad = {name: one for name, one in outcomes.items() if one.result is not Result.INSTALLED}
    if failure or not outcomes:
        return Outcome(UpdateState.INSTALLATION_FAILED, failure or "no board was reached")
    if not bad:
        return Outcome(UpdateState.INSTALLED)
    why = "; ".join(f"board {name}: {one.reason}" for name, one in bad.items())
    back = all(one.result is Result.PREVIOUS for one in bad.values())
    state = UpdateState.INSTALL_VERIFICATION_FAILED if back else UpdateState.INSTALLATION_FAILED
    return Outcome(state, why)


def _faulted(outcomes: Mapping[str, Ended]) -> str:
    dead = [name for name, one in outcomes.items() if one.result is Result.FAULTED]
    if not dead:
        return ""
    return f"nothing runs on board {', '.join(dead)}; repair its line, then: karvon bridge recover"


def _flashables(parts: Sequence[BoardPart], lines: Sequence[Line]) -> Iterator[Flashable]:
    """The boards whose configuration says how firmware comes into them."""
    for part, line in zip(parts, lines, strict=True):
        if part.firmware is not None:
            yield Flashable(line=line, part=part, firmware=part.firmware)
