"""`karvon cloud`: serve, migrate, keys, backups.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 something needed is out of reach.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cloud.backup_cli import backup, restore
from cloud.certificates_cli import app as certificates_app
from cloud.kernel.config import CloudConfig
from cloud.kernel.database import Database, TenantId
from cloud.kernel.embedded import EmbeddedPostgres
from cloud.kernel.http import Caller, Role
from cloud.kernel.migrate import migrate as upgrade
from cloud.kernel.observability import configure_logging
from cloud.main import Ready, tenancy, utc_now
from cloud.main import serve as run_cloud
from cloud.shell import DatabaseUrl, DataDir, Json
from cloud.shell import configured as _config
from cloud.shell import run as _run
from cloud.stations.tenancy import Moved
from cloud.users.service import DEFAULT_TENANT, NewKey, Users
from cloud.users.store import Tenant

T = TypeVar("T")

HELP = """The cloud: serve, migrate, administer.

Options can also stand in the environment (--data-dir as KARVON_DATA_DIR); the option goes first.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 something is out of reach.
"""
app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tenant_app = typer.Typer(
    help="Tenants, directly in the database: add, list, move a station between them.",
    no_args_is_help=True,
)
app.add_typer(tenant_app, name="tenant")

app.add_typer(certificates_app, name="certificates")

app.command()(backup)
app.command()(restore)


@app.command()
def serve(
    data_dir: DataDir = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of REST, default 8080; 0: any free one.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, for REST and MQTT; default 127.0.0.1.")
    ] = None,
    public_host: Annotated[
        str | None, typer.Option(help="Name that agents reach this machine by; default: --host.")
    ] = None,
    mqtt_port: Annotated[
        int | None, typer.Option(help="Port of the embedded broker; 0: chosen once and kept.")
    ] = None,
    registration: Annotated[
        str | None,
        typer.Option(
            help="Stations that nobody announced: open lets them in, pending lists them, known"
            " refuses them (default)."
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help="Keep a working admin API key in this file (mode 600).")
    ] = None,
    database_url: DatabaseUrl = None,
    mqtt_url: Annotated[
        str | None,
        typer.Option(
            help="Broker to use instead of the embedded one: mqtts://user:password@host:port"
        ),
    ] = None,
    ocpp_port: Annotated[
        int | None,
        typer.Option(help="Port for stations that speak OCPP, ws://…/ocpp/{station}; 0: any free."),
    ] = None,
    ocpp_tls_port: Annotated[
        int | None, typer.Option(help="The same with TLS, for security profiles 2 and 3.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="ingest: only the agents' link; gateway: only OCPP; api: only REST; all (default)."
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(help="Agents' topics that this ingest process takes, 0-63, e.g. 0-31."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the cloud, whole or one role of it; prints one line when it is ready."""
    config = _config(
        data_dir=data_dir,
        http_port=http_port,
        host=host,
        public_host=public_host,
        mqtt_port=mqtt_port,
        registration=registration,
        admin_key_file=admin_key_file,
        database_url=database_url,
        mqtt_url=mqtt_url,
        ocpp_port=ocpp_port,
        ocpp_tls_port=ocpp_tls_port,
        role=role,
        shards=shards,
    )
    configure_logging(config.log_level)

    def announce(ready: Ready) -> None:
        line = {"ready": ready.http_url, "mqtt_url": ready.mqtt_url, **ready.ocpp_urls}
        text = " ".join(["ready", ready.http_url, *ready.ocpp_urls.values()])
        sys.stdout.write(f"{json.dumps(line)}\n" if as_json else f"{text}\n")
        sys.stdout.flush()

    _run(run_cloud(config, announce))


async def _with_database(config: CloudConfig, work: Any) -> Any:
    url = config.secret("database_url")
    if url is not None:
        return await work(url)
    async with EmbeddedPostgres(config.data_dir / "postgres") as server:
        return await work(server.dsn)


@app.command()
def migrate(
    data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """Bring the database's schema to this version (serve does it too)."""
    config = _config(data_dir=data_dir, database_url=database_url)

    async def work(dsn: str) -> None:
        await asyncio.to_thread(upgrade, dsn)

    _run(_with_database(config, work))
    sys.stdout.write('{"migrated": true}\n' if as_json else "the schema is up to date\n")


@app.command("new-key")
def new_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.ADMIN,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make an API key directly in the database, when no admin key is left."""
    config = _config(data_dir=data_dir, database_url=database_url)

    async def work(dsn: str) -> str:
        async with Database.open(dsn, app_pool=1, commit_pool=1) as database:
            shell = Caller(DEFAULT_TENANT, "shell", Role.ADMIN)
            made = await Users(database, utc_now).create_key(shell, name, role, None)
        return made.secret

    secret = _run(_with_database(config, work))
    sys.stdout.write(f"{json.dumps({'key': secret})}\n" if as_json else f"{secret}\n")


def _administer(
    data_dir: Path | None, database_url: str | None, work: Callable[[Database], Awaitable[T]]
) -> T:
    """Run the work over the database, migrated."""
    config = _config(data_dir=data_dir, database_url=database_url)

    async def administer(dsn: str) -> T:
        await asyncio.to_thread(upgrade, dsn)
        async with Database.open(dsn, app_pool=1, commit_pool=1) as database:
            return await work(database)

    done: T = _run(_with_database(config, administer))
    return done


def _print(as_json: bool, told: Any, text: str) -> None:
    sys.stdout.write(f"{json.dumps(told)}\n" if as_json else f"{text}\n")


@tenant_app.command("add")
def add_tenant(
    name: Annotated[str, typer.Argument(help="What it is called; names are taken in any case.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make a tenant; prints its first admin key, which is shown only now."""

    async def work(database: Database) -> tuple[Tenant, NewKey]:
        return await Users(database, utc_now).add_tenant(name)

    tenant, key = _administer(data_dir, database_url, work)
    told = {"tenant": tenant.id, "name": tenant.name, "key": key.secret}
    _print(as_json, told, f"tenant {tenant.id} {tenant.name!r}\n{key.secret}")


@tenant_app.command("list")
def list_tenants(
    data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """List the tenants."""

    async def work(database: Database) -> list[Tenant]:
        return await Users(database, utc_now).tenants()

    found = _administer(data_dir, database_url, work)
    told = [{"tenant": one.id, "name": one.name} for one in found]
    _print(as_json, told, "\n".join(f"{one.id:>6}  {one.name}" for one in found))


@tenant_app.command("move-station")
def move_station(
    station: Annotated[str, typer.Argument(help="The station's identity.")],
    to: Annotated[str, typer.Option("--to", help="The tenant's name or number.")],
    site: Annotated[
        str | None, typer.Option(help="Name of a site of that tenant; default: none.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Give a station to another tenant: state and telemetry go, transactions stay."""

    async def work(database: Database) -> Moved:
        tenant = await Users(database, utc_now).tenant(to)
        return await tenancy(database).move(station, TenantId(tenant.id), site)

    moved = _administer(data_dir, database_url, work)
    told = {"station": moved.station, "from": moved.old, "to": moved.new, "moved": moved.changed}
    text = "now belongs to" if moved.changed else "belonged already to"
    _print(as_json, told, f"station {moved.station!r} {text} tenant {moved.new}")
