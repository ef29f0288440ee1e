"""A real gateway on real sockets over a real database, with the API beside it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psycopg
import pytest
import pytest_asyncio
from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cloud.api.live import EventFeed
from cloud.api.watching import Watching
from cloud.broker import outside_broker
from cloud.communication.gateway import Gateway
from cloud.communication.pki import Pki, PkiSettings
from cloud.kernel.config import CloudConfig
from cloud.kernel.database import Database
from cloud.kernel.http import Caller, Role
from cloud.kernel.serving import supervised
from cloud.main import Modules, live_sources, utc_now
from cloud.ocpp import gateway
from cloud.users.service import DEFAULT_TENANT
from tests.cloud.app_once import Within, app_once
from tests.cloud.conftest import migrated

Payload = dict[str, Any]
PATIENCE_S = 30
"""For what takes milliseconds on a machine that has nothing else to do."""


class Refused(Exception):
    """The gateway answered with CALLERROR."""


class Station:
    """A charger written for tests: says what it is told to, remembers what it is asked."""

    def __init__(self, socket: ClientConnection, answers: dict[str, Payload]) -> None:
        self.socket = socket
        self.asked: list[tuple[str, Payload]] = []
        self.ids: list[str] = []
        """Of what it was asked."""
        self.answers = answers
        self.choose: dict[str, Callable[[Payload], Payload]] = {}
        """As `answers`, for those that depend on what is asked."""
        self.refuses: dict[str, str] = {}
        """Actions that it answers with CALLERROR, each with its code."""
        self.results: dict[str, list[Any]] = {}
        self._arrived = asyncio.Condition()
        self._number = 0
        self._reading = asyncio.create_task(self._read())

    async def call(self, action: str, payload: Payload, message_id: str | None = None) -> Payload:
        """The answer's payload. Raises Refused."""
        self._number += 1
        message_id = message_id or f"m{self._number}"
        await self.send([2, message_id, action, payload])
        return await self.answer(message_id)

    async def answer(self, message_id: str) -> Payload:
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            await self._arrived.wait_for(lambda: message_id in self.results or self.over)
        kind, *rest = self.results.pop(message_id)
        if kind == 4:
            raise Refused(rest[0], rest[1])
        return dict(rest[0])

    @property
    def over(self) -> bool:
        return self._reading.done()

    async def send(self, frame: Any) -> None:
        await self.socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def boot(self, **more: Any) -> Payload:
        if self.socket.subprotocol == "ocpp1.6" or self.socket.subprotocol is None:
            fields = {"chargePointVendor": "Acme", "chargePointModel": "One", **more}
        else:
            what = {"vendorName": "Acme", "model": "One"}
            fields = {"reason": "PowerUp", "chargingStation": what, **more}
        return await self.call("BootNotification", fields)

    async def leave(self) -> None:
        """Close in order; the gateway then writes down how the station deviated."""
        await self.socket.close()
        await self.closed()

    async def closed(self) -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([self._reading])
        return self.socket.close_code or 0, self.socket.close_reason or ""

    async def was_asked(self, action: str) -> Payload:
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            await self._arrived.wait_for(lambda: any(a == action for a, _ in self.asked))
        return next(payload for a, payload in self.asked if a == action)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._read_all()
        async with self._arrived:
            self._arrived.notify_all()

    async def _read_all(self) -> None:
        async for frame in self.socket:
            message = json.loads(frame)
            async with self._arrived:
                if message[0] == 2:
                    self.asked.append((message[2], message[3]))
                    self.ids.append(message[1])
                    choose = self.choose.get(message[2])
                    reply = self.answers.get(message[2], {"status": "Accepted"})
                    if choose is not None:
                        reply = choose(message[3])
                    if code := self.refuses.get(message[2]):
                        await self.send([4, message[1], code, "", {}])
                    elif reply is not None:
                        await self.send([3, message[1], reply])
                else:
                    kind, message_id, *rest = message
                    self.results[message_id] = [kind, *rest]
                self._arrived.notify_all()


