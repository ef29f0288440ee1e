"""What all tests share: real services, two sizes, and saying loudly what could not run here.

Fixtures that give real services (a test gets what is there, or is reported as NOT RUN):

| fixture                 | scope    | gives                                                    |
|-------------------------|----------|----------------------------------------------------------|
| `embedded_postgres_dsn` | session  | superuser on our embedded PostgreSQL                     |
| `timescale_dsn`         | session  | superuser on `make services`' TimescaleDB                |
| `pg_server`             | session  | the two above in turn: [embedded], [timescale]           |
| `pg_dsn`                | function | an empty database of its own on each `pg_server`         |
| `nats_broker`           | session  | our embedded broker                                      |
| `mosquitto_service`     | session  | what `services.json` says of `make services`' Mosquitto  |
| `mosquitto`             | session  | that Mosquitto, with our shipped settings and ACL file   |
| `broker`                | session  | the two above in turn: [nats], [mosquitto]               |
| `faketime`              | session  | libfaketime, to preload                                  |
| `stm32flash`            | session  | Debian's host for STM32 loaders                          |

Brokers keep what earlier tests retained, Mosquitto also what earlier sessions did: listen to your
own stations only.
A test that proves something by counting says so with `record_property("kills at commit", 120)`;
`make torture` prints these in its report.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import platform
import re
import secrets
import shutil
import signal
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cloud.communication.credentials import mosquitto_hash
from cloud.kernel.embedded import BrokerUser, EmbeddedBroker, EmbeddedPostgres, hash_secret
from cloud.kernel.embedded.tls import write_private

PROJECT: Final = Path(__file__).resolve().parent.parent
NOT_RUN: Final = "NOT RUN: "
KILLED: Final = "killed at "
CLOUD_USER: Final = "karvon-cloud"
ROOM_IN_MEMORY: Final = 4 << 30
KILLS = pytest.StashKey[Counter[str]]()
T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("karvon")
    group.addoption(
        "--torture",
        metavar="SHARE",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        help="full counts instead of small samples, or this share of the full ones",
    )
    group.addoption("--torture-report", metavar="FILE", help="write what was proven as Markdown")


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits most, so that two workers end together."""
    items.sort(key=lambda item: "system" not in item.path.relative_to(PROJECT / "tests").parts)


