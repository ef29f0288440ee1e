# ruff: noqa: E501, ISC004 - profiles inline read best unbroken
"""The thirteen traps of real devices, each as a small profile that must behave, not only parse."""

from __future__ import annotations

import pytest

from protocols.modbus.binding import Binding, Facts, ForbiddenError, check_write
from protocols.modbus.commands import (
    UnrepresentableError,
    failsafe_commands,
    life_command,
    limit_command,
    withhold_commands,
)
from protocols.modbus.loading import ProfileError, load_profile
from protocols.modbus.planning import plan_reads
from protocols.modbus.profile import Profile
from protocols.modbus.states import awaits_release, state_of
from protocols.modbus.values import Value
from protocols.quantities import MilliAmperes

HEAD = """
profile: trap
kind: charger
maker: Nobody
models: [Trap]
source: made for a test
status: field
transports: {tcp: {unit: 1}}
"""
STATES = "states: {rules: [{when: {state: 2}, is: C}], otherwise: F}\n"
SETPOINT = """
setpoint:
  write: {address: 1000, function: 6, unit: A}
  range: [6, 32]
  pause: {value: 0}
  confirm_by_effect: true
"""
REGISTERS = "registers: {state: {address: 1, type: u16}}\n"


def profile(*parts: str) -> Profile:
    return load_profile(HEAD + "".join(parts), "trap.yaml")


def bound(*parts: str, **facts: object) -> Binding:
    return Binding(profile=profile(*parts), unit=1, facts=Facts(**facts))  # type: ignore[arg-type]  # test shorthand


def setpoint(write: str, limits: str, pause: str, more: str = "confirm_by_effect: true") -> str:
    return f"setpoint:\n  write: {write}\n  range: {limits}\n  pause: {pause}\n  {more}\n"


def sent(binding: Binding, milliamperes: int, evse: int = 1) -> list[tuple[int, int, list[int]]]:
    command = limit_command(binding, evse, MilliAmperes(milliamperes))
    return [(w.function, w.address, list(w.words)) for w in command.writes]


MENNEKES = setpoint("{address: 0x302, function: 16, type: f32, unit: A}", "[6, 32]", "{value: 3}")
HYC = setpoint(
    "{address: 0, function: 16, type: u32, unit: W}", "[4140, 300000]", "{value: 1500}",
    "never: [0]\n  confirm_by_effect: true",
)  # fmt: skip
KEBA = setpoint(
    "{address: 5004, function: 6, unit: mA}", "[6000, 63000]",
    "{write: [{address: 5014, function: 6, value: 0}],"
    " resume: [{address: 5014, function: 6, value: 1}]}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("block", "pause"),
    [
        (MENNEKES, [(16, 0x302, [0x4040, 0])]),
        (HYC, [(16, 100, [0, 1500])]),
        (KEBA, [(6, 5014, [0])]),
        (SETPOINT, [(6, 1000, [0])]),
    ],
)
def test_1_every_device_pauses_in_its_own_way(
    block: str, pause: list[tuple[int, int, list[int]]]
) -> None:
    evses = "evses: {count: 1, stride: 100}\n" if block is HYC else ""
    binding = bound(REGISTERS, STATES, block, evses)
    assert sent(binding, 0) == pause
    assert sent(binding, 5999) == pause


def test_1_a_pause_that_the_device_misreads_is_refused() -> None:
    wrong = HYC.replace("{value: 1500}", "{value: 0}")
    with pytest.raises(ProfileError, match=r"trap\.yaml:\d+: setpoint\.pause: 0 stands under"):
        profile(REGISTERS, STATES, wrong)


FAILSAFE = """
failsafe:
  timeout: {write: {address: 202, function: 6, unit: s}, range: [1, 600]}
  fallback: {write: {address: 203, function: 16, type: u32, unit: W}, range: [0, 22000], never: [0]}
  order: [timeout, fallback]
  enable: [{address: 201, function: 6, value: 1}]
  restore: [{address: 203, function: 16, type: u32, value: 0xFFFFFFFF}]
  fed_by: FEED
"""


