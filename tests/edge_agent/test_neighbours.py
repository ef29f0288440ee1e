"""Controllers behind one fuse: whatever the network loses, delays or repeats, and whoever dies.

Real loops and rules on boards with slow vehicles, all on one clock that only the test moves; the
network is a list of datagrams that it may lose, hold back and deliver again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from vehicle_board import STEP_MS, VehicleBoard

from edge_agent.rules.fuse import Strain
from edge_agent.rules.leases import Follower, Leader, LeaseRules
from edge_agent.rules.phases import NONE, Lines, everywhere, placed, plus, total, wired
from edge_agent.rules.site import SiteLoad, SiteRules
from edge_agent.rules.station import RefusedError, StationSettings
from karvon.simulator.vehicle import Vehicle
from protocols.site_link import seal, unseal

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
KEY = b"k" * 32
FUSE = 40_000
SHARE = everywhere(6_000)
RULES = LeaseRules()
NAMES = ("A", "B", "C")
"""A leads."""


@dataclass
class Datagram:
    to: str
    data: bytes
    at_ms: int


@dataclass
class Network:
    """Loses and repeats by chance, holds back by up to `delay_ms`, and cuts off whom it is told."""

    chance: Random
    loss: float = 0.0
    again: float = 0.0
    delay_ms: int = 0
    cut: set[str] = field(default_factory=set)
    flying: list[Datagram] = field(default_factory=list)
    old: list[Datagram] = field(default_factory=list)

    def send(self, sender: str, to: str, data: bytes, now_ms: int) -> None:
        if {sender, to} & self.cut:
            return
        copies = (self.chance.random() >= self.loss) + (self.chance.random() < self.again)
        for _ in range(copies):
            at = now_ms + self.chance.randint(0, self.delay_ms)
            self.flying.append(Datagram(to, data, at))
        self.old.append(Datagram(to, data, now_ms))
        if self.again and self.chance.random() < self.again:
            self.flying.append(replace(self.chance.choice(self.old), at_ms=now_ms))

    def arriving(self, now_ms: int) -> list[Datagram]:
        here = [one for one in self.flying if one.at_ms <= now_ms]
        self.flying = [one for one in self.flying if one.at_ms > now_ms]
        self.chance.shuffle(here)
        return [one for one in here if one.to not in self.cut]


class Site:
    """Three controllers with a board each (or more), the fuse before them, and the referee."""

    def __init__(
        self,
        make_rig: Callable[..., Rig],
        network: Network,
        *,
        boards: int = 1,
        fuse: int = FUSE,
        metered: bool = False,
        unbalance: int | None = None,
    ) -> None:
        self.network, self.fuse = network, everywhere(fuse)
        self.make_rig, self.boards, self.metered = make_rig, boards, metered
        self.rigs: dict[str, Rig] = {}
        self.parts: dict[str, Any] = {}
        self.alive: set[str] = set()
        for name in NAMES:
            limit = self.fuse if name == "A" else everywhere(63_000)
            site = SiteRules(
                limit=limit,
                metered=metered and name == "A",
                turn_ms=60_000,
                unbalance=unbalance,
            )
            rig = make_rig(boards=boards, station=StationSettings(site=site))
            clock = self.rigs["A"].time if self.rigs else rig.time
            rig.time = clock
            rig.boards = [VehicleBoard(clock) for _ in range(boards)]
            rig.policy = replace(rig.policy, allow_unknown=True)
            self.rigs[name] = rig
            self.start(name)
        self.strain = Strain(self.fuse)
        self.blown: list[int] = []
        self.exceeded = 0
        self.house: Lines = (0, 0, 0)
        self.meter_works = True

    @property
    def ms(self) -> int:
        return round(self.rigs["A"].time() * 1000)

    def start(self, name: str) -> None:
        """A new process: it knows its journal and its configuration."""
        rig = self.rigs[name]
        rig.start()
        floor = rig.station.floor()
        if name == "A":
            members = dict.fromkeys(NAMES[1:], SHARE)
            part: Any = Leader("A", uuid4(), members, SHARE, RULES, self.ms, 60_000, floor)
        else:
            part = Follower(name, uuid4(), SHARE, RULES, self.ms, floor)
        rig.station.site.neighbours = self.parts[name] = part
        self.alive.add(name)

    def flowing(self, name: str) -> Lines:
        wires = wired("RST", 3)
        return total(placed(board.pins, wires) for board in self.rigs[name].boards)

    @property
    def chargers(self) -> Lines:
        return total(self.flowing(name) for name in NAMES)

    def amperes(self) -> list[int]:
        return [max(self.flowing(name)) // 1000 for name in NAMES]

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            for tick in range(1000 // STEP_MS):
                self.rigs["A"].time.advance(STEP_MS / 1000)
                for rig in self.rigs.values():
                    for board in rig.boards:
                        board.step()
                self._judge()
                self._deliver()
                for place, name in enumerate(NAMES):
                    if tick == 3 * place and name in self.alive:
                        await self._work(name)

    def _judge(self) -> None:
        flowing = plus(self.chargers, self.house)
        self.blown += self.strain.take(flowing, self.ms)
        self.exceeded += any(one > most for one, most in zip(flowing, self.fuse, strict=True))

    def _deliver(self) -> None:
        for datagram in self.network.arriving(self.ms):
            if datagram.to not in self.alive:
                continue
            message = unseal(datagram.data, KEY)
            station, part = self.rigs[datagram.to].station, self.parts[datagram.to]
            if datagram.to != "A":
                part.take(message, self.ms)
                continue
            views = station.views(self.rigs["A"].clock.now())
            whole = station.site.whole(views, self.ms)
            grant = part.answer(message, whole, views, station.site, self.ms)
            if grant is not None:
                self.network.send("A", message.station, seal(grant, KEY), self.ms)

    async def _work(self, name: str) -> None:
        rig = self.rigs[name]
        if name == "A" and self.metered and self.meter_works:
            current = plus(self.chargers, self.house)
            rig.station.site.load = SiteLoad(current=current, at_ms=self.ms)
        for line in rig.loop.lines:
            await rig.loop.step(line)
        if name != "A":
            views = rig.station.views(rig.clock.now())
            report = self.parts[name].report(views, rig.station.site, self.ms)
            self.network.send(name, "A", seal(report, KEY), self.ms)

    async def plug(self, name: str, board: int = 0, **vehicle: Any) -> None:
        rig = self.rigs[name]
        if rig.boards[board].vehicle is None:
            rig.boards[board].vehicle = Vehicle(**vehicle)
        await self.seconds(2)
        running = rig.station.connectors[board + 1].state.session
        if name in self.alive and running is None:
            try:
                await rig.card(f"{name}{board}", board + 1)
            except RefusedError:
                return

    def unplug(self, name: str, board: int = 0) -> None:
        gone = self.rigs[name].boards[board]
        gone.vehicle, gone.released = None, False


def run(work: Any) -> None:
    asyncio.run(work)


@pytest.fixture
def site(make_rig: Callable[..., Rig]) -> Site:
    return Site(make_rig, Network(Random(1)))


def test_one_that_charges_alone_gets_what_idle_ones_have_lent(site: Site) -> None:
    async def work() -> None:
        await site.seconds(100)
        await site.plug("B")
        await site.seconds(40)
        assert site.amperes() == [0, 32, 0]
        await site.plug("C")
        await site.seconds(40)
        assert site.amperes() == [0, 20, 20]
        await site.plug("A")
        await site.seconds(60)
        assert site.amperes() == [13, 13, 13]
        assert site.exceeded == 0

    run(work())


def test_a_silent_leader_leaves_the_safe_share_and_its_return_the_rest(site: Site) -> None:
    async def work() -> None:
        await site.seconds(100)
        for name in NAMES:
            await site.plug(name)
        await site.seconds(60)
        assert site.amperes() == [13, 13, 13]
        site.alive.remove("A")
        await site.seconds(20)
        assert site.amperes()[1:] == [6, 6]
        await site.seconds(60)
        assert site.amperes() == [6, 6, 6], "the leader's board has its own failsafe"
        why = site.rigs["B"].station.site.shown.why
        assert why == "the leader is silent: the safe share holds"
        site.start("A")
        await site.seconds(40)
        assert site.amperes() == [13, 13, 13]
        assert not site.blown

    run(work())


def test_a_follower_that_is_cut_off_while_idle_waits_until_what_it_lent_is_back(
    site: Site,
) -> None:
    async def work() -> None:
        await site.seconds(100)
        await site.plug("A")
        await site.plug("C")
        await site.seconds(40)
        assert site.amperes() == [20, 0, 20]
        site.network.cut.add("B")
        await site.plug("B")
        await site.seconds(60)
        assert site.amperes() == [17, 0, 17]
        assert "in " in site.rigs["B"].station.site.shown.why
        await site.seconds(80)
        assert site.amperes() == [17, 6, 17]
        site.network.cut.clear()
        await site.seconds(60)
        assert site.amperes() == [13, 13, 13]
        assert site.exceeded == 0

    run(work())


def test_a_leader_that_returns_counts_whom_it_has_not_heard_for_everything(site: Site) -> None:
    async def work() -> None:
        await site.seconds(100)
        await site.plug("C", reaction_ms=5_000)
        await site.seconds(40)
        assert site.amperes() == [0, 0, 32]
        site.network.cut.add("C")
        site.start("A")
        await site.plug("A", reaction_ms=0)
        await site.seconds(60)
        assert site.amperes() == [0, 0, 6], "an earlier life may have granted C all there is"
        await site.seconds(60)
        assert site.amperes() == [32, 0, 6]
        assert site.exceeded == 0

    run(work())


def test_a_grant_counts_until_its_holder_has_surely_stopped_even_if_never_heard(
    site: Site,
) -> None:
    async def work() -> None:
        await site.seconds(100)
        await site.plug("C")
        await site.seconds(5)
        leader, follower = site.parts["A"], site.parts["C"]
        manager = site.rigs["C"].station.site
        views = site.rigs["C"].station.views(site.rigs["C"].clock.now())
        report = follower.report(views, manager, site.ms)
        report = structs.replace(report, leased_ma=NONE, held_ma=NONE)
        mine = site.rigs["A"].station
        own = mine.views(site.rigs["A"].clock.now())
        whole = mine.site.whole(own, site.ms)
        grant = leader.answer(report, whole, own, mine.site, site.ms)
        assert grant.lines_ma == everywhere(32_000)
        last = site.ms + RULES.valid_ms + RULES.dead_ms
        assert leader.outstanding("C", last) == everywhere(32_000)
        assert leader.outstanding("C", last + last // 50) == SHARE

    run(work())


def test_members_that_differ_about_a_share_get_nothing_but_what_is_safe(site: Site) -> None:
    async def work() -> None:
        site.parts["B"].share = everywhere(10_000)
        await site.seconds(100)
        await site.plug("B")
        await site.seconds(40)
        assert site.parts["B"].lease is None
        (member, _) = site.parts["A"].described(site.ms)["members"]
        assert member["trouble"] == (
            "B has a safe share of 10 A, its leader knows 6 A; make them equal"
        )
        assert site.parts["B"].described(site.ms)["trouble"] == member["trouble"]

    run(work())


def test_the_house_is_given_way_to_by_all(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        site = Site(make_rig, Network(Random(2)), metered=True)
        await site.seconds(100)
        await site.plug("B")
        await site.plug("C")
        await site.seconds(60)
        assert site.amperes() in ([0, 19, 19], [0, 20, 20])
        site.house = (25_000,) * 3
        await site.seconds(12)
        assert site.amperes() in ([0, 6, 6], [0, 7, 7])
        assert not site.blown

    run(work())


def test_where_there_is_not_enough_for_all_every_station_has_a_turn(
    make_rig: Callable[..., Rig],
) -> None:
    async def work() -> None:
        site = Site(make_rig, Network(Random(3)), boards=2, fuse=19_000)
        await site.seconds(100)
        for name in NAMES:
            for board in range(2):
                await site.plug(name, board)
        boards = [board for rig in site.rigs.values() for board in rig.boards]
        before = [board.taken_nj for board in boards]
        await site.seconds(600)
        gained = [board.taken_nj - old for board, old in zip(boards, before, strict=True)]
        assert min(gained) > 0.4 * max(gained)
        assert site.exceeded == 0

    run(work())


def test_a_silent_meter_leaves_every_controller_its_share(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        site = Site(make_rig, Network(Random(4)), metered=True)
        await site.seconds(100)
        for name in NAMES:
            await site.plug(name)
        await site.seconds(60)
        assert min(site.amperes()) >= 12
        site.meter_works = False
        await site.seconds(20)
        assert site.amperes() == [6, 6, 6]
        assert "meter is silent" in site.rigs["B"].station.site.shown.why

    run(work())


def test_vehicles_on_one_phase_keep_the_unbalance_together(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        site = Site(make_rig, Network(Random(5)), fuse=63_000, unbalance=20_000)
        await site.seconds(100)
        for name in NAMES[1:]:
            await site.plug(name, phases=1)
        await site.plug("A", phases=3)
        await site.seconds(90)
        assert site.amperes() == [32, 10, 10]

    run(work())


def test_what_is_replayed_is_worth_nothing(site: Site) -> None:
    """Reports of an idle past must not lend a share, grants of a richer past must not be obeyed."""

    async def work() -> None:
        await site.seconds(100)
        await site.plug("B")
        await site.seconds(40)
        idle = [one for one in site.network.old if one.to == "A"]
        rich = [one for one in site.network.old if one.to == "B"][-5:]
        await site.plug("C")
        await site.seconds(40)
        assert site.amperes() == [0, 20, 20]
        leader, counted = site.parts["A"], site.parts["A"].outstanding("B", site.ms)
        known = leader.members["B"].report
        for datagram in idle:
            views = site.rigs["A"].station.views(site.rigs["A"].clock.now())
            manager = site.rigs["A"].station.site
            whole = manager.whole(views, site.ms)
            grant = leader.answer(unseal(datagram.data, KEY), whole, views, manager, site.ms)
            assert grant is None or grant.lines_ma is None
        assert leader.members["B"].report is known
        assert leader.outstanding("B", site.ms) == counted
        lease = site.parts["B"].lease
        assert not any(site.parts["B"].take(unseal(one.data, KEY), site.ms) for one in rich)
        assert site.parts["B"].lease is lease
        site.start("B")
        assert not any(site.parts["B"].take(unseal(one.data, KEY), site.ms) for one in rich)
        assert site.parts["B"].lease is None

    run(work())


def examples(count: int) -> settings:
    return settings(deadline=None, max_examples=count, derandomize=True)


VEHICLES = st.fixed_dictionaries(
    {
        "reaction_ms": st.integers(0, 5_000),
        "phases": st.integers(1, 3),
        "max_current": st.sampled_from([10_000, 16_000, 32_000]),
    }
)
NAME = st.sampled_from(NAMES)
TROUBLED_NETWORK = st.one_of(
    st.tuples(st.just("plug"), NAME, VEHICLES),
    st.tuples(st.just("plug"), NAME, VEHICLES),
    st.tuples(st.just("unplug"), NAME, st.none()),
    st.tuples(st.just("wait"), st.none(), st.integers(1, 60)),
    st.tuples(st.just("cut"), NAME, st.integers(1, 120)),
)
DEATHS = st.one_of(
    TROUBLED_NETWORK,
    st.tuples(st.just("die"), NAME, st.integers(1, 100)),
    st.tuples(st.just("restart"), NAME, st.none()),
)
NETWORKS = st.tuples(
    st.sampled_from([0.0, 0.3, 0.7]), st.sampled_from([0.0, 0.2]), st.integers(0, 12_000)
)
SLOW = {"reaction_ms": 5_000, "phases": 3, "max_current": 32_000}
QUICK = {"reaction_ms": 0, "phases": 3, "max_current": 32_000}
CUT_WHILE_IDLE = [
    ("wait", None, 100),
    ("plug", "C", SLOW),
    ("wait", None, 40),
    ("cut", "B", 1),
    ("plug", "B", QUICK),
    ("cut", "B", 120),
    ("wait", None, 60),
]


async def carry_out(site: Site, events: Sequence[tuple[str, Any, Any]]) -> None:
    for what, name, more in events:
        if what == "plug":
            await site.plug(name, **more)
        elif what == "unplug":
            site.unplug(name)
            await site.seconds(2)
        elif what == "wait":
            await site.seconds(more)
        elif what == "cut":
            site.network.cut.add(name)
            await site.seconds(more)
            site.network.cut.discard(name)
        elif what == "die":
            site.alive.discard(name)
            await site.seconds(more)
            site.start(name)
        else:
            site.start(name)
            await site.seconds(1)


def network_of(kind: tuple[float, float, int], seed: int) -> Network:
    loss, again, delay_ms = kind
    return Network(Random(seed), loss=loss, again=again, delay_ms=delay_ms)


def test_no_network_makes_more_flow_than_the_limit(
    make_rig: Callable[..., Rig], sample_size: Callable[[int, int], int]
) -> None:
    async def work(site: Site, events: list[tuple[str, Any, Any]]) -> None:
        await site.seconds(10)
        await carry_out(site, events)
        assert site.exceeded == 0

    @examples(sample_size(12, 1_000))
    @example(CUT_WHILE_IDLE, (0.0, 0.0, 0), 1)
    @given(st.lists(TROUBLED_NETWORK, min_size=4, max_size=12), NETWORKS, st.integers(0, 1000))
    def check(
        events: list[tuple[str, Any, Any]], kind: tuple[float, float, int], seed: int
    ) -> None:
        run(work(Site(make_rig, network_of(kind, seed)), events))

    check()


def test_the_fuse_bears_every_death_and_return(
    make_rig: Callable[..., Rig], sample_size: Callable[[int, int], int]
) -> None:
    async def work(site: Site, events: list[tuple[str, Any, Any]]) -> None:
        await site.seconds(100)
        await carry_out(site, events)
        await site.seconds(30)
        assert not site.blown

    @examples(sample_size(12, 1_000))
    @given(st.lists(DEATHS, min_size=4, max_size=12), NETWORKS, st.integers(0, 1000))
    def check(
        events: list[tuple[str, Any, Any]], kind: tuple[float, float, int], seed: int
    ) -> None:
        run(work(Site(make_rig, network_of(kind, seed)), events))

    check()
