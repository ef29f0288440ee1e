"""What `karvon bridge` does: opens the loader that was named, runs the plan, and tells people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from firmware_bridge.flashing import Flasher, Outcome, Progress, Result
from firmware_bridge.journal import ImageStore, Journal, Phase, forget_unneeded
from firmware_bridge.loader import (
    BridgeError,
    FirmwareImage,
    LineError,
    Loader,
    LoaderSilentError,
)
from firmware_bridge.mcuboot import ImageError, said
from firmware_bridge.ways import Kind, UsageError, Where, opened

FAILED, WRONG, UNREACHABLE = 1, 2, 3
PHASES: Final = {
    Phase.ERASE: "erasing",
    Phase.WRITE: "writing",
    Phase.VERIFY: "comparing",
    Phase.BOOT: "starting",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What the command line says of an image."""

    version: str | None
    made_for: list[str]
    chips: list[str]
    address: str
    protocol: int | None


@dataclass(frozen=True, slots=True)
class Kept:
    """Where journal and images are."""

    state: Path
    board: str

    def flasher(self, where: Where, loader: Loader, watch: Callable[[Progress], None]) -> Flasher:
        if not self.board or not self.board.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f"--board '{self.board}': a name of letters, digits, - and _ is wanted"
            )
        return Flasher(
            loader=loader,
            journal=Journal(self.state / f"{self.board}.json"),
            images=ImageStore(self.state / "images"),
            hw_id=where.hw_id,
            asks=where.asks,
            watch=watch,
        )


# -- commands -----------------------------------------------------------------------------------


def probe(where: Where, *, as_json: bool) -> int:
    def work() -> int:
        with opened(where) as loader:
            running, answers = loader.version(), loader.probe()
            if running is None and not answers:
                raise LoaderSilentError(
                    f"nobody answers on {where.device}: neither an application nor a loader of the "
                    f"kind {where.loader.value}; is the board on, and are speed and parity right? "
                    "An STM32 has to be started with BOOT0 set"
                )
            found = loader.identify() if answers else None
        told: dict[str, Any] = {
            "loader": found.loader if found else None,
            "chip": f"{found.chip:#05x}" if found and found.chip is not None else None,
            "chip_name": (found.chip_name or None) if found else None,
            "hw_id": (found.hw_id if found else None) or (running.hw_id if running else None),
            "flash_bytes": found.flash_bytes if found else None,
            "version": running.version if running else None,
            "healthy": running.healthy if running else None,
        }
        if as_json:
            _print_json(told)
        else:
            _say([f"{key:<12}{value}" for key, value in told.items() if value is not None])
        return 0

    return _guarded(work, as_json=as_json)


def flash(
    where: Where,
    kept: Kept,
    file: Path,
    told: Said,
    *,
    previous: tuple[Path | None, str | None],
    as_json: bool,
) -> int:
    def work() -> int:
        image = _image(where, file, told)
        before = None
        if previous[0] is not None:
            text = Said(previous[1], told.made_for, told.chips, told.address, None)
            before = _image(where, previous[0], text)
        began = time.monotonic()
        with opened(where) as loader, _bars(shown=not as_json) as watch:
            flasher = kept.flasher(where, loader, watch)
            outcome = flasher.install(image, before)
            journals = [Journal(path) for path in sorted(kept.state.glob("*.json"))]
            forget_unneeded(journals, flasher.images)
        return _outcome(outcome, time.monotonic() - began, as_json=as_json)

    return _guarded(work, as_json=as_json)


def verify(where: Where, file: Path, told: Said, *, as_json: bool) -> int:
    def work() -> int:
        image = _image(where, file, told, made_for_nothing=True)
        with opened(where) as loader, _bars(shown=not as_json) as watch:
            if not loader.probe() and loader.version() is None:
                loader.enter()
            loader.identify()
            loader.check(image)
            total = loader.blocks(image)

            def heard(done: int) -> None:
                watch(Progress(phase=Phase.VERIFY, version="", done=done, total=total))

            loader.verify(image, heard, sealed=True)
        if as_json:
            _print_json({"same": True, "sha256": image.sha256, "bytes": len(image.octets)})
        else:
            _say([f"the board holds {file.name} ({len(image.octets)} bytes)"])
        return 0

    return _guarded(work, as_json=as_json)


