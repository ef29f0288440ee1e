"""Puts an agent together from its configuration, and runs it until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import msgspec

from edge_agent import station_key
from edge_agent.agent import Agent, Inbox, Uplink
from edge_agent.clock import Clock
from edge_agent.config import (
    AuthorizationPart,
    BoardPart,
    Config,
    ConfigError,
    Device,
    SitePart,
    UpdatesPart,
    UplinkPart,
)
from edge_agent.control import Control
from edge_agent.desk import Desk
from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, Failsafe, Meter
from edge_agent.hardware.metered_board import MeteredBoard, board_itself
from edge_agent.hardware.modbus_board import ModbusBoard, ModbusMeter
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import PortPool
from edge_agent.hardware.registry import (
    BoardConfig,
    UnknownProfileError,
    beside,
    open_board,
    open_meter,
)
from edge_agent.hardware.serial_board import SerialBoard
from edge_agent.joining import Credentials
from edge_agent.journal import Journal, JournalBudget, JournalError
from edge_agent.ledger import Ledger
from edge_agent.local_page import LocalPage
from edge_agent.logtail import log_kept
from edge_agent.loop import Line, Loop, LoopSettings
from edge_agent.registers import RegisterDump, dump, dump_board
from edge_agent.remote import RemoteSettings
from edge_agent.renewing import Renewing
from edge_agent.rules.actions import ConnectorSettings
from edge_agent.rules.authorization import Authorizer, OfflinePolicy
from edge_agent.rules.clock import ClockRules
from edge_agent.rules.connector import Connector
from edge_agent.rules.leases import Follower, Leader, LeaseRules
from edge_agent.rules.phases import everywhere
from edge_agent.rules.reserve import REACTION_MS
from edge_agent.rules.site import SiteRules
from edge_agent.rules.station import RefusedError, Station, StationSettings, Wiring
from edge_agent.rules.surplus import SurplusRules
from edge_agent.rules.traffic import Level, TrafficRules
from edge_agent.site_link import FollowerLink, LeaderLink, SiteLink
from edge_agent.traffic import TrafficKeeper
from edge_agent.uplink.mqtt import MqttSettings, MqttUplink
from edge_agent.uplink.session import SessionSettings
from edge_agent.uplink.share import Share
from edge_agent.writing import through_agent
from protocols.modbus.document import ProfileError
from protocols.quantities import MilliAmperes, WattHours
from protocols.site_link import MIN_KEY_BYTES

if TYPE_CHECKING:
    from edge_agent.updates.installing import Installer
    from edge_agent.updates.service import Place

log = logging.getLogger(__name__)
SURELY_PAST_MS: Final = 1_735_689_600_000
"""2025-01-01: a clock that shows less was never set."""
KNOWN_SESSIONS: Final = 500
SESSIONS_SHOWN: Final = 20
IN_USE: Final = "the journal is in use"
"""What a JournalError says of a folder that another agent holds."""
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hardware:
    """The boards and the meter of a configuration, not yet connected."""

    lines: tuple[Line, ...]
    meter: Meter | None


def version() -> str:
    """The installed distribution's version; a source tree has none."""
    try:
        return importlib.metadata.version("karvon")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def hardware(config: Config) -> Hardware:
    """Find every profile. Raises ConfigError with the board's name."""
    ports = PortPool()
    lines = tuple(_line(part, ports, config) for part in config.boards)
    meter = None
    if config.site is not None and config.site.meter is not None:
        try:
            meter = open_meter(_device_config(config.site.meter), ports)
        except (UnknownProfileError, ProfileError, ValueError) as error:
            raise ConfigError(f"site.meter: {error}") from error
    return Hardware(lines, meter)


def _line(part: BoardPart, ports: PortPool, config: Config) -> Line:
    try:
        board = open_board(_board_config(part), ports)
        if part.meter is not None:
            board = beside(
                board,
                _device_config(part.meter),
                ports,
                patience_s=config.times.deadline_s / 2,
                stale_after_s=part.meter_stale_after_s,
            )
    except (UnknownProfileError, ProfileError, ValueError) as error:
        raise ConfigError(f"board '{part.name}': {error}") from error
    mine = (info.evse for info in board.evses)
    return Line(part.name, board, dict(zip(mine, part.evses, strict=True)))


