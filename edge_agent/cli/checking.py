"""`karvon agent check`: a dry look at everything that must be right before the agent runs."""

from __future__ import annotations

import asyncio
import os
import urllib.parse
from pathlib import Path

import msgspec

from edge_agent import control
from edge_agent.cli.doubting import profile_doubts
from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import Config, ConfigError, load
from edge_agent.control import NotRunningError, Request
from edge_agent.failover import carries, doubts
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Meter, PowerBoard
from edge_agent.hardware.metered_board import MeteredBoard
from edge_agent.main import Hardware, ca_file, hardware, read_credentials, site_key

DEADLINE_S = 10


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at; `unsure` is a warning that fails nothing."""

    what: str
    well: bool
    text: str
    unsure: bool = False

    @property
    def word(self) -> str:
        if self.unsure:
            return "unsure"
        return "ok" if self.well else "WRONG"


async def check(path: Path, *, as_json: bool) -> int:
    """0 all well, 1 something is wrong, 2 the configuration itself is."""
    try:
        config = load(path)
        found = hardware(config)
    except ConfigError as error:
        return complain(str(error), 2)
    findings = [
        Finding("configuration", True, f"station {config.station}, {path}"),
        *(Finding(d.what, d.well, d.text, unsure=d.well) for d in profile_doubts(config)),
        _check_folder(config),
        *_check_site(config),
        *await _check_devices(config, found),
        *_check_links(config),
        *await _check_uplink(config),
        *await _check_ocpp(config),
    ]
    if as_json:
        print_json(findings)
    else:
        print_lines([f"{each.word:<6} {each.what}: {each.text}" for each in findings])
    return 0 if all(finding.well for finding in findings) else 1


def _check_folder(config: Config) -> Finding:
    folder = config.path(config.journal.folder)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"{there} cannot be written by this user; change its owner, or journal.folder"
        return Finding("journal", False, text)
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize // (1024 * 1024)
    wanted = 2 * config.journal.telemetry_mib
    text = f"{folder}, {free} MiB free"
    if free < wanted:
        return Finding("journal", False, f"{text}; {wanted} MiB are wanted, free some")
    return Finding("journal", True, text)


def _check_site(config: Config) -> list[Finding]:
    """The secret of a site with several controllers, and how its shares add up."""
    site = config.site
    if site is None or site.role == "alone":
        return []
    try:
        site_key(config.path(site.key))
    except ConfigError as error:
        return [Finding("site", False, str(error))]
    if site.role == "follower":
        text = f"follows {site.leader}; alone it takes {site.share_ma} mA"
        return [Finding("site", True, text)]
    shares = [site.share_ma or 0, *(member.share_ma for member in site.members)]
    terms = " + ".join(map(str, shares))
    text = f"leads {len(site.members)} on {site.listen}; safe shares {terms} = {sum(shares)}"
    return [Finding("site", True, f"{text} of {min(site.lines)} mA")]


def _check_links(config: Config) -> list[Finding]:
    """Whether the agent may choose among its links to the network; one that is off is no fault."""
    links = [one.interface for one in config.uplink.links] if config.uplink is not None else []
    if len(links) < 2:  # then the system chooses
        return []
    found = [Finding("links", True, text, unsure=True) for text in doubts(links)]
    dead = [link for link in links if not carries(link)]
    if dead:
        text = f"{', '.join(dead)}: no such interface, or no carrier now"
        found.append(Finding("links", True, text, unsure=True))
    return found or [Finding("links", True, f"{', '.join(links)}, the preferred one first")]


async def _check_devices(config: Config, found: Hardware) -> list[Finding]:
    """Devices on the line, unless a running agent owns it: then as that agent sees them."""
    try:
        folder = config.path(config.journal.folder)
        answer = await control.ask(folder, Request(do="status"))
    except NotRunningError:
        named: list[tuple[str, PowerBoard | Meter]] = []
        named += [(f"board {line.name}", line.board) for line in found.lines]
        named += [
            (f"meter of board {line.name}", line.board.meter)
            for line in found.lines
            if isinstance(line.board, MeteredBoard)
        ]
        named += [("site meter", found.meter)] if found.meter else []
        return [await _check_device(name, device) for name, device in named]
    ill = {evse["evse"] for evse in answer["evses"] if evse["status"] == "Faulted"}
    return [
        Finding(
            f"board {line.name}",
            not ill & set(line.numbers.values()),
            f"{answer['status']['boards'].get(line.name, '')} (the running agent says)",
        )
        for line in found.lines
    ]


async def _check_device(name: str, device: PowerBoard | Meter) -> Finding:
    try:
        async with asyncio.timeout(DEADLINE_S):
            await device.open()
        return Finding(name, True, device.identity)
    except (BoardRefusedError, BoardUnreachableError) as error:
        return Finding(name, False, str(error))
    except TimeoutError:
        text = f"no answer within {DEADLINE_S} s; check cabling, address and line settings"
        return Finding(name, False, text)
    finally:
        await device.close()


async def _check_uplink(config: Config) -> list[Finding]:
    """Whether the broker's port can be reached; nothing is said to it."""
    if config.uplink is None:
        return [Finding("uplink", True, "not configured; the agent works alone")]
    if not config.mqtt_carries:
        return [Finding("uplink", True, "not used; everything goes to the OCPP backend")]
    try:
        known = read_credentials(config.path(config.uplink.credentials))
    except ConfigError as error:
        return [Finding("uplink", False, str(error))]
    authority = ca_file(config, config.uplink)
    if authority is not None and not authority.exists():
        return [
            Finding("uplink", False, f"{authority} does not exist; claim again, or set uplink.ca")
        ]
    return [await _reach("uplink", config.uplink.url or known.mqtt_url, 8883)]


async def _check_ocpp(config: Config) -> list[Finding]:
    """The files, and whether the backend's port can be reached; nothing is said to it."""
    if config.ocpp is None:
        return []
    from edge_agent.uplink.ocpp.assembly import settings_of
    from edge_agent.uplink.ocpp.websocket import tls_context

    try:
        settings = settings_of(config, config.ocpp)
        tls_context(settings)
    except ConfigError as error:
        return [Finding("OCPP backend", False, str(error))]
    except OSError as error:
        text = f"certificate files do not read ({error}); check uplink.ocpp.ca, certificate, key"
        return [Finding("OCPP backend", False, text)]
    return [await _reach("OCPP backend", settings.url, 443 if settings.url[2] == "s" else 80)]


async def _reach(what: str, url: str, usual: int) -> Finding:
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or usual
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        text = f"{host}:{port} cannot be reached ({why}); check network, address, firewall"
        return Finding(what, False, text)
    return Finding(what, True, f"{host}:{port} can be reached")
