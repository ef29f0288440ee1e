"""The storage suites run on the embedded PostgreSQL and on TimescaleDB."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    return pg_server
