from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.site_link import (
    MAX_BYTES,
    Asked,
    Grant,
    Mark,
    Report,
    SiteLinkError,
    seal,
    unseal,
)

KEY, OTHER = b"k" * 32, b"o" * 32
BOOT = UUID(int=7)
LINES = (6_000, 6_000, 6_000)
REPORT = Report(
    station="TAS-0002",
    mark=Mark(BOOT, 5),
    heard=Mark(BOOT, 4),
    share_ma=LINES,
    own_ma=LINES,
    leased_ma=(0, 0, 0),
    held_ma=(16_000, 0, 0),
    ending_ma=(0, 0, 0),
    measured_ma=(15_900, 0, 0),
    idle=False,
    rise_ms=96_000,
    dead_ms=76_000,
    asked=(Asked(1, (0,), 32_000, uneven=True, priority=0),),
)
GRANT = Grant(
    leader="TAS-0001",
    mark=Mark(BOOT, 9),
    answers=REPORT.mark,
    lines_ma=LINES,
    uneven_ma=None,
    valid_ms=10_000,
    why="no site meter",
)


@pytest.mark.parametrize("message", [REPORT, GRANT])
def test_what_was_sealed_is_read_as_it_was(message: Report | Grant) -> None:
    assert unseal(seal(message, KEY), KEY) == message


def test_another_key_is_named_as_the_reason() -> None:
    with pytest.raises(SiteLinkError, match="the same key file"):
        unseal(seal(REPORT, OTHER), KEY)


@given(st.integers(0, len(seal(REPORT, KEY)) * 8 - 1))
def test_no_bit_can_be_changed(bit: int) -> None:
    data = bytearray(seal(REPORT, KEY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SiteLinkError):
        unseal(bytes(data), KEY)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(SiteLinkError):
        unseal(data, KEY)


def test_what_is_too_long_is_not_even_checked() -> None:
    with pytest.raises(SiteLinkError, match="not a datagram"):
        unseal(seal(REPORT, KEY) + b"x" * MAX_BYTES, KEY)


def test_sixteen_evses_fit_into_one_datagram() -> None:
    from msgspec.structs import replace

    asked = tuple(Asked(n, (0, 1, 2), 32_000, uneven=True, priority=10) for n in range(16))
    assert len(seal(replace(REPORT, asked=asked), KEY)) < 1_400
