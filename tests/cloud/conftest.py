"""A migrated database of its own for every test, and the services over it."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from fastapi import APIRouter, FastAPI
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cloud.api import rest as api_rest
from cloud.api.live import EventFeed
from cloud.authorization import rest as authorization_rest
from cloud.authorization.service import Authorization
from cloud.communication import asks_rest, security_rest
from cloud.communication import rest as communication_rest
from cloud.communication.answers import Answers
from cloud.communication.api import Credential, Known, Presence
from cloud.communication.calls import Calls
from cloud.communication.commands import Commands
from cloud.communication.pki import CertificateAuthority, Pki, PkiSettings, key_digest
from cloud.communication.security import OcppSecurity
from cloud.communication.transfers import Allowed
from cloud.configuration import rest as configuration_rest
from cloud.configuration import settings_rest
from cloud.configuration.service import Configuration
from cloud.configuration.settings import Settings as AgentSettings
from cloud.configuration.settings import SettingsWriter
from cloud.diagnostics import rest as diagnostics_rest
from cloud.diagnostics.service import Diagnostics
from cloud.kernel import events
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery, FactWriter
from cloud.kernel.http import Caller, Role
from cloud.kernel.migrate import migrate
from cloud.ota import campaigns_rest, serving
from cloud.ota import rest as releases_rest
from cloud.ota.api import Order
from cloud.ota.campaigns import Campaigns
from cloud.ota.director import Director
from cloud.ota.planner import Surroundings
from cloud.ota.releases import Keys, Releases
from cloud.ota.serving import Served
from cloud.ota.signing import OnlineKey
from cloud.ota.storage import Files
from cloud.ota.writer import UpdateWriter
from cloud.stations import rest as stations_rest
from cloud.stations.api import StationRef
from cloud.stations.ports import AgentEndpoint
from cloud.stations.registration import Policy
from cloud.stations.service import Settings, Stations
from cloud.stations.writer import StateWriter
from cloud.tariffs import rest as tariffs_rest
from cloud.tariffs.service import Tariffs
from cloud.telemetry import rest as telemetry_rest
from cloud.telemetry.service import Telemetry
from cloud.telemetry.writer import TelemetryWriter
from cloud.transactions import rest as transactions_rest
from cloud.transactions.service import Transactions
from cloud.transactions.writer import TransactionWriter
from cloud.users import rest as users_rest
from cloud.users.service import DEFAULT_TENANT, Users
from protocols.agent_link import Action, escape
from tests.cloud.app_once import Within, app_once, app_over

_migrated: dict[str, str] = {}
"""Server -> a database to copy."""


@pytest.fixture(scope="session")
def cloud_server(embedded_postgres_dsn: str) -> str:
    """The server that a directory's tests run on; storage suites widen it to `pg_server`."""
    return embedded_postgres_dsn


@pytest.fixture
def cloud_dsn(cloud_server: str) -> Iterator[str]:
    """A migrated database of its own."""
    with migrated(cloud_server) as dsn:
        yield dsn


@contextmanager
def migrated(cloud_server: str) -> Iterator[str]:
    """A migrated database on that server, for as long as the block."""
    name = f"cloud_{secrets.token_hex(6)}"
    with psycopg.connect(cloud_server, autocommit=True) as connection:
        if cloud_server not in _migrated:
            template = f"cloud_migrated_{os.getpid()}"
            _create(connection, template, "template0")
            migrate(make_conninfo(cloud_server, dbname=template))
            _close(connection, template)
            _migrated[cloud_server] = template
        _create(connection, name, _migrated[cloud_server])
    yield make_conninfo(cloud_server, dbname=name)
    with psycopg.connect(cloud_server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _close(connection: psycopg.Connection, template: str) -> None:
    """Keep everybody out, so that it can be copied; TimescaleDB would look into it at any time."""
    name = sql.Identifier(template)
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
        (template,),
    )


def _create(connection: psycopg.Connection, name: str, template: str) -> None:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


@pytest.fixture
async def database(cloud_dsn: str) -> AsyncIterator[Database]:
    async with Database.open(cloud_dsn, app_pool=2, commit_pool=2) as opened:
        yield opened


# --------------------------------------------------------------------------- the services


