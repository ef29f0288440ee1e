"""`karvon agent commission` and `decommission`: what the terminal says and asks."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from edge_agent.alone import alone
from edge_agent.cli.output import complain, print_json
from edge_agent.commissioning import answering, draft, progress, running
from edge_agent.commissioning.dialog import CommissionError, Dialog
from edge_agent.commissioning.leaving import Leave, decommission
from edge_agent.commissioning.progress import Progress, ProgressError
from edge_agent.commissioning.reporting import as_plain
from edge_agent.commissioning.work import Options, Work
from edge_agent.config import ConfigError, load
from edge_agent.rules.station import RefusedError
from edge_agent.wording import UnknownLanguageError, language_of, wording

JOURNAL = "journal"


def dialog_of(language: str | None, *, yes: bool, as_json: bool) -> Dialog:
    """Raises CommissionError."""
    try:
        words = wording(language or language_of(os.environ))
    except UnknownLanguageError as error:
        raise CommissionError(str(error), 2) from error
    if as_json and not yes:
        raise CommissionError("--json asks nobody; add --yes, and an option for each answer", 2)
    console = Console(file=io.StringIO()) if as_json else Console()
    return Dialog(words, console, yes=yes)


def commission(
    path: Path,
    options: Options,
    *,
    journal: Path | None,
    answers: Path | None,
    restart: bool,
    language: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """0 all checks passed, 1 some did not or it cannot go on, 2 wrong usage, 3 not reachable."""
    try:
        dialog = dialog_of(language, yes=yes, as_json=as_json)
        if answers is not None:
            options = answering.completed(options, answers)
        work = _work(path, options, dialog, journal, restart=restart)
        with alone(work.folder, make=True):
            passed = asyncio.run(running.commission(work))
    except CommissionError as error:
        return complain(str(error), error.code)
    except ConfigError as error:
        return complain(str(error), 2)
    except (RefusedError, ProgressError) as error:
        return complain(str(error), 1)
    except OSError as error:
        return complain(f"{error}; check the folder's owner and free space", 1)
    if as_json:
        print_json(as_plain(work.progress))
    return 0 if passed else 1


def _work(
    path: Path, options: Options, dialog: Dialog, journal: Path | None, *, restart: bool
) -> Work:
    """What was begun, or a new one. Raises CommissionError, ConfigError, ProgressError, OSError."""
    plain = draft.read_plain(path)
    there = plain.get("journal", {}).get("folder")
    folder = Path(path.absolute().parent, journal or there or JOURNAL)
    known = _known(folder, restart=restart)
    plain = draft.changed(plain, journal={"folder": str(journal or there or JOURNAL)})
    station = _station(dialog, options, known, plain)
    if known is None:
        known = Progress(station=station)
    elif known.station != station:
        raise CommissionError(
            f"--station: {known.station} was begun here, not {station}; go on with it, or begin"
            " anew with --restart"
        )
    return Work(
        path=path,
        folder=folder,
        options=options,
        dialog=dialog,
        progress=known.started_anew() if restart else known,
        plain=plain,
    )


def _known(folder: Path, *, restart: bool) -> Progress | None:
    try:
        return progress.read(folder)
    except ProgressError:
        if not restart:
            raise
        return None


def _station(
    dialog: Dialog, options: Options, known: Progress | None, plain: dict[str, Any]
) -> str:
    if options.station is None and known is not None:
        return known.station
    default = plain.get("station")
    asked = dialog.ask("--station", "ask_station", str, given=options.station, default=default)
    return running.checked_station(asked)


def leave_service(
    path: Path, *, force: bool, wait_s: float, language: str | None, yes: bool, as_json: bool
) -> int:
    """0 out of service, 1 something would be lost, 2 wrong usage, 3 a charger is not reachable."""
    try:
        dialog = dialog_of(language, yes=yes, as_json=as_json)
        config = load(path)
        if not dialog.confirm("--yes", "ask_decommission", default=False, given=yes or None):
            return complain(dialog.text("nothing_done"), 1)
        leave = Leave(path=path, config=config, dialog=dialog, force=force, wait_s=wait_s)
        checks = asyncio.run(decommission(leave))
    except CommissionError as error:
        return complain(str(error), error.code)
    except ConfigError as error:
        return complain(str(error), 2)
    except OSError as error:
        return complain(f"{error}; check the folder's owner and free space", 1)
    if as_json:
        print_json({"station": config.station, "checks": checks})
        return 0
    for check in checks:
        dialog.mark(check.verdict, f"{check.what}: {check.text}")
    dialog.say("decommissioned", station=config.station, path=path.name)
    return 0
