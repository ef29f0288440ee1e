"""Drivers against a forecourt in memory; time is an argument."""

from __future__ import annotations

import random

from karvon.demo.drivers import Driver, Habits, Stage
from karvon.demo.process import DemoError

HABITS = Habits(away_s=(5, 5), card_s=(2, 2), linger_s=(3, 3), patience_s=60)


class Yard:
    def __init__(self) -> None:
        self.did: list[str] = []
        self.is_full = False
        self.dead = self.taken = False

    def plug(self, want_wh: int, max_ma: int) -> None:
        if self.taken:
            raise DemoError("somebody is there")
        assert 600 <= want_wh <= 3_000
        assert max_ma in HABITS.max_ma
        self.did.append("plug")

    def present(self, token: str) -> None:
        if self.dead:
            raise DemoError("no reaction")
        self.did.append(token)

    def unplug(self) -> None:
        self.did.append("unplug")

    def full(self) -> bool:
        return self.is_full


def _run(driver: Driver, since: int, until: int) -> None:
    for now in range(since, until):
        driver.step(float(now))


def test_a_driver_arrives_presents_the_card_and_leaves_when_full() -> None:
    yard = Yard()
    driver = Driver(yard, "CARD", random.Random(1), HABITS)
    _run(driver, 0, 20)
    assert (yard.did, driver.stage) == (["plug", "CARD"], Stage.CHARGING)
    yard.is_full = True
    _run(driver, 20, 25)
    assert yard.did == ["plug", "CARD", "unplug"]
    assert driver.stage is Stage.AWAY


def test_a_driver_loses_patience_with_a_vehicle_that_never_gets_full() -> None:
    yard = Yard()
    _run(Driver(yard, "CARD", random.Random(1), HABITS), 0, 72)
    assert yard.did == ["plug", "CARD", "unplug"]


def test_the_next_vehicle_comes() -> None:
    yard = Yard()
    yard.is_full = True
    driver = Driver(yard, "CARD", random.Random(1), HABITS)
    _run(driver, 0, 100)
    assert driver.sessions > 3
    assert yard.did[:6] == ["plug", "CARD", "unplug"] * 2


def test_a_place_that_is_taken_is_waited_for() -> None:
    yard = Yard()
    yard.taken = True
    driver = Driver(yard, "CARD", random.Random(1), HABITS)
    _run(driver, 0, 20)
    assert (yard.did, driver.stage) == ([], Stage.AWAY)
    yard.taken = False
    _run(driver, 20, 26)
    assert yard.did == ["plug", "CARD"]


def test_a_dead_reader_is_tried_again() -> None:
    yard = Yard()
    yard.dead = True
    driver = Driver(yard, "CARD", random.Random(1), HABITS)
    _run(driver, 0, 20)
    assert (yard.did, driver.sessions) == (["plug"], 0)
    yard.dead = False
    _run(driver, 20, 24)
    assert yard.did == ["plug", "CARD"]


def test_before_a_reader_that_stays_dead_a_driver_leaves() -> None:
    yard = Yard()
    yard.dead = True
    _run(Driver(yard, "CARD", random.Random(1), HABITS), 0, 72)
    assert yard.did == ["plug", "unplug"]