def recover(where: Where, kept: Kept, *, as_json: bool) -> int:
    def work() -> int:
        began = time.monotonic()
        with opened(where) as loader, _bars(shown=not as_json) as watch:
            outcome = kept.flasher(where, loader, watch).recover()
        if outcome is not None:
            return _outcome(outcome, time.monotonic() - began, as_json=as_json)
        if as_json:
            _print_json({"result": "nothing", "version": None, "reason": ""})
        else:
            _say([f"nothing of board '{kept.board}' was left open in {kept.state}"])
        return 0

    return _guarded(work, as_json=as_json)


# -- parts --------------------------------------------------------------------------------------


def _image(
    where: Where, file: Path, told: Said, *, made_for_nothing: bool = False
) -> FirmwareImage:
    try:
        octets = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    version = told.version
    if where.loader is Kind.SMP and (version is None or made_for_nothing):
        try:
            version = said(octets).version
        except ImageError as error:
            raise UsageError(f"{file} is no image for MCUboot: {error}") from error
    if version is None:
        raise UsageError(f"{file} does not tell its version; say it with --version 1.4.0")
    if not (told.made_for or told.chips or made_for_nothing):
        raise UsageError(
            f"what is {file} made for? Say it with --for HW_ID, or --chip 0x413 for an STM32"
        )
    try:
        return FirmwareImage(
            octets=octets,
            version=version,
            hw_ids=frozenset(told.made_for),
            chips=frozenset(int(chip, 0) for chip in told.chips),
            protocol=told.protocol,
            address=int(told.address, 0),
        )
    except ValueError as error:
        raise UsageError(f"{error}; chips and addresses are written as 0x413") from error


@contextmanager
def _bars(*, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """One bar for each phase, on stderr, and only for people."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not shown or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def watch(progress: Progress) -> None:
            name = f"{PHASES.get(progress.phase, progress.phase.value)} {progress.version}".strip()
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=progress.total)
            bars.update(tasks[name], completed=progress.done)

        yield watch


def _outcome(outcome: Outcome, seconds: float, *, as_json: bool) -> int:
    if as_json:
        _print_json(
            {
                "result": outcome.result.value,
                "version": outcome.version,
                "reason": outcome.reason,
                "asked": outcome.asked,
                "seconds": round(seconds, 1),
            }
        )
    elif outcome.result is Result.INSTALLED:
        proof = "and answers" if outcome.asked else "and was compared; nobody here can ask it"
        _say([f"the board has {outcome.version} {proof} ({seconds:.0f} s)"])
    elif outcome.result is Result.PREVIOUS:
        _complain(f"the image was given up and {outcome.version} put back: {outcome.reason}")
    else:
        _complain(
            f"nothing runs on the board, leave it out of use: {outcome.reason}. Repair the line or "
            "the board and run: karvon bridge recover"
        )
    return 0 if outcome.result is Result.INSTALLED else FAILED


def _guarded(work: Callable[[], int], *, as_json: bool) -> int:
    """The exit code; what goes wrong as one line on stderr, and for scripts on stdout too."""
    try:
        return work()
    except UsageError as error:
        code, text = WRONG, str(error)
    except (LineError, LoaderSilentError) as error:
        code, text = UNREACHABLE, str(error)
    except BridgeError as error:
        code, text = FAILED, str(error)
    except ModuleNotFoundError as error:
        code = UNREACHABLE
        text = f"the package '{error.name}' is not here; install it: pip install 'karvon[bridge]'"
    except KeyboardInterrupt:
        code, text = FAILED, "interrupted; if it was writing, run: karvon bridge recover"
    if as_json:
        _print_json({"result": "error", "reason": text})
    _complain(text)
    return code


def _print_json(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _complain(text: str) -> None:
    sys.stderr.write(f"karvon bridge: {text}\n")
