"""A serial line that several units share: who keeps whom waiting, and whose answer is whose."""

from __future__ import annotations

import asyncio
import os
import time
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from serial.rs485 import RS485Settings

from edge_agent.hardware.board import BoardUnreachableError
from edge_agent.hardware.direction import Direction
from edge_agent.hardware.modbus_port import ModbusLink, ModbusPort
from karvon.simulator import frames
from protocols.modbus.binding import WriteRequest
from protocols.modbus.planning import Span
from protocols.modbus.profile import Limits

TIMEOUT_S = 0.3
LIMITS = Limits(gap_ms=0)


class Line:
    """The far end of a pseudo terminal; `answer` says what each request gets, and when."""

    def __init__(self, answer: Callable[[int, bytes], list[tuple[float, bytes]]]) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self._buffer = bytearray()

    def readable(self) -> None:
        self._buffer += os.read(self.master, 1024)
        while (request := frames.take_rtu(self._buffer)) is not None:
            self.asked.append(request[0])
            for after_s, frame in self.answer(*request):
                asyncio.get_running_loop().call_later(after_s, os.write, self.master, frame)


@asynccontextmanager
async def line_of(
    answer: Callable[[int, bytes], list[tuple[float, bytes]]],
) -> AsyncIterator[tuple[Line, ModbusPort]]:
    line = Line(answer)
    asyncio.get_running_loop().add_reader(line.master, line.readable)
    port = ModbusPort(ModbusLink(kind="rtu", device=os.ttyname(line.slave), baudrate=19200))
    port.attach()
    try:
        yield line, port
    finally:
        await port.detach()
        asyncio.get_running_loop().remove_reader(line.master)
        os.close(line.master)
        os.close(line.slave)


def holds(unit: int, word: int) -> bytes:
    """The answer to a read of one register."""
    return frames.put_rtu(unit, bytes((3, 2)) + word.to_bytes(2, "big"))


async def read(port: ModbusPort, unit: int) -> int:
    (word,) = await port.request(Span(unit, 3, 0, 1), LIMITS, TIMEOUT_S)
    return word


async def test_an_answer_of_another_unit_is_passed_over() -> None:
    def answer(unit: int, _: bytes) -> list[tuple[float, bytes]]:
        return [(0, holds(unit + 1, 666)), (0.02, holds(unit, 42))]

    async with line_of(answer) as (_, port):
        assert await read(port, 1) == 42


async def test_a_late_answer_of_one_unit_is_not_taken_for_another_ones() -> None:
    """The silent one's answer comes while its neighbour is asked, which is served at once."""

    def answer(unit: int, _: bytes) -> list[tuple[float, bytes]]:
        late = unit == 1 and line.asked.count(1) == 1
        return [(TIMEOUT_S + 0.03 if late else 0.06 if unit == 2 else 0, holds(unit, unit))]

    async with line_of(answer) as (line, port):
        try:
            await read(port, 1)
        except BoardUnreachableError:
            assert await read(port, 2) == 2
        assert line.asked == [1, 2]
        assert await read(port, 1) == 1


async def test_a_silent_unit_keeps_its_neighbours_waiting_for_one_timeout_only() -> None:
    """While a late answer of it may still come it is not asked again, writes included."""

    def answer(unit: int, _: bytes) -> list[tuple[float, bytes]]:
        return [(0, holds(unit, unit))] if unit == 2 else []

    async with line_of(answer) as (line, port):
        order: list[str] = []

        async def note(name: str, work: object) -> None:
            try:
                await work  # type: ignore[misc]  # a request of the port
            except BoardUnreachableError:
                name += " in vain"
            order.append(name)

        await note("silent", read(port, 1))
        write = WriteRequest(unit=1, function=6, address=0, words=(1,))
        again = note("silent", port.request(write, LIMITS, TIMEOUT_S))
        await asyncio.gather(again, *(note("lively", read(port, 2)) for _ in range(3)))
        assert order == ["silent in vain", "lively", "lively", "lively", "silent in vain"]
        assert line.asked == [1, 2, 2, 2, 1]


async def test_a_unit_that_wants_a_pause_leaves_the_line_to_others() -> None:
    def answer(unit: int, _: bytes) -> list[tuple[float, bytes]]:
        return [(0, holds(unit, unit))]

    slow = Limits(gap_ms=250)
    async with line_of(answer) as (line, port):
        await port.request(Span(1, 3, 0, 1), slow, TIMEOUT_S)
        await asyncio.gather(
            port.request(Span(1, 3, 0, 1), slow, TIMEOUT_S), read(port, 2), read(port, 2)
        )
        assert line.asked == [1, 2, 2, 1]