def test_1_a_fallback_of_zero_that_kills_the_charger_is_not_written() -> None:
    binding = bound(REGISTERS, STATES, SETPOINT, FAILSAFE.replace("FEED", "{by: setpoint}"))
    with pytest.raises(UnrepresentableError, match="fallback 0 W"):
        failsafe_commands(binding, 1, 30, MilliAmperes(0))
    writes = failsafe_commands(binding, 1, 30, MilliAmperes(6000))
    assert [(w.address, w.words) for w in writes] == [(202, (30,)), (203, (0, 4140)), (201, (1,))]


@pytest.mark.parametrize(
    ("feed", "address"),
    [
        ("{by: reads}", None),
        ("{by: writes}", None),
        ("{by: life, every_s: 10, life: {address: 0xD00, function: 6, value: 0x55AA}}", 0xD00),
    ],
)
def test_2_what_feeds_the_watchdog(feed: str, address: int | None) -> None:
    life = life_command(bound(REGISTERS, STATES, SETPOINT, FAILSAFE.replace("FEED", feed)))
    assert (life.address if life else None) == address
    assert life is None or life.words == (0x55AA,)


@pytest.mark.parametrize(
    ("limits", "forbidden", "requests"),
    [
        ("", "", [(10, 14)]),
        ("limits: {one_value_per_request: true}\n", "", [(10, 2), (12, 2), (20, 2), (22, 2)]),
        ("limits: {readable_gaps: false}\n", "", [(10, 4), (20, 4)]),
        ("limits: {max_registers: 12}\n", "", [(10, 12), (22, 2)]),
        ("", "forbidden: [{addresses: [15, 16], why: closes}]\n", [(10, 4), (20, 4)]),
    ],
)
def test_3_reads_obey_the_device(
    limits: str, forbidden: str, requests: list[tuple[int, int]]
) -> None:
    registers = "registers:\n" + "".join(
        f"  f{address}: {{address: {address}, type: u32}}\n" for address in (10, 12, 20, 22)
    )
    binding = bound(
        registers + "  state: {address: 10, type: u32}\n", STATES, SETPOINT, limits, forbidden
    )
    spans = [binding.span(each, 1) for each in binding.fields().values()]
    plan = plan_reads(spans, binding.profile.limits, binding.profile.forbidden)
    assert [(span.address, span.count) for span in plan] == requests


def test_4_a_write_only_register_expects_no_read_back() -> None:
    command = limit_command(bound(REGISTERS, STATES, KEBA), 1, MilliAmperes(10_000))
    assert command.expected is None
    assert [(w.address, w.words) for w in command.writes] == [(5004, (10_000,)), (5014, (1,))]


KEBA_ENERGY = """
registers:
  state: {address: 1, type: u16}
  firmware: {address: 1018, type: u32, form: pairs, read: open}
  config: {address: 2005, type: u16, read: open}
  energy:
    address: 1036
    type: u32
    scale: 0.1
    unit: Wh
    overrides:
      - {when: {firmware_below: "1.2.1"}, scale: 1}
identity: {firmware: firmware}
"""


@pytest.mark.parametrize(
    ("firmware", "wh"), [("1.2.0", 12_340), ("1.2.1", 1_234), ("1.10.0", 1_234)]
)
def test_5_scale_by_firmware(firmware: str, wh: int) -> None:
    binding = bound(KEBA_ENERGY, STATES, SETPOINT, firmware=firmware)
    assert binding.decode(binding.fields()["energy"], (0, 12_340)) == Value(wh)


def test_5_firmware_as_decimal_pairs() -> None:
    binding = bound(KEBA_ENERGY, STATES, SETPOINT)
    assert binding.decode(binding.fields()["firmware"], (0, 10_203)) == Value("1.2.3")


@pytest.mark.parametrize(("config", "raw"), [(0x00, 16), (0x80, 1600), (0x81, 1600)])
def test_5_scale_by_config_bit(config: int, raw: int) -> None:
    fine = (
        "{address: 1000, function: 6, unit: A, overrides:"
        " [{when: {register: config, mask: 0x80, equals: 0x80}, scale: 0.01}]}"
    )
    block = setpoint(fine, "[6, 32]", "{value: 0}")
    binding = bound(KEBA_ENERGY, STATES, block, registers={"config": config})
    assert sent(binding, 16_000) == [(6, 1000, [raw])]
    assert sent(binding, 40_000) == [(6, 1000, [raw * 2])], "never above the range"


