"""`karvon cloud tenant`: make tenants, list them, hand a station over."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud.cli import app
from cloud.kernel.database import Database
from cloud.kernel.http import Role
from cloud.main import utc_now
from cloud.users.service import Users


def run(dsn: str, *arguments: str, exit_code: int = 0) -> Any:
    outcome = CliRunner().invoke(app, ["tenant", *arguments, "--database-url", dsn])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome


def told(dsn: str, *arguments: str) -> Any:
    return json.loads(run(dsn, *arguments, "--json").stdout)


async def _role_of(dsn: str, key: str) -> tuple[int, Role]:
    async with Database.open(dsn) as database:
        caller = await Users(database, utc_now).authenticate(key)
        return caller.tenant_id, caller.role


async def _expected_station(world_of: Any, dsn: str) -> None:
    async with Database.open(dsn) as database:
        await world_of(database).station("CP-1")


def test_a_tenant_is_made_with_its_first_admin_key(cloud_dsn: str) -> None:
    made = told(cloud_dsn, "add", "Tashkent Power")
    assert asyncio.run(_role_of(cloud_dsn, made["key"])) == (made["tenant"], Role.ADMIN)
    again = run(cloud_dsn, "add", "TASHKENT power", exit_code=1)
    assert "exists" in again.stderr
    names = [one["name"] for one in told(cloud_dsn, "list")]
    assert names == ["default", "Tashkent Power"]
    assert "Tashkent Power" in run(cloud_dsn, "list").stdout


def test_a_station_is_handed_over_by_name_or_number(cloud_dsn: str, world_of: Any) -> None:
    asyncio.run(_expected_station(world_of, cloud_dsn))
    other = told(cloud_dsn, "add", "Other")["tenant"]
    move = ("move-station", "CP-1", "--to")
    moved = {"station": "CP-1", "from": 1, "to": other, "moved": True}
    assert told(cloud_dsn, *move, "other") == moved
    assert told(cloud_dsn, *move, str(other)) == {**moved, "from": other, "moved": False}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CP-9", "--to", "default"], "there is no station 'CP-9'"),
        (["CP-9", "--to", "nobody"], "there is no tenant 'nobody'; there are: default"),
    ],
)
def test_what_is_not_there_is_one_line(cloud_dsn: str, arguments: list[str], words: str) -> None:
    outcome = run(cloud_dsn, "move-station", *arguments, exit_code=1)
    assert words in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
