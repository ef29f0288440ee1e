"""What the limits of a site mean, and how people write currents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.commissioning.meaning import Outlet, current_of, fuse_of, meaning, overload
from edge_agent.rules.fuse import bearable_ms
from edge_agent.rules.phases import ROTATIONS, wired

currents = st.integers(6_000, 400_000)
fuses = st.tuples(currents, currents, currents)
outlets = st.lists(
    st.builds(
        Outlet,
        evse=st.integers(1, 20),
        most=st.integers(6_000, 80_000),
        phases=st.sampled_from([1, 2, 3]),
        rotation=st.sampled_from(sorted(ROTATIONS)),
    ),
    min_size=1,
    max_size=12,
)


def taken(each: list[tuple[Outlet, int]]) -> list[int]:
    lines = [0, 0, 0]
    for one, current in each:
        for line in wired(one.rotation, one.phases):
            lines[line] += current
    return lines


@given(fuses, outlets)
def test_what_each_gets_fits_the_fuse_and_a_little_more_would_not(
    fuse: tuple[int, int, int], connected: list[Outlet]
) -> None:
    shown = meaning(fuse, connected, 6_000, 6_000)
    lines = taken([(one, shown.each) for one in connected])
    assert all(one <= rated for one, rated in zip(lines, fuse, strict=True))
    if shown.each < max(one.most for one in connected):
        more = taken([(one, shown.each + 1) for one in connected])
        assert any(one > rated for one, rated in zip(more, fuse, strict=True))


@given(fuses, outlets)
def test_so_many_at_once_fit_with_the_least_current(
    fuse: tuple[int, int, int], connected: list[Outlet]
) -> None:
    shown = meaning(fuse, connected, 6_000, 6_000)
    assert 1 <= shown.at_once <= len(connected)
    if shown.each >= 6_000:
        assert shown.at_once == len(connected)


@given(fuses)
def test_the_overload_told_is_what_the_agent_reckons_with(fuse: tuple[int, int, int]) -> None:
    rating = min(fuse)
    for current, seconds in overload(fuse):
        assert bearable_ms(current, rating) == seconds * 1000


def test_a_dead_agent_leaves_every_charger_its_failsafe_on_its_own_lines() -> None:
    connected = [
        Outlet(evse=1, most=32_000, phases=3, rotation="RST"),
        Outlet(evse=2, most=16_000, phases=1, rotation="STR"),
    ]
    shown = meaning((63_000,) * 3, connected, 6_000, 8_000)
    assert shown.dead == (6_000, 12_000, 6_000)
    assert shown.safe == (8_000, 16_000, 8_000)
    assert shown.all_at_once == (32_000, 48_000, 32_000)


@pytest.mark.parametrize(
    ("text", "milliamperes"),
    [("63", 63_000), ("62.5 A", 62_500), ("62,5", 62_500), ("63000 mA", 63_000), ("0", 0)],
)
def test_currents_are_read_as_people_write_them(text: str, milliamperes: int) -> None:
    assert current_of(text) == milliamperes


@pytest.mark.parametrize("text", ["63000", "much", "", "-6", "1e400", "nan"])
def test_what_is_no_current_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=text or "is no current"):
        current_of(text)


def test_a_fuse_is_one_current_or_three() -> None:
    assert fuse_of("63") == (63_000,) * 3
    assert fuse_of("63/63/50") == (63_000, 63_000, 50_000)
    for wrong in ("63/50", "5", "63/63/5"):
        with pytest.raises(ValueError, match=wrong.replace("/", ".")):
            fuse_of(wrong)
