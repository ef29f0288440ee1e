"""The register bank of a simulated device, made from its profile; as strict as the device."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from protocols.modbus.binding import Binding, laid_out
from protocols.modbus.checks import forbids, writes
from protocols.modbus.document import Path
from protocols.modbus.planning import Span
from protocols.modbus.profile import Write, width
from protocols.modbus.values import Words, encode

ILLEGAL_FUNCTION: Final = 1
ILLEGAL_ADDRESS: Final = 2
ILLEGAL_VALUE: Final = 3
Place = tuple[int, int, int]
"""Unit, function, address."""
Values = dict[str, int | str]


class RefusedError(Exception):
    """The device answers with this Modbus exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exception {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Target:
    """A register that can be written: what it is in the profile, and for which EVSE."""

    path: Path
    write: Write
    evse: int


class RegisterBank:
    """Words by unit, function and address; reads and writes are checked as the profile says."""

    def __init__(self, binding: Binding, evses: Iterable[int]) -> None:
        self.binding = binding = replace(binding, models=laid_out(binding.profile))
        self.evses = tuple(evses)
        self.fields = binding.fields()
        self._frame = dict(self._chain())
        self.unsigned: set[int] = set()
        """EVSEs whose transaction is not ended: nothing is signed of its end."""
        self._words: dict[Place, int] = {}
        simulator = binding.profile.simulator
        self._powers: Values = dict(simulator.defaults) if simulator else {}
        self._spans: set[Span] = set()
        self._targets: dict[Place, list[Target]] = {}
        for evse in self.evses:
            self._spans |= {binding.span(each, evse) for each in self.fields.values()}
            self._add_targets(evse)
        self.units = {span.unit for span in self._spans}
        self._functions = {span.function for span in self._spans}
        self._functions |= {function for _, function, _ in self._targets}

    def show(self, values: dict[int, Values]) -> None:
        """Put these values (base units, by EVSE) where they can be read; other fields read 0."""
        words = (
            {
                (span.unit, span.function, address): 0
                for span in self._spans
                for address in range(span.address, span.end)
            }
            | self._frame
            | dict(self._signed())
        )
        for evse, known in values.items():
            for name, value in known.items():
                if name in self.fields:
                    self._place(words, evse, name, value)
        self._words = words

    def read(self, span: Span) -> Words:
        """Raises RefusedError with the device's exception code."""
        limits = self.binding.profile.limits
        if span.function not in self._functions:
            raise RefusedError(ILLEGAL_FUNCTION)
        if not 1 <= span.count <= min(limits.max_registers, 125):
            raise RefusedError(ILLEGAL_VALUE)
        places = [(span.unit, span.function, a) for a in range(span.address, span.end)]
        if self._unreadable(span, places):
            raise RefusedError(ILLEGAL_ADDRESS)
        return tuple(self._words.get(place, 0) for place in places)

    def write(self, unit: int, function: int, address: int, words: Words) -> tuple[Target, ...]:
        """What this write aims at (several where one register has several fixed values)."""
        if function not in self._functions:
            raise RefusedError(ILLEGAL_FUNCTION)
        targets = tuple(self._targets.get((unit, function, address), ()))
        if not targets:
            raise RefusedError(ILLEGAL_ADDRESS)
        if len(words) != width(targets[0].write.type):
            raise RefusedError(ILLEGAL_VALUE)
        return targets

    def _unreadable(self, span: Span, places: list[Place]) -> bool:
        profile = self.binding.profile
        if any(
            forbids(rule, "read", span.function, span.address, span.end - 1)
            for rule in profile.forbidden
        ):
            return True
        if profile.limits.one_value_per_request:
            return span not in self._spans
        if profile.limits.readable_gaps:
            return places[0] not in self._words or places[-1] not in self._words
        return any(place not in self._words for place in places)

    def _place(self, words: dict[Place, int], evse: int, name: str, value: int | str) -> None:
        each = self.fields[name]
        span = self.binding.span(each, evse)
        order = self.binding.word_order(each)
        bit = each.type == "bit"
        exponent = int(self._powers.get(each.scale_from or "", 0))
        encoded = (int(bool(value)),) if bit else encode(each, value, order, exponent)
        for i, word in enumerate(encoded):
            words[span.unit, span.function, span.address + i] |= word

    def _signed(self) -> Iterator[tuple[Place, int]]:
        """What stands in the blocks of signed values, filled up with zeros."""
        profile = self.binding.profile
        simulator = profile.simulator
        told = {str(name): text for name, text in (simulator.signed if simulator else {}).items()}
        for name, block in (profile.signed.blocks() if profile.signed else {}).items():
            for evse in self.evses:
                text = "" if name == "end" and evse in self.unsigned else told.get(name, "")
                octets = text.encode().ljust(2 * block.registers, b"\0")
                words = struct.unpack(f">{block.registers}H", octets)
                first, *_ = self.binding.pieces(block, evse)
                for i, word in enumerate(words):
                    yield (first.unit, first.function, first.address + i), word

    def _chain(self) -> Iterator[tuple[Place, int]]:
        """The marker, every model with its head and length, and the end of the chain."""
        profile = self.binding.profile
        if profile.chain is None or profile.simulator is None:
            return
        words = [profile.chain.marker >> 16, profile.chain.marker & 0xFFFF]
        for model, length in profile.simulator.models:
            words += [model, length, *([0] * length)]
        for i, word in enumerate((*words, 0xFFFF, 0)):
            yield (self.binding.unit, profile.read_function, profile.chain.bases[0] + i), word

    def _add_targets(self, evse: int) -> None:
        for path, write in writes(self.binding.profile):
            varied = self.binding.varied_write(write)
            request = self.binding.raw(write, write.value or 0, evse)
            place = (request.unit, request.function, request.address)
            self._targets.setdefault(place, []).append(Target(path, varied, evse))
