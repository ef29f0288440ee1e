"""Where a device is, as people write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hardware.addresses import hosts_in, parse_link, written
from edge_agent.hardware.modbus_port import ModbusLink

tcp = st.builds(
    ModbusLink,
    host=st.sampled_from(["192.0.2.10", "charger.lan", "2001:db8::1"]),
    port=st.integers(1, 65_535),
    unit=st.integers(1, 255),
)
rtu = st.builds(
    ModbusLink,
    kind=st.just("rtu"),
    device=st.sampled_from(["/dev/ttyUSB0", "/dev/serial/by-id/usb-FTDI_x-if00"]),
    baudrate=st.sampled_from([9600, 19200, 115_200]),
    parity=st.sampled_from(["none", "even", "odd"]),
    stopbits=st.sampled_from([1, 2]),
    framing=st.sampled_from(["rtu", "ascii"]),
    unit=st.integers(1, 255),
)


@given(tcp | rtu)
def test_an_address_that_is_written_is_read_as_the_same_link(link: ModbusLink) -> None:
    assert parse_link(written(link)) == link


@pytest.mark.parametrize(
    ("text", "first", "count"),
    [
        ("192.0.2.10", "192.0.2.10", 1),
        ("192.0.2.10-20", "192.0.2.10", 11),
        ("192.0.2.0/28", "192.0.2.1", 14),
        ("charger-2", "charger-2", 1),
    ],
)
def test_hosts_come_alone_as_a_range_or_as_a_network(text: str, first: str, count: int) -> None:
    found = hosts_in(text)
    assert (found[0], len(found)) == (first, count)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "192.0.2.20-10", "192.0.2.0/x"])
def test_a_range_that_is_too_large_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        hosts_in(text)