def _board_config(part: BoardPart) -> BoardConfig:
    return BoardConfig(
        profile=part.profile,
        link=part.link,
        kind=part.kind,
        evses=len(part.evses),
        options=part.options,
    )


def _device_config(part: Device) -> BoardConfig:
    return BoardConfig(profile=part.profile, link=part.link, options=part.options)


def open_journal(config: Config, clock: Clock) -> Journal:
    """Raises JournalError."""
    journal = Journal.open(
        config.path(config.journal.folder),
        station=config.station,
        boot=clock.rules.boot,
        budget=JournalBudget(telemetry_bytes=config.journal.telemetry_mib * MIB),
    )
    for report in journal.reports:
        log.error("journal: %s", report)
    return journal


def policy(part: AuthorizationPart) -> OfflinePolicy:
    cap = None if part.unknown_cap_ma is None else MilliAmperes(part.unknown_cap_ma)
    energy = None if part.unknown_energy_wh is None else WattHours(part.unknown_energy_wh)
    return OfflinePolicy(
        allow_unknown=part.unknown == "allow", unknown_cap=cap, unknown_energy=energy
    )


def _station(config: Config, lines: tuple[Line, ...], journal: Journal) -> Station:
    registers = journal.registers()
    connectors = {}
    for line in lines:
        for info in line.board.evses:
            number = line.numbers[info.evse]
            connectors[number] = Connector(
                replace(info, evse=number),
                _connector_settings(config),
                uuid4,
                register=registers.get(number),
                margin=config.metering.margin,
            )
    authorizer = Authorizer(journal.local_list(), policy(config.authorization))
    return Station(connectors, _station_settings(config), authorizer)


def _connector_settings(config: Config) -> ConnectorSettings:
    times = config.times
    return ConnectorSettings(
        connection_timeout_ms=times.connection_timeout_s * 1000,
        fault_grace_ms=times.fault_grace_s * 1000,
        checkpoint_ms=times.checkpoint_s * 1000,
        checkpoint_wh=times.checkpoint_wh,
        event_ms=times.event_s * 1000,
        lock_after=config.faults.lock_after,
        lock_within_ms=config.faults.lock_within_s * 1000,
        confirm_codes=frozenset(config.faults.confirm_codes),
    )


def _site_rules(part: SitePart) -> SiteRules:
    sun = part.surplus
    return SiteRules(
        limit=part.lines,
        metered=part.meter is not None,
        safe_share=part.safe_share_ma,
        stale_after_ms=round(part.stale_after_s * 1000),
        unbalance=part.unbalance_ma,
        turn_ms=part.turn_min * 60_000,
        surplus=SurplusRules(
            start_margin_w=sun.start_margin_w,
            import_w=sun.import_w,
            start_after_ms=sun.start_after_s * 1000,
            stop_after_ms=sun.stop_after_s * 1000,
            min_on_ms=sun.min_on_s * 1000,
            min_off_ms=sun.min_off_s * 1000,
        ),
    )


def _station_settings(config: Config) -> StationSettings:
    cables = {
        number: MilliAmperes(board.cable_ma)
        for board in config.boards
        for number in board.evses
        if board.cable_ma is not None
    }
    wiring = {
        number: Wiring(
            rotation=board.phase_rotation, priority=board.priority, surplus=board.surplus
        )
        for board in config.boards
        for number in board.evses
    }
    return StationSettings(
        site=_site_rules(config.site) if config.site is not None else None,
        failsafe=MilliAmperes(config.failsafe.current_ma),
        failsafe_ms=config.failsafe.timeout_s * 1000,
        cables=cables,
        wiring=wiring,
        hold_ms=config.times.raise_after_s * 1000,
    )


def _loop_settings(config: Config) -> LoopSettings:
    return LoopSettings(
        poll_s=config.times.poll_s,
        deadline_s=config.times.deadline_s,
        lost_after_s=config.times.lost_after_s,
        failsafe=Failsafe(
            timeout_s=config.failsafe.timeout_s,
            fallback=MilliAmperes(config.failsafe.current_ma),
        ),
    )


def _traffic_rules(config: Config) -> TrafficRules:
    part = config.uplink
    if part is None:
        return TrafficRules()
    monthly = None if part.monthly_mib is None else part.monthly_mib * MIB
    order = tuple(one.interface for one in part.links)
    return TrafficRules(order=order, metered=config.metered, monthly=monthly)


