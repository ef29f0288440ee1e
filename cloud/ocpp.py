"""The OCPP gateway of a process: wired over the modules that answer it, and run."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, ParamSpec

from prometheus_client import CollectorRegistry

from cloud.authorization.judging import TokensAtHand
from cloud.communication.admission import Policy, Profile
from cloud.communication.api import KnownConnectors, StationRegister
from cloud.communication.certifying import Certifying
from cloud.communication.door import Door
from cloud.communication.frame_log import FrameLog
from cloud.communication.gateway import Gateway, Serving
from cloud.communication.ocpp_commands import OcppAnswers, OcppCommands
from cloud.communication.pki import Pki, PkiSettings
from cloud.communication.presence_writer import SpokenPresence
from cloud.communication.pump import Pump
from cloud.communication.rousing import Rousing
from cloud.communication.running_costs import RunningCosts
from cloud.communication.security import OcppSecurity
from cloud.communication.throttle import Handshakes
from cloud.communication.tls import server_context
from cloud.kernel.config import CloudConfig
from cloud.kernel.database import Database
from cloud.kernel.facts import GroupCommitter, SpokenWriter
from cloud.kernel.serving import supervised
from cloud.stations.spoken import SpokenStates
from cloud.telemetry.spoken import SpokenReadings
from cloud.telemetry.writer import TelemetryWriter

LINGER_S: Final = 0.002
"""How long a call waits for company on its way to the database."""
AT_ONCE: Final = 500
PLACES: Final = 2_000
HANDSHAKES_A_SECOND: Final = 2_000


@dataclass(frozen=True)
class Neighbours:
    """What the gateway asks other modules for."""

    register: StationRegister
    connectors: KnownConnectors
    commands: OcppCommands
    security: OcppSecurity
    writers: Sequence[SpokenWriter] = ()
    """Of modules above telemetry, in their order."""


@asynccontextmanager
async def gateway(
    config: CloudConfig,
    database: Database,
    neighbours: Neighbours,
    pki: Pki | None,
    clock: Callable[[], datetime],
    registry: CollectorRegistry,
) -> AsyncIterator[Gateway]:
    """Serve stations for as long as the block."""
    writers: list[SpokenWriter] = [
        SpokenPresence(),
        OcppAnswers(),
        SpokenStates(),
        SpokenReadings(TelemetryWriter()),
        *neighbours.writers,
    ]
    judge = TokensAtHand(database)
    pump = Pump(neighbours.commands, clock)
    rousing = Rousing(database, neighbours.connectors, config.ocpp_boot_wait_s)
    costs = RunningCosts(config.ocpp_cost_every_s)
    context = None if pki is None else server_context(pki.tls)
    certifying = Certifying(neighbours.security, PkiSettings.of(config), context, clock)
    async with AsyncExitStack() as stack:
        committer = GroupCommitter(
            database, [], writers, linger_s=LINGER_S, max_deliveries=AT_ONCE, workers=2
        )
        sink = await stack.enter_async_context(committer)
        served = Gateway(
            database,
            sink,
            judge,
            _door(config, database, neighbours.register, clock),
            FrameLog(database, clock, timedelta(days=config.ocpp_frame_days), registry),
            _serving(config, context),
            clock,
            registry,
            _each(pump.replied, rousing.replied, costs.replied),
            _each(pump.entered, rousing.entered),
            costs.priced,
            certifying.sign,
        )
        pump.connect(served)
        rousing.connect(served)
        costs.connect(served)
        certifying.connect(served)
        await stack.enter_async_context(supervised("id tokens at hand", judge.run))
        for name, work in served.works().items():
            await stack.enter_async_context(supervised(name, work))
        await stack.enter_async_context(supervised("OCPP commands", pump.run))
        await stack.enter_async_context(supervised("OCPP certificates", certifying.run))
        await stack.enter_async_context(served.listening())
        yield served


P = ParamSpec("P")


def _each(*callbacks: Callable[P, None]) -> Callable[P, None]:
    """All of them, one after the other."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        for callback in callbacks:
            callback(*args, **kwargs)

    return call


def _door(
    config: CloudConfig,
    database: Database,
    register: StationRegister,
    clock: Callable[[], datetime],
) -> Door:
    policy = Policy(
        registration=config.registration,
        least_profile=Profile(config.ocpp_least_profile),
        organization=config.ocpp_organization,
    )
    handshakes = Handshakes(PLACES, HANDSHAKES_A_SECOND)
    return Door(database, register, policy, clock, handshakes=handshakes)


def _serving(config: CloudConfig, context: ssl.SSLContext | None) -> Serving:
    return Serving(
        host=config.host,
        port=config.ocpp_port,
        tls_port=config.ocpp_tls_port,
        tls=context,
        heartbeat_s=config.ocpp_heartbeat_s,
    )