# --------------------------------------------------------------------------- direction by RTS


class ModemLines:
    """The modem lines of an adapter, whose octets go over a pseudo terminal."""

    def __init__(self, told: list[tuple[float, str]], *, kernel: bool) -> None:
        self.told, self.kernel = told, kernel
        self.mode: RS485Settings | None = None

    @property
    def rts(self) -> bool:
        return self.told[-1][1] == "rts up"

    @rts.setter
    def rts(self, up: bool) -> None:
        self.told.append((time.monotonic(), f"rts {'up' if up else 'down'}"))

    @property
    def rs485_mode(self) -> RS485Settings | None:
        return self.mode

    @rs485_mode.setter
    def rs485_mode(self, mode: RS485Settings | None) -> None:
        if not self.kernel:
            raise ValueError("the driver does not switch")
        self.mode = mode


@asynccontextmanager
async def switched_line(
    rts: Literal["none", "high", "low"], *, kernel: bool = False, echo: bool = False
) -> AsyncIterator[tuple[list[tuple[float, str]], ModemLines, ModbusPort]]:
    """At 300 baud a request of eight octets takes 0.29 s, whatever the machine is busy with."""
    told: list[tuple[float, str]] = []
    lines = ModemLines(told, kernel=kernel)

    def answer(unit: int, request: bytes) -> list[tuple[float, bytes]]:
        told.append((time.monotonic(), "asked"))
        echoed = [(0.0, frames.put_rtu(unit, request))] if echo else []
        return [*echoed, (0.6, holds(unit, 42))]

    line = Line(answer)
    asyncio.get_running_loop().add_reader(line.master, line.readable)
    link = ModbusLink(
        kind="rtu",
        device=os.ttyname(line.slave),
        baudrate=300,
        rts=rts,
        rts_before_ms=20,
        rts_after_ms=30,
        echo=echo,
    )
    port = ModbusPort(
        link, direction=lambda _, wired, baudrate: Direction.of(lines, wired, baudrate)
    )
    port.attach()
    try:
        yield told, lines, port
    finally:
        await port.detach()
        asyncio.get_running_loop().remove_reader(line.master)
        os.close(line.master)
        os.close(line.slave)


@pytest.mark.parametrize(
    ("rts", "echo", "sends", "listens"),
    [("high", False, "rts up", "rts down"), ("low", True, "rts down", "rts up")],
)
async def test_rts_is_up_while_a_request_is_on_the_line_and_not_when_the_answer_comes(
    rts: Literal["high", "low"], echo: bool, sends: str, listens: str
) -> None:
    async with switched_line(rts, echo=echo) as (told, _, port):
        assert await port.request(Span(1, 3, 0, 1), LIMITS, 5) == (42,)
        assert [what for _, what in told] == [listens, sends, "asked", listens]
        (_, up, asked, down) = (at for at, _ in told)
        assert asked - up >= 0.02
        assert down - up >= 0.02 + 8 * 11 / 300 + 0.03
        assert await port.request(Span(1, 3, 0, 1), LIMITS, 5) == (42,)
        assert [what for _, what in told[4:]] == [sends, "asked", listens]


async def test_where_the_kernel_switches_it_is_told_the_levels_and_the_delays() -> None:
    async with switched_line("high", kernel=True) as (told, lines, port):
        assert await port.request(Span(1, 3, 0, 1), LIMITS, 5) == (42,)
        assert [what for _, what in told] == ["asked"]
        assert lines.mode is not None
        assert (lines.mode.rts_level_for_tx, lines.mode.rts_level_for_rx) == (True, False)
        assert (lines.mode.delay_before_tx, lines.mode.delay_before_rx) == (0.02, 0.03)


async def test_a_request_that_nobody_answers_leaves_the_line_listening() -> None:
    async with switched_line("high") as (told, _, port):
        with pytest.raises(BoardUnreachableError):
            await port.request(Span(1, 3, 0, 1), LIMITS, 0.1)
        assert told[-1][1] == "rts down"


async def test_a_line_without_rts_is_used_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    line = Line(lambda unit, _: [(0.0, holds(unit, 7))])
    asyncio.get_running_loop().add_reader(line.master, line.readable)
    port = ModbusPort(ModbusLink(kind="rtu", device=os.ttyname(line.slave), rts="high"))
    port.attach()
    assert await port.request(Span(1, 3, 0, 1), LIMITS, 5) == (7,)
    assert "has no RTS" in caplog.text
    await port.detach()
    asyncio.get_running_loop().remove_reader(line.master)
    os.close(line.master)
    os.close(line.slave)
