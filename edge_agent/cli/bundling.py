"""`karvon agent bundle`: one file for whoever helps from afar, with no secret in it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import os
import platform
import secrets
import shutil
import sqlite3
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent import control, shown
from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import Config, ConfigError, load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.registry import PROFILES
from edge_agent.journal import JournalError, JournalView
from edge_agent.main import SITE_METER, version
from edge_agent.redaction import Redactor, UnreadableSecretError, secrets_of

UNIT: Final = "karvon-agent"
LOG_LINES: Final = 500
SESSIONS: Final = 50
ANSWER_S: Final = 10.0
LIBRARIES: Final = ("aiomqtt", "msgspec", "ocpp", "pymodbus", "pyserial", "textual", "typer")
GRAVE: Final = (" WARNING ", " ERROR ", " CRITICAL ")
README: Final = """What is in this bundle

config.json    the configuration; passwords and keys are left out
versions.json  karvon, Python, the system, the libraries
status.json    what the running agent said, link by link, or why it said nothing
journal.json   what the journal holds and what waits, the newest sessions, the files' sizes
profiles.json  which device profiles are used, and their SHA-256
log.txt        the last lines of the agent's log
errors.txt     the warnings and errors among them

Secrets found in the configuration and in the files beside it were taken out everywhere. Id tokens
have names (token-…) that are the same within this bundle and lead nowhere.
"""


class BundleError(Exception):
    """The bundle cannot be made; the text says why and what to do."""


def bundle(path: Path, target: Path, *, as_json: bool) -> int:
    """0 made, 1 it cannot be written or cleaned, 2 the configuration is wrong."""
    try:
        config = load(path)
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        secret = secrets_of(path, settings)
        files = asyncio.run(_collected(config, settings, secret))
        _write(target, files)
    except ConfigError as error:
        return complain(str(error), 2)
    except (BundleError, UnreadableSecretError) as error:
        return complain(str(error), 1)
    if as_json:
        print_json({"file": str(target), "content": sorted(files)})
    else:
        print_lines([f"{target}: {', '.join(sorted(files))}; look into it before you send it"])
    return 0


async def _collected(config: Config, settings: Any, secret: set[str]) -> dict[str, str]:
    folder = config.path(config.journal.folder)
    status = await _status(folder)
    log = await _log(folder)
    tokens = _tokens(folder) | {
        shown.token_of(one["transaction"]) for one in status.get("sessions", ())
    }
    clean = Redactor(secret, tokens, secrets.token_bytes(16))
    grave = [line for line in log if any(level in line for level in GRAVE)]
    told: dict[str, Any] = {
        "config.json": settings,
        "versions.json": _versions(),
        "status.json": status,
        "journal.json": _journal(folder),
        "profiles.json": _profiles(config),
    }
    files = {name: _json(clean.plain(value)) for name, value in told.items()}
    files["log.txt"] = clean.text("\n".join(log) + "\n")
    files["errors.txt"] = clean.text("\n".join(grave) + "\n")
    files["README.txt"] = README
    return files


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def _tokens(folder: Path) -> set[str]:
    try:
        with JournalView(folder) as view:
            return view.id_tokens()
    except JournalError:
        return set()


async def _status(folder: Path) -> Any:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await control.ask(folder, Request(do="status"))
    except (NotRunningError, TimeoutError) as error:
        return {"running": False, "why": str(error) or f"no answer within {ANSWER_S:g} s"}


async def _log(folder: Path) -> list[str]:
    """The running agent's own, else what systemd has kept of it."""
    try:
        async with asyncio.timeout(ANSWER_S):
            lines = await control.ask(folder, Request(do="log"))
            return [shown.log_line(line) for line in lines]
    except (NotRunningError, TimeoutError):
        return await _systemd_log()


async def _systemd_log() -> list[str]:
    program = shutil.which("journalctl")
    if program is None:
        return ["the agent does not run and there is no journalctl: no log"]
    args = ("-u", UNIT, "-n", str(LOG_LINES), "--no-pager", "-o", "short-iso")
    child = await asyncio.create_subprocess_exec(
        program, *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            out, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return [f"the agent does not run; journalctl gave no answer within {ANSWER_S:g} s"]
    return out.decode(errors="replace").splitlines()


def _versions() -> dict[str, Any]:
    return {
        "karvon": version(),
        "python": sys.version,
        "system": platform.platform(),
        "machine": platform.machine(),
        "libraries": {name: _installed(name) for name in LIBRARIES},
    }


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _journal(folder: Path) -> dict[str, Any]:
    files = {}
    if folder.is_dir():
        files = {each.name: _size(each) for each in sorted(folder.iterdir())}
    try:
        with JournalView(folder) as view:
            read: dict[str, Callable[[], Any]] = {
                "queue": view.queue,
                "open_transactions": view.transactions,
                "registers": lambda: list(view.registers().values()),
                "refused": view.refused,
                "sessions": lambda: view.sessions(SESSIONS),
            }
            known = {name: _or_why_not(each) for name, each in read.items()}
    except JournalError as error:
        known = {"error": str(error)}
    return {"files": files} | known


def _or_why_not(look: Callable[[], Any]) -> Any:
    """One file of the journal may be readable where another is not."""
    try:
        return msgspec.to_builtins(look())
    except (JournalError, sqlite3.Error) as error:
        return {"error": str(error)}


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1  # gone meanwhile


def _profiles(config: Config) -> dict[str, Any]:
    named = {board.name: board.profile for board in config.boards if board.profile}
    named |= {
        f"{board.name} meter": board.meter.profile
        for board in config.boards
        if board.meter is not None
    }
    if config.site is not None and config.site.meter is not None:
        named[SITE_METER] = config.site.meter.profile
    return {device: _profile(profile) for device, profile in named.items()}


def _profile(name: str) -> dict[str, str]:
    own = "/" in name or name.endswith(".yaml")
    path = Path(name) if own else PROFILES / f"{name}.yaml"
    try:
        told = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        told = f"cannot be read ({error.strerror})"
    return {"profile": name, "shipped": "no" if own else "yes", "sha256": told}


def _write(target: Path, files: dict[str, str]) -> None:
    """Whole or not at all, for its owner only; an existing file is left alone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in sorted(files.items()):
            content = text.encode()
            info = tarfile.TarInfo(f"karvon-bundle/{name}")
            info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(content))
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise BundleError(f"{target} exists already; give another name, or remove it") from None
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written ({error.strerror}); give a file in a folder of yours"
        ) from error
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(packed.getvalue())
    except OSError as error:
        target.unlink(missing_ok=True)
        raise BundleError(f"{target}: {error.strerror}; give one on another disk") from error
