"""The database keeps tenants apart by itself: proven with the code's own filters switched off."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Role
from cloud.stations.api import to_ms
from protocols.agent_link import (
    BillingBatch,
    ChargingState,
    ClockQuality,
    IdToken,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours
from tests.cloud.ota.conftest import IMAGE, ReleaseKeys

MINE, THEIRS = TenantId(1), TenantId(2)
_TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE '\\_timescale%'
    ORDER BY 1
"""
_READABLE = """
    SELECT c.oid::regclass::text FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'public')
    AND n.nspname NOT LIKE '%%timescale%%' AND n.nspname NOT LIKE 'toolkit%%'
    AND has_schema_privilege('karvon_app', n.oid, 'USAGE')
    AND has_table_privilege('karvon_app', c.oid, 'SELECT') ORDER BY 1
"""
NOBODYS = {
    "kernel.event_partition",  # the next number of each partition
    "telemetry.tier",  # how far each tier has come
}
"""Readable, and without a tenant: nothing in them is anybody's."""


async def named(database: Database, sql: str) -> list[str]:
    async with database.listener() as owner:
        found = await owner.execute(sql)  # type: ignore[arg-type]  # one of the two above
        return [name for (name,) in await found.fetchall()]


@pytest.fixture
async def tables(world: Any, fill: Any) -> list[str]:
    """Every table with a tenant; in each one stands a row of theirs."""
    found = await named(world.database, _TABLES)
    station = await world.station("THEIRS", tenant=THEIRS)
    for table in found:
        await fill(table, THEIRS, station.id)
    async with world.database.commit_unit() as cursor:
        for table in found:
            await cursor.execute(f"SELECT count(*) FROM {table} WHERE tenant_id = 2")
            assert await cursor.fetchone() != (0,), f"{table} holds nothing to protect"
    return found


async def test_unfiltered_statements_meet_nothing_of_theirs(world: Any, tables: list[str]) -> None:
    before = await digest(world.database)
    for table in tables:
        for statement in (
            f"SELECT FROM {table}",
            f"UPDATE {table} SET tenant_id = tenant_id",
            f"UPDATE {table} SET tenant_id = 1 WHERE tenant_id = 2",
            f"DELETE FROM {table}",
        ):
            assert await _count(world.database, statement) == 0, statement
    assert len(tables) > 25
    assert await digest(world.database) == before


async def _count(database: Database, statement: str) -> int:
    """Rows that the application's role meets, as one tenant and as none."""
    met = 0
    for tenant in (MINE, None):
        try:
            async with database.unit(tenant) as cursor:
                await cursor.execute(statement)  # type: ignore[call-overload]  # of names
                met += cursor.rowcount
        except psycopg.errors.InsufficientPrivilege:
            continue
    return met


async def test_nothing_can_be_given_to_them_or_taken_into_their_name(
    world: Any, tables: list[str]
) -> None:
    """Rows of theirs, copied as they are, are refused from another tenant."""
    for table in tables:
        async with world.database.listener() as owner:
            await owner.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table}")  # type: ignore[arg-type]  # a name
            await owner.execute("GRANT SELECT ON kept TO karvon_app")
            columns = await _writable(owner, table)
            await owner.execute("SET ROLE karvon_app")
            await owner.execute("SELECT set_config('karvon.tenant', '1', false)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await owner.execute(
                    f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"  # type: ignore[arg-type]  # names
                    f" SELECT {columns} FROM kept WHERE tenant_id = 2"
                )


async def _writable(owner: Any, table: str) -> str:
    found = await owner.execute(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attnum > 0"
        " AND attrelid = %s::regclass AND NOT attisdropped AND attgenerated = ''",
        (table,),
    )
    return str((await found.fetchone())[0])


async def test_all_that_can_be_read_is_accounted_for(world: Any, tables: list[str]) -> None:
    """A relation without a tenant's column shows nothing of theirs, or has nothing of anybody's."""
    readable = set(await named(world.database, _READABLE)) - set(tables)
    for relation in sorted(readable - NOBODYS):
        assert await _count(world.database, f"SELECT FROM {relation}") == 0, relation
    assert readable >= {"telemetry.api_sample", "stations.api_station"}