@pytest.fixture(scope="session")
def sample_size(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """`sample_size(small, full)`: how often an expensive test repeats in this run."""
    share = float(pytestconfig.getoption("--torture"))
    return lambda small, full: max(small, round(full * share))


class Kills:
    """Counts SIGKILLs per instant, for the report of this test and over the whole run."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        self.so_far = node.config.stash.setdefault(KILLS, Counter())

    def count(self, instant: str) -> None:
        self.so_far[instant] += 1
        self._node.user_properties.append((f"{KILLED}{instant}", 1))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Kills:
    return Kills(request.node)


# -- databases ------------------------------------------------------------------------------------


class LoopThread:
    """An event loop that outlives tests: supervisors of session fixtures live on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="session fixtures")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def session_loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def embedded_postgres_dsn(
    session_loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    disk = tmp_path_factory.mktemp("embedded-postgres")
    with tempfile.TemporaryDirectory(prefix="karvon-test-", dir=_in_memory() or disk) as folder:
        server = EmbeddedPostgres(Path(folder))
        session_loop.run(server.start())
        yield server.dsn_for("postgres")
        session_loop.run(server.stop())


def _in_memory() -> Path | None:
    """Where tests make and drop databases by the thousand; a disk takes a third longer for that."""
    shared = Path("/dev/shm")  # only a folder of random name is made in it
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < ROOM_IN_MEMORY:
        return None
    return shared


@pytest.fixture(scope="session")
def timescale_dsn() -> str:
    return str(_service("timescale")["dsn"])


@pytest.fixture(scope="session", params=["embedded", "timescale"])
def pg_server(request: pytest.FixtureRequest) -> str:
    name = {"embedded": "embedded_postgres_dsn", "timescale": "timescale_dsn"}[request.param]
    return str(request.getfixturevalue(name))


@pytest.fixture
def pg_dsn(pg_server: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    creation = (
        "CREATE DATABASE {} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    )
    _administer(pg_server, creation, name)
    yield make_conninfo(pg_server, dbname=name)
    _administer(pg_server, "DROP DATABASE {} WITH (FORCE)", name)


def _administer(server: str, statement: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _service(name: str) -> dict[str, Any]:
    """What `make services` says of it."""
    state = _services()
    pid = state.get(name, {}).get("process", {}).get("pid")
    if pid is None or not Path(f"/proc/{pid}").exists():
        _not_here(name, state)
    return dict(state[name])


def _services() -> dict[str, Any]:
    state_file = PROJECT / ".services" / "run" / "services.json"
    return dict(json.loads(state_file.read_text())) if state_file.exists() else {}


def _not_here(name: str, state: dict[str, Any]) -> NoReturn:
    reasons = state.get("left_out") or ["run `make services` first"]
    pytest.skip(f"{NOT_RUN}{name} is not here: {'; '.join(reasons)}")


@pytest.fixture(scope="session")
def faketime() -> Path:
    state = _services()
    if "faketime" not in state:
        _not_here("faketime", state)
    return Path(state["faketime"])


@pytest.fixture(scope="session")
def stm32flash() -> str:
    state = _services()
    if "stm32flash" not in state:
        _not_here("stm32flash", state)
    return str(state["stm32flash"])


# -- brokers --------------------------------------------------------------------------------------


@dataclass
class Broker:
    """A running MQTT broker with TLS; `admit` lets stations in besides those already admitted."""

    name: str
    host: str
    port: int
    ca_file: Path
    cloud_secret: str
    _apply: Callable[[dict[str, str]], None]
    _secrets: dict[str, str]
    cloud_user: str = CLOUD_USER

    def admit(self, station: str, secret: str) -> None:
        self._secrets[station] = secret
        self._apply(self._secrets)

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))


@pytest.fixture(scope="session")
def nats_broker(
    session_loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    secret = secrets.token_urlsafe(16)
    cloud = BrokerUser(CLOUD_USER, hash_secret(secret), ["karvon/1/#"], ["karvon/1/#"])
    server = EmbeddedBroker(tmp_path_factory.mktemp("nats"), users=[cloud])

    def apply(stations: dict[str, str]) -> None:
        users = [cloud, *(_station_user(*station) for station in stations.items())]
        session_loop.run(server.set_users(users))

    session_loop.run(server.start())
    yield Broker("nats", "localhost", server.port, server.ca_file, secret, apply, {})
    session_loop.run(server.stop())


def _station_user(name: str, secret: str) -> BrokerUser:
    up, down = f"karvon/1/+/{name}/up/#", f"karvon/1/+/{name}/down/#"
    return BrokerUser(name, hash_secret(secret), [up], [down])


@pytest.fixture(scope="session")
def mosquitto_service() -> dict[str, Any]:
    return _service("mosquitto")


@pytest.fixture(scope="session")
def mosquitto(mosquitto_service: dict[str, Any]) -> Broker:
    folder, pid = Path(mosquitto_service["folder"]), mosquitto_service["process"]["pid"]
    log = folder / "mosquitto.log"

    def apply(stations: dict[str, str]) -> None:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write_passwords(folder / "passwd", stations)
            reloads = log.read_text().count("Reloading config")
            os.kill(pid, signal.SIGHUP)
            _await_log(log, "Reloading config", reloads + 1)

    return Broker(
        "mosquitto",
        mosquitto_service["host"],
        mosquitto_service["port"],
        Path(mosquitto_service["ca_file"]),
        mosquitto_service["cloud_secret"],
        apply,
        {},
        mosquitto_service["cloud_user"],
    )


def _write_passwords(file: Path, passwords: dict[str, str]) -> None:
    """Add these users; others stay, for another test run may be using the same broker."""
    others = [line for line in file.read_text().splitlines() if line.split(":")[0] not in passwords]
    ours = [f"{user}:{mosquitto_hash(word, os.urandom(12))}" for user, word in passwords.items()]
    write_private(file, "\n".join([*others, *ours, ""]).encode())


def _await_log(log: Path, words: str, times: int) -> None:
    deadline = time.monotonic() + 10
    while log.read_text().count(words) < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="session", params=["nats", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> Broker:
    name = {"nats": "nats_broker", "mosquitto": "mosquitto"}[request.param]
    return request.getfixturevalue(name)  # type: ignore[no-any-return]  # pytest cannot know


# -- what was proven, what could not run ----------------------------------------------------------


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    missing = _not_run(terminalreporter)
    if missing:
        terminalreporter.section("left out on this machine", red=True, bold=True)
        for line in missing:
            terminalreporter.line(line)
    kills = _kills(terminalreporter)
    if kills:
        terminalreporter.section("kills per instant")
        for instant, count in sorted(kills.items()):
            terminalreporter.line(f"{instant:<24}{count:>6}")
    if config.getoption("--torture-report"):
        terminalreporter.line(f"wrote {config.getoption('--torture-report')}")


class TortureReport:
    """Written with every test that says something: a run of an hour may be cut off."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = Path(config.getoption("--torture-report"))
        self._share = float(config.getoption("--torture"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        rows, row = _earlier(self._path), _row(report, self._share)
        told = rows.pop(_name(report), None)
        if row is not None:
            rows[_name(report)] = row
        if row != told:
            beside = self._path.with_suffix(".new")
            page = _proof(rows, _by_hand(self._path))
            beside.write_text("\n".join(page) + "\n")
            beside.replace(self._path)


def pytest_configure(config: pytest.Config) -> None:
    # properties are tried with few examples, always the same, or with many new ones
    settings.register_profile("sample", max_examples=40, derandomize=True, deadline=None)
    settings.register_profile("torture", max_examples=200, deadline=None)
    settings.load_profile("torture" if config.getoption("--torture") else "sample")
    gc.set_threshold(50_000, 20, 50)  # a twentieth of the time went into collecting
    if config.getoption("--torture-report") and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(TortureReport(config))


def _not_run(terminalreporter: pytest.TerminalReporter) -> list[str]:
    reasons: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if NOT_RUN in reason:
            reasons[reason.split(NOT_RUN, 1)[1]] += 1
    return [f"{NOT_RUN}{count} tests: {why}" for why, count in sorted(reasons.items())]


def _kills(terminalreporter: pytest.TerminalReporter) -> Counter[str]:
    """Kills per instant as the tests' reports tell; workers of a divided run each send theirs."""
    found: Counter[str] = Counter()
    for test in _calls(terminalreporter):
        for key, count in test.user_properties:
            if key.startswith(KILLED):
                found[key.removeprefix(KILLED)] += count
    return found


def _calls(terminalreporter: pytest.TerminalReporter) -> list[Any]:
    tests = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    return [test for test in tests if test.when == "call"]


def _row(test: pytest.TestReport, share: float) -> str | None:
    """The torture report's line for a test, if it says something."""
    if not (test.user_properties or test.failed or test.duration > 1) or test.skipped:
        return None
    when = f"{datetime.fromtimestamp(test.stop, UTC):%Y-%m-%d %H:%M}"
    return (
        f"| {_name(test)} | {test.outcome} | {test.duration:.0f} | {when} | {share:.0%} |"
        f" {_counted(test.user_properties)} |"
    )


def _name(test: pytest.TestReport) -> str:
    return test.nodeid.removeprefix("tests/")


def _counted(properties: list[tuple[str, Any]]) -> str:
    """What a test counted; equal keys are summed."""
    sums: Counter[str] = Counter()
    for key, count in properties:
        sums[key] += count
    return ", ".join(f"{key}: {count}" for key, count in sums.items())


def _earlier(report: Path) -> dict[str, str]:
    """The lines of the report that is there, by test: a long run may be done in parts."""
    lines = report.read_text().splitlines() if report.exists() else []
    return {
        line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ") and "::" in line
    }


def _by_hand(report: Path) -> list[str]:
    """What somebody wrote of the runs, between the head's paragraph and the first table."""
    head = report.read_text().partition("\n## ")[0] if report.exists() else ""
    return [line for part in head.split("\n\n")[2:] for line in (*part.strip().splitlines(), "")]


def _proof(rows: dict[str, str], by_hand: list[str]) -> list[str]:
    """The torture report: what was counted, what failed, when, on what."""
    kills: Counter[str] = Counter()
    for line in rows.values():
        for instant, count in re.findall(rf"{KILLED}([^:|]+): (\d+)", line):
            kills[instant] += int(count)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return [
        "# Torture",
        "",
        "The tests of `make test` at full counts: `make torture` runs them all, writes this page;",
        '`make torture PYTEST_ARGS="tests/system/test_kills.py"` renews the lines of one file.',
        f"Last written on {machine}.",
        "",
        *by_hand,
        "## Kills (SIGKILL) per instant",
        "",
        "| instant | kills |",
        "|---|---:|",
        *(f"| {instant} | {count} |" for instant, count in sorted(kills.items())),
        "",
        "## Tests",
        "",
        "| test | outcome | seconds | when (UTC) | counts | proven |",
        "|---|---|---:|---|---:|---|",
        *(rows[name] for name in sorted(rows)),
    ]
