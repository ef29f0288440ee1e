"""A meter beside a board that has none: what is billed is the meter's, also when it is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent import links
from edge_agent.config import parse
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EnergyKind,
    MeterReading,
)
from edge_agent.hardware.metered_board import Grade, MeteredBoard
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import find_profile, grade_of
from edge_agent.hardware.testing import FakePowerBoard, ManualClock
from edge_agent.main import ConfigError, devices_of, hardware
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from protocols.agent_link import ConnectorStatus, TransactionEventType
from protocols.quantities import MilliAmperes, WattHours, Watts

STALE_S = 30.0


class Gauge:
    """A meter in the feed of a fake board; its register is what truly flowed, its own way."""

    def __init__(self, board: FakePowerBoard, *, modulus: int | None, at: int) -> None:
        self.board, self.modulus, self.at = board, modulus, at
        self.silent = False
        self.opened = 0
        self.suspect: frozenset[str] = frozenset()
        self.zero = 0

    @property
    def identity(self) -> str:
        return "gauge"

    async def open(self) -> None:
        self._asked()
        self.opened += 1

    async def close(self) -> None: ...

    async def read(self) -> MeterReading:
        self._asked()
        drawn = self.board.drawn_current()
        register = self.at + self.board.true_energy() - self.zero
        shown = WattHours(register % self.modulus if self.modulus else register)
        return MeterReading(
            taken_at=self.board.clock(),
            current=(drawn, drawn, drawn),
            power=Watts(3 * drawn * 230 // 1000),
            imported=None if "imported" in self.suspect else shown,
            suspect=self.suspect,
        )

    def _asked(self) -> None:
        if self.silent:
            raise BoardUnreachableError("gauge did not answer")


class Bench:
    """A rig whose only board has a gauge beside it."""

    def __init__(self, make_rig: Callable[..., Any], grade: Grade, at: int = 5_000_000) -> None:
        self.rig = make_rig(billing_grade=False)
        self.fake: FakePowerBoard = self.rig.boards[0]
        self.gauge = Gauge(self.fake, modulus=grade.modulus, at=at)
        self.board = MeteredBoard(
            self.fake,
            self.gauge,
            grade,
            patience_s=2,
            stale_after_s=STALE_S,
            clock=self.fake.clock,
        )
        self.rig.boards = [self.board]
        self.rig.start()

    async def charge(self, seconds: int) -> None:
        self.fake.plug()
        await self.seconds(2)
        await self.rig.card()
        await self.seconds(seconds)

    async def seconds(self, count: int) -> None:
        await self.rig.seconds(count)

    async def end(self) -> tuple[int, bool]:
        """Energy and grade of what ended."""
        self.fake.unplug()
        await self.seconds(5)
        (event,) = self.rig.events(TransactionEventType.ENDED)
        assert event.energy_wh is not None
        return event.energy_wh, event.billing_grade

    def status(self) -> ConnectorStatus:
        status: ConnectorStatus = self.rig.status().status
        return status


@pytest.fixture
def bench(make_rig: Callable[..., Any]) -> Callable[..., Bench]:
    return lambda grade, **more: Bench(make_rig, grade, **more)


@pytest.mark.parametrize(
    "grade",
    [
        Grade(billing=True),
        Grade(billing=False),
        Grade(kind=EnergyKind.SESSION, billing=True),
        Grade(modulus=1_000, billing=True),
    ],
    ids=["certified", "not certified", "session only", "narrow"],
)
async def test_what_is_billed_is_what_the_meter_counted(
    bench: Callable[..., Bench], grade: Grade
) -> None:
    one = bench(grade, at=990 if grade.modulus else 5_000_000)
    await one.seconds(2)
    if grade.kind is EnergyKind.SESSION:
        one.gauge.at = 0
    await one.charge(600)
    energy, billing_grade = await one.end()
    assert one.fake.true_energy() > 3_000, "a narrow counter of 1000 Wh wraps several times"
    assert abs(energy - one.fake.true_energy()) <= 1
    assert billing_grade is grade.billing


async def test_a_short_silence_of_the_meter_costs_nothing(bench: Callable[..., Bench]) -> None:
    one = bench(Grade(billing=True))
    await one.charge(60)
    one.gauge.silent = True
    await one.seconds(int(STALE_S) - 2)
    (reading,) = await one.board.read()
    assert (reading.energy, reading.power, reading.current) == (None, None, (None, None, None))
    assert "energy" in reading.suspect
    assert one.fake.drawn_current() > 0, "the vehicle goes on"
    assert one.status() is ConnectorStatus.OCCUPIED
    one.gauge.silent = False
    await one.seconds(60)
    energy, _ = await one.end()
    assert abs(energy - one.fake.true_energy()) <= 1, "the register has gone on counting"


async def test_nobody_charges_for_long_without_being_measured(
    bench: Callable[..., Bench],
) -> None:
    one = bench(Grade(billing=True))
    await one.charge(60)
    one.gauge.silent = True
    await one.seconds(int(STALE_S) + 10)
    assert one.fake.drawn_current() == 0
    assert one.status() is ConnectorStatus.FAULTED
    trouble = one.rig.loop.lines[0].trouble
    assert "its meter has not answered for" in trouble
    assert "gauge did not answer" in trouble
    so_far = one.fake.true_energy()
    one.gauge.silent = False
    await one.seconds(120)
    assert one.status() is not ConnectorStatus.FAULTED
    energy, _ = await one.end()
    assert energy >= so_far - 1
    assert abs(energy - one.fake.true_energy()) <= 1


async def test_a_meter_that_comes_late_is_opened_then(bench: Callable[..., Bench]) -> None:
    one = bench(Grade(billing=True))
    one.gauge.silent = True
    await one.seconds(5)
    assert one.board.meter_age_s is None
    assert one.board.meter_trouble == "gauge did not answer"
    one.gauge.silent = False
    await one.charge(60)
    assert one.gauge.opened == 1
    assert one.board.meter_age_s == 0
    energy, _ = await one.end()
    assert abs(energy - one.fake.true_energy()) <= 1


async def test_a_value_that_the_meter_doubts_is_doubted(bench: Callable[..., Bench]) -> None:
    one = bench(Grade())
    one.gauge.suspect = frozenset({"imported", "exported"})
    (reading,) = await one.board.read()
    assert reading.energy is None
    assert reading.suspect == {"energy"}


async def test_a_silent_board_is_a_silent_board(bench: Callable[..., Bench]) -> None:
    one = bench(Grade())
    one.fake.go_silent()
    with pytest.raises(BoardUnreachableError, match="fake board did not answer"):
        await one.board.read()
    one.fake.come_back()
    one.fake.refuse("no")
    with pytest.raises(BoardRefusedError):
        await one.board.set_limit(1, MilliAmperes(6_000))


def test_a_link_says_how_the_meter_is() -> None:
    more = {"name": "left", "identity": "gauge"}
    assert links.evse_meter(trouble="", age_ms=None, **more).code == "evse_meter.starting"
    assert links.evse_meter(trouble="no", age_ms=9, **more).code == "evse_meter.silent"
    assert links.evse_meter(trouble="", age_ms=9, **more).code == "evse_meter.ok"


def test_the_grade_is_the_profiles() -> None:
    assert grade_of(find_profile("eastron_sdm630")) == Grade(billing=True)
    assert grade_of(find_profile("carlo_gavazzi_em340")).billing is False
    assert grade_of(find_profile("carlo_gavazzi_em340")).step == 100
    with pytest.raises(ValueError, match="does not count what is drawn"):
        grade_of(find_profile("sunspec_inverter"))


def test_one_meter_is_for_one_evse() -> None:
    clock = ManualClock()
    fake = FakePowerBoard(clock, evses=2)
    with pytest.raises(ValueError, match="cannot tell 2 EVSEs apart"):
        MeteredBoard(fake, Gauge(fake, modulus=None, at=0), Grade(), patience_s=1, stale_after_s=30)


CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
[[boards]]
name = "left"
profile = "evse_wb"
link = { kind = "rtu", device = "%s", timeout_s = 2 }
meter = { profile = "%s", link = { kind = "tcp", host = "127.0.0.1", port = %d, timeout_s = 2 } }
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('"eastron_sdm630"', '"sunspec_inverter"'), "does not count what is drawn"),
        (('"eastron_sdm630"', '"abb_terra_ac"'), "describes a charger, not a meter"),
        (('name = "left"', 'name = "left"\nevses = [1, 2]'), "cannot tell 2 EVSEs apart"),
    ],
)
def test_a_meter_that_cannot_be_is_said_before_it_is_asked(
    change: tuple[str, str], reason: str
) -> None:
    text = (CONFIG % ("/dev/usb", "eastron_sdm630", 502)).replace(*change)
    with pytest.raises(ConfigError, match=reason):
        hardware(parse(text, "agent.toml"))


async def test_a_board_without_a_meter_and_a_meter_on_another_line(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    line = tmp_path / "line"
    charger = SimulatedCharger(find_profile("evse_wb"), evses=1, unit=1, speed=1, now=loop.time())
    meter = SimulatedMeter(find_profile("eastron_sdm630"), unit=1, speed=1, now=loop.time())
    meter.load_w, meter.imported_nj = 6_900, 30_794 * 3_600_000_000_000
    here = Running(device=charger, places=Places(pty=str(line)), clock=loop.time)
    there = Running(device=meter, places=Places(tcp="127.0.0.1:0"), clock=loop.time)
    await here.start()
    await there.start()
    port = int(there.addresses["tcp"].rpartition(":")[2])
    found = hardware(parse(CONFIG % (line, "eastron_sdm630", port), "agent.toml"))
    (board,) = (each.board for each in found.lines)
    assert list(devices_of(found)) == ["left", "left meter"]
    (info,) = board.evses
    assert info.billing_grade
    await board.open()
    (reading,) = await board.read()
    assert (reading.power, reading.energy) == (6_900, 30_794)
    assert reading.current == (10_000, 10_000, 10_000)
    assert await board.set_limit(1, MilliAmperes(16_000)) == 16_000
    await board.close()
    await here.close()
    await there.close()


def test_link_settings_of_a_meter_are_its_own() -> None:
    config = parse(CONFIG % ("/dev/usb", "eastron_sdm630", 502), "agent.toml")
    (part,) = config.boards
    assert part.meter is not None
    assert part.meter.link == ModbusLink(kind="tcp", host="127.0.0.1", port=502, timeout_s=2)
