"""Every shipped profile: its bytes, its states, and a whole charge on its own simulator.

The vectors in tests/vectors/modbus/*.yaml were written by hand from the makers' tables (or are
captures, where `origin` says so); headers and checksums are added here, from the specification.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
import yaml

from edge_agent.hardware.board import BoardRefusedError, EvseReading, Failsafe, IecState
from edge_agent.hardware.modbus_board import ModbusBoard, ModbusMeter
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.hardware.registry import find_profile, profile_names
from karvon.profiles.trying import HandClock
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import Vehicle
from protocols.modbus.binding import Binding, Facts, laid_out
from protocols.modbus.commands import limit_command
from protocols.modbus.describing import poll_seconds
from protocols.modbus.profile import Profile
from protocols.modbus.states import state_of
from protocols.modbus.values import Value
from protocols.quantities import MilliAmperes

VECTORS: Final = Path(__file__).parents[2] / "vectors/modbus"
NAMES: Final = profile_names()
shipped = cache(find_profile)
CHARGERS: Final = [name for name in NAMES if shipped(name).kind == "charger"]
METERS: Final = [name for name in NAMES if shipped(name).kind == "meter"]
SERIAL: Final = [name for name in NAMES if shipped(name).transports.rtu]


@cache
def vectors(name: str) -> dict[str, Any]:
    """YAML without its surprises: 0100 stays the text that it is."""
    text = (VECTORS / f"{name}.yaml").read_text()
    return yaml.load(text, Loader=yaml.BaseLoader)


def crc(octets: bytes) -> bytes:
    """CRC-16/MODBUS as the serial line specification draws it; low byte first."""
    rest = 0xFFFF
    for bit in (octet >> n & 1 for octet in octets for n in range(8)):
        rest = rest >> 1 ^ (0xA001 if (rest ^ bit) & 1 else 0)
    return rest.to_bytes(2, "little")


def words(text: str) -> tuple[int, ...]:
    octets = bytes.fromhex(text)
    return tuple(int.from_bytes(octets[i : i + 2]) for i in range(0, len(octets), 2))


def octets(text: str) -> bytes:
    """Hexadecimal; `0*24` is so many zero bytes, `'abc` a word in ASCII."""
    parts = []
    for part in text.split():
        if part.startswith("0*"):
            parts.append(bytes(int(part[2:])))
        else:
            parts.append(part[1:].encode() if part.startswith("'") else bytes.fromhex(part))
    return b"".join(parts)


class Tape:
    """Answers known requests; a request that stands there twice is answered in that order."""

    def __init__(self, frames: list[list[str]]) -> None:
        self.replies: dict[bytes, list[bytes]] = {}
        for request, reply in frames:
            asked = octets(request)
            echo = asked if asked[1] in {5, 6} else asked[:6]
            answer = echo if reply == "=" else octets(reply)
            self.replies.setdefault(asked, []).append(answer)
        self.asked: list[bytes] = []
        self.unknown: list[str] = []
        self.ended = asyncio.Event()

    def answer(self, request: bytes) -> bytes:
        known = self.replies.get(request)
        if known is None:
            self.unknown.append(request.hex(" "))
            return bytes((request[0], request[1] | 0x80, 2))
        self.asked.append(request)
        return known.pop(0) if len(known) > 1 else known[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(6):
            reply = self.answer(await reader.readexactly(int.from_bytes(head[4:6])))
            writer.write(head[:4] + struct.pack(">H", len(reply)) + reply)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        self.ended.set()


def hurried(profile: Profile) -> Profile:
    """Without the pauses that a real device needs; what they are is tested elsewhere."""
    limits = msgspec.structs.replace(
        profile.limits,
        gap_ms=0,
        write_gap_ms=0,
        write_interval_ms=0,
        timeout_ms=5000,
        repeat_first_request=False,
    )
    setpoint = profile.setpoint and msgspec.structs.replace(profile.setpoint, settle_ms=0)
    return msgspec.structs.replace(profile, limits=limits, setpoint=setpoint)


def device_at(
    profile: Profile,
    link: ModbusLink,
    options: tuple[str, ...] = (),
    evses: int = 1,
    **clock: Any,
) -> ModbusDevice:
    link = link.completed(profile)
    numbers = range(1, evses + 1) if profile.kind == "charger" else range(1)
    port = PortPool(**clock).port(link)
    return ModbusDevice(profile, link, port, evses=numbers, options=frozenset(options), **clock)


def unit_of(profile: Profile) -> int:
    known = profile.transports.tcp or profile.transports.rtu
    return known.unit if known else 1


async def played(board: ModbusBoard, steps: list[list[str]]) -> None:
    """Limits, pauses and the failsafe as the vectors want them; the tape judges the bytes."""
    for verb, *rest in steps:
        if verb == "limit":
            applied = await board.set_limit(1, MilliAmperes(int(rest[0])))
            assert applied == (None if rest[1] == "null" else int(rest[1]))
        elif verb == "failsafe":
            await board.arm_failsafe(
                Failsafe(timeout_s=int(rest[0]), fallback=MilliAmperes(int(rest[1])))
            )
        elif verb == "feed":
            board._fed_at = float("-inf")
            await board.read()
        elif verb == "restore":
            await board.restore_failsafe()
        else:
            await {"release": board.release, "withhold": board.withhold}[verb](1)


def told(wanted: dict[str, Any], reading: Any) -> None:
    for name, expected in wanted.items():
        value = getattr(reading, name)
        if isinstance(value, tuple):
            assert [str(one) for one in value] == [str(one) for one in expected], name
        else:
            assert str(value) == expected.replace("null", "None"), name


@pytest.mark.parametrize("name", NAMES)
async def test_the_bytes_are_the_vectors(name: str) -> None:
    known = vectors(name)
    profile = hurried(shipped(name))
    tape = Tape(known["frames"])
    server = await asyncio.start_server(tape.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = ModbusLink(host="127.0.0.1", port=port, unit=unit_of(profile))
    device = device_at(profile, link, tuple(known.get("options", ())))
    board = ModbusBoard(device) if profile.kind == "charger" else ModbusMeter(device)
    try:
        await board.open()
        reading = await board.read()
        if isinstance(board, ModbusBoard):
            await played(board, known.get("steps", []))
    finally:
        assert tape.unknown == []
        await board.close()
        await tape.ended.wait()
        server.close()
        await server.wait_closed()
    assert board.identity == known["identity"]
    one = reading[0] if isinstance(reading, tuple) else reading
    told(known["reading"], one)
    assert one.suspect == frozenset(known.get("suspect", ()))
    assert set(tape.asked) == set(tape.replies), "all of the tape, and nothing else"


def every_register() -> list[Any]:
    return [
        pytest.param(name, *vector, id=f"{name}-{vector[0]}-{vector[1]}")
        for name in NAMES
        for vector in vectors(name).get("registers", [])
    ]


@pytest.mark.parametrize(("name", "field", "raw", "value"), every_register())
def test_single_registers_are_the_vectors(name: str, field: str, raw: str, value: str) -> None:
    known = vectors(name)
    options = frozenset(known.get("options", ()))
    binding = Binding(
        profile=shipped(name),
        unit=1,
        order=known.get("order", "msw_first"),
        facts=Facts(options=options, firmware=known.get("firmware")),
        models=laid_out(shipped(name)),
    )
    each = binding.fields()[field]
    assert str(binding.decode(each, words(raw)).value) == value


def every_state() -> list[Any]:
    return [
        pytest.param(name, raw, letter, id=f"{name}-{raw}")
        for name in CHARGERS
        for raw, letter in vectors(name)["states"]
    ]


@pytest.mark.parametrize(("name", "raw", "letter"), every_state())
def test_every_documented_state_is_the_tables(name: str, raw: str, letter: str) -> None:
    """`state=3 cable=7 firmware:5.21`: raw fields, and the firmware where it matters."""
    profile = shipped(name)
    firmware, values = None, {}
    for part in raw.split():
        if part.startswith("firmware:"):
            firmware = part.partition(":")[2]
            continue
        field, _, value = part.partition("=")
        text = profile.registers[field].type.startswith("str")
        values[field] = Value(value if text else int(value, 0))
    named = {n for rule in profile.states.rules for n in rule.when} if profile.states else set()
    binding = Binding(
        profile=profile,
        unit=1,
        facts=Facts(firmware=firmware),
        absent=frozenset(n for n in named - set(values) if profile.registers[n].probe),
    )
    shown = {**{each: Value(0) for each in named if each not in values}, **values}
    otherwise = profile.states.otherwise if profile.states else "F"
    assert state_of(binding.rules(), otherwise, shown) == (letter.rstrip("?"), letter.endswith("?"))


def test_the_table_of_states_names_every_value_that_a_rule_knows() -> None:
    for name in CHARGERS:
        states = shipped(name).states
        assert states
        said = " ".join(raw for raw, _ in vectors(name)["states"]).split()
        for rule in states.rules:
            for field, want in rule.when.items():
                for value in want if isinstance(want, tuple) else (want,):
                    if isinstance(value, int | str):
                        shown = {f"{field}={value}"}
                        shown |= {f"{field}={value:#x}"} if isinstance(value, int) else set()
                        found = shown & {word.lower() for word in said} | shown & set(said)
                        assert found, f"{name}: {field}={value}"


@asynccontextmanager
async def simulated(
    name: str, hand: HandClock, line: str | None = None, evses: int = 1
) -> AsyncIterator[tuple[ModbusDevice, SimulatedCharger | SimulatedMeter]]:
    profile = hurried(shipped(name))
    unit = unit_of(profile)
    device: SimulatedCharger | SimulatedMeter
    if profile.kind == "charger":
        device = SimulatedCharger(profile, evses=evses, unit=unit, speed=10, now=hand())
    else:
        device = SimulatedMeter(profile, unit=unit, speed=10, now=hand())
    places = Places(pty=line) if line else Places(tcp="127.0.0.1:0")
    running = Running(device=device, places=places, clock=hand)
    await running.start()
    host, _, port = running.addresses.get("tcp", ":0").rpartition(":")
    link = (
        ModbusLink(kind="rtu", device=line, unit=unit)
        if line
        else ModbusLink(kind="tcp", host=host, port=int(port), unit=unit)
    )
    found = device_at(profile, link, evses=evses, clock=hand)
    try:
        yield found, device
    finally:
        await found.close()
        await running.close()


class Charge:
    """A vehicle at a simulated charger, the agent's side and the referee's."""

    def __init__(self, found: ModbusDevice, device: SimulatedCharger, hand: HandClock) -> None:
        self.board = ModbusBoard(found, clock=hand, sleep=hand.sleep)
        self.device, self.hand = device, hand

    async def until(self, *states: str) -> EvseReading:
        for _ in range(20):
            self.hand.now += 2
            (reading,) = await self.board.read()
            if reading.state.value in states and self.settled(reading):
                return reading
        raise AssertionError(f"never {states}: {reading}, {self.device.status()['evses']}")

    def settled(self, reading: EvseReading) -> bool:
        charging = reading.state is IecState.CHARGING
        flows = self.current > 0
        return charging == flows and self.current <= self.device.limit(self.device.evses[1])

    @property
    def profile(self) -> Profile:
        return self.device.profile

    @property
    def current(self) -> int:
        vehicle = self.device.evses[1].vehicle
        return vehicle.current if vehicle else 0

    def plug(self) -> None:
        phases = self.device.profile.evses.phases
        self.device.plug(Vehicle(max_current=32_000, phases=phases))

    async def energy(self) -> int | None:
        (reading,) = await self.board.read()
        return reading.energy

    def agrees(self, energy: int | None) -> None:
        """What the board told against what truly flowed."""
        block = self.device.profile.energy
        if block is None:
            assert energy is None
            return
        evse = self.device.evses[1]
        truly = (evse.lifetime_nj if block.kind == "lifetime" else evse.shown_nj) / 3.6e12
        step = self.board.device.binding.step(block.field)
        assert energy is not None
        assert truly - step - 1 <= energy <= truly + 1, f"told {energy} Wh, truly {truly} Wh"


async def whole_charge(charge: Charge) -> None:
    board, device = charge.board, charge.device
    block = device.profile.failsafe
    await board.open()
    await board.set_limit(1, MilliAmperes(0))
    await board.withhold(1)
    if block is not None:
        wanted = Failsafe(timeout_s=60, fallback=MilliAmperes(6_000))
        armed = await board.arm_failsafe(wanted)
        assert armed is not None
        assert armed.timeout_s <= 60
        assert device.evses[1].fallback is not None
        assert 5_900 <= device.evses[1].fallback <= 6_000
    await charge.until("A")
    charge.plug()
    await charge.until("B")
    await board.set_limit(1, MilliAmperes(16_000))
    assert charge.current == 0, "a limit alone lets nobody charge"
    await board.release(1)
    await charge.until("C")
    charge.hand.now += 3
    (reading,) = await board.read()
    assert 15_800 <= charge.current <= 16_000
    if reading.current[0] is not None:
        assert all(abs(one - charge.current) <= 1000 for one in reading.current if one is not None)
    await board.set_limit(1, MilliAmperes(6_000))
    charge.hand.now += 3
    (reading,) = await board.read()
    assert reading.state is IecState.CHARGING
    assert 5_900 <= charge.current <= 6_000, "the limit is obeyed"
    await board.set_limit(1, MilliAmperes(0))
    await charge.until("B")
    assert device.evses[1].session is not None, "a pause keeps the session"
    for _ in range(9):
        charge.hand.now += 8
        (reading,) = await board.read()
    assert reading.state is IecState.CONNECTED
    assert not device._starving, "a pause of more than its timeout is no silence"
    await board.set_limit(1, MilliAmperes(10_000))
    await charge.until("C")
    charge.agrees(await charge.energy())
    await board.withhold(1)
    await charge.until("B")
    await board.set_limit(1, MilliAmperes(16_000))
    charge.hand.now += 3
    await charge.until("B")
    charge.agrees(await charge.energy())
    device.unplug()
    await charge.until("A")
    assert device.violations == []
    assert device.evses[1].lifetime_nj > 0
    assert not device._starving, "its watchdog was fed all along"


@pytest.mark.parametrize("name", CHARGERS)
async def test_a_whole_charge_on_its_own_simulator(name: str) -> None:
    hand = HandClock()
    async with simulated(name, hand) as (found, device):
        assert isinstance(device, SimulatedCharger)
        await whole_charge(Charge(found, device, hand))


@pytest.mark.parametrize("name", ["mennekes_compact", "evse_wb", "abl_emh1"])
async def test_a_whole_charge_over_a_serial_line(name: str, tmp_path: Path) -> None:
    hand = HandClock()
    async with simulated(name, hand, str(tmp_path / "line")) as (found, device):
        assert isinstance(device, SimulatedCharger)
        await whole_charge(Charge(found, device, hand))


@dataclass
class Wishes:
    """What the agent asked for last, and what may therefore flow."""

    limit: int = 0
    released: bool = False
    plugged: bool = False

    @property
    def allowed(self) -> int:
        return self.limit if self.released and self.plugged and self.limit >= 6_000 else 0

    async def wish(self, chance: Random, charge: Charge) -> None:
        what = chance.choice(["limit", "limit", "pause", "release", "withhold", "plug", "unplug"])
        if what in {"limit", "pause"}:
            self.limit = 0 if what == "pause" else chance.choice([6_000, 8_500, 16_000, 32_000])
            await charge.board.set_limit(1, MilliAmperes(self.limit))
        elif what == "release":
            self.released = True
            await charge.board.release(1)
        elif what == "withhold":
            self.released = False
            await charge.board.withhold(1)
        elif what == "plug":
            self.plugged = True
            charge.plug()
        else:
            # Taking the vehicle away ends a release, where the device has one of its own.
            self.plugged, self.released = False, self.released and not charge.profile.release
            charge.device.unplug()


@pytest.mark.parametrize("name", CHARGERS)
async def test_nothing_flows_but_what_was_asked_for_last(
    name: str, sample_size: Callable[[int, int], int]
) -> None:
    """Any order of wishes: never more than the last limit, never without the last release."""
    for seed in range(sample_size(1, 200)):
        hand, chance, wishes = HandClock(), Random(f"{name} {seed}"), Wishes()
        async with simulated(name, hand) as (found, device):
            assert isinstance(device, SimulatedCharger)
            charge = Charge(found, device, hand)
            await charge.board.open()
            await charge.board.set_limit(1, MilliAmperes(0))
            await charge.board.withhold(1)
            for step in range(16):
                await wishes.wish(chance, charge)
                for _ in range(2):
                    hand.now += 1
                    (reading,) = await charge.board.read()
                told = f"seed {seed}, step {step}: {wishes}"
                assert charge.current <= wishes.allowed, told
                assert (charge.current > 0) == (wishes.allowed > 0), told
                assert (reading.state is IecState.CHARGING) == (wishes.allowed > 0), told
                assert (reading.state is IecState.NO_VEHICLE) == (not wishes.plugged), told
            assert device.violations == []


@pytest.mark.parametrize("name", CHARGERS)
async def test_without_the_agent_it_falls_back_as_the_profile_says(name: str) -> None:
    hand = HandClock()
    async with simulated(name, hand) as (found, device):
        assert isinstance(device, SimulatedCharger)
        charge = Charge(found, device, hand)
        await charge.board.open()
        block = device.profile.failsafe
        wanted = Failsafe(timeout_s=60, fallback=MilliAmperes(6_000))
        if block is None:
            assert await charge.board.arm_failsafe(wanted) is None
            assert any(each.about == "profile" for each in device.profile.unsure), "it is said"
            return
        await charge.board.arm_failsafe(wanted)
        charge.plug()
        await charge.board.set_limit(1, MilliAmperes(16_000))
        await charge.board.release(1)
        await charge.until("C")
        hand.now += 61
        device.advance(hand.now)
        hand.now += 10
        device.advance(hand.now)
        assert device._starving
        assert 5_900 <= charge.current <= 6_000
        await charge.board.read()
        assert not device._starving, "the first poll of the agent that is back feeds it"


@pytest.mark.parametrize("name", METERS)
async def test_a_meter_tells_what_its_simulator_counts(name: str) -> None:
    hand = HandClock()
    async with simulated(name, hand) as (found, device):
        assert isinstance(device, SimulatedMeter)
        meter = ModbusMeter(found, clock=hand)
        await meter.open()
        produces = "imported" not in found.profile.registers
        for load in (-6_900,) if produces else (6_900, -2_300):
            device.load_w = load
            for _ in range(10):
                hand.now += 60
                reading = await meter.read()
            assert reading.power == pytest.approx(load, abs=1)
            assert reading.current[0] == pytest.approx(abs(load) / 0.69, abs=20)
        assert reading.suspect == frozenset()
        step = found.binding.step("exported")
        if not produces:
            truly = device.imported_nj / 3.6e12
            assert reading.imported == pytest.approx(truly, abs=step + 1)
        assert reading.exported == pytest.approx(device.exported_nj / 3.6e12, abs=step + 1)


@pytest.mark.parametrize("name", NAMES)
def test_one_poll_fits_into_the_agents_deadline(name: str) -> None:
    profile = shipped(name)
    assert poll_seconds(profile) < 4, "times.deadline_s; what is near it, `check` warns of"


async def test_a_setting_that_the_device_needs_is_named_with_its_remedy() -> None:
    hand = HandClock()
    async with simulated("phoenix_ev_cc_basic", hand) as (found, device):
        assert device.profile.simulator
        defaults = {**device.profile.simulator.defaults, "enable_mode": 1}
        other = msgspec.structs.replace(device.profile.simulator, defaults=defaults)
        device.profile = msgspec.structs.replace(device.profile, simulator=other)
        with pytest.raises(BoardRefusedError, match=r"enable_mode is '1'.* set register 4000 to 3"):
            await found.open()


@pytest.mark.parametrize("name", [n for n in CHARGERS if shipped(n).evses.stride] + ["alfen_eve"])
async def test_two_evses_of_one_device_are_each_their_own(name: str) -> None:
    """By a stride of addresses, or by a unit each."""
    hand = HandClock()
    async with simulated(name, hand, evses=2) as (found, device):
        assert isinstance(device, SimulatedCharger)
        board = ModbusBoard(found, clock=hand, sleep=hand.sleep)
        await board.open()
        for evse in (1, 2):
            await board.withhold(evse)
        device.plug(Vehicle(max_current=32_000, phases=3), 2)
        await board.set_limit(2, MilliAmperes(10_000))
        await board.release(2)
        for _ in range(5):
            hand.now += 2
            one, two = await board.read()
        assert (one.state.value, two.state.value) == ("A", "C")
        flowing = [evse.vehicle.current if evse.vehicle else 0 for evse in device.evses.values()]
        assert flowing[0] == 0
        assert 9_900 <= flowing[1] <= 10_000
        assert device.violations == []


async def test_a_limit_does_not_resume_what_is_withheld() -> None:
    """HCC3: its pause is resumed by a register of its own, and that must wait for the release."""
    hand = HandClock()
    async with simulated("mennekes_hcc3", hand) as (found, device):
        assert isinstance(device, SimulatedCharger)
        charge = Charge(found, device, hand)
        await charge.board.open()
        charge.plug()
        await charge.board.withhold(1)
        before = device.evses[1].limit
        assert await charge.board.set_limit(1, MilliAmperes(10_000)) is None
        assert (device.evses[1].limit, device.evses[1].released) == (before, False)
        await charge.board.release(1)
        assert (device.evses[1].limit, device.evses[1].released) == (10_000, True)


async def test_a_fallback_that_cannot_be_written_is_refused_with_what_to_do() -> None:
    hand = HandClock()
    async with simulated("alfen_eve", hand) as (found, device):
        assert isinstance(device, SimulatedCharger)
        board = ModbusBoard(found, clock=hand, sleep=hand.sleep)
        await board.open()
        with pytest.raises(BoardRefusedError, match=r"only after 60 s.*failsafe.timeout_s to 60"):
            await board.arm_failsafe(Failsafe(timeout_s=30, fallback=MilliAmperes(6_000)))
        device.evses[1].fallback = 16_000
        with pytest.raises(BoardRefusedError, match="16000 mA, which cannot be written; set it in"):
            await board.arm_failsafe(Failsafe(timeout_s=60, fallback=MilliAmperes(6_000)))


async def test_no_fallback_is_not_taken_for_a_fallback_of_nothing() -> None:
    """Mennekes: 0 at 030Eh means "off", and 1 means "stop"."""
    hand = HandClock()
    async with simulated("mennekes_compact", hand) as (found, device):
        assert isinstance(device, SimulatedCharger)
        board = ModbusBoard(found, clock=hand, sleep=hand.sleep)
        await board.open()
        armed = await board.arm_failsafe(Failsafe(timeout_s=60, fallback=MilliAmperes(0)))
        assert armed == Failsafe(timeout_s=10, fallback=MilliAmperes(0))
        assert device.evses[1].fallback == 0
        block = found.profile.failsafe
        assert block
        device.evses[1].fallback = None
        with pytest.raises(BoardRefusedError, match="has no fallback"):
            await board._failsafe_shown(1, block.fallback)


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ([("9c40", "53756e54"), ("0000", "0000"), ("c350", "0000")], "no chain of models at 40000"),
        ([("9c40", "53756e53"), ("9c42", "00010042"), ("9c86", "006f003c"), ("9cc4", "ffff0000")],
         r"needs model 203 or 204 or 202 or 201, but the device has 1, 111; choose the profile"),
    ],
)  # fmt: skip
async def test_a_device_without_the_models_is_refused_with_those_it_has(
    replies: list[tuple[str, str]], why: str
) -> None:
    frames = [[f"01 03 {at} 0002", f"01 03 04 {words.ljust(8, '0')}"] for at, words in replies]
    tape = Tape(frames)
    server = await asyncio.start_server(tape.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = device_at(shipped("sunspec_meter"), ModbusLink(host="127.0.0.1", port=port))
    with pytest.raises(BoardRefusedError, match=why):
        await found.open()
    await found.close()
    await tape.ended.wait()
    server.close()
    await server.wait_closed()
    assert tape.unknown == []


@pytest.mark.parametrize(("options", "raw"), [((), 6), (("wallbe",), 60)])
def test_wallbe_counts_in_tenths_where_others_count_amperes(
    options: tuple[str, ...], raw: int
) -> None:
    facts = Facts(options=frozenset(options))
    binding = Binding(profile=shipped("phoenix_ev_cc_eth"), unit=255, facts=facts)
    first, enable = limit_command(binding, 1, MilliAmperes(6_000)).writes
    assert (first.address, first.words) == (528, (raw,))
    assert (enable.function, enable.address, enable.words) == (5, 400, (1,))


CAPTURED: Final = [
    pytest.param(name, *pair, id=f"{name}-{pair[0]}")
    for name in SERIAL
    for pair in vectors(name).get("captured", [])
]


@pytest.mark.parametrize(("name", "request_hex", "reply_hex", "field", "value"), CAPTURED)
async def test_captured_bytes_are_what_the_driver_sends_and_understands(
    name: str, request_hex: str, reply_hex: str, field: str, value: str, tmp_path: Path
) -> None:
    """Over a real serial line, checksum and all, as a real meter answered."""
    request, reply = bytes.fromhex(request_hex), bytes.fromhex(reply_hex)
    assert [frame[-2:] for frame in (request, reply)] == [crc(request[:-2]), crc(reply[:-2])]
    far, near = os.openpty()
    tty.setraw(near)
    os.set_blocking(far, False)
    heard = bytearray()

    def listen() -> None:
        heard.extend(os.read(far, 64))
        if bytes(heard) == request:
            os.write(far, reply)

    loop = asyncio.get_running_loop()
    loop.add_reader(far, listen)
    link = ModbusLink(kind="rtu", device=os.ttyname(near), unit=request[0])
    found = device_at(hurried(shipped(name)), link)
    found._port.attach()
    try:
        read = await found.read([(0, field)])
    finally:
        await found._port.detach()
        loop.remove_reader(far)
        os.close(far)
        os.close(near)
    assert bytes(heard) == request
    assert str(read[0, field].value) == value
