"""What a station is told to have said, written by every module that listens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloud.configuration.writer import ConfigurationWriter
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from protocols.ocpp.messages import Answer, Told
from protocols.quantities import Milliseconds

Say = Callable[..., Awaitable[list[Event]]]


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    return pg_server


@pytest.fixture
def say(world: Any) -> Say:
    """`say(station, message, …)`: what one commit does with these messages of a station."""

    async def write(station: Any, *told: Told) -> list[Event]:
        spoken = [
            Spoken(
                station.id,
                station.tenant_id,
                1,
                world.clock(),
                one,
                Answer(now_ms=Milliseconds(0)),
            )
            for one in told
        ]
        async with world.database.commit_unit() as cursor:
            return await ConfigurationWriter().write_spoken(cursor, spoken)

    return write
