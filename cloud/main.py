"""The cloud's composition root: every module wired over one database and one broker."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from cloud.api import rest as api_rest
from cloud.api import watching as watching_rest
from cloud.api.app import create_app
from cloud.api.live import EventFeed
from cloud.api.watching import Sources, Watching
from cloud.authorization import rest as authorization_rest
from cloud.authorization.service import Authorization
from cloud.broker import Broker, embedded_broker, outside_broker
from cloud.communication import asks_rest, gateway_rest, ocpp_store, security_rest
from cloud.communication import rest as communication_rest
from cloud.communication import store as communication_store
from cloud.communication.answers import Answers
from cloud.communication.api import Credential, Known, Presence
from cloud.communication.calls import Calls
from cloud.communication.commands import CommandResults, Commands
from cloud.communication.credentials import Credentials
from cloud.communication.gateway import Gateway
from cloud.communication.gateway_views import GatewayViews
from cloud.communication.link import AgentLink
from cloud.communication.ocpp_commands import OcppCommands
from cloud.communication.pki import Pki, PkiSettings, key_digest
from cloud.communication.receiver import Receiver
from cloud.communication.security import OcppSecurity
from cloud.communication.transfers import Allowed
from cloud.configuration import rest as configuration_rest
from cloud.configuration import settings_rest
from cloud.configuration import store as configuration_store
from cloud.configuration.service import Configuration, ConfigurationHandover
from cloud.configuration.settings import Settings as AgentSettings
from cloud.configuration.settings import SettingsWriter
from cloud.configuration.writer import ConfigurationWriter
from cloud.diagnostics import rest as diagnostics_rest
from cloud.diagnostics import store as diagnostics_store
from cloud.diagnostics.service import Diagnostics, DiagnosticsHandover
from cloud.diagnostics.writer import DiagnosticsWriter
from cloud.kernel.config import CloudConfig
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.embedded import ChildEvent, EmbeddedPostgres
from cloud.kernel.facts import FactWriter, GroupCommitter, SpokenWriter
from cloud.kernel.handover import Follower
from cloud.kernel.http import Caller
from cloud.kernel.migrate import migrate
from cloud.kernel.observability import Check, health_routes
from cloud.kernel.serving import apart, http, http_url, listening, supervised
from cloud.ocpp import Neighbours, gateway
from cloud.ota import campaigns as ota_campaigns
from cloud.ota import campaigns_rest, serving
from cloud.ota import rest as releases_rest
from cloud.ota.api import Order
from cloud.ota.bucket import Bucket, StoreKey
from cloud.ota.campaigns import Campaigns, UpdateHandover
from cloud.ota.director import Director
from cloud.ota.planner import Surroundings
from cloud.ota.releases import Keys, Releases
from cloud.ota.serving import Served
from cloud.ota.signing import OnlineKey
from cloud.ota.storage import Files
from cloud.ota.writer import UpdateWriter
from cloud.stations import rest as stations_rest
from cloud.stations.registration import Policy
from cloud.stations.service import Settings, Stations
from cloud.stations.tenancy import Tenancy
from cloud.stations.views import StationView
from cloud.stations.writer import StateWriter
from cloud.tariffs import rest as tariffs_rest
from cloud.tariffs.service import TariffHandover, Tariffs
from cloud.telemetry import rest as telemetry_rest
from cloud.telemetry.rest import BucketView
from cloud.telemetry.service import Span, Telemetry, TelemetryHandover
from cloud.telemetry.tiers.keeper import Keep
from cloud.telemetry.writer import TelemetryWriter
from cloud.transactions import rest as transactions_rest
from cloud.transactions.service import Transactions
from cloud.transactions.sweeper import TransactionSweeper
from cloud.transactions.writer import TransactionWriter
from cloud.transactions.zombies import Patience
from cloud.users import rest as users_rest
from cloud.users.service import DEFAULT_TENANT, Users
from protocols.agent_link import Action, SetLocalList, Watch, up_filter

logger = logging.getLogger(__name__)
BROKER_DEADLINE_S = 15.0
MOST_LIVE = 2000
"""Samples that one look of a live view takes in."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class CommandLink:
    """The way to stations, for a process that need not be connected itself."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def online(self, cursor: Cursor, tenant: TenantId) -> list[int]:
        return await communication_store.online(cursor, tenant)

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID:
        return await self._commands.send(cursor, tenant, station_id, action, valid_for, actor)


class Link(CommandLink):
    """The agent link as the modules above communication ask for it."""

    def __init__(
        self, commands: Commands, credentials: Credentials, security: OcppSecurity
    ) -> None:
        super().__init__(commands)
        self._credentials = credentials
        self._security = security

    async def presence(self, cursor: Cursor, stations: Collection[int]) -> dict[int, Presence]:
        return await communication_store.presence(cursor, stations)

    async def issue(
        self, cursor: Cursor, tenant: TenantId, station_id: int, identity: str
    ) -> Credential:
        return await self._credentials.issue(cursor, tenant, station_id, identity)

    async def forget(self, cursor: Cursor, station_id: int) -> None:
        await communication_store.forget_station(cursor, station_id)
        await configuration_store.forget_station(cursor, station_id)
        await diagnostics_store.forget_station(cursor, station_id)
        await ota_campaigns.forget_station(cursor, station_id, utc_now())

    async def owner(self, cursor: Cursor, username: str, password: str) -> Known | None:
        return await self._credentials.owner(cursor, username, password)

    def key_digest(self, csr: str, identity: str) -> bytes:
        return key_digest(csr, identity)

    async def certificate(
        self, tenant: TenantId, station_id: int, identity: str, csr: str
    ) -> str | None:
        made = await self._security.sign_joining(Known(station_id, tenant), identity, csr)
        return None if made is None else made.row.pem

    async def publish_credentials(self) -> None:
        await self._credentials.publish()


class Directory:
    """Communication's questions about stations, answered by the module made after it."""

    stations: Stations

    async def resolve(self, cursor: Cursor, identity: str, *, hold: bool = False) -> Known | None:
        return await self.stations.resolve(cursor, identity, hold=hold)

    async def identities(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        return await self.stations.identities(cursor, stations)

    async def key_of(self, cursor: Cursor, identity: str) -> int:
        return await self.stations.key_of(cursor, identity)


class Lists:
    """Communication's question for local lists, answered by the module made after it."""

    authorization: Authorization

    async def local_list(self, cursor: Cursor, tenant: TenantId) -> SetLocalList:
        return await self.authorization.local_list(cursor, tenant)


def tenancy(database: Database) -> Tenancy:
    """Moving stations between tenants; works beside a running cloud, which delivers the lists."""
    lists = Lists()
    commands = Commands(database, Directory(), lists, utc_now)
    lists.authorization = Authorization(database, CommandLink(commands), utc_now)
    followers: list[Follower] = [
        commands,
        TelemetryHandover(),
        ConfigurationHandover(),
        DiagnosticsHandover(),
        TariffHandover(utc_now),
        UpdateHandover(utc_now),
        lists.authorization,
    ]
    return Tenancy(database, followers, utc_now)


@dataclass(frozen=True)
class Modules:
    """Every module's service over one database."""

    users: Users
    stations: Stations
    authorization: Authorization
    tariffs: Tariffs
    telemetry: Telemetry
    transactions: Transactions
    commands: Commands
    credentials: Credentials
    security: OcppSecurity
    gateway_views: GatewayViews
    ocpp_commands: OcppCommands
    answers: Answers
    calls: Calls
    configuration: Configuration
    settings: AgentSettings
    diagnostics: Diagnostics

    @classmethod
    def over(cls, database: Database, broker: Broker, config: CloudConfig, pki: Pki | None) -> Self:
        directory, lists = Directory(), Lists()
        commands = Commands(database, directory, lists, utc_now)
        credentials = Credentials(database, broker.accounts, utc_now)
        authority = None if pki is None else pki.authority
        security = OcppSecurity(database, directory, authority, utc_now)
        link = Link(commands, credentials, security)
        settings = Settings(Policy(config.registration), broker.endpoint, DEFAULT_TENANT)
        stations = Stations(database, link, settings, utc_now)
        directory.stations = stations
        lists.authorization = authorization = Authorization(database, link, utc_now)
        transactions = Transactions(database, stations, authorization, link)
        answers, allowed = Answers(database), Allowed(config.transfer_hosts)
        return cls(
            users=Users(database, utc_now),
            stations=stations,
            authorization=authorization,
            tariffs=Tariffs(database, stations, utc_now),
            telemetry=Telemetry(database, stations),
            transactions=transactions,
            commands=commands,
            credentials=credentials,
            security=security,
            gateway_views=GatewayViews(database, directory),
            ocpp_commands=OcppCommands(database, authorization, transactions, utc_now),
            answers=answers,
            calls=Calls(database, directory, lists, answers, utc_now, allowed),
            configuration=Configuration(database, stations, utc_now),
            settings=AgentSettings(database, stations, commands.send, utc_now),
            diagnostics=Diagnostics(database, stations, utc_now),
        )

    def of_gateway(self) -> Neighbours:
        """What the OCPP gateway asks of them."""
        writers: list[SpokenWriter] = [
            ConfigurationWriter(),
            DiagnosticsWriter(ocpp_store.expected_versions),
            TransactionWriter(ocpp_store.started_by),
            UpdateWriter(),
        ]
        return Neighbours(self.stations, self.stations, self.ocpp_commands, self.security, writers)

    def routers(self, database: Database, feed: EventFeed, watching: Watching) -> list[APIRouter]:
        """All of REST over these modules."""
        return [
            users_rest.router(self.users),
            stations_rest.router(self.stations, utc_now),
            authorization_rest.router(self.authorization),
            tariffs_rest.router(self.tariffs),
            telemetry_rest.router(self.telemetry, utc_now),
            transactions_rest.router(self.transactions),
            communication_rest.routes(self.commands),
            security_rest.routes(self.security),
            gateway_rest.routes(self.gateway_views),
            asks_rest.router(self.calls),
            configuration_rest.router(self.configuration),
            settings_rest.router(self.settings),
            diagnostics_rest.router(self.diagnostics),
            api_rest.router(database, self.stations, feed),
            watching_rest.router(watching),
        ]


class UpdateLink:
    """The way to stations, as campaigns ask for it."""

    async def links(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        present = await communication_store.presence(cursor, stations)
        return {station: one.link for station, one in present.items()}

    async def order(
        self, cursor: Cursor, tenant: TenantId, orders: Sequence[Order], actor: str
    ) -> None:
        given = [(one.id, one.station_id, one.do, one.until) for one in orders]
        await communication_store.add_commands(cursor, tenant, given, actor, utc_now())


@dataclass(frozen=True)
class Updates:
    """Releases and campaigns, for a process that serves REST: it alone needs the online keys."""

    releases: Releases
    campaigns: Campaigns
    served: Served

    @classmethod
    def over(cls, database: Database, stations: Stations, config: CloudConfig, url: str) -> Self:
        """Raises OSError and ValueError for keys that cannot be read."""
        home = config.ota_folder or config.data_dir / "ota"
        keys = Keys(
            OnlineKey.kept(config.ota_online_key_file or home / "online.pem"),
            OnlineKey.kept(config.ota_director_key_file or home / "director.pem"),
        )
        files = Files(home, _bucket(config))
        releases = Releases(database, files, keys, utc_now)
        around = Surroundings(UpdateLink(), f"{config.ota_url or url}/ota/files")
        campaigns = Campaigns(database, stations, around, utc_now)
        director = Director(database, stations, releases, keys.director, utc_now)
        return cls(releases, campaigns, Served(releases, director, campaigns, files, utc_now))

    def routers(self) -> list[APIRouter]:
        return [
            releases_rest.router(self.releases),
            campaigns_rest.router(self.campaigns),
            serving.router(self.served),
        ]


def live_sources(modules: Modules) -> Sources:
    """What the live view needs, of the modules that have it."""

    async def look(caller: Caller, identity: str) -> dict[str, Any]:
        found = await modules.stations.detail(caller, identity)
        return StationView.of(found, utc_now()).model_dump(mode="json")

    async def samples(
        caller: Caller, identity: str, start: datetime, end: datetime
    ) -> list[dict[str, Any]]:
        second = start.replace(microsecond=0)
        span = Span(second, end, timedelta(seconds=1), None)
        read = await modules.telemetry.read(caller, identity, span, None, MOST_LIVE)
        return [BucketView.of(bucket).model_dump(mode="json") for bucket in read.buckets]

    async def ask(caller: Caller, identity: str, watch: Watch) -> UUID:
        return await modules.stations.command(caller, identity, watch.evse, watch)

    async def answer(caller: Caller, command: UUID) -> tuple[str, str]:
        found = await modules.commands.get(caller, command)
        return found.row.status, found.row.result

    return Sources(look, samples, ask, answer)


@dataclass(frozen=True)
class Ready:
    """Where the cloud answers."""

    http_url: str
    mqtt_url: str
    ocpp_urls: dict[str, str] = field(default_factory=dict)
    """`ocpp_url` and `ocpps_url`, as far as they are served; a station appends its identity."""


class Cloud:
    """A process of the cloud, by its role: `async with Cloud(config) as cloud: ... cloud.ready`.

    Raises EmbeddedError, OSError and psycopg's errors when it cannot start.
    """

    def __init__(self, config: CloudConfig) -> None:
        self._config = config
        self._registry = CollectorRegistry()
        self._stack = AsyncExitStack()
        self._gateway: Gateway | None = None
        self.ready = Ready("", "")

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        listener = stack.enter_context(listening(config.host, config.http_port))
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        dsn = await self._database(stack)
        await asyncio.to_thread(migrate, dsn)
        database = await stack.enter_async_context(Database.open(dsn))
        broker = await self._broker(stack)
        pki_settings = PkiSettings.of(config)
        pki = None if pki_settings is None else Pki.open(pki_settings, utc_now())
        modules = Modules.over(database, broker, config, pki)
        await modules.credentials.publish()
        if config.admin_key_file is not None:
            await modules.users.ensure_admin_key(config.admin_key_file)
        checks: dict[str, Check] = {"database": database.healthy}
        routers: list[APIRouter] = []
        if config.role in {"all", "ingest"}:
            checks["broker"] = await stack.enter_async_context(
                apart("ingest", lambda: self._ingest(dsn, broker, pki))
            )
        if config.role in {"all", "api"}:
            feed = EventFeed(database, modules.stations)
            watching = Watching(live_sources(modules), utc_now)
            routers = modules.routers(database, feed, watching)
            here = http_url(config.reachable_host, listener.getsockname()[1])
            updates = Updates.over(database, modules.stations, config, here)
            routers += updates.routers()
        if config.serves_ocpp:
            self._gateway = await stack.enter_async_context(
                gateway(config, database, modules.of_gateway(), pki, utc_now, self._registry)
            )
        app = create_app(
            modules.users, [*routers, health_routes(checks, self._registry)], database, utc_now
        )
        await stack.enter_async_context(http(app, listener))
        if config.role in {"all", "api"}:
            lists = modules.authorization.run
            await stack.enter_async_context(supervised("authorization lists", lists))
            await stack.enter_async_context(supervised("answers", modules.answers.run))
            await stack.enter_async_context(supervised("campaigns", updates.campaigns.run))
            await stack.enter_async_context(feed.serving())
            await stack.enter_async_context(watching.serving())
        port = listener.getsockname()[1]
        self.ready = Ready(
            http_url(config.host, port), broker.endpoint.mqtt_url, self._ocpp_urls(config)
        )

    def _ocpp_urls(self, config: CloudConfig) -> dict[str, str]:
        ports = {}
        if self._gateway is not None:
            ports = {"ocpp_url": self._gateway.port, "ocpps_url": self._gateway.tls_port}
        schemes = {"ocpp_url": "ws", "ocpps_url": "wss"}
        return {
            name: f"{schemes[name]}://{_in_url(config.reachable_host)}:{port}/ocpp/"
            for name, port in ports.items()
            if port is not None
        }

    @asynccontextmanager
    async def _ingest(self, dsn: str, broker: Broker, pki: Pki | None) -> AsyncIterator[Check]:
        """Take what agents send, and keep telemetry's tiers; tells whether the broker is up.

        It shares nothing with REST but the database: it runs on another loop (decision 0017).
        """
        async with AsyncExitStack() as stack:
            yield await self._ingesting(stack, dsn, broker, pki)

    async def _ingesting(
        self, stack: AsyncExitStack, dsn: str, broker: Broker, pki: Pki | None
    ) -> Check:
        database = await stack.enter_async_context(Database.open(dsn))
        modules = Modules.over(database, broker, self._config, pki)
        writers: list[FactWriter] = [
            StateWriter(),
            TelemetryWriter(),
            TransactionWriter(),
            CommandResults(),
            UpdateWriter(),
            SettingsWriter(modules.commands.send),
        ]
        committer = await stack.enter_async_context(GroupCommitter(database, writers))
        topics = tuple(up_filter(shard) for shard in self._config.shard_ids()) or (up_filter(),)
        settings = replace(broker.settings, topics=topics)
        receiver = await stack.enter_async_context(Receiver(settings))
        link = AgentLink(
            database,
            receiver,
            committer,
            modules.commands,
            directory=modules.stations,
            book=modules.transactions,
            lists=modules.authorization,
            greeted=[modules.stations, modules.authorization],
            clock=utc_now,
            registry=self._registry,
        )
        keep, notices = _keep(self._config), timedelta(days=self._config.notice_days)
        for name, work in {
            "agent link": link.run,
            "telemetry tiers": lambda: modules.telemetry.run(utc_now, keep),
            "transaction sweeper": TransactionSweeper(
                database, utc_now, _patience(self._config)
            ).run,
            "old notices": lambda: modules.diagnostics.run(notices),
        }.items():
            await stack.enter_async_context(supervised(name, work))

        async def broker_is_up() -> bool:
            return receiver.online.is_set()

        async with asyncio.timeout(BROKER_DEADLINE_S):
            await receiver.online.wait()
        return broker_is_up

    async def _database(self, stack: AsyncExitStack) -> str:
        url = self._config.secret("database_url")
        if url is not None:
            return url
        home = self._config.data_dir / "postgres"
        server = await stack.enter_async_context(EmbeddedPostgres(home, report=_report))
        return server.dsn

    async def _broker(self, stack: AsyncExitStack) -> Broker:
        url = self._config.secret("mqtt_url")
        if url is not None:
            return outside_broker(self._config, url)
        return await stack.enter_async_context(embedded_broker(self._config, _report))


def _bucket(config: CloudConfig) -> Bucket | None:
    """Where images lie beside the folder. Raises OSError and ValueError for its key."""
    if config.ota_s3_key_file is None:
        return None
    key = StoreKey.read(config.ota_s3_key_file, config.ota_s3_region)
    return Bucket(config.ota_s3_url, key, utc_now)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _keep(config: CloudConfig) -> Keep:
    return Keep(
        raw=timedelta(days=config.telemetry_days),
        minutes=timedelta(days=config.telemetry_minute_days),
        hours=timedelta(days=config.telemetry_hour_days),
        hot=timedelta(days=config.telemetry_hot_days),
        compaction=config.telemetry_compaction,
    )


def _patience(config: CloudConfig) -> Patience:
    return Patience(
        available=timedelta(minutes=config.transaction_available_minutes),
        silent=timedelta(hours=config.transaction_silent_hours),
        gone=timedelta(days=config.transaction_gone_days),
    )


def _report(event: ChildEvent) -> None:
    logger.warning("%s %s: %s", event.child, event.what, event.detail)


def spare_the_collector() -> None:
    """Look for garbage cycles less often.

    Decoding makes many short-lived containers and hardly a cycle; with the interpreter's defaults a
    third of the ingester's time went into looking for them (docs/benchmarks.md).
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def serve(config: CloudConfig, announce: Callable[[Ready], None]) -> None:
    """Run until SIGTERM or SIGINT, then stop everything in order."""
    spare_the_collector()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Cloud(config) as cloud:
        announce(cloud.ready)
        await stop.wait()
        logger.info("stopping")