class Ocpp:
    """The gateway, its API, and chargers that connect to it."""

    def __init__(
        self,
        served: Gateway,
        modules: Modules,
        database: Database,
        api: httpx.AsyncClient,
        folder: Path,
    ) -> None:
        self.folder = folder
        self.gateway = served
        self.modules = modules
        self.database = database
        self.api = api

    async def connect(
        self,
        identity: str,
        version: str | None = "ocpp1.6",
        password: str | bytes | None = None,
        user: str | None = None,
        answers: dict[str, Payload] | None = None,
        port: int | None = None,
        tls: ssl.SSLContext | None = None,
        source: str | None = None,
    ) -> Station:
        """Raises websockets' InvalidStatus when refused; `source` is the address it comes from."""
        headers = {}
        if password is not None:
            raw = password if isinstance(password, bytes) else password.encode()
            login = (identity if user is None else user).encode() + b":" + raw
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        scheme, usual = ("ws", self.gateway.port) if tls is None else ("wss", self.gateway.tls_port)
        socket = await connect(
            f"{scheme}://127.0.0.1:{port or usual}/ocpp/{quote(identity, safe='')}",
            ssl=tls,
            local_addr=None if source is None else (source, 0),
            subprotocols=None if version is None else [version],  # type: ignore[list-item]
            additional_headers=headers,
        )
        return Station(socket, answers or {})

    async def booted(
        self,
        identity: str,
        version: str | None = "ocpp1.6",
        boot: Payload | None = None,
        **options: Any,
    ) -> Station:
        """Connected, and its BootNotification accepted; `boot` is what that says more."""
        station = await self.connect(identity, version, **options)
        assert (await station.boot(**(boot or {})))["status"] == "Accepted"
        return station

    # ------------------------------------------------------------------ the operator's side

    async def token(self, value: str, **fields: Any) -> None:
        made = await self.api.post("/id-tokens", json={"value": value, **fields})
        assert made.status_code == 201, made.text

    async def get(self, path: str, **query: Any) -> Any:
        got = await self.api.get(path, params=query)
        assert got.status_code == 200, got.text
        return got.json()

    async def transactions(self, **query: Any) -> list[Payload]:
        return list((await self.get("/transactions", **query))["items"])

    async def transaction(self, station: str) -> Payload:
        """The station's only one."""
        (found,) = await self.transactions(station=station)
        return found

    async def deviations(self, station: str, *wanted: str) -> dict[str, Payload]:
        """By name, once the wanted ones are there: they are written when a station leaves."""

        async def told() -> Any:
            found = await self.get(f"/stations/{quote(station, safe='')}/deviations")
            named = {one["name"]: one for one in found}
            return named if set(wanted) <= named.keys() else None

        return dict(await self.until(told, f"the deviations {wanted}"))

    async def events(self, station: str, kind: str) -> list[Payload]:
        return list((await self.get("/events", station=station, kind=kind))["items"])

    async def command(self, station: str, name: str, **body: Any) -> str:
        """Give a command; returns its id."""
        given = await self.api.post(f"/stations/{station}/commands/{name}", json=body)
        assert given.status_code == 202, given.text
        return str(given.json()["command"])

    async def ended(self, command: str) -> Payload:
        """The command once it came to an end."""

        async def over() -> Any:
            found = await self.get(f"/commands/{command}")
            return found if found["status"] not in {"requested", "sent", "accepted"} else None

        return dict(await self.until(over, f"the end of command {command}"))

    async def until(self, seen: Callable[[], Any], what: str) -> Any:
        """What an awaitable check gives once it is true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await seen()):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"waited for {what} in vain") from None
        return found


def _routers(service: Callable[[str], Any]) -> list[APIRouter]:
    there = {one.name: service(one.name) for one in fields(Modules)}
    return Modules(**there).routers(service("database"), service("feed"), service("watching"))


@asynccontextmanager
async def serving(
    dsn: str, folder: Path, *, app_pool: int = 4, commit_pool: int = 4, **settings: Any
) -> AsyncIterator[Ocpp]:
    """One process's worth of gateway and API."""
    config = CloudConfig(
        data_dir=folder,
        database_url=dsn,
        mqtt_url="mqtt://nobody@127.0.0.1:1",
        **{"registration": "open", "ocpp_port": 0, **settings},
    )
    pki_settings = PkiSettings.of(config)
    pki = None if pki_settings is None else Pki.open(pki_settings, utc_now())
    async with Database.open(dsn, app_pool=app_pool, commit_pool=commit_pool) as database:
        broker = outside_broker(config, "mqtt://nobody@127.0.0.1:1")
        modules = Modules.over(database, broker, config, pki)
        owner = Caller(DEFAULT_TENANT, "test", Role.ADMIN)
        key = await modules.users.create_key(owner, f"test {id(folder)}", Role.ADMIN, None)
        registry = CollectorRegistry()
        async with (
            gateway(config, database, modules.of_gateway(), pki, utc_now, registry) as served,
            supervised("answers", modules.answers.run),
        ):
            feed = EventFeed(database, modules.stations)
            services = {
                **{one.name: getattr(modules, one.name) for one in fields(modules)},
                "database": database,
                "feed": feed,
                "watching": Watching(live_sources(modules), utc_now),
                "clock": utc_now,
            }
            app = Within(app_once("gateway", _routers), services)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://api/api/v1",
                headers={"Authorization": f"Bearer {key.secret}"},
            ) as api:
                yield Ocpp(served, modules, database, api, folder)


@pytest.fixture
async def ocpp(cloud_dsn: str, tmp_path: Path) -> AsyncIterator[Ocpp]:
    async with serving(cloud_dsn, tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def house_dsn(cloud_server: str) -> Iterator[str]:
    """The database of `house`."""
    with migrated(cloud_server) as dsn:
        yield dsn


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(house_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ocpp]:
    """As `ocpp`, one for a module whose tests take stations of their own.

    Such a module says `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
    """
    async with serving(house_dsn, tmp_path_factory.mktemp("house")) as served:
        yield served


Ask = Callable[..., list[Any]]


@contextmanager
def asking(dsn: str) -> Iterator[Ask]:
    """Ask the database directly, as its owner."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ask(query: str, *parameters: Any) -> list[Any]:
            found = connection.execute(query, parameters)  # type: ignore[arg-type]
            return found.fetchall() if found.description else []

        yield ask


@pytest.fixture
def sql(cloud_dsn: str) -> Iterator[Ask]:
    with asking(cloud_dsn) as ask:
        yield ask


@pytest.fixture
def house_sql(house_dsn: str) -> Iterator[Ask]:
    with asking(house_dsn) as ask:
        yield ask


__all__ = ["Ocpp", "Refused", "Self", "Station", "serving"]
