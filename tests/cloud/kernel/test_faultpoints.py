"""Killed at each instant of the commit: what was committed is there, what was not is not."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from cloud.kernel.database import Database

CHILD = """
import asyncio, sys
from datetime import UTC, datetime
from uuid import UUID
from cloud.kernel.database import Database, TenantId
from cloud.kernel.facts import Delivery, GroupCommitter
from protocols.agent_link import ClockQuality, Stamp, StateBatch, Stream

async def main():
    outbox, at = UUID(sys.argv[2]), Stamp(0, 0, UUID(int=1), ClockQuality.SYNCED)
    async with Database.open(sys.argv[1]) as database:
        async with GroupCommitter(database, [], linger_s=0) as sink:
            for seq in range(1, 4):
                batch = StateBatch(outbox, seq, 1, at, ())
                now = datetime.now(UTC)
                await sink.append([Delivery(1, TenantId(1), outbox, now, Stream.STATE, batch)])
                print(seq, flush=True)

asyncio.run(main())
"""


async def run_child(dsn: str, outbox: str, fault: str) -> tuple[int | None, list[int], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        dsn,
        outbox,
        env={"KARVON_FAULT": fault, "PYTHONPATH": ":".join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, [int(line) for line in out.split()], err.decode()


@pytest.mark.parametrize(
    ("fault", "answered", "committed"),
    [
        ("cloud.before_commit:2", [1], 1),
        ("cloud.after_commit:2", [1], 2),
        ("cloud.after_commit:1.0", [], 1),
        ("", [1, 2, 3], 3),
    ],
)
async def test_a_kill_at_an_instant_leaves_what_was_committed_by_then(
    kernel_dsn: str,
    database: Database,
    greet: Callable[..., Any],
    fault: str,
    answered: list[int],
    committed: int,
) -> None:
    await greet(database, 1)
    with psycopg.connect(kernel_dsn) as connection:
        row = connection.execute("SELECT outbox FROM kernel.outbox").fetchone()
        assert row
        code, told, stderr = await run_child(kernel_dsn, str(row[0]), fault)
        marks = connection.execute(
            "SELECT count(*) FROM kernel.outbox_mark m, unnest(m.committed) r,"
            " generate_series(lower(r), upper(r) - 1) WHERE stream = 'state'"
        ).fetchone()
    assert told == answered
    assert marks == (committed,)
    assert code == (-signal.SIGKILL if fault else 0)
    assert (f"faultpoint {fault.partition(':')[0]}" in stderr) is bool(fault)
