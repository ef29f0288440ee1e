"""`capture`: reads registers of a live device into a file, so that two moments can be compared.

Polite: one function after the other, a pause between requests, nothing that the profile forbids,
and an end to it when the device falls silent. Read functions only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.cli.output import print_table
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import (
    DeviceExceptionError,
    ModbusLink,
    ModbusPort,
    PortPool,
)
from karvon.profiles.speaking import (
    UNREACHABLE,
    WRONG,
    ToolError,
    complain,
    device_link,
    profile_named,
    told,
    told_json,
)
from protocols.modbus.binding import Binding, laid_out
from protocols.modbus.checks import forbids
from protocols.modbus.planning import Span, plan_reads
from protocols.modbus.profile import Limits, Profile
from protocols.modbus.values import Words

GAP_S: Final = 0.1
SILENCE: Final = 3
"""So many requests without any answer end the scan: a device that is gone is left alone."""
READS: Final = (1, 2, 3, 4)
READ_WHEN: Final = ("open", "poll", "demand")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked on the command line."""

    out: Path | None
    device: str | None
    functions: str
    ranges: str
    profile: str | None
    frames: Path | None
    gap: float | None
    timeout: float | None
    chunk: int


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


def run(wish: Wish, *, as_json: bool) -> int:
    try:
        device = _sensible(wish)
        profile = profile_named(wish.profile) if wish.profile else None
        link = device_link(device, profile)
        link = msgspec.structs.replace(link, timeout_s=wish.timeout or link.timeout_s)
        return asyncio.run(_run(wish, profile, link, as_json=as_json))
    except ToolError as error:
        return complain(error)
    except OSError as error:
        return complain(ToolError(f"the file cannot be written: {error}"))


def _sensible(wish: Wish) -> str:
    """The device; raises ToolError where the wish contradicts itself."""
    if wish.device is None:
        raise ToolError("capture needs --device, or --diff and two files")
    if wish.out is None and wish.frames is None:
        raise ToolError("say where to: --out FILE, or --frames FILE with --profile NAME")
    if wish.frames is not None and wish.profile is None:
        raise ToolError("--frames records what a profile asks: name it with --profile")
    _functions(wish.functions)
    if not wish.ranges and wish.profile is None:
        raise ToolError("say what to read: --ranges 0-100, or --profile NAME for its registers")
    return wish.device


async def _run(wish: Wish, profile: Profile | None, link: ModbusLink, *, as_json: bool) -> int:
    port = PortPool().port(link)
    port.attach()
    try:
        binding = None if profile is None else await _bound(profile, link, port)
        spans = wanted(wish, binding, link.unit or 1)
        scan = Scan(port, link, binding, _gap(wish, profile))
        if wish.out is not None:
            await scan.over(spans)
        recorded = await scan.frames() if wish.frames is not None else []
    finally:
        await port.detach()
    if not scan.answers:
        raise ToolError(f"no answer: {'; '.join(scan.refused[:1])}", UNREACHABLE)
    if wish.out is not None:
        wish.out.write_bytes(msgspec.json.format(msgspec.json.encode(scan.capture())) + b"\n")
    if wish.frames is not None:
        wish.frames.write_text(vectors(wish.profile or "", recorded), encoding="utf-8")
    _tell(wish, scan, len(recorded), as_json=as_json)
    return 0 if scan.complete else UNREACHABLE


def _tell(wish: Wish, scan: Scan, frames: int, *, as_json: bool) -> None:
    count = sum(len(words) for words in scan.words.values())
    if as_json:
        told_json(
            {
                "registers": count,
                "refused": scan.refused,
                "frames": frames,
                "complete": scan.complete,
                "out": wish.out and str(wish.out),
            }
        )
        return
    if wish.out is not None:
        told(f"{count} registers into {wish.out}, {len(scan.refused)} requests refused")
    if wish.frames is not None:
        told(f"{frames} frames into {wish.frames}")
    if not scan.complete:
        told(f"ended early: {SILENCE} requests in a row had no answer")


def _gap(wish: Wish, profile: Profile | None) -> float:
    if wish.gap is not None:
        return wish.gap
    return max(GAP_S, profile.limits.gap_ms / 1000 if profile else 0)


async def _bound(profile: Profile, link: ModbusLink, port: ModbusPort) -> Binding:
    """The profile on this device: where models form a chain, it must be asked for them."""
    if profile.chain is None:
        return Binding(profile=profile, unit=link.unit or 1)
    device = ModbusDevice(profile, link, port)
    try:
        await device.open()
    except (BoardRefusedError, BoardUnreachableError) as error:
        raise ToolError(str(error), UNREACHABLE) from error
    finally:
        await device.close()
    return device.binding


def _functions(text: str) -> list[int]:
    functions = [_number(part, "--functions") for part in text.split(",") if part]
    if not functions or any(function not in READS for function in functions):
        raise ToolError(f"--functions: '{text}'; only 1, 2, 3 and 4 read")
    return functions


