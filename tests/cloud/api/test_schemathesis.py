"""The OpenAPI document is kept: schemathesis with a full key, a low one and none, all checks."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cloud.kernel.http import Role
from tests.cloud.ota.conftest import ReleaseKeys

HOOKS = Path(__file__).resolve().with_name("schemathesis_hooks.py")
ENDLESS = "/stream$|/live$"
"""Streams do not end; they have tests of their own."""


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


async def furnish(client: httpx.AsyncClient) -> None:
    """A little of everything, so that not every path ends in 404."""
    for path, body in (
        ("sites", {"name": "Home"}),
        ("stations", {"station": "CP-1", "site": 1}),
        ("id-token-groups", {"name": "fleet"}),
        ("tariffs", {"name": "Day", "currency": "UZS", "per_kwh": "1500"}),
        ("tariff-assignments", {"tariff": 1}),
        ("id-tokens", {"value": "04A2B3C4D5E6F7", "group": "fleet"}),
        ("users", {"name": "Aziza", "role": "viewer", "password": "0123456789"}),
        ("cohorts", {"name": "all"}),
    ):
        assert (await client.post(f"/api/v1/{path}", json=body)).status_code == 201


@pytest.mark.timeout(0)
@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER, None], ids=["full", "low", "none"])
async def test_every_check_passes(
    world: Any,
    sample_size: Callable[[int, int], int],
    tmp_path: Path,
    role: Role | None,
    record_property: Callable[[str, object], None],
) -> None:
    if role is Role.VIEWER and not sample_size(0, 1):
        pytest.skip("a reader's requests are among an admin's: make torture")
    tool = Path(sys.executable).with_name("st")
    async with await world.client(Role.ADMIN) as admin:
        await furnish(admin)
    async with world.database.listener() as owner:  # a number that nobody hits: it would go
        await owner.execute("ALTER SEQUENCE users.api_key_id_seq RESTART WITH 987654")
    root = tmp_path / "root.json"
    root.write_bytes(ReleaseKeys(world.keys, world.clock()).root())
    async with await world.client(role) as client, served(world.app) as url:
        key = client.headers.get("authorization")
        count = sample_size(1, 40)
        phases = "examples,fuzzing" if count == 1 else "examples,coverage,fuzzing,stateful"
        command = [
            str(tool), "run", f"{url}/openapi.json", "--no-color", "--continue-on-failure",
            "--checks=all", f"--phases={phases}", f"--max-examples={count}",
            f"--exclude-path-regex={ENDLESS}", "--generation-deterministic",
            *(["--header", f"Authorization: {key}"] if key else []),
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "RELEASE_ROOT": str(root)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()[:15_000] + told.decode()[-3000:]
    generated = re.search(r"(\d+) generated", told.decode())
    assert generated
    assert int(generated[1]) > 50
    record_property("cases", int(generated[1]))