def test_5_scale_by_the_installers_option() -> None:
    wallbe = (
        "{address: 528, function: 6, unit: A, overrides: [{when: {option: wallbe}, scale: 0.1}]}"
    )
    block = setpoint(wallbe, "[6, 32]", "{value: 0}")
    assert sent(bound(REGISTERS, STATES, block), 6_000) == [(6, 528, [6])]
    wallbe_unit = bound(REGISTERS, STATES, block, options=frozenset({"wallbe"}))
    assert sent(wallbe_unit, 6_000) == [(6, 528, [60])]


def test_5_a_state_whose_sense_depends_on_firmware() -> None:
    states = """
states:
  rules:
    - {when: {state: 0}, is: A, only: {firmware_below: "5.22"}}
    - {when: {state: 1}, is: A, only: {firmware_from: "5.22"}}
  otherwise: unavailable
"""
    old = bound(KEBA_ENERGY, states, SETPOINT, firmware="5.21")
    new = bound(KEBA_ENERGY, states, SETPOINT, firmware="5.22")
    assert state_of(old.rules(), "unavailable", {"state": Value(0)}) == ("A", False)
    assert state_of(new.rules(), "unavailable", {"state": Value(0)}) == ("E", True)


ORDERED = """
registers:
  state: {address: 1, type: u16}
  msw: {address: 10, type: u32}
  lsw: {address: 12, type: u32, word_order: lsw_first}
  voltage_l1: {address: 0x506, type: f32, unit: V}
"""


def test_6_word_order_per_field_and_by_probe() -> None:
    binding = bound(ORDERED, STATES, SETPOINT)
    assert binding.decode(binding.fields()["msw"], (1, 2)) == Value(0x10002)
    assert binding.decode(binding.fields()["lsw"], (2, 1)) == Value(0x10002)
    probing = profile(
        ORDERED, STATES, SETPOINT,
        "word_order: probe\norder_probe: {field: voltage_l1, plausible: [180, 270]}\n",
    )  # fmt: skip
    swapped = Binding(profile=probing, unit=1, order="lsw_first")
    assert swapped.decode(swapped.fields()["voltage_l1"], (0, 0x4366)) == Value(230_000)


SENTINELS = """
registers:
  state: {address: 1, type: u16}
  soc: {address: 730, type: u16, sentinels: [0xFFFF]}
  count: {address: 731, type: u16}
  wide: {address: 740, type: u32, sentinels: [0xFFFFFFFF]}
  signed: {address: 742, type: s16, sentinels: [0x8000, 0x7FFF]}
  f: {address: 750, type: f32, unit: A}
  watts: {address: 760, type: u32, unit: W, plausible: [0, 50000]}
"""


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("soc", (0xFFFF,), None),
        ("soc", (80,), 80),
        ("count", (0xFFFF,), 65_535),
        ("wide", (0xFFFF, 0xFFFF), None),
        ("signed", (0x8000,), None),
        ("signed", (0x7FFF,), None),
        ("signed", (0xFFFE,), -2),
        ("f", (0x7FC0, 0), None),
        ("f", (0xFFFF, 0xFFFF), None),
        ("f", (0x7F80, 0), None),
        ("watts", (0xFFFF, 0xFFFF), None),
        ("watts", (0, 11_040), 11_040),
    ],
)
def test_7_sentinels_are_per_field_and_never_numbers(
    name: str, words: tuple[int, ...], value: int | None
) -> None:
    binding = bound(SENTINELS, STATES, SETPOINT)
    assert binding.decode(binding.fields()[name], words) == Value(value, suspect=value is None)


def test_7_numbers_that_mean_nothing_flows() -> None:
    registers = (
        "registers: {state: {address: 1, type: u16},"
        " i: {address: 2, type: u16, bits: [0, 11], scale: 0.1, unit: A, zeros: [1, 0x3E8]}}\n"
    )
    binding = bound(registers, STATES, SETPOINT)
    for raw, milliamperes in ((0x3E8, 0), (0xF3E8, 0), (1, 0), (2, 200), (160, 16_000)):
        assert binding.decode(binding.fields()["i"], (raw,)) == Value(milliamperes)


