"""Reads registers of a live device, politely: what `capture` does to it, and all that it does.

One request after the other with a pause between them, read functions only, nothing that the profile
forbids; a function that the device does not know is not asked again, and its silence ends the scan.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from edge_agent.hardware.board import BoardUnreachableError
from edge_agent.hardware.modbus_port import DeviceExceptionError, ModbusLink, ModbusPort
from protocols.modbus.binding import Binding
from protocols.modbus.checks import forbids
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Limits
from protocols.modbus.values import Words

SILENCE: Final = 3
"""So many requests without any answer end the scan: a device that is gone is left alone."""
ILLEGAL_FUNCTION: Final = 1
HALVED: Final = (2, 3)
"""Illegal address, illegal value (too many at once): the half of it may do."""
READ_WHEN: Final = ("open", "poll", "demand")


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """What a device showed at one moment: words by function and address, both as text."""

    device: str
    unit: int
    at: str
    profile: str | None
    words: dict[str, dict[str, str]]
    refused: list[str]
    """Requests that the device answered with an exception, or not at all, and why."""
    complete: bool = True


def planned(binding: Binding, when: tuple[str, ...]) -> tuple[Span, ...]:
    """The requests of the fields that are read then, with the powers of ten that scale them."""
    profile = binding.profile
    evse = 1 if profile.kind == "charger" else 0
    fields = binding.fields()
    names = {name for name, each in fields.items() if each.read in when}
    names |= {fields[name].scale_from or name for name in names}
    spans = [binding.span(fields[name], evse) for name in names]
    return plan_reads(spans, profile.limits, profile.forbidden)


class Scan:
    """Reads span by span; what a device refuses whole is halved until single registers answer."""

    def __init__(
        self, port: ModbusPort, link: ModbusLink, binding: Binding | None, gap: float
    ) -> None:
        self._port, self._link, self._binding, self._gap = port, link, binding, gap
        self._profile = binding.profile if binding else None
        self.words: dict[str, dict[str, str]] = {}
        self.refused: list[str] = []
        self.answers = 0
        self.complete = True
        self._silent = 0
        self._free_at = 0.0
        self._unknown_functions: set[int] = set()

    async def over(self, spans: Iterable[Span]) -> None:
        for span in spans:
            await self._take(span)
            if not self.complete:
                return

    async def _take(self, span: Span) -> None:
        pieces = self._allowed(span)
        for piece in pieces:
            if not self.complete or piece.function in self._unknown_functions:
                return
            words = await self._ask(piece)
            if isinstance(words, int):
                await self._halved(piece, words)
                continue
            for i, word in enumerate(words):
                there = self.words.setdefault(str(piece.function), {})
                there[f"{piece.address + i:#06x}"] = f"{word:04x}"

    async def _halved(self, piece: Span, code: int) -> None:
        """What a device refuses as a whole may be refused for one register of it only."""
        if code == ILLEGAL_FUNCTION:
            self._unknown_functions.add(piece.function)
        if code not in HALVED or piece.count == 1:
            return
        half = piece.count // 2
        await self._take(Span(piece.unit, piece.function, piece.address, half))
        await self._take(Span(piece.unit, piece.function, piece.address + half, piece.count - half))

    def _allowed(self, span: Span) -> list[Span]:
        """What of it the profile does not forbid, in one or more pieces."""
        rules = self._profile.forbidden if self._profile else ()
        free = [
            address
            for address in range(span.address, span.end)
            if not any(forbids(rule, "read", span.function, address, address) for rule in rules)
        ]
        if len(free) < span.count:
            self._note(span, "partly forbidden by the profile")
        return [
            Span(span.unit, span.function, first, last + 1 - first) for first, last in _runs(free)
        ]

    async def _ask(self, span: Span) -> Words | int:
        """The words, or the code of the exception (0: no answer)."""
        wait = self._free_at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        limits = self._profile.limits if self._profile else Limits()
        try:
            words = await self._port.request(span, limits, self._link.timeout_s or 1.0)
        except DeviceExceptionError as error:
            self.answers += 1
            self._silent = 0
            if span.count == 1 or error.code not in HALVED:
                self._note(span, str(error))
            return error.code
        except BoardUnreachableError as error:
            self._silent += 1
            self._note(span, str(error))
            self.complete = self._silent < SILENCE
            return 0
        finally:
            self._free_at = time.monotonic() + self._gap
        self.answers += 1
        self._silent = 0
        return words

    def _note(self, span: Span, why: str) -> None:
        self.refused.append(f"{span.function}:{span.address:#06x} x {span.count}: {why}")

    async def frames(self) -> list[tuple[str, str]]:
        """Request and reply of everything the profile reads, as unit and PDU in hexadecimal."""
        if self._binding is None:
            return []
        recorded = []
        for when in READ_WHEN:
            for span in planned(self._binding, (when,)):
                words = await self._ask(span)
                if not isinstance(words, int):
                    recorded.append(_frame(span, words))
        return recorded

    def capture(self) -> Capture:
        return Capture(
            device=self._link.line,
            unit=self._link.unit or 1,
            at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            profile=self._profile.profile if self._profile else None,
            words=self.words,
            refused=self.refused,
            complete=self.complete,
        )


def _runs(addresses: list[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for address in addresses:
        if first is None or last is None:
            first = last = address
        elif address == last + 1:
            last = address
        else:
            yield first, last
            first = last = address
    if first is not None and last is not None:
        yield first, last


def _frame(span: Span, words: Words) -> tuple[str, str]:
    request = f"{span.unit:02x} {span.function:02x} {span.address:04x} {span.count:04x}"
    if span.function in {1, 2}:
        octets = bytearray((len(words) + 7) // 8)
        for i, bit in enumerate(words):
            octets[i // 8] |= bit << i % 8
        data = octets.hex()
    else:
        data = " ".join(f"{word:04x}" for word in words)
    size = len(bytes.fromhex(data))
    return request, f"{span.unit:02x} {span.function:02x} {size:02x} {data}"