def wanted(wish: Wish, binding: Binding | None, unit: int) -> list[Span]:
    """What to read, cut into pieces. Raises ToolError where nonsense is asked."""
    functions = _functions(wish.functions)
    if wish.ranges:
        ranges = [_range(text) for text in wish.ranges.split(",")]
        return [
            Span(unit, function, start, min(wish.chunk, last + 1 - start))
            for function in functions
            for first, last in ranges
            for start in range(first, last + 1, wish.chunk)
        ]
    return [] if binding is None else list(_planned(binding, READ_WHEN))


def _planned(binding: Binding, when: tuple[str, ...]) -> tuple[Span, ...]:
    profile = binding.profile
    evse = 1 if profile.kind == "charger" else 0
    fields = binding.fields()
    names = {name for name, each in fields.items() if each.read in when}
    names |= {fields[name].scale_from or name for name in names}
    spans = [binding.span(fields[name], evse) for name in names]
    return plan_reads(spans, profile.limits, profile.forbidden)


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _number(first, "--ranges")
    high = _number(last, "--ranges") if dash else low
    if not 0 <= low <= high <= 0xFFFF:
        raise ToolError(f"--ranges: '{text}' is not FIRST-LAST within 0 and 65535")
    return low, high


def _number(text: str, where: str) -> int:
    try:
        return int(text.strip(), 0)
    except ValueError:
        raise ToolError(f"{where}: '{text}' is no number; write 100 or 0x64") from None


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

    async def over(self, spans: Iterable[Span]) -> None:
        for span in spans:
            await self._take(span)
            if not self.complete:
                return

    async def _take(self, span: Span) -> None:
        pieces = self._allowed(span)
        for piece in pieces:
            words = await self._ask(piece)
            if words is None and piece.count > 1 and self.complete and not self._silent:
                half = piece.count // 2
                await self._take(Span(piece.unit, piece.function, piece.address, half))
                await self._take(
                    Span(piece.unit, piece.function, piece.address + half, piece.count - half)
                )
            for i, word in enumerate(words or ()):
                there = self.words.setdefault(str(piece.function), {})
                there[f"{piece.address + i:#06x}"] = f"{word:04x}"

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

    async def _ask(self, span: Span) -> Words | None:
        wait = self._free_at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        limits = self._profile.limits if self._profile else Limits()
        try:
            words = await self._port.request(span, limits, self._link.timeout_s or 1.0)
        except DeviceExceptionError as error:
            self.answers += 1
            self._silent = 0
            if span.count == 1 or error.code != 2:
                self._note(span, str(error))
            return None
        except BoardUnreachableError as error:
            self._silent += 1
            self._note(span, str(error))
            self.complete = self._silent < SILENCE
            return None
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
            for span in _planned(self._binding, (when,)):
                words = await self._ask(span)
                if words is not None:
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


def vectors(name: str, frames: list[tuple[str, str]]) -> str:
    """A file as the golden ones are: what the device said, for people to add what it means."""
    lines = [
        f"origin: captured {datetime.now(UTC):%Y-%m-%d} from a real device with profile {name}",
        "frames:    # unit and PDU; headers and checksums are left to the line",
        *(f'  - ["{request}", "{reply}"]' for request, reply in frames),
        "# What these bytes mean, by your own eyes at the device's display:",
        '# reading: {state: B, power: "0", energy: "12345"}',
    ]
    return "\n".join(lines) + "\n"


def compare(one: Path, other: Path, profile: str | None, *, as_json: bool) -> int:
    """1 when they differ: so that scripts notice."""
    try:
        named = profile_named(profile) if profile else None
        before, after = _read(one), _read(other)
    except ToolError as error:
        return complain(error)
    changes = list(_changes(before, after, _names(named, before.unit)))
    if as_json:
        told_json(changes)
    elif changes:
        rows = [tuple("" if v is None else v for v in each.values()) for each in changes]
        print_table(tuple(changes[0]), rows)
    else:
        told("nothing changed")
    return WRONG if changes else 0


def _read(path: Path) -> Capture:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Capture)
    except OSError as error:
        raise ToolError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ToolError(f"{path} is no capture ({error}); make one with --out") from error


def _names(profile: Profile | None, unit: int) -> dict[tuple[int, int], str]:
    """Which field stands at a function and address."""
    if profile is None:
        return {}
    binding = Binding(profile=profile, unit=unit, models=laid_out(profile))
    evse = 1 if profile.kind == "charger" else 0
    found: dict[tuple[int, int], str] = {}
    for name, each in binding.fields().items():
        span = binding.span(each, evse)
        found |= {(span.function, address): name for address in range(span.address, span.end)}
    return found


def _changes(
    before: Capture, after: Capture, names: dict[tuple[int, int], str]
) -> Iterator[dict[str, Any]]:
    for function in sorted({*before.words, *after.words}):
        old, new = before.words.get(function, {}), after.words.get(function, {})
        for address in sorted({*old, *new}, key=lambda text: int(text, 16)):
            was, now = old.get(address), new.get(address)
            if was != now:
                yield {
                    "function": int(function),
                    "address": address,
                    "before": was,
                    "after": now,
                    "before_decimal": None if was is None else int(was, 16),
                    "after_decimal": None if now is None else int(now, 16),
                    "register": names.get((int(function), int(address, 16)), ""),
                }


__all__ = ["Capture", "Wish", "compare", "run"]