# --------------------------------------------------------------------------- every route


class Switched(Database):
    """A database that takes every request for the other tenant's, whoever asks."""

    @asynccontextmanager
    async def unit(
        self, tenant: TenantId | None, *, read_only: bool = False
    ) -> AsyncIterator[Cursor]:
        async with super().unit(MINE, read_only=read_only) as cursor:
            yield cursor


async def digest(database: Database) -> dict[str, str]:
    """What stands in each table under their name."""
    found = {}
    for table in await named(database, _TABLES):
        async with database.listener() as owner:
            row = await owner.execute(
                f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t"  # type: ignore[arg-type]  # a name
                " WHERE tenant_id = 2"
            )
            told = await row.fetchone()
            assert told
            found[table] = str(told[0])
    return found


async def transaction(world: Any, station: Any) -> str:
    now = world.clock()
    stamp = Stamp(Milliseconds(to_ms(now)), Milliseconds(0), uuid4(), ClockQuality.SYNCED)
    event = TransactionEvent(
        id=uuid4(), transaction=uuid4(), type=TransactionEventType.STARTED, seq_no=0, at=stamp,
        trigger=Trigger.AUTHORIZED, evse=1, started=stamp, charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(0), meter_wh=WattHours(0), id_token=IdToken("PERSON"),
    )  # fmt: skip
    batch = BillingBatch(uuid4(), 1, 1, stamp, (event,))
    await world.commit(
        Delivery(station.id, station.tenant_id, batch.outbox, now, Stream.BILLING, batch)
    )
    return str(event.transaction)


