"""A profile fixed to one device: its firmware, its options, its EVSE numbers, its word order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from protocols.modbus.checks import forbids
from protocols.modbus.planning import Span
from protocols.modbus.profile import (
    BITS,
    Condition,
    Field,
    Forbidden,
    Override,
    Profile,
    SignedBlock,
    StateRule,
    Write,
    overridden,
    width,
)
from protocols.modbus.values import (
    FLOATS,
    SUSPECT,
    Value,
    Words,
    decode,
    encode_raw,
    factor,
    nearest,
)

STATION = 0
"""The EVSE number of what belongs to the whole station (OCPP 2.x: EVSE 0)."""


class ForbiddenError(Exception):
    """A request would touch a register that the profile forbids; never sent."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Raw registers (function 5: one 0 or 1) for one unit."""

    unit: int
    function: int
    address: int
    words: Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of this device; a condition about something unknown does not hold."""

    firmware: str | None = None
    registers: Mapping[str, int | str] = field(default_factory=dict)
    options: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One device. `absent` names the fields that it lacks."""

    profile: Profile
    unit: int
    facts: Facts = field(default_factory=Facts)
    order: str = "msw_first"
    absent: frozenset[str] = frozenset()
    models: Mapping[int, int] = field(default_factory=dict)
    """Where each model of the device's chain begins."""

    def fields(self) -> dict[str, Field]:
        """The fields this device has, with its overrides applied."""
        found = {name: self._varied(each) for name, each in self.profile.registers.items()}
        return {
            name: each
            for name, each in found.items()
            if each is not None and name not in self.absent and self._has_model(each)
        }

    def span(self, each: Field, evse: int) -> Span:
        """Where the field of this EVSE stands; EVSE 0 reads station registers."""
        return Span(
            self._unit(each.scope, evse),
            each.function or self.profile.read_function,
            each.address + self._offset(each.scope, evse) + self._start(each),
            width(each.type),
        )

    def pieces(self, block: SignedBlock, evse: int) -> Iterator[Span]:
        """The requests that read a block of signed octets."""
        function = block.function or self.profile.read_function
        unit = self._unit(block.scope, evse)
        at = block.address + self._offset(block.scope, evse)
        most = self.profile.limits.max_registers
        for first in range(0, block.registers, most):
            yield Span(unit, function, at + first, min(most, block.registers - first))

    def decode(self, each: Field, words: Words, exponent: int = 0) -> Value:
        return decode(each, words, self.word_order(each), exponent) if words else SUSPECT

    def word_order(self, each: Field | Write) -> str:
        if each.word_order is not None:
            return each.word_order
        return self.order if self.profile.word_order == "probe" else self.profile.word_order

    def step(self, name: str) -> int:
        """The smallest change of this field in its base unit, at least 1."""
        each = self.fields()[name]
        one = 1 if each.type in FLOATS else factor(each.scale, each.unit)
        return max(1, nearest(Fraction(one)))

    def modulus(self, name: str) -> int:
        """Where an unsigned counter starts again, in its base unit."""
        each = self.fields()[name]
        return nearest((1 << BITS[each.type]) * factor(each.scale, each.unit))

    def rules(self) -> tuple[StateRule, ...]:
        """The state rules that hold for this device's firmware and that it has registers for."""
        states = self.profile.states
        known = self.fields()
        return tuple(
            rule
            for rule in (states.rules if states else ())
            if (rule.only is None or holds(rule.only, self.facts)) and set(rule.when) <= set(known)
        )

    def varied_write(self, write: Write) -> Write:
        return self._varied(write) or write

    def fixed(self, write: Write, evse: int) -> WriteRequest:
        """The request of a write that always sends the same."""
        return self.raw(write, write.value or 0, evse)

    def raw(self, write: Write, raw: Any, evse: int) -> WriteRequest:
        """A raw number as a request; raises ForbiddenError, EncodingError."""
        varied = self.varied_write(write)
        address = varied.address + self._offset(varied.scope, evse)
        if varied.function == 5:
            words: Words = (1 if raw else 0,)
        else:
            words = encode_raw(varied.type, raw, self.word_order(varied))
        check_write(self.profile.forbidden, varied.function, address, len(words))
        return WriteRequest(self._unit(varied.scope, evse), varied.function, address, words)

    def _varied(self, each: Any) -> Any:
        override: Override
        for override in each.overrides:
            if holds(override.when, self.facts):
                if override.absent:
                    return None
                return overridden(each, override)
        return each

    def _has_model(self, each: Field) -> bool:
        return not each.model or any(model in self.models for model in each.model)

    def _start(self, each: Field) -> int:
        return next((self.models[model] for model in each.model if model in self.models), 0)

    def _offset(self, scope: str | None, evse: int) -> int:
        return 0 if scope == "station" else evse * self.profile.evses.stride

    def _unit(self, scope: str | None, evse: int) -> int:
        per_evse = self.profile.evses.unit_per_evse and scope != "station" and evse != STATION
        return evse if per_evse else self.unit


def laid_out(profile: Profile) -> dict[int, int]:
    """Where the models begin that the simulator block lists, from the first base on."""
    if profile.chain is None or profile.simulator is None:
        return {}
    begins, at = {}, profile.chain.bases[0] + 2
    for model, length in profile.simulator.models:
        begins[model] = at
        at += 2 + length
    return begins


def check_write(rules: tuple[Forbidden, ...], function: int, address: int, count: int) -> None:
    """Raises ForbiddenError when the profile forbids this write."""
    for rule in rules:
        if forbids(rule, "write", function, address, address + count - 1):
            raise ForbiddenError(f"register {address:#06x} is never written: {rule.why}")


def holds(condition: Condition, facts: Facts) -> bool:
    """Whether all that the condition names is true of this device."""
    return all(
        (
            condition.firmware_below is None or _below(facts.firmware, condition.firmware_below),
            condition.firmware_from is None
            or (facts.firmware is not None and not _below(facts.firmware, condition.firmware_from)),
            condition.option is None or condition.option in facts.options,
            condition.register is None or _equals(condition, facts),
        )
    )


def version(text: str) -> tuple[int, ...]:
    """The numbers of a firmware text, for comparison: "v1.10b" -> (1, 10)."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _below(firmware: str | None, limit: str) -> bool:
    return firmware is not None and version(firmware) < version(limit)


def _equals(condition: Condition, facts: Facts) -> bool:
    value = facts.registers.get(condition.register or "")
    if isinstance(value, int) and condition.mask is not None:
        value &= condition.mask
    return value is not None and value == condition.equals
