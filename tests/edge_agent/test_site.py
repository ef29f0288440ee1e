"""Vehicles behind one fuse: whatever happens, what really flows stays within the fuse's curve.

The agent's own loop and rules run on boards whose vehicles ramp up and follow a limit late; the
referee adds up what flows on each line every 100 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from vehicle_board import STEP_MS, VehicleBoard

from edge_agent.rules.fuse import Strain
from edge_agent.rules.phases import Lines, placed, plus, total, wired
from edge_agent.rules.site import SiteLoad, SiteRules
from edge_agent.rules.station import StationSettings, Wiring
from karvon.simulator.vehicle import Vehicle

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
ROTATIONS = ("RST", "STR", "TRS")
TOKENS = ("CARD", "OTHER")


class World:
    """One controller, its boards, the house beside it, the meter of both, and the referee."""

    def __init__(self, make_rig: Callable[..., Rig], site: SiteRules, boards: int) -> None:
        wiring = {n + 1: Wiring(rotation=ROTATIONS[n % 3]) for n in range(boards)}
        self.rig = make_rig(boards=boards, station=StationSettings(site=site, wiring=wiring))
        self.site = site
        self.rig.boards = [VehicleBoard(self.rig.time) for _ in range(boards)]
        self.rig.start()
        self.wires = [wired(ROTATIONS[n % 3], 3) for n in range(boards)]
        self.house: Lines = (0, 0, 0)
        self.sun_w = 0
        self.meter_works = True
        self.alive = True
        self.strain = Strain(site.limit)
        self.blown: list[int] = []
        self.most = 0
        self.exceeded = 0
        """How often more flowed than the limit, at any line."""
        self.writes = [0] * boards
        self.starts = [0] * boards

    @property
    def ms(self) -> int:
        return round(self.rig.time() * 1000)

    @property
    def chargers(self) -> Lines:
        boards = zip(self.rig.boards, self.wires, strict=True)
        return total(placed(board.pins, wires) for board, wires in boards)

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            for _ in range(1000 // STEP_MS):
                self.rig.time.advance(STEP_MS / 1000)
                for board in self.rig.boards:
                    board.step()
                self._judge()
            await self._work()

    def _judge(self) -> None:
        flowing = plus(self.chargers, self.house)
        self.blown += self.strain.take(flowing, self.ms)
        self.most = max(self.most, *self.chargers)
        lines = zip(flowing, self.site.limit, strict=True)
        self.exceeded += any(current > limit for current, limit in lines)

    async def _work(self) -> None:
        if not self.alive:
            return
        if self.meter_works and self.site.metered:
            current = plus(self.chargers, self.house)
            power = sum(current) * 230 // 1000 - self.sun_w
            self.rig.station.site.load = SiteLoad(current=current, at_ms=self.ms, power_w=power)
        for number, line in enumerate(self.rig.loop.lines):
            before = self.rig.boards[number].limit
            await self.rig.loop.step(line)
            after = self.rig.boards[number].limit
            self.writes[number] += before != after
            self.starts[number] += before == 0 < after

    async def plug(self, board: int, **vehicle: Any) -> None:
        """A vehicle comes, and somebody with a card."""
        if self.rig.boards[board].vehicle is None:
            self.rig.boards[board].vehicle = Vehicle(**vehicle)
        await self.seconds(2)
        if self.alive and self.rig.station.connectors[board + 1].state.session is None:
            token = TOKENS[board % 2]
            self.rig.station.authorizer.policy = replace(
                self.rig.station.authorizer.policy, allow_unknown=True
            )
            try:
                await self.rig.card(f"{token}{board}", board + 1)
            except Exception as error:
                if type(error).__name__ != "RefusedError":
                    raise

    def unplug(self, board: int) -> None:
        self.rig.boards[board].vehicle = None
        self.rig.boards[board].released = False

    def restart(self) -> None:
        self.alive = True
        self.rig.start()

    def limits(self) -> list[int]:
        return [board.limit for board in self.rig.boards]


def run(work: Any) -> None:
    asyncio.run(work)


def examples(count: int) -> settings:
    return settings(deadline=None, max_examples=count, derandomize=True)


VEHICLES = st.fixed_dictionaries(
    {
        "reaction_ms": st.integers(0, 5_000),
        "phases": st.integers(1, 3),
        "max_current": st.sampled_from([10_000, 16_000, 32_000]),
        "wants_wh": st.sampled_from([None, None, 200]),
    }
)
ORDERLY = st.one_of(
    st.tuples(st.just("plug"), st.integers(0, 2), VEHICLES),
    st.tuples(st.just("unplug"), st.integers(0, 2), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 25), st.none()),
)
TROUBLE = st.one_of(
    ORDERLY,
    st.tuples(st.just("silence"), st.integers(0, 2), st.integers(1, 80)),
    st.tuples(st.just("die"), st.integers(1, 90), st.none()),
    st.tuples(st.just("house"), st.integers(0, 20), st.integers(0, 20)),
    st.tuples(st.just("meter"), st.integers(1, 15), st.none()),
)


async def carry_out(world: World, events: Sequence[tuple[str, int, Any]]) -> None:
    for what, number, more in events:
        if what == "plug":
            await world.plug(number, **more)
        elif what == "unplug":
            world.unplug(number)
            await world.seconds(2)
        elif what == "wait":
            await world.seconds(number)
        elif what == "silence":
            world.rig.boards[number].silent = True
            await world.seconds(more)
            world.rig.boards[number].silent = False
        elif what == "die":
            world.alive = False
            await world.seconds(number)
            world.restart()
        elif what == "meter":
            world.meter_works = False
            await world.seconds(number)
            world.meter_works = True
        else:
            world.house = (number * 1000, more * 1000, number * 500)
            await world.seconds(3)


SLOW = {"reaction_ms": 5_000, "phases": 3, "max_current": 32_000, "wants_wh": None}
QUICK = SLOW | {"reaction_ms": 0}


def test_what_really_flows_never_exceeds_the_limit_while_shares_move(
    make_rig: Callable[..., Rig], sample_size: Callable[[int, int], int]
) -> None:
    async def work(events: list[tuple[str, int, Any]]) -> None:
        world = World(make_rig, SiteRules(limit=(40_000, 36_000, 40_000)), 3)
        await carry_out(world, events)
        assert world.exceeded == 0

    @examples(sample_size(30, 2_000))
    @example([("plug", 0, SLOW), ("wait", 20, None), ("plug", 1, QUICK), ("wait", 30, None)])
    @example([("plug", 0, SLOW), ("plug", 1, QUICK), ("plug", 2, QUICK), ("wait", 40, None)])
    @given(st.lists(ORDERLY, min_size=6, max_size=20))
    def check(events: list[tuple[str, int, Any]]) -> None:
        run(work(events))

    check()


def test_the_fuse_bears_all_that_happens(
    make_rig: Callable[..., Rig], sample_size: Callable[[int, int], int]
) -> None:
    """The house takes up to 20 A: three safe shares of 6 A are what the fuse has beside it."""

    async def work(events: list[tuple[str, int, Any]]) -> None:
        world = World(make_rig, SiteRules(limit=(40_000,) * 3, metered=True), 3)
        await carry_out(world, events)
        assert not world.blown

    @examples(sample_size(30, 2_000))
    @given(st.lists(TROUBLE, min_size=6, max_size=20))
    def check(events: list[tuple[str, int, Any]]) -> None:
        run(work(events))

    check()


def test_single_phase_vehicles_on_rotated_boards_each_get_a_line(
    make_rig: Callable[..., Rig],
) -> None:
    async def work() -> None:
        world = World(make_rig, SiteRules(limit=(32_000,) * 3), 3)
        for board in range(3):
            await world.plug(board, phases=1)
        await world.seconds(90)
        assert world.limits() == [32_000] * 3
        assert world.chargers == (32_000,) * 3
        assert world.most <= 32_000

    run(work())


def test_the_unbalance_of_vehicles_on_one_phase_is_limited(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        site = SiteRules(limit=(63_000,) * 3, unbalance=20_000)
        world = World(make_rig, site, 2)
        await world.plug(0, phases=1)
        await world.plug(1, phases=3)
        await world.seconds(60)
        assert world.limits() == [20_000, 32_000]

    run(work())


def test_where_there_is_not_enough_for_all_everybody_has_a_turn(
    make_rig: Callable[..., Rig],
) -> None:
    async def work() -> None:
        site = SiteRules(limit=(13_000,) * 3, turn_ms=120_000)
        world = World(make_rig, site, 3)
        for board in range(3):
            await world.plug(board)
        taken = [board.taken_nj for board in world.rig.boards]
        await world.seconds(1_080)
        gained = [
            board.taken_nj - before for board, before in zip(world.rig.boards, taken, strict=True)
        ]
        assert min(gained) > 0.7 * max(gained)
        assert world.most <= 13_000
        assert max(world.starts) <= 10

    run(work())


def test_a_restless_house_does_not_make_vehicles_start_and_stop(
    make_rig: Callable[..., Rig],
) -> None:
    """Each second another load: at most one start a minute, one raise in ten seconds."""

    async def work() -> None:
        world = World(make_rig, SiteRules(limit=(40_000,) * 3, metered=True), 2)
        for board in range(2):
            await world.plug(board)
        world.writes, world.starts = [0, 0], [0, 0]
        for second in range(600):
            house = (second * 7_919) % 30_000
            world.house = (house, house, house)
            await world.seconds(1)
        assert max(world.starts) <= 11
        assert not world.blown
        steady = World(make_rig, SiteRules(limit=(40_000,) * 3, metered=True), 2)
        for board in range(2):
            await steady.plug(board)
        steady.house = (10_000,) * 3
        await steady.seconds(60)
        steady.writes = [0, 0]
        await steady.seconds(600)
        assert steady.writes == [0, 0]

    run(work())


def test_who_is_nearly_full_leaves_its_share_to_others(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        world = World(make_rig, SiteRules(limit=(40_000,) * 3), 2)
        await world.plug(0, max_current=8_000)
        await world.plug(1)
        await world.seconds(120)
        assert world.limits() == [10_000, 30_000]

    run(work())


def test_a_vehicle_that_ignores_its_limit_is_paid_for_by_the_others(
    make_rig: Callable[..., Rig],
) -> None:
    async def work() -> None:
        world = World(make_rig, SiteRules(limit=(40_000,) * 3), 2)
        await world.plug(0)
        await world.plug(1)
        await world.seconds(60)
        assert world.limits() == [20_000, 20_000]
        world.rig.boards[0].vehicle.stubborn = True
        await world.seconds(20)
        assert world.chargers == (40_000,) * 3
        assert world.limits() == [6_000, 8_000]

    run(work())


def test_higher_priority_is_served_first(make_rig: Callable[..., Rig]) -> None:
    async def work() -> None:
        site = SiteRules(limit=(20_000,) * 3)
        wiring = {1: Wiring(priority=0), 2: Wiring(priority=1)}
        world = World(make_rig, site, 2)
        world.rig.station_settings = StationSettings(site=site, wiring=wiring)
        world.rig.start()
        await world.seconds(10)
        await world.plug(0)
        await world.plug(1)
        await world.seconds(60)
        assert world.limits() == [6_000, 14_000]

    run(work())


def test_the_sun_alone_charges_and_clouds_do_not_make_it_flap(
    make_rig: Callable[..., Rig],
) -> None:
    async def work() -> None:
        site = SiteRules(limit=(40_000,) * 3, metered=True)
        world = World(make_rig, site, 2)
        wiring = {1: Wiring(surplus=True), 2: Wiring()}
        world.rig.station_settings = StationSettings(site=site, wiring=wiring)
        world.rig.start()
        world.house = (1_000,) * 3
        await world.plug(0)
        await world.seconds(120)
        assert world.limits()[0] == 0, "there is no sun yet"
        assert world.rig.status(1).limited_by == "surplus"
        world.sun_w = 690 + 6_900
        await world.seconds(120)
        assert 9_000 <= world.limits()[0] <= 10_000
        await world.plug(1)
        await world.seconds(60)
        assert world.limits()[1] > 29_000, "who does not wait for the sun takes from the grid"
        assert world.limits()[0] == 6_000, "and leaves no sun to who does"
        world.unplug(1)
        await world.seconds(60)
        assert 9_000 <= world.limits()[0] <= 10_000
        world.sun_w = 0
        await world.seconds(170)
        assert world.limits()[0] == 6_000, "a cloud: the least current goes on"
        await world.seconds(300)
        assert world.limits()[0] == 0
        world.starts = [0, 0]
        for minute in range(60):
            world.sun_w = 8_000 if minute % 2 else 0
            await world.seconds(60)
        assert world.starts[0] <= 6

    run(work())


def test_a_full_vehicle_makes_room_for_who_waits(make_rig: Callable[..., Rig]) -> None:
    """A place for one and turns of an hour; who takes nothing gives it up after ten minutes."""

    async def work() -> None:
        world = World(make_rig, SiteRules(limit=(10_000,) * 3, turn_ms=3_600_000), 2)
        await world.plug(0, wants_wh=50)
        await world.seconds(60)
        await world.plug(1)
        await world.seconds(300)
        assert world.limits() == [10_000, 0] or world.limits() == [6_000, 0]
        await world.seconds(420)
        assert world.limits() == [0, 10_000]

    run(work())
