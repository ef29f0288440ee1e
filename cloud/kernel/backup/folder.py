"""The data folder's part: the embedded database, running or not, and the broker's authority."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from cloud.kernel.backup.archive import Reader
from cloud.kernel.backup.catalogue import Unprepared
from cloud.kernel.backup.dump import Told
from cloud.kernel.backup.load import demand_known, load
from cloud.kernel.embedded import EmbeddedPostgres, FolderInUse, running_dsn
from cloud.kernel.embedded.child import folder_lock
from cloud.kernel.embedded.postgres import SET_ASIDE, put_back
from cloud.kernel.embedded.tls import write_private

LARGEST_FILE: Final = 1024 * 1024
POSTGRES: Final = "postgres"
BROKER: Final = "broker"
MADE_ANEW: Final = frozenset({"mosquitto.passwd"})
"""Written at every start, with a mode and group that its reader needs."""


@asynccontextmanager
async def database_in(data_dir: Path) -> AsyncIterator[str]:
    """The embedded database's DSN: of the cloud that runs there, or started for this moment.

    Raises Unprepared when the folder has none, EmbeddedError, OSError.
    """
    home = data_dir / POSTGRES
    if not (home / "data").exists() and not (home / SET_ASIDE).exists():
        raise Unprepared(f"{data_dir} holds no cloud's database; give its --data-dir")
    server = EmbeddedPostgres(home)
    try:
        await server.start()
    except FolderInUse:
        with running_dsn(home) as dsn:
            yield dsn
        return
    try:
        yield server.dsn
    finally:
        await server.stop()


def files_in(data_dir: Path) -> dict[str, bytes]:
    """What the cloud needs besides its database to be the same one for its agents."""
    broker = data_dir / BROKER
    wanted = [
        *sorted((broker / "tls").glob("*.pem")),
        *sorted((broker / "tls").glob("*.key")),
        broker / "port",
        *sorted(data_dir.glob("*")),
    ]
    return {
        file.relative_to(data_dir).as_posix(): file.read_bytes()
        for file in wanted
        if file.is_file()
        and not file.is_symlink()
        and file.name not in MADE_ANEW
        and file.stat().st_size <= LARGEST_FILE
    }


class Target:
    """Where a restored cloud shall be: a data folder, with its own database or another one."""

    def __init__(self, data_dir: Path, dsn: str | None) -> None:
        self._dir = data_dir
        self._dsn = dsn

    def held(self, reader: Reader) -> list[str]:
        """What of this folder a restore would replace."""
        if self._dsn is None:
            put_back(self._dir / POSTGRES)
        paths = [POSTGRES + "/data"] if self._dsn is None else []
        paths += sorted(reader.manifest.files)
        return [str(self._dir / path) for path in paths if (self._dir / path).exists()]

    async def restore(self, reader: Reader, told: Told, *, wipe: bool) -> list[str]:
        """Put everything in its place; returns what it replaced.

        The embedded database is built beside the old one and takes its place when it is whole.
        Raises Unprepared before anything is changed, BadBackup, EmbeddedError, Unavailable.
        """
        demand_known(reader.manifest)
        held = self.held(reader)
        if held and not wipe:
            raise Unprepared(
                f"there is something already: {', '.join(held)}; restore into a new --data-dir, or "
                "give --force, which wipes these"
            )
        with self._stopped(reader):
            files = dict(reader.files())
            if self._dsn is None:
                await self._restore_embedded(reader, told)
            else:
                held += await load(self._dsn, reader, told, wipe=wipe)
            self._put(files)
        return held

    @contextlib.contextmanager
    def _stopped(self, reader: Reader) -> Iterator[None]:
        """Hold the folder's locks; raises FolderInUse when a cloud runs there."""
        parts = {POSTGRES} if self._dsn is None else set()
        parts |= (
            {BROKER} if any(name.startswith(BROKER) for name in reader.manifest.files) else set()
        )
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            for part in sorted(parts):
                (self._dir / part).mkdir(mode=0o700, parents=True, exist_ok=True)
                locks.enter_context(folder_lock(self._dir / part))
            yield

    async def _restore_embedded(self, reader: Reader, told: Told) -> None:
        fresh, old = self._dir / "postgres.restoring", self._dir / POSTGRES / SET_ASIDE
        place = self._dir / POSTGRES / "data"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        try:
            async with EmbeddedPostgres(fresh) as server:
                await load(server.dsn, reader, told)
            if place.exists():
                place.rename(old)
            (fresh / "data").rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    def _put(self, files: dict[str, bytes]) -> None:
        """The broker's messages belong to the cloud that was; nothing rests on them."""
        shutil.rmtree(self._dir / BROKER / "jetstream", ignore_errors=True)
        for name, content in files.items():
            path = self._dir / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, content)
