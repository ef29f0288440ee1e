"""Sampled values of chargers as they are, and what becomes of each digit."""

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ocpp.messages import Reading
from protocols.ocpp.sampling import Unpacked, iso, readings, scaled, trusted, unix_ms

AT = datetime(2025, 1, 1, 12, tzinfo=UTC)


class Value(msgspec.Struct, kw_only=True):
    value: Any
    measurand: str | None = None
    unit: str | None = None
    phase: str | None = None
    location: str | None = None
    multiplier: int | None = None
    context: str | None = None
    signed: str = ""


class Entry(msgspec.Struct):
    timestamp: datetime
    sampledValue: list[Value]  # noqa: N815  # the wire's name


def unpack(one: Value) -> Unpacked:
    return (
        (one.measurand, one.unit, one.phase, one.location, one.multiplier),
        one.value,
        one.signed,
    )


def read(*values: Value) -> Reading:
    (reading,) = readings([Entry(AT, list(values))], unpack)
    return reading


def energy(value: Any, unit: str | None = None, phase: str | None = None) -> Value:
    return Value(value=value, unit=unit, phase=phase)


def power(value: Any, phase: str | None = None, unit: str | None = "W") -> Value:
    return Value(value=value, measurand="Power.Active.Import", unit=unit, phase=phase)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("1234", None, 1234),
        ("1234", "Wh", 1234),
        (1234, "Wh", 1234),
        ("1234.9", "Wh", 1234),
        ("12.3456", "kWh", 12345),
        ("12.345", "kWh", 12345),
        ("12", "kWh", 12000),
        ("0.1", "kWh", 100),
        ("0.3", "kWh", 300),
        ("4.35", "kWh", 4350),
        (4.35, "kWh", 4350),
        (1.1, "kWh", 1100),
        (2.0, "kWh", 2000),
        ("1.5", "MWh", 1_500_000),
        ("1.5", "KWH", 1500),
        ("1.2345e1", "kWh", 12345),
        (" 12.5 ", "kWh", 12500),
        ("-0.4", "Wh", 0),
        ("0", None, 0),
        ("000123.4", "Wh", 123),
        ("123.", "Wh", 123),
        (".5", "kWh", 500),
    ],
)
def test_energy_is_exact(value: Any, unit: str | None, expected: int) -> None:
    reading = read(energy(value, unit))
    assert reading.energy_wh == expected
    assert not reading.raw


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("", "Wh"),
        ("n/a", "Wh"),
        ("-1", "Wh"),
        ("NaN", "Wh"),
        (math.nan, "Wh"),
        (math.inf, "Wh"),
        ("1e300", "Wh"),
        (1e300, "Wh"),
        (1e30, "kWh"),
        ("9" * 5000, "Wh"),
        ("12,5", "kWh"),
        ("1_000", "Wh"),
        ("²", "Wh"),
        (str(2**40 + 1), "Wh"),
        ("5", "kW"),
        ("5", "furlongs"),
    ],
)
def test_what_is_no_energy_is_kept_raw_and_never_counted(value: Any, unit: str) -> None:
    reading = read(energy(value, unit))
    assert reading.energy_wh is None
    assert not reading.more
    assert len(reading.raw) == 1
    assert reading.raw[0].startswith("Energy.Active.Import.Register=")
    assert reading.raw[0].endswith(f" {unit}")
    assert len(reading.raw[0]) < 200