def _thinning(agent: Agent) -> Callable[[Level], None]:
    """Fewer samples are recorded, and they leave less often."""

    def apply(level: Level) -> None:
        agent.loop.ledger.spacing_ms = level.spacing_ms
        for uplink in (agent.uplink, agent.ocpp):
            if uplink is not None:
                uplink.thin(level.times)

    return apply


def lease_rules(config: Config, part: SitePart) -> LeaseRules:
    """How long a dead agent's vehicles go on: the boards' failsafe, a request, the reaction."""
    dead_s = config.failsafe.timeout_s + config.times.deadline_s + 2 * config.times.poll_s
    return LeaseRules(
        valid_ms=round(part.lease_s * 1000), dead_ms=round(dead_s * 1000) + REACTION_MS
    )


def site_key(path: Path) -> bytes:
    """The site's secret. Raises ConfigError."""
    make = f"make one with: head -c 32 /dev/urandom | base64 > {path.name}; chmod 600 {path.name}"
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"site.key: {path}: {error.strerror}; {make}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"site.key: {path} has less than {MIN_KEY_BYTES} characters; {make}")
    if mode & 0o077:
        raise ConfigError(f"site.key: {path} can be read by others; do: chmod 600 {path}")
    return key


def neighbours(config: Config, station: Station, clock: Clock) -> SiteLink | None:
    """What links this controller with others behind its fuse. Raises ConfigError."""
    part = config.site
    if part is None or part.role == "alone":
        return None
    rules, key = lease_rules(config, part), site_key(config.path(part.key))
    share, now_ms = everywhere(part.share_ma or 0), clock.now().mono_ms
    if part.role == "leader":
        leader = Leader(
            config.station,
            clock.rules.boot,
            {member.station: everywhere(member.share_ma) for member in part.members},
            share,
            rules,
            now_ms,
            turn_ms=part.turn_min * 60_000,
            floor=station.floor(),
        )
        station.site.neighbours = leader
        return LeaderLink(leader, station, clock, key, _address(part.listen))
    follower = Follower(
        config.station, clock.rules.boot, share, rules, now_ms, floor=station.floor()
    )
    station.site.neighbours = follower
    every_s = min(1.0, part.lease_s / 4)
    return FollowerLink(follower, station, clock, key, _address(part.leader or ""), every_s)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def build(config: Config, found: Hardware, journal: Journal, clock: Clock) -> Agent:
    """All parts of an agent, put together and told what the journal knows."""
    station = _station(config, found.lines, journal)
    loop = Loop(found.lines, station, Ledger(journal), clock, _loop_settings(config))
    loop.recover()

    def ended_here() -> frozenset[Any]:
        known = journal.sessions(KNOWN_SESSIONS)
        return frozenset(session.transaction for session in known if session.ended)

    return Agent(
        loop=loop,
        desk=Desk(loop, ended_here=ended_here),
        journal=journal,
        inbox=Inbox(),
        version=version(),
        on_journal_error=config.journal.on_error,
        meter=found.meter,
        site_link=neighbours(config, station, clock),
        traffic=TrafficKeeper(_traffic_rules(config), journal.folder, clock),
    )


SITE_METER: Final = "site meter"


async def registers_of(found: Hardware, device: str = "") -> list[RegisterDump]:
    """Every register of the named device, or of all, read now. Raises RefusedError."""
    named = devices_of(found)
    if device and device not in named:
        have = ", ".join(named) or "no device with registers"
        raise RefusedError(f"there is no device '{device}' here; this controller has {have}")
    dumps: list[RegisterDump] = []
    for name, each in named.items():
        if device in {"", name}:
            dumps += await (
                dump_board(name, each) if isinstance(each, SerialBoard) else dump(name, each)
            )
    return dumps


def devices_of(found: Hardware) -> dict[str, ModbusDevice | SerialBoard]:
    """What has registers, by its name in the configuration."""
    named: dict[str, ModbusDevice | SerialBoard] = {}
    for line in found.lines:
        itself = board_itself(line.board)
        if isinstance(itself, ModbusBoard):
            named[line.name] = itself.device
        elif isinstance(itself, SerialBoard):
            named[line.name] = itself
        if isinstance(line.board, MeteredBoard) and isinstance(line.board.meter, ModbusMeter):
            named[f"{line.name} meter"] = line.board.meter.device
    if isinstance(found.meter, ModbusMeter):
        named[SITE_METER] = found.meter.device
    return named


