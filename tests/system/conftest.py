"""Real processes, broken on purpose; what was proven is counted, printed, and written down."""

from __future__ import annotations

import contextlib
import platform
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from karvon import __version__
from karvon.demo import witnesses
from karvon.demo.drivers import Driver, Habits
from karvon.demo.faults import FaultProxy
from karvon.demo.network import Network
from karvon.demo.places import TASHKENT, Plan
from karvon.demo.process import DemoError
from karvon.demo.session import TOKEN
from karvon.demo.station import Station

KILLS = pytest.StashKey[Counter[str]]()
SPEED = 20.0
SETTLE_S = 60.0
HERE = Path(__file__).parent
BUSY = Habits(
    away_s=(0.2, 1.0),
    card_s=(0.2, 0.8),
    linger_s=(0.5, 1.0),
    patience_s=25.0,
    want_wh=(150, 500),
    max_ma=(16_000, 32_000),
)


class Stubborn:
    """A driver who shrugs when the reader is dead and holds the card to it again."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self.plug = station.plug
        self.unplug = station.unplug
        self.full = station.full

    def present(self, token: str) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                self._station.present(token)
            except DemoError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return


class World:
    """A network, stations in it, people at them, and the invariant."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._chance = random.Random(2)
        self._proxies = contextlib.ExitStack()

    def close(self) -> None:
        self._proxies.close()

    def open(self, *, token: bool = True) -> None:
        self.network.start_cloud()
        if token:
            self.network.rest.post("/id-tokens", {"value": TOKEN})

    def station(self, name: str, *, start: bool = True) -> Station:
        """A claimed station that runs and has the offline list."""
        plan = Plan(f"{name}-{len(self.network.stations)}", name, TASHKENT)
        station = self.network.add_station(plan)
        if start:
            self.start(station)
        return station

    def start(self, station: Station) -> None:
        self.network.start_station(station)
        self.network.wait_for(lambda: self._has_list(station), 30, "the offline list to arrive")

    def _has_list(self, station: Station) -> bool:
        agent = self.network.rest.get(f"/stations/{station.identity}")["agent"]
        return agent is not None and agent["local_list_version"] > 0

    def uplink_proxy(self, station: Station) -> FaultProxy:
        """Put a proxy between a station that does not run yet and the broker."""
        proxy = self._proxies.enter_context(FaultProxy(self.network.mqtt_port))
        station.through(proxy.port)
        return proxy

    def board_proxy(self, station: Station) -> FaultProxy:
        """Put a proxy between a station's agent that does not run yet and its board."""
        proxy = self._proxies.enter_context(FaultProxy(station.modbus_port))
        station.board_port = proxy.port
        station.write_config()
        return proxy

    def charge(self, station: Station, want_wh: int = 300) -> None:
        """One whole session by card."""
        station.plug(want_wh, 32_000)
        Stubborn(station).present(TOKEN)
        self.network.wait_for(station.full, 60, f"the vehicle at {station.identity} to be full")
        station.unplug()

    def begin(self, station: Station, want_wh: int = 100_000) -> None:
        """Plug, present, and wait until current flows."""
        station.plug(want_wh, 32_000)
        Stubborn(station).present(TOKEN)
        self.network.wait_for(lambda: station.current_ma() > 0, 30, "current to flow")

    def drivers(self, *stations: Station) -> list[Driver]:
        return [
            Driver(Stubborn(one), TOKEN, random.Random(self._chance.random()), BUSY)
            for one in stations
        ]

    def traffic(self, drivers: list[Driver], seconds: float) -> None:
        """Let vehicles come and go for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for driver in drivers:
                driver.step(time.monotonic())
            time.sleep(0.05)

    def everybody_leaves(self, *stations: Station) -> None:
        for station in stations:
            station.unplug()

    def agree(self, *stations: Station, sessions: int = 1, journal_lost: bool = False) -> None:
        """The invariant, once everything had time to arrive; at least so many sessions each."""
        end = time.monotonic() + SETTLE_S
        for station in stations:
            assert len(station.truth()) >= sessions, "too few sessions to prove anything"
            while found := self._complaints(station, journal_lost=journal_lost):
                if time.monotonic() > end:
                    pytest.fail(f"{station.identity}:\n" + "\n".join(found), pytrace=False)
                time.sleep(0.5)

    def _complaints(self, station: Station, *, journal_lost: bool) -> list[str]:
        try:
            return witnesses.disagreements(self.network, station, journal_lost=journal_lost)
        except DemoError as error:
            return [str(error)]


@contextlib.contextmanager
def _world(speed: float) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="karvon-system-"))
    folder.chmod(0o755)
    try:
        with Network(folder, speed=speed) as network:
            world = World(network)
            world.open()
            try:
                yield world
            finally:
                world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """One network for all scenarios that leave the cloud's data alone; a new station for each."""
    with _world(SPEED) as world:
        yield world


@pytest.fixture
def own_world() -> Iterator[World]:
    """A network that the scenario may ruin."""
    with _world(SPEED) as world:
        yield world


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Counter[str]:
    """How often something was killed, per instant, over the whole run."""
    return request.config.stash.setdefault(KILLS, Counter())


# --------------------------------------------------------------------------- what was proven


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    kills = config.stash.get(KILLS, Counter())
    if kills:
        terminalreporter.section("kills per instant")
        for instant, count in sorted(kills.items()):
            terminalreporter.line(f"{instant:<24}{count:>6}")
    target = config.getoption("--torture-report", None)
    if target:
        Path(target).write_text(_report(terminalreporter, kills))


def _report(terminalreporter: pytest.TerminalReporter, kills: Counter[str]) -> str:
    """The run as Markdown: scenarios one by one, the rest by folder."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" or outcome != "passed"
    ]
    system = [report for report in reports if report.nodeid.startswith("tests/system/")]
    scenarios = [
        f"| {report.nodeid.removeprefix('tests/system/')} | {report.outcome} |"
        f" {report.duration:.0f} |"
        for report in sorted(system, key=lambda report: report.nodeid)
    ]
    counts = [f"| {instant} | {count} |" for instant, count in sorted(kills.items())]
    return "\n".join(
        [
            "# What it survives",
            "",
            _written_by(),
            "After each scenario: every session exactly once in the cloud, energy equal to the",
            "simulator's meter to 1 Wh, no event missing, no current where the rules forbid it.",
            "",
            "## Kills per instant",
            "",
            "| instant | kills |",
            "|---|---:|",
            *counts,
            "",
            "## Scenarios",
            "",
            "| scenario | outcome | seconds |",
            "|---|---|---:|",
            *scenarios,
            "",
            "## All other tests at full counts",
            "",
            "| folder | passed | failed | not run | seconds |",
            "|---|---:|---:|---:|---:|",
            *_folders([report for report in reports if report not in system]),
            "",
        ]
    )


def _written_by() -> str:
    return (
        f"Written by `make torture` on {datetime.now(UTC):%Y-%m-%d}, karvon {__version__},"
        f" Python {platform.python_version()}, {platform.machine()}."
    )


def _folders(reports: list[pytest.TestReport]) -> list[str]:
    groups: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in reports:
        groups[report.nodeid.split("::")[0].rpartition("/")[0]].append(report)
    lines = []
    for folder, members in sorted(groups.items()):
        outcomes = Counter(member.outcome for member in members)
        seconds = sum(member.duration for member in members)
        lines.append(
            f"| {folder} | {outcomes['passed']} | {outcomes['failed']} | {outcomes['skipped']} |"
            f" {seconds:.0f} |"
        )
    return lines
