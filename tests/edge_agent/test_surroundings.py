"""The network and the site as a technician sees them among the links."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from edge_agent import surroundings
from edge_agent.clock import Clock
from edge_agent.config import ConfigError, parse
from edge_agent.main import _traffic_rules
from edge_agent.rules.clock import ClockRules, SystemTime
from edge_agent.rules.phases import everywhere
from edge_agent.rules.traffic import LEVELS, TrafficRules
from edge_agent.traffic import System, TrafficKeeper
from edge_agent.wording import LANGUAGES, wording

MIB = 1024 * 1024
NOON_MS = 1_790_000_000_000  # 2026-09-21: the year is two thirds of a month old
RULES = TrafficRules(order=("eth0", "wwan0"), metered=frozenset({"wwan0"}), monthly=100 * MIB)
HEAD = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame|\n"
ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"


class World:
    """A controller with two interfaces, and the traffic keeper that looks at them."""

    def __init__(self, folder: Path, rules: TrafficRules) -> None:
        self.folder = folder
        (folder / "net").mkdir()
        (folder / "sys/kernel/random").mkdir(parents=True)
        (folder / "sys/kernel/random/boot_id").write_text("one\n")
        time = SystemTime(wall_ms=NOON_MS, mono_ms=0, synced=True)
        clock = Clock(ClockRules(uuid4(), NOON_MS - 1), lambda: time)
        clock.observe()
        self.carried = {"eth0": 0, "wwan0": 0, "docker0": 0}
        self.look("eth0", None)
        self.keeper = TrafficKeeper(rules, folder, clock, System(folder))
        self.keeper.look()

    def look(self, route: str | None, keeper: TrafficKeeper | None, **mib: int) -> None:
        for name, size in mib.items():
            self.carried[name] += size * MIB
        rows = [f"{name}: {n} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0" for name, n in self.carried.items()]
        (self.folder / "net/dev").write_text(HEAD + "\n".join(rows) + "\n")
        line = f"{route}\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\n" if route else ""
        (self.folder / "net/route").write_text(ROUTES + line)
        if keeper is not None:
            keeper.look()

    def after(self, route: str | None, **mib: int) -> dict[str, str]:
        """Codes by interface."""
        self.look(route, self.keeper, **mib)
        found = surroundings.networks(self.keeper.described())
        return {link.name: link.code for link in found}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, RULES)


def test_the_preferred_link_carries_and_the_other_stands_by(world: World) -> None:
    assert world.after("eth0", eth0=3) == {"eth0": "network.in_use", "wwan0": "network.standby"}
    first, second = surroundings.networks(world.keeper.described())
    assert (first.facts["today"], first.facts["month"]) == ("3.0", "3.0")
    assert second.facts["month"] == "0.0"


def test_a_fallback_says_instead_of_what(world: World) -> None:
    assert world.after("wwan0", wwan0=5)["wwan0"] == "network.fallback"
    link = surroundings.networks(world.keeper.described())[1]
    for language in LANGUAGES:
        what, why, todo = wording(language).told(link.code, link.facts)
        assert "eth0" in what
        assert "eth0" in why
        assert todo
        assert "?" not in what


def test_each_link_counts_for_itself_and_only_the_metered_one_costs(world: World) -> None:
    world.after("eth0", eth0=500)
    assert world.keeper.level is LEVELS[0]
    world.after("wwan0", wwan0=20)
    told = world.keeper.described()
    assert told["month_bytes"]["eth0"] == 500 * MIB
    assert told["month_bytes"]["wwan0"] == 20 * MIB
    assert world.keeper.level is LEVELS[0]
    assert world.after("wwan0", wwan0=75)["wwan0"] == "network.nearly_used_up"
    assert world.keeper.level is LEVELS[2]
    assert world.after("eth0")["eth0"] == "network.in_use", "on the cable all is sent again"
    assert world.keeper.level is LEVELS[0]


def test_a_month_ahead_of_the_calendar_thins(tmp_path: Path) -> None:
    only = TrafficRules(order=("wwan0",), metered=frozenset({"wwan0"}), monthly=100 * MIB)
    world = World(tmp_path, only)
    assert world.after("wwan0", wwan0=10) == {"wwan0": "network.metered"}
    assert world.after("wwan0", wwan0=75) == {"wwan0": "network.thinned"}


def test_no_route_is_trouble_and_a_strange_one_is_shown(world: World) -> None:
    codes = world.after(None)
    assert codes[""] == "network.none"
    codes = world.after("docker0", docker0=2)
    assert codes["docker0"] == "network.fallback"


def test_without_an_account_nothing_is_told() -> None:
    assert surroundings.networks(None) == []
    assert surroundings.sites(None) == []


def a_site(**changes: Any) -> dict[str, Any]:
    return {
        "limit_ma": everywhere(40_000),
        "measured_ma": (30_000, 20_000, 10_000),
        "measured_fresh": True,
        "own_ma": everywhere(8_000),
        "room_ma": everywhere(12_000),
        "neighbours": None,
        **changes,
    }


def test_a_site_tells_how_full_its_fuse_is() -> None:
    (link,) = surroundings.sites(a_site())
    assert (link.code, link.facts["percent"], link.facts["own"]) == ("site.alone", 75, "8.0")
    (link,) = surroundings.sites(a_site(measured_fresh=False))
    assert link.facts["percent"] == 20, "without a fresh meter what our own vehicles take"
    (link,) = surroundings.sites(a_site(limit_ma=(40_000, 20_000, 40_000)))
    assert (link.facts["limit"], link.facts["percent"]) == ("40.0/20.0/40.0", 100)
    (link,) = surroundings.sites(a_site(limit_ma=everywhere(0)))
    assert link.facts["percent"] == 0


def follower(**changes: Any) -> dict[str, Any]:
    return {
        "role": "follower",
        "leader": "TAS-1",
        "trouble": "",
        "leader_heard_ms": 900,
        "lease_ma": everywhere(16_000),
        "lease_left_ms": 8_500,
        "safe_share_ma": everywhere(6_000),
        "members": [],
        **changes,
    }


def test_a_follower_tells_its_lease_or_that_it_has_none() -> None:
    (link,) = surroundings.sites(a_site(neighbours=follower()))
    assert (link.code, link.facts["lease"], link.facts["left_s"]) == ("site.follower", "16.0", 8)
    lost = follower(lease_ma=None, lease_left_ms=None, leader_heard_ms=None, trouble="another key")
    (link,) = surroundings.sites(a_site(neighbours=lost))
    assert (link.code, link.why, link.facts["share"]) == (
        "site.alone_for_now",
        "another key",
        "6.0",
    )


def test_a_leader_tells_who_is_silent() -> None:
    members = [
        {"station": "TAS-2", "fresh": True, "trouble": ""},
        {"station": "TAS-3", "fresh": False, "trouble": ""},
        {"station": "TAS-4", "fresh": True, "trouble": "its share is 6 A there and 8 A here"},
    ]
    others = {"role": "leader", "safe_share_ma": everywhere(6_000), "members": members}
    (link,) = surroundings.sites(a_site(neighbours=others))
    assert (link.code, link.facts["silent"]) == ("site.member_silent", "TAS-3, TAS-4")
    assert "8 A here" in link.why
    (link,) = surroundings.sites(a_site(neighbours={**others, "members": members[:1]}))
    assert (link.code, link.facts["members"]) == ("site.leader", 1)


CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
[uplink]
monthly_mib = 100
links = [{ interface = "eth0" }, { interface = "wwan0", metered = true }]
metered = ["ppp0"]
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "192.0.2.1" }
"""


