"""What is connected: asks lines and hosts for what the shipped profiles describe, and only reads.

A profile fits as far as its registers answer with values that make sense. Many devices cannot say
what they are, so the installer chooses among what fits, the likeliest first. One request after the
other with the profile's own pauses; a unit that does not answer is asked no further.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.hardware.addresses import written
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, ModbusPort
from edge_agent.hardware.registry import find_profile, profile_names
from protocols.modbus.profile import Profile, Rtu, Tcp
from protocols.modbus.states import state_of
from protocols.modbus.values import SUSPECT, Value

BY_ID: Final = Path("/dev/serial/by-id")
TIMEOUT_S: Final = 0.6
"""For one answer while it is not known whether anybody is there."""
CONNECT_S: Final = 1.0
HOSTS_AT_ONCE: Final = 8
LEAST_FIT: Final = 50
"""Percent: below that a profile is not shown."""
GROUND_MV, LOWEST_MV, HIGHEST_MV = 5_000, 180_000, 280_000


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A profile that fits what answers at an address."""

    address: str
    profile: str
    kind: str
    maker: str
    fit: int
    """Percent of what was asked that made sense."""
    proven: bool
    """It says itself that it is this device."""
    identity: str
    serial: str = ""
    firmware: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Profiles that would be spoken to in the same way: one line setting, one unit."""

    link: ModbusLink
    profiles: tuple[Profile, ...]


def serial_ports(folder: Path = BY_ID) -> tuple[str, ...]:
    """The adapters that are plugged in, by the names that stay."""
    try:
        return tuple(sorted(str(path) for path in folder.iterdir()))
    except OSError:
        return ()


def shipped() -> tuple[Profile, ...]:
    return tuple(find_profile(name) for name in profile_names())


def on_port(device: str, profiles: Iterable[Profile], units: Sequence[int]) -> list[Candidates]:
    """Each setting of a serial line that some profile has, the commonest first."""
    groups: dict[ModbusLink, list[Profile]] = {}
    for profile in profiles:
        rtu = profile.transports.rtu
        if rtu is None:
            continue
        for unit in units or (rtu.unit,):
            link = ModbusLink(
                kind="rtu",
                device=device,
                baudrate=rtu.baudrate,
                parity=rtu.parity,
                stopbits=rtu.stopbits,
                framing=rtu.framing,
                unit=unit,
                timeout_s=TIMEOUT_S,
            )
            groups.setdefault(link, []).append(profile)
    return _by_size(groups)


def on_host(
    host: str, port: int, profiles: Iterable[Profile], units: Sequence[int]
) -> list[Candidates]:
    """Each unit that some profile has behind that TCP port."""
    groups: dict[ModbusLink, list[Profile]] = {}
    for profile in profiles:
        tcp = profile.transports.tcp
        if tcp is None:
            continue
        for unit in units or (tcp.unit,):
            link = ModbusLink(host=host, port=port, unit=unit, timeout_s=TIMEOUT_S)
            groups.setdefault(link, []).append(profile)
    return _by_size(groups)


def _by_size(groups: dict[ModbusLink, list[Profile]]) -> list[Candidates]:
    found = [Candidates(link, tuple(profiles)) for link, profiles in groups.items()]
    return sorted(found, key=lambda one: -len(one.profiles))


async def reachable(hosts: Sequence[str], port: int) -> list[str]:
    """The hosts that take a connection on this port, in their order."""
    few = asyncio.Semaphore(HOSTS_AT_ONCE)

    async def knock(host: str) -> bool:
        async with few:
            try:
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(host, port)
            except (OSError, TimeoutError):
                return False
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                return True  # it was there
            return True

    there = await asyncio.gather(*map(knock, hosts))
    return list(itertools.compress(hosts, there))


async def look(
    candidates: Iterable[Candidates], told: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Found]:
    """What fits, group by group, the likeliest of each group first."""
    for group in candidates:
        told(written(group.link))
        port = ModbusPort(group.link)
        port.attach()
        try:
            found = [one async for one in _in_group(group, port)]
        finally:
            await port.detach()
        for one in sorted(found, key=lambda one: (not one.proven, -one.fit, one.profile)):
            yield one


async def _in_group(group: Candidates, port: ModbusPort) -> AsyncIterator[Found]:
    silent, gap = 0, max(profile.limits.gap_ms for profile in group.profiles)
    for profile in group.profiles:
        try:
            found = await fits(_unhurried(profile, gap), group.link, port)
        except BoardUnreachableError:
            silent += 1
            if silent > 1:
                return  # nobody is there, or it needs its peace
            continue
        silent = -len(group.profiles)  # it is there: silence is an answer to this profile only
        if found is not None:
            yield found


def _unhurried(profile: Profile, gap_ms: int) -> Profile:
    """Whoever is there may be another one than the profile's, and need longer pauses."""
    limits = msgspec.structs.replace(profile.limits, gap_ms=gap_ms)
    return msgspec.structs.replace(profile, limits=limits)