def test_the_words_of_the_other_columns() -> None:
    reading = read(
        power("7.36", unit="kW"),
        Value(value="16.01", measurand="Current.Import", unit="A", phase="L1"),
        Value(value="15.99", measurand="Current.Import", unit="A", phase="L2"),
        Value(value="16", measurand="Current.Import", unit="A", phase="L3"),
        Value(value="230.1", measurand="Voltage", unit="V", phase="L1-N"),
        Value(value="231", measurand="Voltage", phase="L2-N"),
        Value(value=229.9, measurand="Voltage", unit="V", phase="L3-N"),
        Value(value="32", measurand="Current.Offered", unit="A"),
    )
    assert reading == Reading(
        at_ms=unix_ms(AT),
        power_w=7360,
        current_l1_ma=16010,
        current_l2_ma=15990,
        current_l3_ma=16000,
        voltage_l1_mv=230100,
        voltage_l2_mv=231000,
        voltage_l3_mv=229900,
        offered_ma=32000,
    )


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (Value(value="55.9", measurand="SoC", unit="Percent", location="EV"), "soc_pct", 55),
        (Value(value="41.27", measurand="Temperature", unit="Celcius"), "temperature_mc", 41270),
        (Value(value="-3.5", measurand="Temperature", unit="Celsius"), "temperature_mc", -3500),
        (Value(value="300", measurand="Temperature", unit="K"), "temperature_mk", 300_000),
        (
            Value(value="41", measurand="Temperature", location="Body"),
            "temperature_body_mc",
            41000,
        ),
        (Value(value="49.98", measurand="Frequency", unit="Hz"), "frequency_mhz", 49980),
        (Value(value="49.98", measurand="Frequency"), "frequency_mhz", 49980),
        (Value(value="0.98", measurand="Power.Factor"), "power_factor_permille", 980),
        (Value(value="11", measurand="Power.Offered", unit="kW"), "power_offered_w", 11000),
        (
            Value(value="400.5", measurand="Voltage", unit="V", phase="L1-L2"),
            "voltage_l1_l2_mv",
            400_500,
        ),
        (
            Value(value="0.2", measurand="Current.Import", unit="A", phase="N"),
            "current_import_n_ma",
            200,
        ),
        (
            Value(value="1.5", measurand="Energy.Active.Export.Register", unit="kWh"),
            "energy_active_export_register_wh",
            1500,
        ),
        (
            Value(value="7", measurand="Energy.Active.Import.Interval"),
            "energy_active_import_interval_wh",
            7,
        ),
        (
            Value(value="7", measurand="Energy.Reactive.Import.Register"),
            "energy_reactive_import_register_varh",
            7,
        ),
        (
            Value(value="7", measurand="Voltage", location="EV"),
            "voltage_ev_mv",
            7000,
        ),
        (
            Value(value="1.25", measurand="Display.PresentSOC", unit="Percent", multiplier=1),
            "display_presentsoc_pct",
            12,
        ),
    ],
)
def test_rare_measurands_go_by_name_and_unit(value: Value, name: str, expected: int) -> None:
    assert read(value) == Reading(at_ms=unix_ms(AT), more={name: expected})


def test_phases_are_added_before_they_are_cut() -> None:
    reading = read(
        energy("1.0004", "kWh", "L1"), energy("1.0003", "kWh", "L2"), energy("1.0003", "kWh", "L3")
    )
    assert reading.energy_wh == 3001
    assert reading.more == {
        "energy_active_import_register_l1_wh": 1000,
        "energy_active_import_register_l2_wh": 1000,
        "energy_active_import_register_l3_wh": 1000,
    }


def test_a_total_is_not_counted_again() -> None:
    reading = read(energy("10", None, "L1"), energy("33"), energy("11", None, "L2"))
    assert reading.energy_wh == 33
    reading = read(power("2300.5", "L1-N"), power("2300.5", "L2-N"), power("2300", "L3-N"))
    assert reading.power_w == 6901


def test_one_phase_is_the_whole() -> None:
    assert read(energy("5", "Wh", "L1")) == Reading(at_ms=unix_ms(AT), energy_wh=5)
    single = read(
        Value(value="10", measurand="Current.Import", unit="A"),
        Value(value="230", measurand="Voltage", unit="V"),
    )
    assert single == Reading(at_ms=unix_ms(AT), current_l1_ma=10_000, voltage_l1_mv=230_000)


def test_a_current_without_phase_yields_to_those_with() -> None:
    reading = read(
        Value(value="30", measurand="Current.Import", unit="A"),
        Value(value="10", measurand="Current.Import", unit="A", phase="L2"),
    )
    assert reading.current_l1_ma is None
    assert reading.current_l2_ma == 10_000
    assert reading.more == {"current_import_ma": 30_000}


@pytest.mark.parametrize("bad", ["-1", "NaN", "x"])
def test_no_total_without_one_of_the_phases(bad: str) -> None:
    reading = read(energy("1", None, "L1"), energy(bad, None, "L2"), energy("3", None, "L3"))
    assert reading.energy_wh is None
    assert len(reading.raw) == 1


def test_the_first_of_two_that_differ_counts() -> None:
    assert read(energy("7"), energy("0.007", "kWh")) == Reading(at_ms=unix_ms(AT), energy_wh=7)
    reading = read(energy("7"), energy("8"))
    assert reading.energy_wh == 7
    assert reading.raw == ("Energy.Active.Import.Register=8",)


