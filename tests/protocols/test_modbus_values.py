"""Properties of words and values over every register of every shipped profile."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from protocols.modbus.loading import load_profile
from protocols.modbus.profile import BITS, Field, width
from protocols.modbus.values import BASE, EncodingError, decode, encode, exact, factor, nearest

PROFILES = Path(__file__).parents[2] / "edge_agent/profiles"
ORDERS = st.sampled_from(["msw_first", "lsw_first"])
POWERS = st.integers(-10, 10)


@cache
def fields() -> tuple[Field, ...]:
    loaded = [load_profile(path.read_text(), path.name) for path in PROFILES.glob("*.yaml")]
    return tuple(field for profile in loaded for field in profile.registers.values())


@st.composite
def on_the_wire(draw: Any) -> tuple[Field, tuple[int, ...]]:
    field = draw(st.sampled_from(fields()))
    word = st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 0xFFFF, 0x8000, 0x7FFF, 0x7FC0]))
    size = width(field.type)
    return field, tuple(draw(st.lists(word, min_size=size, max_size=size)))


@given(on_the_wire(), ORDERS, POWERS)
def test_whatever_comes_is_a_believable_value_or_none(
    read: tuple[Field, tuple[int, ...]], order: str, exponent: int
) -> None:
    field, words = read
    value = decode(field, words, order, exponent if field.scale_from else 0)
    assert value.suspect == (value.value is None)
    ordered = words if order == "msw_first" or field.type.startswith("str") else words[::-1]
    pattern = int.from_bytes(b"".join(word.to_bytes(2) for word in ordered))
    if pattern in field.sentinels and not field.type.startswith(("str", "bytes")):
        assert value.value is None, "a sentinel is never a number"
    if isinstance(value.value, int) and field.plausible is not None and value.value:
        low, high = (exact(bound) * BASE[field.unit] for bound in field.plausible)
        assert low - 1 <= value.value <= high + 1


@given(st.data(), ORDERS, POWERS)
def test_what_a_simulator_shows_is_what_a_driver_reads(
    data: Any, order: str, exponent: int
) -> None:
    whole = [
        field
        for field in fields()
        if field.type in BITS
        and field.type != "bit"
        and field.bits is None
        and field.form == "hex"
        and not (field.sentinels or field.zeros or field.plausible)
    ]
    field = data.draw(st.sampled_from(whole))
    ten = exponent if field.scale_from else 0
    step = factor(field.scale, field.unit) * Fraction(10) ** ten
    bits = BITS[field.type]
    low = -(1 << bits - 1) if field.type.startswith("s") else 0
    raw = data.draw(st.integers(low, low + (1 << bits) - 1))
    value = nearest(raw * step)
    try:
        words = encode(field, value, order, ten)
    except EncodingError:
        assume(False)
    assert decode(field, words, order, ten).value == value
