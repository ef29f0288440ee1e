"""What a station is told to have said, as one commit takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any
from uuid import UUID

import pytest

from cloud.diagnostics.writer import DiagnosticsWriter
from cloud.kernel import events
from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from protocols.ocpp.messages import Answer, Told
from protocols.quantities import Milliseconds

Say = Callable[..., Awaitable[list[Event]]]


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    return pg_server


@pytest.fixture
def versions() -> dict[UUID, str]:
    """What commands said that stations will run."""
    return {}


@pytest.fixture
def say(world: Any, versions: dict[UUID, str]) -> Say:
    """`say(station, message, …)`: what one commit does with these messages of a station."""

    async def expected(cursor: Cursor, commands: Collection[UUID]) -> dict[UUID, str]:
        return {command: versions[command] for command in commands if command in versions}

    async def write(station: Any, *told: Told) -> list[Event]:
        answer = Answer(now_ms=Milliseconds(0))
        spoken = [
            Spoken(station.id, station.tenant_id, 1, world.clock(), one, answer) for one in told
        ]
        async with world.database.commit_unit() as cursor:
            happened = await DiagnosticsWriter(expected).write_spoken(cursor, spoken)
            await events.append(cursor, happened)
            return happened

    return write
