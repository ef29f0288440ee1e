"""The first step: what is connected, which of it is used, and the file that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from edge_agent.commissioning import detecting
from edge_agent.commissioning.detecting import Candidates, Found
from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.opening import open_gently
from edge_agent.commissioning.progress import Check, Device
from edge_agent.commissioning.work import Work
from edge_agent.hardware.addresses import hosts_in, parse_link, written
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.hardware.registry import UnknownProfileError, find_profile
from protocols.modbus.describing import options_of
from protocols.modbus.document import ProfileError
from protocols.modbus.profile import Profile

USE: Final = re.compile(
    r"(?:(?P<name>[\w .-]+)=)?(?P<profile>[^@=+]+)(?P<options>(?:\+\w+)*)"
    r"@(?P<address>[^#]+)(?:#(?P<evses>[1-9][0-9]?))?"
)


@dataclass(frozen=True, slots=True)
class Use:
    """A device that is used: what `--use NAME=PROFILE+OPTION@ADDRESS#EVSES` says."""

    name: str | None
    profile: Profile
    link: ModbusLink
    evses: int
    options: tuple[str, ...] = ()
    """The profile's, where the device does not tell by itself what holds for it."""

    @classmethod
    def of(cls, text: str) -> Use:
        """Raises ValueError."""
        match = USE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not [NAME=]PROFILE[+OPTION]@ADDRESS[#EVSES]")
        try:
            profile = find_profile(match["profile"])
        except (UnknownProfileError, ProfileError) as error:
            raise ValueError(str(error)) from error
        link = detecting.completed(parse_link(match["address"]), profile)
        options = tuple(filter(None, match["options"].split("+")))
        _check_options(profile, options)
        evses = int(match["evses"] or profile.evses.count)
        return cls(match["name"], profile, link, evses, options)


def _check_options(profile: Profile, options: tuple[str, ...]) -> None:
    known = options_of(profile)
    for option in options:
        if option not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"profile {profile.profile} has no option '{option}', but {has}")


async def devices(work: Work) -> list[Check]:
    """Find, choose, look once more, write the configuration."""
    if work.options.use:
        uses = [work.dialog.ask("--use", "", Use.of, given=one) for one in work.options.use]
    else:
        uses = _chosen(work, await _scanned(work))
    if not any(use.profile.kind == "charger" for use in uses):
        raise CommissionError(work.dialog.text("no_charger"), 2)
    named = _named(uses)
    seen = [await _seen(work, use, name) for name, use in named.items()]
    work.progress.devices = tuple(seen)
    work.place(**_tables(work, named))
    return [
        Check(step="devices", what=one.name, verdict="pass", text=f"{one.identity}, {one.address}")
        for one in seen
    ]


async def _scanned(work: Work) -> list[Found]:
    """Ask every line and host that the installer names."""
    options, dialog = work.options, work.dialog
    ports, hosts = list(options.ports), list(options.hosts)
    if not ports and not hosts:
        ports = list(detecting.serial_ports())
        if not dialog.yes:
            asked = dialog.ask("--host", "ask_hosts", str, default="-")
            hosts = [] if asked == "-" else asked.split()
    if not ports and not hosts:
        raise CommissionError(dialog.text("nothing_to_scan"), 2)
    profiles = [find_profile(name) for name in options.profiles] or list(detecting.shipped())
    dialog.say("scanning", profiles=len(profiles))
    groups: list[Candidates] = []
    for port in ports:
        groups += detecting.on_port(port, profiles, options.units)
    for text in hosts:
        there = await detecting.reachable(_hosts(text), options.tcp_port)
        for host in there:
            groups += detecting.on_host(host, options.tcp_port, profiles, options.units)
    found = [one async for one in detecting.look(groups, lambda at: dialog.say("asking", at=at))]
    if not found:
        raise CommissionError(dialog.text("nothing_found"), 3)
    return found


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return hosts_in(text)
    except ValueError as error:
        raise CommissionError(f"--host: {error}", 2) from error


def _chosen(work: Work, found: Sequence[Found]) -> list[Use]:
    """The installer says which; a script may leave it out where there is no doubt."""
    dialog = work.dialog
    dialog.table(
        [dialog.text(key) for key in ("no", "address", "profile", "fit", "says")],
        [
            (n, one.address, one.profile, f"{one.fit} %{' ✓' if one.proven else ''}", one.identity)
            for n, one in enumerate(found, start=1)
        ],
    )
    likeliest: dict[str, Found] = {}
    for one in found:
        likeliest.setdefault(one.address, one)
    for one in found if dialog.yes else ():
        best = likeliest[one.address]
        if one is not best and (one.proven, one.fit) == (best.proven, best.fit):
            both = f"{best.profile}@{best.address}, {one.profile}@{one.address}"
            raise CommissionError(f"--use: {dialog.text('in_doubt', both=both)}", 2)
    default = ",".join(str(n) for n, one in enumerate(found, 1) if one in likeliest.values())
    numbers = dialog.ask("--use", "which", lambda text: _numbers(text, len(found)), default=default)
    picked = [found[number - 1] for number in numbers]
    return [_with_options(work, Use.of(f"{one.profile}@{one.address}")) for one in picked]


