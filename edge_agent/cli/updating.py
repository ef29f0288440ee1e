"""`karvon agent update`: look now, or install from a stick, with or without a running agent."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.clock import system_time
from edge_agent.config import Config, ConfigError, UpdatesPart, load
from edge_agent.control import NotRunningError, Request, ask
from edge_agent.main import update_place
from edge_agent.updates import launcher
from edge_agent.updates.floors import Floors, JournalError
from edge_agent.updates.messages import Current, Failure, Message, Nothing, Progress, Ready
from edge_agent.updates.service import PENDING

FAILED: Final = 1
WRONG: Final = 2
UNREACHABLE: Final = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What the technician wants."""

    folder: Path | None
    root: Path
    first: bool


async def update(path: Path, asked: Asked, *, as_json: bool) -> int:
    """Ask the agent that runs; without one, and from a folder, do it here."""
    try:
        config = load(path)
    except ConfigError as error:
        return complain(str(error), WRONG)
    if config.updates is None:
        return complain("updates are not configured; add [updates] with images_root", WRONG)
    folder = "" if asked.folder is None else str(asked.folder.absolute())
    if not asked.first:
        try:
            request = Request(do="update", device=folder)
            answer = await ask(config.path(config.journal.folder), request)
        except NotRunningError as error:
            if not folder:
                return complain(f"{error}; start it, or install with --from", UNREACHABLE)
        else:
            if "error" in answer:
                return complain(answer["error"], FAILED)
            return _told(answer, answer["text"], as_json=as_json)
    if not folder:
        return complain("--first needs --from, the folder to install from", WRONG)
    return _here(config, config.updates, path, asked, as_json=as_json)


async def abort(path: Path, *, as_json: bool) -> int:
    """End the update that the running agent is about."""
    try:
        config = load(path)
        answer = await ask(config.path(config.journal.folder), Request(do="abort"))
    except ConfigError as error:
        return complain(str(error), WRONG)
    except NotRunningError as error:
        return complain(f"{error}; without it nothing is under way", UNREACHABLE)
    if "error" in answer:
        return complain(answer["error"], FAILED)
    return _told(answer, answer["text"], as_json=as_json)


def _told(answer: object, text: str, *, as_json: bool) -> int:
    if as_json:
        print_json(answer)
    else:
        print_lines([text])
    return 0


def _here(config: Config, part: UpdatesPart, path: Path, asked: Asked, *, as_json: bool) -> int:
    """No agent runs: check the folder and make its slot; the next start tries it."""
    from edge_agent.updates.worker import Worker

    record = launcher.read(asked.root)
    standing = record or launcher.Record()
    place = update_place(config, part, asked.root, standing.confirmed, path)
    now = system_time()
    job = place.job(str(asked.folder), now.wall_ms, clock_trusted=now.synced)

    def tell(message: Message) -> None:
        if isinstance(message, Progress) and not as_json:
            print_lines([f"{message.about.version}: {message.state}"])

    result = Worker(job, tell).run()
    if isinstance(result, Failure):
        return complain(f"{result.state}: {result.reason}", FAILED)
    if isinstance(result, Nothing | Current):
        return _told(result, "nothing newer for this controller there", as_json=as_json)
    if not isinstance(result, Ready):
        return complain("the worker ended without a result; try again", FAILED)
    try:
        with contextlib.closing(Floors(place.state)) as floors:
            if asked.first:
                text = _first(asked, floors, result)
            else:
                text = _next(asked, floors, standing, result)
    except (OSError, JournalError) as error:
        return complain(f"{asked.root}: {error}", FAILED)
    return _told(result, text, as_json=as_json)


def _next(asked: Asked, floors: Floors, standing: launcher.Record, ready: Ready) -> str:
    floors.keep_note(PENDING, msgspec.json.encode(ready))
    launcher.write(
        asked.root,
        replace(standing, trial=ready.slot, tries=launcher.TRIES, request="", failed=None),
    )
    return f"{ready.about.version} is tried at the next start: systemctl restart karvon-agent"


def _first(asked: Asked, floors: Floors, ready: Ready) -> str:
    """The factory slot, and the launcher beside it."""
    factory = launcher.path_of(asked.root, "")
    if factory.exists():
        raise FileExistsError(17, "a factory slot is there already; leave --first out")
    launcher.path_of(asked.root, ready.slot).rename(factory)
    source = Path(launcher.__file__)
    draft = asked.root / ".launcher.new"
    shutil.copyfile(source, draft)
    draft.chmod(0o755)
    draft.replace(asked.root / "launcher.py")
    launcher.sync_folder(asked.root)
    launcher.write(asked.root, launcher.Record())
    floors.raise_counter(ready.component, ready.counter)
    return f"{ready.about.version} is installed; start it: systemctl enable --now karvon-agent"