def signing_request(name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


BODIES: dict[str, Any] = {
    "/api/v1/sites": {"name": "new"},
    "/api/v1/stations": {"station": "CP-NEW"},
    "/api/v1/id-tokens": {"value": "new"},
    "/api/v1/id-tokens/import": [{"value": "new"}],
    "/api/v1/stations/import": [{"station": "CP-NEW"}],
    "/api/v1/id-token-groups": {"name": "new"},
    "/api/v1/tariffs": {"name": "new", "currency": "UZS", "per_kwh": "1500"},
    "/api/v1/tariffs/{tariff}/versions": {"per_kwh": "1600"},
    "/api/v1/tariffs/{tariff}/quote": {"energy_wh": 1000},
    "/api/v1/tariff-assignments": {"tariff": 1},
    "/api/v1/users": {"name": "new", "role": "viewer", "password": "0123456789"},
    "/api/v1/api-keys": {"name": "new", "role": "viewer"},
    "/api/v1/stations/{station}/ocpp": {"ping_s": 30},
    "/api/v1/stations/{station}/ocpp-password": {},
    "/api/v1/stations/{station}/ocpp-certificates": {"csr": signing_request("CP-NEW")},
    "/api/v1/ocpp-certificates/{serial}/revocation": {"reason": "stolen"},
    "/api/v1/cohorts": {"name": "new"},
    "/api/v1/campaigns": {"name": "new", "release": 1, "cohort": 1},
    "/api/v1/stations/{station}/tags": {"tags": ["new"]},
}
EVERYBODYS = (
    "/me", "/stream", "/live", "/ocpp-authority", "/release-trust",
    "/api/v1/local-list-policy",  # one's own
)  # fmt: skip
RENAMED = {"name": "renamed"}


async def furnish(client: httpx.AsyncClient) -> dict[str, Any]:
    """One of everything that is made through the API; the path parameters that name it."""
    made = {}
    for path in (
        "sites",
        "stations",
        "id-tokens",
        "id-token-groups",
        "tariffs",
        "users",
        "api-keys",
    ):
        url = f"/api/v1/{path}"
        answer = await client.post(url, json=BODIES[url])
        assert answer.status_code == 201, answer.text
        made[path] = answer.json()
    held = {"tariff": made["tariffs"]["id"]}
    assigned = await client.post("/api/v1/tariff-assignments", json=held)
    url = "/api/v1/stations/{station}/ocpp-certificates"
    signed = await client.post(url.format(station="CP-NEW"), json=BODIES[url])
    return {
        "serial": signed.json()["serial"],
        **held,
        "assignment": assigned.json()["id"],
        "site": made["sites"]["id"],
        "station": "CP-NEW",
        "value": "new",
        "group": made["id-token-groups"]["id"],
        "user_id": made["users"]["id"],
        "key_id": made["api-keys"]["id"],
    }


async def campaign(world: Any, client: httpx.AsyncClient) -> dict[str, Any]:
    """A release, and a campaign with the station CP-2; what names them."""
    keys = ReleaseKeys(world.keys, world.clock())
    keys.add()
    digest = hashlib.sha256(IMAGE).hexdigest()
    url = f"/api/v1/release-files/{digest}"
    assert (await client.put(url, params={"offset": 0}, content=IMAGE)).status_code == 200
    signed = {"root": keys.root(), "targets": keys.targets(), "agent": keys.role("agent")}
    documents = [{"role": role, "body": body.decode()} for role, body in signed.items()]
    published = await client.post("/api/v1/releases", json={"metadata": documents})
    release = published.json()["releases"][0]["id"]
    cohort = (await client.post("/api/v1/cohorts", json={"name": "all"})).json()["id"]
    body = {"name": "all", "release": release, "cohort": cohort}
    made = (await client.post("/api/v1/campaigns", json=body)).json()["id"]
    async with await world.client(Role.OPERATOR, THEIRS) as other:
        begun = await other.post(f"/api/v1/campaigns/{made}/approval")
    assert begun.status_code == 200, begun.text
    return {"sha256": digest, "release": release, "cohort": cohort, "campaign": made}


async def test_every_route_meets_nothing_of_theirs(
    world: Any, world_of: Callable[[Database], Any]
) -> None:
    async with await world.client(Role.ADMIN, THEIRS) as owner:
        parameters = {"evse": 1, "action": "Reset", "command": uuid4(), **await furnish(owner)}
        station = await world.station("CP-2", tenant=THEIRS)
        parameters["transaction"] = await transaction(world, station)
        world.link.linked[station.id] = "agent"
        parameters |= await campaign(world, owner)
        key = owner.headers["authorization"]
        reads = [path for method, path in _guarded_routes(world.app) if method == "GET"]
        shown = [path for path in reads if _shows(await _ask(owner, "GET", path, parameters))]
        assert len(shown) >= 15, "else the silence below proves nothing"
    before = await digest(world.database)
    async with Switched.open(world.database.dsn) as database:
        blind = world_of(database)
        transport = httpx.ASGITransport(blind.app, raise_app_exceptions=False)
        headers = {"authorization": key}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://cloud", headers=headers
        ) as client:
            met = [
                f"{method} {path}: {answer.status_code} {answer.text[:200]}"
                for method, path in _guarded_routes(blind.app)
                if _shows(answer := await _ask(client, method, path, parameters))
            ]
    assert met == []
    assert await digest(world.database) == before


def _guarded_routes(app: Any) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if operation.get("security") and not path.endswith(EVERYBODYS)
    ]


async def _ask(
    client: httpx.AsyncClient, method: str, path: str, parameters: dict[str, Any]
) -> httpx.Response:
    body = BODIES.get(path, RENAMED) if method != "GET" else None
    content = {} if body is None else {"json": body}
    span = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-02T00:00:00Z"}
    return await client.request(method, path.format(**parameters), params=span, **content)


def _shows(answer: httpx.Response) -> bool:
    """Whether an answer is anything but a refusal or an empty list."""
    if answer.status_code >= 400:
        return False
    told = answer.json() if answer.content else {"done": True}
    return bool(told.get("items", told.get("buckets", True)))