def test_links_are_configured_in_order() -> None:
    rules = _traffic_rules(parse(CONFIG, "agent.toml"))
    assert rules.order == ("eth0", "wwan0")
    assert rules.metered == {"wwan0", "ppp0"}
    assert rules.monthly == 100 * MIB


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('"wwan0"', '"eth0"'), "uplink.links: eth0 is there twice"),
        ((', metered = true }]\nmetered = ["ppp0"]', " }]"), "metered = true in uplink.links"),
        (('"eth0"', '""'), "length >= 1"),
    ],
)
def test_links_that_cannot_be_are_refused(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(CONFIG.replace(*change), "agent.toml")


async def test_a_described_site_of_a_real_agent_becomes_a_link(
    make_rig: Callable[..., Any],
) -> None:
    from edge_agent.rules.site import SiteRules
    from edge_agent.rules.station import StationSettings

    rig = make_rig(station=StationSettings(site=SiteRules(limit=everywhere(40_000), metered=False)))
    await rig.charge(60)
    now = rig.clock.now()
    described = rig.station.site.described(rig.station.views(now), now.mono_ms)
    (link,) = surroundings.sites(described)
    assert link.code == "site.alone"
    assert (link.facts["own"], link.facts["percent"]) == ("32.0", 80)


class Chosen:
    """What chooses a link, as the test says."""

    def __init__(self) -> None:
        self.in_use: str | None = None
        self.why: dict[str, str] = {}

    def troubles(self) -> dict[str, str]:
        return self.why


def test_a_link_that_the_agent_has_left_says_why_and_the_budget_follows_the_choice(
    world: World,
) -> None:
    chosen, told = Chosen(), []
    world.keeper.choosers = (chosen,)
    world.keeper.changed = lambda: told.append(world.keeper.in_use())
    assert world.after("eth0") == {"eth0": "network.in_use", "wwan0": "network.standby"}
    chosen.in_use, chosen.why = "wwan0", {"eth0": "no answer in time"}
    codes = world.after("eth0", wwan0=95)
    assert codes == {"eth0": "network.dead", "wwan0": "network.nearly_used_up"}
    assert told == ["wwan0"], "the operator hears of it at once"
    dead = surroundings.networks(world.keeper.described())[0]
    assert dead.why == "no answer in time"
    for language in LANGUAGES:
        what, why, todo = wording(language).told(dead.code, dead.facts)
        assert why
        assert todo
        assert "?" not in what
    chosen.in_use, chosen.why = "eth0", {}
    assert world.after("eth0")["wwan0"] == "network.standby"
    assert told == ["wwan0", "eth0"]
