"""The interfaces' counters as Linux shows them, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli import looking
from edge_agent.rules.traffic import LEVELS, Level, TrafficRules
from edge_agent.traffic import System, TrafficKeeper
from protocols.agent_link import Sample
from protocols.quantities import WattHours

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
MIB = 1024 * 1024
HEAD = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame|\n"
ROUTE_HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
RULES = TrafficRules(metered=frozenset({"wwan0"}), monthly=100 * MIB)


class Proc:
    """A /proc that the test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "net").mkdir(parents=True)
        (folder / "sys/kernel/random").mkdir(parents=True)
        self.boot("one")
        self.routes(("eth0", 100), ("wwan0", 700))
        self.counters(lo=10**9, eth0=0, wwan0=0)

    def boot(self, name: str) -> None:
        (self.folder / "sys/kernel/random/boot_id").write_text(name + "\n")

    def counters(self, **links: int) -> None:
        rows = [
            f"{name}: {size // 2} 0 0 0 0 0 0 0 {size - size // 2} 0 0 0 0 0 0 0"
            for name, size in links.items()
        ]
        (self.folder / "net/dev").write_text(HEAD + "\n".join(rows) + "\n")

    def routes(self, *links: tuple[str, int]) -> None:
        rows = [
            f"{name}\t00000000\t010200C0\t0003\t0\t0\t{metric}\t00000000" for name, metric in links
        ]
        local = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF"
        (self.folder / "net/route").write_text(ROUTE_HEAD + "\n".join([local, *rows]) + "\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


def keeper_of(rig: Rig, proc: Proc, folder: Path) -> TrafficKeeper:
    return TrafficKeeper(RULES, folder, rig.clock, System(proc.folder))


def test_the_link_in_use_is_that_of_the_best_default_route(proc: Proc) -> None:
    system = System(proc.folder)
    assert system.in_use() == "eth0"
    proc.routes(("wwan0", 700))
    assert system.in_use() == "wwan0"
    proc.routes()
    assert system.in_use() is None
    six = ["0" * 32, "00", "0" * 32, "00", "0" * 32, "00000400", "1", "0", "00000003", "eth1"]
    (proc.folder / "net/ipv6_route").write_text(" ".join(six) + "\n")
    assert system.in_use() == "eth1"


def test_this_machine_has_counters_and_no_loopback_among_them() -> None:
    counters = System().counters()
    assert "lo" not in counters
    assert all(carried >= 0 for carried in counters.values())


def test_telemetry_thins_on_the_link_that_costs_money_alone(
    rig: Rig, proc: Proc, tmp_path: Path
) -> None:
    keeper = keeper_of(rig, proc, tmp_path)
    told: list[Level] = []
    keeper.thinners.append(told.append)
    keeper.look()
    proc.counters(lo=0, eth0=10**12, wwan0=95 * MIB)
    keeper.look()
    assert told[-1] is LEVELS[0], "Ethernet is in use"
    proc.routes(("wwan0", 700))
    keeper.look()
    assert told[-1] is LEVELS[2]
    proc.counters(lo=0, eth0=10**12, wwan0=101 * MIB)
    keeper.look()
    assert told[-1] is LEVELS[3]
    assert keeper.trouble() == ("traffic: telemetry waits on disk: the month's budget is used up")
    assert looking._traffic_lines(keeper.described()) == [
        "link eth0: 953674.3 MiB today, 953674.3 MiB this month",
        "link wwan0 (in use): 101.0 MiB today, 101.0 MiB this month, metered",
        "metered links: 100.0 MiB a month; telemetry waits on disk: the month's budget is used up",
    ]


def test_the_count_outlives_agent_and_controller(rig: Rig, proc: Proc, tmp_path: Path) -> None:
    first = keeper_of(rig, proc, tmp_path)
    first.look()
    proc.counters(wwan0=5_000)
    first.look()
    first.save()
    proc.counters(wwan0=7_000)
    second = keeper_of(rig, proc, tmp_path)
    second.look()
    assert second.described()["month_bytes"]["wwan0"] == 7_000
    second.save()
    proc.boot("two")
    proc.counters(wwan0=9_000)
    third = keeper_of(rig, proc, tmp_path)
    third.look()
    assert third.described()["month_bytes"]["wwan0"] == 16_000


def test_a_damaged_file_begins_anew(rig: Rig, proc: Proc, tmp_path: Path) -> None:
    (tmp_path / "traffic.json").write_text("{")
    keeper = keeper_of(rig, proc, tmp_path)
    keeper.look()
    keeper.save()
    assert keeper_of(rig, proc, tmp_path).described()["month_bytes"]["wwan0"] == 0


def test_without_a_date_nothing_is_thinned_and_nothing_lost(
    make_rig: Callable[..., Rig], proc: Proc, tmp_path: Path
) -> None:
    rig = make_rig()
    rig.synced = False
    rig.start()
    keeper = keeper_of(rig, proc, tmp_path)
    proc.routes(("wwan0", 700))
    keeper.look()
    proc.counters(wwan0=200 * MIB)
    keeper.look()
    assert keeper.level is LEVELS[0]
    shown = looking._traffic_lines(keeper.described())
    assert shown[0] == "link wwan0 (in use): counted by day once the date is known"
    rig.synced = True
    rig.clock.observe()
    keeper.look()
    assert keeper.level is LEVELS[3]


def test_fewer_samples_are_recorded_while_it_is_thinned(rig: Rig) -> None:
    rig.ledger.spacing_ms = 30_000
    for _ in range(61):
        for evse in (0, 1):
            sample = Sample(evse=evse, at=rig.clock.now(), energy_wh=WattHours(0))
            rig.ledger.sample([sample])
        rig.time.advance(1)
    assert [sample.evse for sample in rig.store.samples] == [0, 1] * 3