async def run(config: Config, file: Path | None = None) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises ConfigError, JournalError.

    `file` is the configuration's, which a new version must be able to read, too. With other
    settings from afar the agent begins anew in this process.
    """
    while await _run_with(RemoteSettings(config, config.path(config.journal.folder)), file):
        log.warning("other settings from afar: beginning anew")


async def _run_with(remote: RemoteSettings, file: Path | None) -> bool:
    """Whether it is to begin anew."""
    config = remote.effective
    clock = Clock(ClockRules(uuid4(), SURELY_PAST_MS))
    clock.observe()
    found = hardware(config)
    with (
        contextlib.closing(await _journal_or_safe(config, found, clock)) as journal,
        log_kept() as tail,
    ):
        agent = build(config, found, journal, clock)
        control = Control(
            status=agent.status,
            present=agent.desk.present,
            read=lambda device: registers_of(found, device),
            watch=agent.watch,
            recover=agent.desk.recover,
            update=agent.update_from,
            abort=agent.abort_update,
            retry=agent.retry_refused,
            log=tail.lines,
            write=lambda asked: through_agent(
                agent.loop,
                config,
                board=asked.device,
                field=asked.field,
                value=asked.value,
                evse=asked.evse,
                dry=asked.dry,
            ),
        )
        async with control.kept(journal.folder), _local_page(config, found, agent):
            connect(config, agent)
            take_updates(config, agent, file)
            agent.remote, agent.desk.configure = remote, remote.take
            await _until_told(agent)
    return remote.reloads


def _local_page(
    config: Config, found: Hardware, agent: Agent
) -> contextlib.AbstractAsyncContextManager[None]:
    """Serves it where it is configured."""
    part = config.local_page
    if part is None:
        return contextlib.nullcontext()
    return LocalPage(
        part.address,
        part.port,
        status=agent.status,
        sessions=lambda: agent.journal.sessions(SESSIONS_SHOWN),
        read=lambda device: registers_of(found, device),
        devices=list(devices_of(found)),
    ).kept()


async def _journal_or_safe(config: Config, found: Hardware, clock: Clock) -> Journal:
    """Without a journal nothing may charge, unless another agent runs and has it."""
    try:
        return open_journal(config, clock)
    except JournalError as error:
        if error.what != IN_USE:
            await withhold_all(found.lines, config.times.deadline_s)
        raise


async def withhold_all(lines: Sequence[Line], deadline_s: float) -> None:
    """Stop every EVSE that answers; the boards' own failsafe is left for those that do not."""
    for line in lines:
        try:
            async with asyncio.timeout(deadline_s):
                await line.board.open()
                for evse in line.numbers:
                    await line.board.withhold(evse)
                await line.board.close()
        except (BoardUnreachableError, BoardRefusedError, TimeoutError) as error:
            log.warning("board %s was not stopped: %s", line.name, error)


def connect(config: Config, agent: Agent) -> None:
    """Give the agent its uplinks. Raises ConfigError, JournalError."""
    agent.uplink = _uplink(config, agent)
    if agent.uplink is not None:
        agent.desk.watch = agent.uplink.watch
    if config.uplink is not None:
        credentials = config.path(config.uplink.credentials)
        agent.renewing = Renewing(credentials, agent.loop.clock)
    if config.ocpp is not None:
        from edge_agent.uplink.ocpp import assembly  # its schemas cost memory where unused

        agent.ocpp = assembly.build(config, config.ocpp, agent)
        agent.loop.ledger.keeps_samples = "telemetry" in config.mqtt_carries
    if agent.traffic is not None:
        agent.traffic.apply = _thinning(agent)
    wakes = [one.wake for one in (agent.uplink, agent.ocpp) if one is not None]

    def wake() -> None:
        for each in wakes:
            each()

    agent.loop.wake = wake