@pytest.mark.parametrize(
    ("exponent", "value"), [(0, 1104), (1, 11_040), (-1, 110), (-10, 0), (3, 1_104_000)]
)
def test_7_a_power_of_ten_from_the_device(exponent: int, value: int) -> None:
    registers = (
        "registers: {state: {address: 1, type: u16}, ten: {address: 3, type: s16},"
        " power: {address: 2, type: s16, unit: W, scale_from: ten}}\n"
    )
    binding = bound(registers, STATES, SETPOINT)
    assert binding.decode(binding.fields()["power"], (1104,), exponent) == Value(value)


def test_8_apparent_energy_is_never_billed() -> None:
    registers = (
        "registers: {state: {address: 1, type: u16}, e: {address: 9, type: u32, unit: VAh}}\n"
    )
    grade = "energy: {field: e, kind: lifetime, billing_grade: GRADE}\n"
    assert profile(registers, STATES, SETPOINT, grade.replace("GRADE", "false")).energy
    with pytest.raises(ProfileError, match="VAh"):
        profile(registers, STATES, SETPOINT, grade.replace("GRADE", "true"))


def test_8_a_coarse_kind_of_energy_keeps_its_step() -> None:
    registers = (
        "registers: {state: {address: 1, type: u16},"
        " energy: {address: 1036, type: u32, scale: 0.1, unit: kWh}}\n"
    )
    binding = bound(registers, STATES, SETPOINT)
    assert binding.decode(binding.fields()["energy"], (0, 7)) == Value(700)


@pytest.mark.parametrize(
    ("registers", "states", "raw", "letter"),
    [
        (
            "registers: {state: {address: 1000, type: u32}, cable: {address: 1004, type: u32}}\n",
            "{when: {state: 4}, is: F}, {when: {state: 3}, is: C},"
            " {when: {cable: {at_least: 5}}, is: B}, {when: {cable: {at_most: 4}}, is: A}",
            [({"state": 2, "cable": 3}, "A"), ({"state": 2, "cable": 7}, "B"),
             ({"state": 3, "cable": 7}, "C"), ({"state": 4, "cable": 7}, "F")],
            None,
        ),
        (
            "registers: {iec: {address: 1201, type: str5}}\n",
            "{when: {iec: [C2, D2]}, is: C}, {when: {iec: {starts_with: B}}, is: B},"
            " {when: {iec: A}, is: A}",
            [({"iec": "C2"}, "C"), ({"iec": "B1"}, "B"), ({"iec": "?"}, "F"), ({"iec": None}, "F")],
            None,
        ),
    ],
)  # fmt: skip
def test_9_state_from_two_registers_or_letters(
    registers: str,
    states: str,
    raw: list[tuple[dict[str, int | str | None], str]],
    letter: None,
) -> None:
    binding = bound(registers, f"states: {{rules: [{states}], otherwise: F}}\n", SETPOINT)
    for values, expected in raw:
        decoded = {name: Value(value) for name, value in values.items()}
        assert state_of(binding.rules(), "F", decoded)[0] == expected


def test_9_a_state_in_which_the_device_waits_for_an_authorization() -> None:
    states = (
        "states: {rules: [{when: {state: 1}, is: B, awaits_release: true},"
        " {when: {state: 2}, is: B}], otherwise: F}\n"
    )
    binding = bound("registers: {state: {address: 0, type: u16}}\n", states, SETPOINT)
    for value, waits in ((1, True), (2, False), (3, False)):
        assert awaits_release(binding.rules(), {"state": Value(value)}) is waits


def test_9_state_in_one_byte_of_a_double_word() -> None:
    registers = "registers: {state: {address: 0x400C, type: u32, bits: [8, 14]}}\n"
    binding = bound(registers, STATES, SETPOINT)
    assert binding.decode(binding.fields()["state"], (0, 0x8203)) == Value(2)


def test_9_a_missing_register_falls_back_to_the_other() -> None:
    registers = "registers: {process: {address: 1, type: u16, probe: true}, state: {address: 0, type: u16}}\n"
    states = (
        "states: {rules: [{when: {process: 3}, is: C}, {when: {state: 4}, is: C},"
        " {when: {state: 1}, is: A}], otherwise: F}\n"
    )
    parsed = profile(registers, states, SETPOINT)
    with_it = Binding(profile=parsed, unit=1)
    without = Binding(profile=parsed, unit=1, absent=frozenset({"process"}))
    values = {"process": Value(3), "state": Value(1)}
    assert state_of(with_it.rules(), "F", values) == ("C", False)
    assert state_of(without.rules(), "F", {"state": Value(1)}) == ("A", False)