def _with_options(work: Work, use: Use) -> Use:
    """What only the installer can see, such as a switch inside; a script says it with --use."""
    known = options_of(use.profile)
    if not known:
        return use

    def read(text: str) -> tuple[str, ...]:
        options = tuple(part for part in text.replace(",", " ").split() if part != "-")
        _check_options(use.profile, options)
        return options

    options = work.dialog.ask(
        "--use",
        "ask_options",
        read,
        default="-",
        profile=use.profile.profile,
        known=", ".join(known),
    )
    return replace(use, options=options)


def _numbers(text: str, most: int) -> list[int]:
    parts = text.replace(" ", ",").split(",")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) != len([part for part in parts if part]) or not numbers:
        raise ValueError(f"'{text}': numbers as 1,2")
    if min(numbers) < 1 or max(numbers) > most:
        raise ValueError(f"'{text}': there are 1 to {most}")
    return list(dict.fromkeys(numbers))


def _named(uses: Sequence[Use]) -> dict[str, Use]:
    """Every device its own name: the given one, or by its profile."""
    named: dict[str, Use] = {}
    for use in uses:
        base = use.name or use.profile.profile
        name, n = base, 2
        while name in named:
            name, n = f"{base} {n}", n + 1
        named[name] = use
    if sum(use.profile.kind == "meter" for use in uses) > 1:
        raise CommissionError("--use: one site meter at most; leave the other meters out", 2)
    return named


async def _seen(work: Work, use: Use, name: str) -> Device:
    """Open it as the agent will."""
    evses = range(1, use.evses + 1) if use.profile.kind == "charger" else range(1)
    port, options = PortPool().port(use.link), frozenset(use.options)
    device = ModbusDevice(use.profile, use.link, port, evses=evses, options=options)
    try:
        await open_gently(device)
        identity = use.profile.identity
        wanted = [each for each in (identity.serial, identity.firmware) if each]
        values = await device.read([(device.evses[0], each) for each in wanted])
    except BoardUnreachableError as error:
        raise CommissionError(f"{name}: {error}; {work.dialog.text('check_wires')}", 3) from error
    except BoardRefusedError as error:
        raise CommissionError(f"{name}: {error}") from error
    finally:
        await device.close()
    told = {each: value.value for (_, each), value in values.items()}
    return Device(
        name=name,
        kind=use.profile.kind,
        profile=use.profile.profile,
        address=written(use.link),
        identity=device.identity,
        serial=str(told.get(identity.serial or "") or ""),
        firmware=str(told.get(identity.firmware or "") or ""),
    )


def _tables(work: Work, named: dict[str, Use]) -> dict[str, Any]:
    """The configuration's tables; what a board of that name had besides stays.

    Boards that no scan finds stay, too.
    """
    known = {one.get("name"): one for one in work.plain.get("boards", []) if isinstance(one, dict)}
    boards = [one for one in known.values() if one.get("kind", "modbus") != "modbus"]
    number = 1 + max((max(one.get("evses", [1])) for one in boards), default=0)
    meter = None
    for name, use in named.items():
        link = _link_table(use.link)
        if use.profile.kind == "meter":
            meter = {"profile": use.profile.profile, "link": link, "options": list(use.options)}
            continue
        numbers = list(range(number, number + use.evses))
        number += use.evses
        board = {"name": name, "profile": use.profile.profile, "evses": numbers, "link": link}
        told = {"options": list(use.options)} if use.options else {}
        boards.append({**known.get(name, {}), **board, **told})
    tables: dict[str, Any] = {"station": work.progress.station, "boards": boards}
    there = work.plain.get("site")
    if meter is not None:
        tables["site"] = {"limit_ma": 0, **(there or {}), "meter": meter}
    return tables


def _link_table(link: ModbusLink) -> dict[str, Any]:
    kept = ("host", "port") if link.kind == "tcp" else ("device", "baudrate", "parity", "stopbits")
    table = {"kind": link.kind, **{name: getattr(link, name) for name in (*kept, "unit")}}
    if link.framing == "ascii":
        table["framing"] = "ascii"
    return {name: value for name, value in msgspec.to_builtins(table).items() if value is not None}
