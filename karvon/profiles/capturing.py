"""`capture`: registers of a live device into a file, and golden frames of a profile's requests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, ModbusPort, PortPool
from karvon.profiles.scanning import READ_WHEN, SILENCE, Scan, planned
from karvon.profiles.speaking import (
    UNREACHABLE,
    ToolError,
    complain,
    device_link,
    profile_named,
    told,
    told_json,
)
from protocols.modbus.binding import Binding
from protocols.modbus.planning import Span
from protocols.modbus.profile import Profile

GAP_S: Final = 0.1
READS: Final = (1, 2, 3, 4)


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
    return [] if binding is None else list(planned(binding, READ_WHEN))


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


__all__ = ["Wish", "run"]