def test_10_connection_budget() -> None:
    limits = profile(
        REGISTERS, STATES, SETPOINT, "limits: {max_clients: 2, idle_close_s: 60}\n"
    ).limits
    assert (limits.max_clients, limits.idle_close_s) == (2, 60)
    with pytest.raises(ProfileError, match=r"limits\.max_clients"):
        profile(REGISTERS, STATES, SETPOINT, "limits: {max_clients: 0}\n")


def test_11_ascii_framing_duty_setpoint_and_a_deaf_first_frame() -> None:
    duty = setpoint(
        "{address: 0x14, function: 16, scale: 0.06, unit: A}", "[6, 32]", "{raw: 0x3E8}"
    )
    text = HEAD.replace("{tcp: {unit: 1}}", "{rtu: {framing: ascii, baudrate: 38400}}")
    parsed = load_profile(
        text + REGISTERS + STATES + duty + "limits: {repeat_first_request: true}\n", "abl.yaml"
    )
    assert parsed.transports.rtu
    assert parsed.transports.rtu.framing == "ascii"
    assert parsed.limits.repeat_first_request
    binding = Binding(profile=parsed, unit=1)
    assert sent(binding, 16_000) == [(16, 0x14, [266])]
    assert sent(binding, 0) == [(16, 0x14, [1000])]


FORBIDDEN = "forbidden: [{addresses: [21100, 21100], access: write, why: factory reset}]\n"


def test_12_dangerous_registers_are_outside_every_write_path() -> None:
    binding = bound(REGISTERS, STATES, SETPOINT, FORBIDDEN)
    with pytest.raises(ForbiddenError, match="factory reset"):
        check_write(binding.profile.forbidden, 16, 21_090, 20)
    check_write(binding.profile.forbidden, 6, 21_101, 1)
    reset = "withhold: [{address: 21100, function: 6, value: 17281}]\n"
    release = "release: [{address: 20000, function: 5, type: bit, value: 1}]\n"
    with pytest.raises(ProfileError, match=r"withhold\.0: writes a forbidden register"):
        profile(REGISTERS, STATES, SETPOINT, FORBIDDEN, reset, release)


OWN = """
failsafe:
  timeout: {fixed: 10}
  fallback: {write: {address: 0x73A, function: 6, unit: A}, range: [6, 32], stop_raw: 1, none_raw: 0}
  fed_by: {by: setpoint, every_s: 4}
"""


@pytest.mark.parametrize(("milliamperes", "raw"), [(0, 1), (6_000, 6), (16_000, 16)])
def test_1_a_fallback_of_nothing_may_have_a_number_of_its_own(milliamperes: int, raw: int) -> None:
    binding = bound(REGISTERS, STATES, SETPOINT, OWN)
    writes = failsafe_commands(binding, 1, 60, MilliAmperes(milliamperes))
    assert [(w.address, w.words) for w in writes] == [(0x73A, (raw,))], "its timeout is its own"


def test_12_a_device_without_release_is_paused_instead() -> None:
    writes = withhold_commands(bound(REGISTERS, STATES, SETPOINT), 1)
    assert [(w.address, w.words) for w in writes] == [(1000, (0,))]


def test_13_narrow_counters_say_so_and_wide_ones_may_not() -> None:
    registers = (
        "registers: {state: {address: 1, type: u16},"
        " energy: {address: 7, type: u16, scale: 0.01, unit: kWh},"
        " lifetime: {address: 32, type: s64, unit: Wh}}\n"
    )
    block = "energy: {field: energy, kind: session, billing_grade: true, wraps: true, checked_by: lifetime}\n"
    parsed = profile(registers, STATES, SETPOINT, block)
    assert parsed.energy
    assert parsed.energy.wraps
    binding = Binding(profile=parsed, unit=1)
    assert binding.modulus("energy") == 655_360
    assert binding.step("energy") == 10
    with pytest.raises(ProfileError, match="wraps"):
        profile(registers, STATES, SETPOINT, block.replace("field: energy", "field: lifetime"))
