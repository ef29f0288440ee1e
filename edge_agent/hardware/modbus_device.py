"""What boards and meters share: bind a profile to the device found, read its fields, write."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.line import LineHealth
from edge_agent.hardware.modbus_port import (
    BUSY,
    DeviceExceptionError,
    ModbusLink,
    ModbusPort,
)
from protocols.modbus.binding import Binding, Facts, WriteRequest, check_write, version
from protocols.modbus.checks import writes
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Field, Profile, SignedBlock
from protocols.modbus.values import SUSPECT, Value, Words, exact, nearest

Wanted = tuple[int, str]
"""An EVSE number and a field's name."""
MOST_MODELS: Final = 64
CHAIN_ENDS: Final = 0xFFFF
LARGEST_POWER: Final = 10
"""SunSpec's scale factors go from -10 to 10."""


class ModbusDevice:
    """One device on a port; `open` finds out what it is, `read` and `write` obey its profile."""

    def __init__(
        self,
        profile: Profile,
        link: ModbusLink,
        port: ModbusPort,
        *,
        evses: Iterable[int] = (0,),
        options: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = profile
        self.clock = clock
        self.evses = tuple(evses)
        self.identity = ""
        self._link = link
        self._port = port
        self._attached = False
        self.binding = Binding(profile=profile, unit=link.unit or 1, facts=Facts(options=options))

    async def open(self) -> None:
        """Raises BoardUnreachableError, or BoardRefusedError where the profile does not fit."""
        if not self._attached:
            self._port.attach()
            self._attached = True
        await self._follow_chain()
        await self._settle_order()
        await self._learn_facts()
        await self._probe()
        names = [name for name, each in self.binding.fields().items() if each.read == "open"]
        known = await self.read([(self.evses[0], name) for name in names])
        texts = {name: value.value for (_, name), value in known.items()}
        self._check(texts)
        told = (self.profile.identity.serial, self.profile.identity.firmware)
        words = [self.profile.maker, str(texts.get(self.profile.identity.model or "", ""))]
        words += [str(texts[name]) for name in told if name and texts.get(name) is not None]
        self.identity = " ".join(word for word in words if word)

    def line_health(self) -> LineHealth:
        return self._port.health()

    async def close(self) -> None:
        if self._attached:
            self._attached = False
            await self._port.detach()

    async def read(self, wanted: Iterable[Wanted]) -> dict[Wanted, Value]:
        """The named fields, in the fewest requests; powers of ten are read with what they scale."""
        fields = self.binding.fields()
        keys = list(wanted)
        powers = {(evse, fields[name].scale_from or "") for evse, name in keys}
        places = {
            (evse, name): (fields[name], self.binding.span(fields[name], evse))
            for evse, name in (*keys, *(key for key in powers if key[1]))
        }
        plan = plan_reads(
            (span for _, span in places.values()), self.profile.limits, self.profile.forbidden
        )
        found = [(request, await self.request(request)) for request in plan]
        words = {key: _part(span, found) for key, (_, span) in places.items()}
        return {key: self._decode(key, fields, words) for key in keys}

    async def look(self, evse: int, name: str) -> tuple[Span, Words, Value]:
        """One field by itself: where it stands, its words, and what they mean."""
        fields = self.binding.fields()
        each = fields[name]
        span = self.binding.span(each, evse)
        words = {(evse, name): await self.request(span)}
        if each.scale_from is not None:
            power = self.binding.span(fields[each.scale_from], evse)
            words[evse, each.scale_from] = await self.request(power)
        return span, words[evse, name], self._decode((evse, name), fields, words)

    async def octets(self, block: SignedBlock, evse: int) -> bytes:
        """What stands in these registers, up to the first zero; as it is."""
        found = b""
        for piece in self.binding.pieces(block, evse):
            words = await self.request(piece)
            found += b"".join(word.to_bytes(2, "big") for word in words)
            if 0 in found:
                break
        return found.partition(b"\0")[0]

    async def write(self, *requests: WriteRequest) -> None:
        """In this order; a forbidden register is refused before anything is sent."""
        for each in requests:
            check_write(self.profile.forbidden, each.function, each.address, len(each.words))
        for each in requests:
            await self.request(each)

    async def request(self, request: Span | WriteRequest) -> Words:
        """One exchange; a "not now" exception counts as unreachable, a "not so" as refused."""
        timeout = self._link.timeout_s or self.profile.limits.timeout_ms / 1000
        try:
            return await self._port.request(request, self.profile.limits, timeout)
        except DeviceExceptionError as error:
            if error.code in BUSY:
                raise BoardUnreachableError(f"{self._link.line}: {error}") from error
            raise BoardRefusedError(
                f"{self._link.line} unit {request.unit} refused to {error}; "
                f"does profile {self.profile.profile} fit this device?"
            ) from error

    def _decode(self, key: Wanted, fields: dict[str, Field], words: dict[Wanted, Words]) -> Value:
        each = fields[key[1]]
        if each.scale_from is None:
            return self.binding.decode(each, words[key])
        exponent = self.binding.decode(
            fields[each.scale_from], words[key[0], each.scale_from]
        ).value
        if not isinstance(exponent, int) or abs(exponent) > LARGEST_POWER:
            return SUSPECT
        return self.binding.decode(each, words[key], exponent)

    async def _follow_chain(self) -> None:
        """Find the models of a chain; refuses a device that has none of those a field needs."""
        chain = self.profile.chain
        if chain is None:
            return
        marker = (chain.marker >> 16, chain.marker & 0xFFFF)
        for base in chain.bases:
            if await self._asked(base) == marker:
                self.binding = replace(self.binding, models=await self._models(base + 2))
                break
        else:
            places = ", ".join(str(base) for base in chain.bases)
            raise BoardRefusedError(
                f"{self._link.line}: no chain of models at {places}; is it switched on in the "
                f"device, and does profile {self.profile.profile} fit it?"
            )
        for name, each in self.profile.registers.items():
            known = self.binding.models
            if each.model and not each.probe and not any(one in known for one in each.model):
                raise BoardRefusedError(
                    f"{self._link.line}: {name} needs model {' or '.join(map(str, each.model))}, "
                    f"but the device has {', '.join(map(str, known)) or 'none'}; choose the "
                    "profile that fits"
                )

    async def _models(self, at: int) -> dict[int, int]:
        """Number and place of every model; the first of several alike counts."""
        found: dict[int, int] = {}
        for _ in range(MOST_MODELS):
            head = await self._asked(at)
            if head is None or head[0] == CHAIN_ENDS:
                break
            found.setdefault(head[0], at)
            at += 2 + head[1]
            if at > CHAIN_ENDS:
                break
        return found

    async def _asked(self, address: int) -> Words | None:
        """Two registers; None where the device refuses them."""
        span = Span(self._link.unit or 1, self.profile.read_function, address, 2)
        try:
            return await self._port.request(span, self.profile.limits, self._link.timeout_s or 1.0)
        except DeviceExceptionError:
            return None

    async def _settle_order(self) -> None:
        """Where sources disagree on the word order, the plausible one counts."""
        probe = self.profile.order_probe
        if probe is None:
            return
        low, high = (nearest(exact(bound) * 1000) for bound in probe.plausible)
        fitting = []
        for order in ("msw_first", "lsw_first"):
            self.binding = replace(self.binding, order=order)
            key = (self.evses[0], probe.field)
            value = (await self.read([key]))[key].value
            if isinstance(value, int) and low <= value <= high:
                fitting.append(order)
        if len(fitting) != 1:
            raise BoardRefusedError(
                f"{self._link.line}: {probe.field} is plausible in "
                f"{'both word orders' if fitting else 'neither word order'}; the order cannot be "
                f"told. Check the wiring and that profile {self.profile.profile} fits"
            )
        self.binding = replace(self.binding, order=fitting[0])

    async def _learn_facts(self) -> None:
        identity = self.profile.identity
        named = {
            condition.register
            for each in self.profile.registers.values()
            for condition in (override.when for override in each.overrides)
            if condition.register
        }
        for _, write in writes(self.profile):
            named |= {o.when.register for o in write.overrides if o.when.register}
        for rule in self.profile.states.rules if self.profile.states else ():
            named |= {rule.only.register} if rule.only and rule.only.register else set()
        names = sorted(named | ({identity.firmware} if identity.firmware else set()))
        values = await self.read([(self.evses[0], name) for name in names])
        registers = {n: v.value for (_, n), v in values.items() if v.value is not None}
        firmware = registers.get(identity.firmware or "")
        facts = Facts(
            firmware=None if firmware is None else str(firmware),
            registers=registers,
            options=self.binding.facts.options,
        )
        self.binding = replace(self.binding, facts=facts)

    async def _probe(self) -> None:
        """Fields that some models lack are asked once, alone; exception 2 means absent."""
        absent = set()
        for name, each in self.binding.fields().items():
            if each.probe and not each.model and not await self._has(each):
                absent.add(name)
        self.binding = replace(self.binding, absent=frozenset(absent))

    async def _has(self, each: Field) -> bool:
        span = self.binding.span(each, self.evses[0])
        timeout = self._link.timeout_s or 1.0
        try:
            await self._port.request(span, self.profile.limits, timeout)
        except DeviceExceptionError as error:
            if error.code == 2:
                return False
            raise BoardRefusedError(str(error)) from error
        return True

    def _check(self, texts: dict[str, int | str | None]) -> None:
        identity = self.profile.identity
        firmware = self.binding.facts.firmware
        least = identity.firmware_from
        if least and (firmware is None or version(firmware) < version(least)):
            raise BoardRefusedError(
                f"{self._link.line}: firmware {firmware or 'unknown'}, but profile "
                f"{self.profile.profile} needs {least} or later; update the device"
            )
        for expect in identity.expect:
            text = str(texts.get(expect.field))
            if not re.fullmatch(expect.matches, text):
                remedy = expect.remedy or "choose the profile that fits"
                raise BoardRefusedError(
                    f"{self._link.line}: {expect.field} is '{text}', which profile "
                    f"{self.profile.profile} does not describe; {remedy}"
                )


def _part(span: Span, found: list[tuple[Span, Words]]) -> Words:
    """The words of one field out of the requests that were answered."""
    for request, words in found:
        same = (request.unit, request.function) == (span.unit, span.function)
        start = span.address - request.address
        if same and start >= 0 and start + span.count <= request.count:
            return words[start : start + span.count]
    raise LookupError(f"no request covers {span}")