def test_the_outlet_stands_before_the_inlet() -> None:
    inlet = Value(value="103", location="Inlet")
    assert read(inlet).energy_wh == 103
    both = read(inlet, energy("100"))
    assert both.energy_wh == 100
    assert both.more == {"energy_active_import_register_inlet_wh": 103}
    phases = read(Value(value="1.5", location="Inlet", phase="L1"), energy("100"))
    assert phases.energy_wh == 100
    assert phases.more == {"energy_active_import_register_l1_inlet_wh": 1}


def test_signed_data_is_carried_through() -> None:
    reading = read(Value(value="", signed='OCMF|{"x":1}|{"SD":"30"}'), energy("7"))
    assert reading.signed == ('OCMF|{"x":1}|{"SD":"30"}',)
    assert reading.energy_wh == 7


def test_readings_are_by_time_and_context() -> None:
    later = AT + timedelta(minutes=1)
    found = readings(
        [
            Entry(later, [Value(value="3"), Value(value="2", context="Transaction.End")]),
            Entry(AT, [Value(value="1")]),
            Entry(later, [power("7", unit=None)]),
        ],
        unpack,
    )
    assert found == (
        Reading(at_ms=unix_ms(AT), energy_wh=1),
        Reading(at_ms=unix_ms(later), energy_wh=3, power_w=7),
        Reading(at_ms=unix_ms(later), energy_wh=2, context="Transaction.End"),
    )


def test_multipliers_scale_exactly() -> None:
    assert read(Value(value=12.3456, unit="Wh", multiplier=3)).energy_wh == 12345
    assert read(Value(value=1234567, unit="Wh", multiplier=-3)).energy_wh == 1234
    assert read(Value(value=1, multiplier=400)).energy_wh is None


@given(
    st.decimals(min_value=0, max_value=10**9, allow_nan=False, allow_infinity=False, places=6),
    st.integers(0, 6),
)
def test_scaling_is_that_of_decimals(number: Decimal, shift: int) -> None:
    assert scaled(str(number), shift) == int(number.scaleb(shift))


@given(st.floats(0, 1e13), st.integers(0, 9))
def test_a_float_is_the_decimal_that_json_wrote(number: float, shift: int) -> None:
    assert scaled(number, shift) == int(Decimal(repr(number)).scaleb(shift))


@given(st.integers(0, 10**14), st.integers(0, 6), st.integers(0, 9))
def test_a_float_of_few_digits_is_exact(digits: int, places: int, shift: int) -> None:
    written = Decimal(digits).scaleb(-places)
    assert scaled(float(written), shift) == int(written.scaleb(shift))


@given(st.lists(st.integers(0, 10**12), min_size=3, max_size=3))
def test_a_sum_loses_no_digit(microwatthours: list[int]) -> None:
    phases = [
        energy(str(Decimal(n).scaleb(-9)), "kWh", f"L{i}")
        for i, n in enumerate(microwatthours, start=1)
    ]
    assert read(*phases).energy_wh == sum(microwatthours) // 10**6


@given(
    st.builds(
        Value,
        value=st.one_of(st.text(), st.floats(), st.integers()),
        measurand=st.one_of(
            st.none(), st.text(), st.sampled_from(["Voltage", "SoC", "Power.Active.Import"])
        ),
        unit=st.one_of(st.none(), st.text(), st.sampled_from(["kWh", "Wh", "W", "V", "%"])),
        phase=st.one_of(st.none(), st.text(), st.sampled_from(["L1", "L2-N", "L3-L1", "N"])),
        location=st.one_of(st.none(), st.text(), st.sampled_from(["EV", "Inlet", "Body"])),
        multiplier=st.one_of(st.none(), st.integers()),
    )
)
def test_no_value_is_lost_or_raises(value: Value) -> None:
    reading = read(value)
    kept = msgspec.structs.asdict(reading)
    columns = [kept[name] for name in kept if name.endswith(("_wh", "_w", "_ma", "_mv"))]
    assert sum(c is not None for c in columns) + len(reading.more) + len(reading.raw) == 1
    assert all(0 <= c <= 2**40 for c in columns if c is not None)


def test_times() -> None:
    tashkent = timezone(timedelta(hours=5))
    at = datetime(2025, 1, 1, 17, 0, 0, 123_999, tzinfo=tashkent)
    assert unix_ms(at) == 1_735_732_800_123
    assert iso(1_735_732_800_123) == "2025-01-01T12:00:00.123Z"
    assert iso(1_735_732_800_000) == "2025-01-01T12:00:00.000Z"
    assert unix_ms(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    now = unix_ms(AT)
    assert trusted(now, now)
    assert not trusted(0, now)
    assert not trusted(now + 25 * 3600 * 1000, now)
