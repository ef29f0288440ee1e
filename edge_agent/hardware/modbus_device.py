"""What boards and meters share: bind a profile to the device found, read its fields, write."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_port import BUSY, DeviceExceptionError, ModbusLink, ModbusPort
from protocols.modbus.binding import Binding, Facts, WriteRequest, check_write, version
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Field, Profile
from protocols.modbus.values import Value, Words, exact, nearest

Wanted = tuple[int, str]
"""An EVSE number and a field's name."""


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

    async def close(self) -> None:
        if self._attached:
            self._attached = False
            await self._port.detach()

    async def read(self, wanted: Iterable[Wanted]) -> dict[Wanted, Value]:
        """The named fields, in the fewest requests."""
        fields = self.binding.fields()
        places = {
            key: (fields[key[1]], self.binding.span(fields[key[1]], key[0])) for key in wanted
        }
        plan = plan_reads(
            (span for _, span in places.values()), self.profile.limits, self.profile.forbidden
        )
        found = [(request, await self.request(request)) for request in plan]
        return {key: self._decode(each, span, found) for key, (each, span) in places.items()}

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

    def _decode(self, each: Field, span: Span, found: list[tuple[Span, Words]]) -> Value:
        for request, words in found:
            same = (request.unit, request.function) == (span.unit, span.function)
            start = span.address - request.address
            if same and start >= 0 and start + span.count <= request.count:
                return self.binding.decode(each, words[start : start + span.count])
        raise LookupError(f"no request covers {span}")

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
        for write in [self.profile.setpoint.write] if self.profile.setpoint else []:
            named |= {o.when.register for o in write.overrides if o.when.register}
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
            if each.probe and not await self._has(each):
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
                raise BoardRefusedError(
                    f"{self._link.line}: {expect.field} is '{text}', which profile "
                    f"{self.profile.profile} does not describe; choose the profile that fits"
                )