async def fits(profile: Profile, link: ModbusLink, port: ModbusPort) -> Found | None:
    """How well the profile fits; None: not at all. Raises BoardUnreachableError."""
    evse = 1 if profile.kind == "charger" else 0
    device = ModbusDevice(profile, link, port, evses=(evse,))
    try:
        await device.open()
    except BoardRefusedError:
        return None
    finally:
        await device.close()
    named = {name: each for name, each in device.binding.fields().items() if each.read != "demand"}
    port.attach()
    try:
        values = await _values(device, evse, list(named))
    finally:
        await port.detach()
    checks = list(_checks(profile, device, values))
    fit = 100 * sum(checks) // max(1, len(checks))
    if fit < LEAST_FIT:
        return None
    return Found(
        address=written(link),
        profile=profile.profile,
        kind=profile.kind,
        maker=profile.maker,
        fit=fit,
        proven=_is_proven(profile),
        identity=device.identity,
        serial=_text(profile.identity.serial, values),
        firmware=_text(profile.identity.firmware, values),
    )


async def _values(device: ModbusDevice, evse: int, names: list[str]) -> dict[str, Value | None]:
    """All at once, or one by one where the device refuses some; None: refused."""
    try:
        read = await device.read([(evse, name) for name in names])
    except BoardRefusedError:
        return {name: await _value(device, evse, name) for name in names}
    return {name: value for (_, name), value in read.items()}


async def _value(device: ModbusDevice, evse: int, name: str) -> Value | None:
    try:
        return (await device.read([(evse, name)]))[evse, name]
    except BoardRefusedError:
        return None


def _checks(
    profile: Profile, device: ModbusDevice, values: dict[str, Value | None]
) -> Iterator[bool]:
    """One verdict for each field, and more weight for what is told by text, voltage and state."""
    for name, value in values.items():
        yield value is not None and value.value is not None and not value.suspect
        if value is None:
            continue
        if name.startswith("voltage_l"):
            yield from [_is_mains(value.value)] * 2
        if isinstance(value.value, str):
            yield from [bool(value.value.strip()) and value.value.isprintable()] * 2
    if profile.states is not None:
        known = {name: value or SUSPECT for name, value in values.items()}
        _, strange = state_of(device.binding.rules(), profile.states.otherwise, known)
        yield from [not strange] * 3


def _is_mains(millivolts: int | str | None) -> bool:
    """A phase that is not connected shows next to nothing."""
    return isinstance(millivolts, int) and (
        0 <= millivolts <= GROUND_MV or LOWEST_MV <= millivolts <= HIGHEST_MV
    )


def _is_proven(profile: Profile) -> bool:
    """`open` has checked what the device says of itself."""
    return bool(profile.identity.expect or profile.chain)


def _text(name: str | None, values: dict[str, Value | None]) -> str:
    value = values.get(name) if name else None
    return "" if value is None or value.value is None else str(value.value)


def completed(link: ModbusLink, profile: Profile) -> ModbusLink:
    """The link as the configuration keeps it: all that identifies the line, no probing timeout."""
    defaults: Tcp | Rtu
    if link.kind == "tcp":
        defaults = profile.transports.tcp or Tcp()
    else:
        defaults = profile.transports.rtu or Rtu()
    missing = {
        name: getattr(defaults, name)
        for name in defaults.__struct_fields__
        if getattr(link, name) is None
    }
    return msgspec.structs.replace(link, **missing, timeout_s=None)