def take_updates(config: Config, agent: Agent, file: Path | None) -> None:
    """Let the agent install new versions, where that is configured and it runs from a slot."""
    root = os.environ.get("KARVON_ROOT")
    if config.updates is None or not root:
        return
    from edge_agent.updates.service import Updates

    slot = os.environ.get("KARVON_SLOT", "")
    place = update_place(config, config.updates, Path(root), slot, file)
    try:
        updates = Updates(
            place,
            agent.loop,
            restart=agent.restart,
            cloud=agent.reached,
            stuck=agent.stuck,
            installers=_installers(config, agent.loop, place),
        )
    except JournalError as error:
        log.error("no updates: %s", error)  # noqa: TRY400  # charging goes on all the same
        agent.no_updates = f"updates: {error}"
        return
    boards = [one for part in config.boards if part.firmware for one in part.firmware.hw_ids]
    agent.hardware = tuple(dict.fromkeys((place.hardware, *boards)))
    agent.updates = updates
    agent.desk.update = updates.asked


def _installers(config: Config, loop: Loop, place: Place) -> list[Installer]:
    """What takes releases beside the agent itself."""
    if not any(part.firmware for part in config.boards):
        return []
    from edge_agent.updates.boards import BoardInstaller

    parts, root, state = config.boards, place.root, place.state
    return [BoardInstaller(loop, parts, root=root, state=state, slot=place.slot)]


def update_place(
    config: Config, part: UpdatesPart, root: Path, slot: str, file: Path | None
) -> Place:
    """Where updates live, and what fits here."""
    from edge_agent.updates.service import Place

    return Place(
        root=root,
        state=config.path(part.folder),
        slot=slot,
        images_root=config.path(part.images_root),
        director_root=config.path(part.director_root) if part.director_root else None,
        station=config.station,
        hardware=part.hardware or hardware_id(),
        version=version(),
        url=part.url or "",
        ca=config.path(part.ca) if part.ca else None,
        rate=None if part.rate_kib is None else part.rate_kib * 1024,
        check_every_s=part.check_every_h * 3600,
        hold_free=part.hold_free_evses,
        selftest=selftest_of(file),
    )


def selftest_of(file: Path | None) -> tuple[str, ...]:
    """What a new version is asked before it may start."""
    return ("agent", "selftest", *(() if file is None else ("--config", str(file.absolute()))))


def hardware_id() -> str:
    """What releases call a controller like this one."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{platform.system().lower()}-{platform.machine()}-{python}"


def _uplink(config: Config, agent: Agent) -> Uplink | None:
    """The way to the cloud, where one is configured. Raises ConfigError."""
    if config.uplink is None or not config.mqtt_carries:
        return None
    settings = mqtt_settings(config, config.uplink)
    session = SessionSettings(
        station=config.station,
        agent_version=agent.version,
        evses=agent.evses,
        telemetry_ms=round(config.uplink.telemetry_every_s * 1000),
    )
    share = Share(agent.journal, config.mqtt_carries)
    return MqttUplink(settings, session, agent.journal, agent.inbox, agent.loop.clock, outbox=share)


def mqtt_settings(config: Config, part: UplinkPart) -> MqttSettings:
    """Where the broker is, and what proves who we are. Raises ConfigError."""
    known = read_credentials(config.path(part.credentials))
    url = part.url or known.mqtt_url
    if not url:
        raise ConfigError("uplink.url: neither the configuration nor the credentials name a broker")
    try:
        settings = MqttSettings.at(
            url,
            password=known.password,
            ca_file=ca_file(config, part),
            longest_retry_s=part.longest_retry_s,
        )
    except ValueError as error:
        raise ConfigError(f"uplink.url: {error}") from error
    own = config.path(part.credentials).with_name(station_key.NAME)
    return replace(settings, certificate_file=own) if own.exists() else settings


def ca_file(config: Config, part: UplinkPart) -> Path | None:
    """The authority's file: as configured, or `ca.pem` beside the credentials, or the system's."""
    if part.ca is not None:
        return config.path(part.ca)
    beside = config.path(part.credentials).with_name("ca.pem")
    return beside if beside.exists() else None


async def _until_told(agent: Agent) -> None:
    running = asyncio.create_task(agent.run())
    agent.end = running.cancel
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


def read_credentials(path: Path) -> Credentials:
    """Raises ConfigError when there are none to read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credentials)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path}: no usable credentials ({error}); get them with `karvon agent claim`"
        ) from error
