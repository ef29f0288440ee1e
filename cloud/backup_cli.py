"""`karvon cloud backup` and `karvon cloud restore`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cloud.kernel.backup import (
    Manifest,
    Reader,
    Target,
    Writer,
    database_in,
    dump,
    files_in,
    verify,
)
from cloud.kernel.config import CloudConfig
from cloud.shell import DatabaseUrl, DataDir, Json, configured, fail, run

NAME: Final = "karvon-%Y%m%dT%H%M%SZ.tar"
PATTERN: Final = "karvon-????????T??????Z.tar"
UNFINISHED: Final = f".{PATTERN}.*.partial"
UNFINISHED_S: Final = 24 * 3600
TELL_EVERY_S: Final = 2.0


class Progress:
    """Says on stderr what is being worked on; a terminal gets one line that is rewritten."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, table: str, done: int = 0) -> None:
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else TELL_EVERY_S):
            self._shown = now
            line = f"{table}: {done / 1e6:.0f} MB" if done else table
            sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
            sys.stderr.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")


def backup(
    to: Annotated[
        Path | None,
        typer.Option(help="File to write, or a folder that gets karvon-<time>.tar."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--verify", help="Read this backup and compare it with its checksums instead."
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="With a folder: afterwards keep only so many of its backups."),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Write everything the cloud holds into one file (mode 600), also while it runs.

    With --database-url the database is that one; the broker's keys still come from --data-dir.
    """
    if (to is None) == (check is None):
        fail(2, "say where to with --to FILE or FOLDER, or which one to --verify FILE")
    if check is not None:
        _say(_checked(check), check, as_json=as_json, verb="is whole")
        return
    assert to is not None
    if keep is not None and not to.is_dir():
        fail(2, "--keep needs --to with a folder that exists")
    config = configured(data_dir=data_dir, database_url=database_url)
    now = datetime.now(UTC)
    path = to / now.strftime(NAME) if to.is_dir() else to
    if not path.parent.is_dir():
        fail(2, f"the folder {path.parent} does not exist; make it first")
    if path.exists():
        fail(2, f"{path} exists already; choose another name, or a folder")
    _forget_unfinished(path.parent, now)
    _say(run(_back_up(config, path, now), interrupted=1), path, as_json=as_json, verb="written")
    for old in sorted(to.glob(PATTERN))[: -keep if keep else 0]:
        old.unlink()
        sys.stderr.write(f"removed {old}\n")


def _forget_unfinished(folder: Path, now: datetime) -> None:
    """Remove what backups that were killed long ago have left."""
    for left in folder.glob(UNFINISHED):
        if now.timestamp() - left.stat().st_mtime > UNFINISHED_S:
            left.unlink(missing_ok=True)


async def _back_up(config: CloudConfig, path: Path, now: datetime) -> Manifest:
    files = await asyncio.to_thread(files_in, config.data_dir)
    url = config.secret("database_url")
    progress = Progress()
    try:
        with Writer.to(path) as writer:
            if url is not None:
                return await dump(url, writer, now, progress, files)
            async with database_in(config.data_dir) as dsn:
                return await dump(dsn, writer, now, progress, files)
    finally:
        progress.end()


def restore(
    source: Annotated[
        Path, typer.Option("--from", exists=True, dir_okay=False, help="The backup's file.")
    ],
    force: Annotated[
        bool, typer.Option(help="Wipe what is there already; it is named before and after.")
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make a stopped or new cloud what it was when the backup was taken.

    The file is verified first. Agents then send by themselves what came later.
    """
    config = configured(data_dir=data_dir, database_url=database_url)
    manifest = _checked(source)
    target = Target(config.data_dir, config.secret("database_url"))
    wiped = run(_restore(target, source, force=force), interrupted=1)
    _say(manifest, source, as_json=as_json, verb="restored", wiped=wiped)


async def _restore(target: Target, source: Path, *, force: bool) -> list[str]:
    progress = Progress()
    try:
        with Reader.of(source) as reader:
            if force and (held := target.held(reader)):
                sys.stderr.write(f"replacing {', '.join(held)}\n")
            return await target.restore(reader, progress, wipe=force)
    finally:
        progress.end()


def _checked(path: Path) -> Manifest:
    progress = Progress()

    async def work() -> Manifest:
        return await asyncio.to_thread(verify, path, progress)

    try:
        found: Manifest = run(work(), interrupted=1)
    finally:
        progress.end()
    return found


def _say(manifest: Manifest, path: Path, *, as_json: bool, verb: str, **more: Any) -> None:
    """The summary; of `taken_at` also how old it is would age at once, so only the time."""
    summary = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "taken_at": manifest.taken_at.isoformat(),
        "tables": len(manifest.tables),
        "rows": manifest.rows,
        "files": sorted(manifest.files),
        "heads": list(manifest.heads),
        **more,
    }
    if as_json:
        sys.stdout.write(f"{json.dumps(summary)}\n")
        return
    sys.stdout.write(
        f"{path} {verb}: {manifest.rows} rows of {len(manifest.tables)} tables, "
        f"{len(manifest.files)} files, taken at {manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"{summary['bytes'] / 1e6:.1f} MB\n"
    )