class FakeLink:
    """The agent link without a broker: remembers what was sent, answers what it is told."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Action]] = []
        self.present: dict[int, Presence] = {}
        self.published = 0
        self.on_send: Callable[[Cursor], Awaitable[None]] | None = None
        self.forgotten: list[int] = []
        self.issued: dict[str, Known] = {}
        self.linked: dict[int, str] = {}
        self.ordered: list[Order] = []

    async def presence(self, cursor: Cursor, stations: Collection[int]) -> dict[int, Presence]:
        return {station: self.present[station] for station in stations if station in self.present}

    async def issue(
        self, cursor: Cursor, tenant: TenantId, station_id: int, identity: str
    ) -> Credential:
        self.issued[escape(identity)] = Known(station_id, tenant)
        return Credential(escape(identity), f"secret-{station_id}")

    async def owner(self, cursor: Cursor, username: str, password: str) -> Known | None:
        known = self.issued.get(username)
        return known if known is not None and password == f"secret-{known.id}" else None

    def key_digest(self, csr: str, identity: str) -> bytes:
        return key_digest(csr, identity)

    async def certificate(
        self, tenant: TenantId, station_id: int, identity: str, csr: str
    ) -> str | None:
        return certificate_authority().sign(csr, identity, Clock()()).pem

    async def forget(self, cursor: Cursor, station_id: int) -> None:
        self.forgotten.append(station_id)

    async def publish_credentials(self) -> None:
        self.published += 1

    async def online(self, cursor: Cursor, tenant: TenantId) -> list[int]:
        return [station for station, presence in self.present.items() if presence.online]

    async def send(
        self,
        cursor: Cursor,
        tenant: TenantId,
        station_id: int,
        action: Action,
        valid_for: timedelta,
        actor: str,
    ) -> UUID:
        if self.on_send is not None:
            await self.on_send(cursor)
        self.sent.append((station_id, action))
        return uuid4()

    async def links(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        return {station: link for station, link in self.linked.items() if station in stations}

    async def order(
        self, cursor: Cursor, tenant: TenantId, orders: Sequence[Order], actor: str
    ) -> None:
        self.ordered += orders


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **step: float) -> None:
        self.now += timedelta(**step)


@functools.cache
def certificate_authority() -> CertificateAuthority:
    """One for all tests of a process; its files are not needed again."""
    with tempfile.TemporaryDirectory() as folder:
        settings = PkiSettings(Path(folder), ["localhost"], "Registan Energy")
        return Pki.open(settings, Clock()()).authority


def _routers(service: Callable[[str], Any]) -> list[APIRouter]:
    """All of REST over the services that a World has by these names."""
    clock, stations = service("clock"), service("stations")
    return [
        users_rest.router(service("users")),
        stations_rest.router(stations, clock),
        authorization_rest.router(service("authorization")),
        tariffs_rest.router(service("tariffs")),
        telemetry_rest.router(service("telemetry"), clock),
        transactions_rest.router(service("transactions")),
        communication_rest.routes(service("commands")),
        security_rest.routes(service("security")),
        asks_rest.router(service("calls")),
        configuration_rest.router(service("configuration")),
        settings_rest.router(service("settings")),
        diagnostics_rest.router(service("diagnostics")),
        releases_rest.router(service("releases")),
        campaigns_rest.router(service("campaigns")),
        serving.router(service("served")),
        api_rest.router(service("database"), stations, service("feed")),
    ]


class World:
    """Every service over one database, and clients of every role."""

    def __init__(self, database: Database, policy: Policy = Policy.KNOWN) -> None:
        self.database = database
        self.clock = Clock()
        self.link = FakeLink()
        endpoint = AgentEndpoint("mqtts://cloud.example:8883", "-----BEGIN CERTIFICATE-----")
        settings = Settings(policy, endpoint, DEFAULT_TENANT)
        self.users = Users(database, self.clock)
        self.stations = Stations(database, self.link, settings, self.clock)
        self.authorization = Authorization(database, self.link, self.clock)
        self.transactions = Transactions(database, self.stations, self.authorization, self.link)
        self.commands = Commands(database, self.stations, self.authorization, self.clock)
        self.answers = Answers(database)
        self.calls = Calls(
            database, self.stations, self.authorization, self.answers, self.clock, Allowed()
        )
        self.configuration = Configuration(database, self.stations, self.clock)
        self.settings = AgentSettings(database, self.stations, self.link.send, self.clock)
        self.diagnostics = Diagnostics(database, self.stations, self.clock)
        self.tariffs = Tariffs(database, self.stations, self.clock)
        self.telemetry = Telemetry(database, self.stations)
        self.security = OcppSecurity(database, self.stations, certificate_authority(), self.clock)
        self.feed = EventFeed(database, self.stations)
        self._furnish_updates()
        self.writers: list[FactWriter] = [
            StateWriter(),
            TelemetryWriter(),
            TransactionWriter(),
            UpdateWriter(),
            SettingsWriter(self.link.send),
        ]

    def _furnish_updates(self) -> None:
        """Releases and campaigns over a folder that goes with the world."""
        database, clock = self.database, self.clock
        home = Path(tempfile.mkdtemp(prefix="karvon-world-"))
        weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        self.keys = Keys(OnlineKey.kept(home / "online.pem"), OnlineKey.kept(home / "director.pem"))
        self.files = Files(home)
        self.releases = Releases(database, self.files, self.keys, clock)
        around = Surroundings(self.link, "http://cloud/ota/files")
        self.campaigns = Campaigns(database, self.stations, around, clock)
        director = Director(database, self.stations, self.releases, self.keys.director, clock)
        self.served = Served(self.releases, director, self.campaigns, self.files, clock)

    @functools.cached_property
    def app(self) -> Within:
        return Within(app_once("world", _routers), vars(self))

    def app_of_its_own(self) -> FastAPI:
        """One that a test may change."""
        return app_over(vars(self).__getitem__, _routers)

    async def client(self, role: Role | None, tenant: int = 1) -> httpx.AsyncClient:
        """A client with a key of that role; None: without a key."""
        headers = {}
        if role is not None:
            boss = Caller(TenantId(tenant), "test", Role.ADMIN)
            made = await self.users.create_key(boss, f"test {role.name}", role, None)
            headers["Authorization"] = f"Bearer {made.secret}"
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://cloud", headers=headers)

    async def station(self, identity: str = "CP-1", tenant: int = 1) -> StationRef:
        """A station that exists."""
        boss = Caller(TenantId(tenant), "test", Role.ADMIN)
        await self.stations.create_station(boss, identity, "", None)
        async with self.database.commit_unit() as cursor:
            return await self.stations.find(cursor, identity)

    async def commit(self, *deliveries: Delivery) -> list[Event]:
        """What the commit path does with deliveries that are new to the database."""
        async with self.database.commit_unit() as cursor:
            happened = [
                event
                for writer in self.writers
                for event in await writer.write_batch(cursor, deliveries)
            ]
            await events.append(cursor, happened)
            return happened


@pytest.fixture
def world_of() -> Callable[[Database, Policy], World]:
    """For a test that chooses the registration policy."""
    return World


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


@pytest.fixture
async def admin(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with await world.client(Role.ADMIN) as client:
        yield client


@pytest.fixture
async def anybody(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with await world.client(None) as client:
        yield client
