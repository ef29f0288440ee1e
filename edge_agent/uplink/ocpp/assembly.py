"""An OCPP uplink from the agent's configuration."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import UUID

from edge_agent.agent import Agent
from edge_agent.config import Config, ConfigError, OcppPart
from edge_agent.failover import Target, link_chooser
from edge_agent.private import why_not_private
from edge_agent.rules.charging_profiles import watts
from edge_agent.rules.traffic import Level
from edge_agent.uplink.ocpp import v16, v201
from edge_agent.uplink.ocpp.charger import BOOT, AgentCharger
from edge_agent.uplink.ocpp.delivery import Delivery
from edge_agent.uplink.ocpp.device import About, DeviceModel, Variable, variables_of
from edge_agent.uplink.ocpp.station import Dialect, Station, StationSettings
from edge_agent.uplink.ocpp.websocket import OcppSettings, OcppUplink
from protocols.ocpp.sampling import iso
from protocols.ocpp.version import Version

VERSIONS = {"1.6": Version.V16, "2.0.1": Version.V201}


def settings_of(config: Config, part: OcppPart) -> OcppSettings:
    """Raises ConfigError for files that are missing or that others may read."""
    for name in (part.password, part.key):
        why = "" if name is None else why_not_private(config.path(name))
        if why:
            raise ConfigError(f"uplink.ocpp: {why}")
    for name in (part.ca, part.certificate):
        if name is not None and not config.path(name).is_file():
            raise ConfigError(f"uplink.ocpp: {config.path(name)} does not exist")
    return OcppSettings(
        url=part.url,
        version=VERSIONS[part.version],
        identity=part.identity or config.station,
        security_profile=part.profile,
        password_file=None if part.password is None else config.path(part.password),
        ca_file=None if part.ca is None else config.path(part.ca),
        certificate_file=None if part.certificate is None else config.path(part.certificate),
        key_file=None if part.key is None else config.path(part.key),
        ping_s=part.ping_s,
        longest_retry_s=part.longest_retry_s,
    )


def build(config: Config, part: OcppPart, agent: Agent) -> OcppUplink:
    """The uplink, wired to the agent. Raises ConfigError, JournalError."""
    settings = settings_of(config, part)
    carries = frozenset(part.carries)
    charger = AgentCharger(
        agent,
        settings.identity,
        password_file=settings.password_file,
        ca_file=settings.ca_file,
        restart=agent.restart,
    )
    device = DeviceModel(
        _variables(config, part, settings, charger), agent.journal, charger.configured
    )
    charger.device = device
    device.apply()
    numbers = agent.journal.numbers()
    delivery = Delivery(
        agent.journal,
        per_second=part.replay_per_second,
        transactions="transactions" in carries,
        others=not config.mqtt_carries,
    )
    station = Station(
        StationSettings(carries=carries, prefix=f"{agent.loop.clock.rules.boot.hex[:8]}-"),
        _dialect(part, settings.version, charger, device, numbers),
        device,
        charger,
        delivery,
        numbers,
        boot_reason=_boot_reason(agent),
    )
    address = urlsplit(settings.url)
    port = address.port or (443 if address.scheme == "wss" else 80)
    target = Target(address.hostname or "", port)
    uplink = OcppUplink(settings, station, charger, chooser=link_chooser(config, target))
    charger.authorize, charger.renewed = uplink.authorize, uplink.renewed
    charger.tell = uplink.tell
    if agent.traffic is not None:
        agent.traffic.thinners.append(
            _thinning(station, charger, transactions="transactions" in carries)
        )
    if "transactions" in carries:
        agent.desk.ask = charger.ask
        agent.desk.foreign = f"the OCPP backend {part.url}"
    return uplink


def _thinning(
    station: Station, charger: AgentCharger, *, transactions: bool
) -> Callable[[Level], None]:
    """Values come more seldom; whose transactions go another way is not thinned from here."""

    def thin(level: Level) -> None:
        station.spacing_ms = level.spacing_ms
        if transactions:
            charger.thin(level.spacing_ms)

    return thin


def _boot_reason(agent: Agent) -> str:
    """Why the process was started, as far as it is known; said once."""
    found = agent.journal.named(BOOT, tuple[str])
    if not found:
        return "PowerUp"
    agent.journal.keep(BOOT, {"reason": None})
    return found[0][0]


def _variables(
    config: Config, part: OcppPart, settings: OcppSettings, charger: AgentCharger
) -> list[Variable]:
    about = About(
        identity=settings.identity,
        vendor=part.vendor,
        model=part.model,
        security_profile=settings.security_profile,
        ping_s=round(settings.ping_s),
        message_timeout_s=StationSettings().timeout_ms // 1000,
        connection_timeout_s=config.times.connection_timeout_s,
        sample_s=config.times.event_s,
        allow_unknown=config.authorization.unknown == "allow",
        evses=[(one.evse, one.phases, watts(one.max_ma, one.phases)) for one in charger.evses()],
    )

    def state(evse: int) -> str:
        known = charger.statuses()
        if evse in known:
            return known[evse].status.value
        return "Available" if any(map(charger.operative, known)) or not known else "Unavailable"

    made = variables_of(
        about,
        time=lambda: iso(charger.when(charger.now())),
        entries=lambda: len(charger.local_list().entries),
        state=state,
    )
    return made + (v16.extra_variables(charger) if settings.version is Version.V16 else [])


def _dialect(
    part: OcppPart,
    version: Version,
    charger: AgentCharger,
    device: DeviceModel,
    numbers: dict[UUID, int],
) -> Dialect:
    if version is Version.V16:
        return v16.V16(charger, device, numbers, vendor=part.vendor, model=part.model)
    return v201.V201(charger, device, numbers, vendor=part.vendor, model=part.model)
