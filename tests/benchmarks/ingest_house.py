"""The servers that ingest is measured on, and the processes that are measured.

Two houses: Mosquitto with our shipped settings and TimescaleDB (from `tools/services.py`), and the
embedded NATS broker and PostgreSQL 18 as `karvon cloud serve` starts them. Both are shared by
limit, baselines and ours; every contestant gets a fresh database and a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from ingest_load import BrokerAddress
from ingest_messages import Fleet
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cloud.kernel.embedded import BrokerUser, EmbeddedBroker, EmbeddedPostgres, hash_secret

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLOUD_USER = "karvon-cloud"
SLOW_COMMIT_US = 3000


class NotHereError(Exception):
    """A house cannot be had on this machine; says what to do."""


@dataclass(frozen=True)
class House:
    """A broker and a database server; `dsn` is the superuser's."""

    name: str
    broker: BrokerAddress
    dsn: str
    postmaster: int
    broker_pid: int

    @contextmanager
    def database(self, *, slow_commit: bool = False) -> Iterator[str]:
        """A fresh database; slow: every commit in it waits 3 ms, as a network volume would."""
        name = f"bench_{secrets.token_hex(4)}"
        here = sql.Identifier(name)
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(here))
            if slow_commit:
                for setting in (f"commit_delay = {SLOW_COMMIT_US}", "commit_siblings = 0"):
                    admin.execute(
                        sql.SQL("ALTER DATABASE {} SET " + setting).format(here)  # type: ignore[arg-type]  # constants of ours
                    )
            try:
                yield make_conninfo(self.dsn, dbname=name)
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(here))
                admin.execute("CHECKPOINT")  # the next contestant shall not pay for this one

    def database_cpu_ms(self) -> float:
        """Of all the server's processes, those that ended included."""
        return tree_cpu_ms(self.postmaster)

    def broker_cpu_ms(self) -> float:
        return tree_cpu_ms(self.broker_pid)

    def database_rss_mib(self) -> float:
        """Proportional shares, so that shared buffers count once."""
        return sum(_pss(one.pid) for one in _tree(self.postmaster)) / 2**20


def tree_cpu_ms(pid: int) -> float:
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total * 1000


def tree_rss_mib(pid: int) -> float:
    return sum(_pss(one.pid) for one in _tree(pid)) / 2**20


def _tree(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# --------------------------------------------------------------------------- the two houses


@asynccontextmanager
async def services_house() -> AsyncIterator[House]:
    """Mosquitto and TimescaleDB as `make services` runs them. Raises NotHereError."""
    file = ROOT / ".services" / "run" / "services.json"
    state = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in ("mosquitto", "timescale") if not _runs(state.get(name))]
    if missing:
        why = "; ".join(state.get("left_out") or ["run `make services` first"])
        raise NotHereError(f"{' and '.join(missing)} not here: {why}")
    mosquitto, timescale = state["mosquitto"], state["timescale"]
    yield House(
        "timescale",
        BrokerAddress(
            mosquitto["host"],
            mosquitto["port"],
            mosquitto["cloud_user"],
            mosquitto["cloud_secret"],
            mosquitto["ca_file"],
        ),
        timescale["dsn"],
        timescale["process"]["pid"],
        mosquitto["process"]["pid"],
    )


def _runs(service: dict[str, Any] | None) -> bool:
    return service is not None and psutil.pid_exists(service["process"]["pid"])


@asynccontextmanager
async def embedded_house() -> AsyncIterator[House]:
    """The servers of `karvon cloud serve`'s own wheels, with the settings it gives them."""
    secret = secrets.token_urlsafe(24)
    everything = ["karvon/1/#"]
    user = BrokerUser(CLOUD_USER, hash_secret(secret), everything, everything)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="karvon-bench-")))
        folder.chmod(0o755)
        postgres = await stack.enter_async_context(EmbeddedPostgres(folder / "postgres"))
        broker = await stack.enter_async_context(EmbeddedBroker(folder / "broker", users=[user]))
        yield House(
            "embedded",
            BrokerAddress("localhost", broker.port, CLOUD_USER, secret, str(broker.ca_file)),
            postgres.dsn_for("postgres"),
            postgres.pid,
            broker.pid,
        )


HOUSES = {"timescale": services_house, "embedded": embedded_house}


# --------------------------------------------------------------------------- contestants


class Contestant:
    """Processes under measurement; a cloud also has REST and an admin's key."""

    def __init__(
        self, processes: list[subprocess.Popen[bytes]], url: str = "", key: str = ""
    ) -> None:
        self.processes = processes
        self.url = url
        self.key = key

    def cpu_ms(self) -> float:
        return sum(tree_cpu_ms(one.pid) for one in self.processes)

    def rss_mib(self) -> float:
        return sum(tree_rss_mib(one.pid) for one in self.processes)

    def kill(self) -> None:
        for one in self.processes:
            one.send_signal(signal.SIGKILL)
            one.wait(10)


@contextmanager
def ordinary(house: House, dsn: str, layout: str, numbers: Path) -> Iterator[Contestant]:
    """The baseline's process, subscribed."""
    plan = {"dsn": dsn, "layout": layout, "numbers": str(numbers), "broker": asdict(house.broker)}
    script = HERE / "baselines" / "ordinary.py"
    with _started([sys.executable, str(script), json.dumps(plan)], {}) as (process, _):
        yield Contestant([process])


@contextmanager
def cloud(house: House, dsn: str, folder: Path, *options: str) -> Iterator[Contestant]:
    """`karvon cloud serve` on this database and the house's broker, ready."""
    broker = house.broker
    settings = {
        "KARVON_DATABASE_URL": dsn,
        "KARVON_MQTT_URL": f"mqtts://{broker.user}:{broker.password}@{broker.host}:{broker.port}",
        "KARVON_MQTT_CA_FILE": broker.ca_file,
    }
    command = [sys.executable, "-m", "karvon.demo.leash", str(os.getpid()), "cloud", "serve"]
    command += ["--json", "--http-port", "0", "--data-dir", str(folder / "data")]
    command += ["--admin-key-file", str(folder / "key"), *options]
    with _started(command, settings) as (process, line):
        yield Contestant([process], json.loads(line)["ready"], (folder / "key").read_text().strip())


@contextmanager
def _started(
    command: list[str], settings: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A process and its first line; killed at the end if it still runs."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", **settings},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise RuntimeError(f"{command[1:5]} did not start:\n{log.read()[-2000:].decode()}")
            yield process, line
        finally:
            process.kill()
            process.communicate()


def announce(dsn: str, fleet: Fleet) -> None:
    """Have the fleet's stations known to a cloud that has made its schema."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO stations.station (tenant_id, identity, registration, created_at)"
            " VALUES (1, %s, 'registered', now()) ON CONFLICT DO NOTHING",
            [(name,) for name in fleet.identities],
        )


def single_commit_ms(dsn: str, commits: int = 30) -> float:
    """Median of single-row commits in this database."""
    took = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE single (id int)")
        for number in range(commits):
            began = time.perf_counter()
            connection.execute("INSERT INTO single VALUES (%s)", (number,))
            took.append(time.perf_counter() - began)
    return sorted(took)[commits // 2] * 1000
