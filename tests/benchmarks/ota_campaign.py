"""ota.plan_s_10000: a campaign over 10,000 agents, of which 3 % are silent and 2 % fail.

The real database, planner and commit path; agents are simulated by what they tell: every status and
version of theirs goes through the group committer, a wave's at a time. Shares are exact in every
wave, so the end is known to the device: with a threshold of 5 % the campaign runs on over 9,500
successes and 200 failures, and halts in the turn in which the deadline adds the 300 that never
spoke. The figure is the longest turn of the planner: all that was seen goes in, a wave goes out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from figure import Figure
from ingest_house import embedded_house

from cloud.kernel.database import Database, TenantId
from cloud.kernel.etags import ANYTHING
from cloud.kernel.facts import Delivery, GroupCommitter
from cloud.kernel.http import Caller, Role
from cloud.kernel.migrate import migrate
from cloud.main import UpdateLink, spare_the_collector
from cloud.ota.campaigns import Campaigns, Draft
from cloud.ota.cohorts import Cohort
from cloud.ota.planner import Surroundings
from cloud.ota.writer import UpdateWriter
from cloud.stations.api import to_ms
from cloud.stations.writer import StateWriter
from protocols.agent_link import (
    ClockQuality,
    Stamp,
    StateBatch,
    StationStatus,
    Stream,
    UpdateState,
    UpdateStatus,
)
from protocols.quantities import Milliseconds

AGENTS = 10_000
WAVES = (1, 10, 50)
SILENT, FAILING = 3, 2
"""Of a hundred."""
NEW, OLD = "2.0.0", "1.9.0"
PLAN_S = 1.0
ONE = TenantId(1)
BOOT = UUID(int=1)
TERMS: dict[str, Any] = {
    "success_percent": 95, "error_percent": SILENT + FAILING, "min_sample": 5, "deadline_s": 3600,
    "waves": [*WAVES, 100], "window": None, "force": False, "signed": None,
}  # fmt: skip
FILL = """
    INSERT INTO stations.station (tenant_id, identity, registration, created_at)
    SELECT 1, 'B-' || n, 'registered', now() FROM generate_series(1, %(agents)s) n;
    INSERT INTO stations.station_state (station_id, tenant_id, outbox, seq, at, received_at,
        agent_version, boards, local_list_version, pending_billing, pending_telemetry,
        journal_bytes)
    SELECT id, 1, md5(id::text)::uuid, 0, now(), now(), '1.9.0', '{}', 0, 0, 0, 0
    FROM stations.station;
    INSERT INTO communication.connection (station_id, tenant_id, epoch, online, boot,
        agent_version, connected_at, last_seen)
    SELECT id, 1, 1, true, md5('boot')::uuid, '1.9.0', now(), now() FROM stations.station;
    INSERT INTO kernel.outbox (station_id, outbox, tenant_id, last_boot)
    SELECT id, md5(id::text)::uuid, 1, md5('boot')::uuid FROM stations.station;
    INSERT INTO kernel.outbox_mark (station_id, outbox, stream)
    SELECT id, md5(id::text)::uuid, 'state' FROM stations.station;
    INSERT INTO ota.release (tenant_id, kind, name, version, counter, uploaded_by, uploaded_at)
    VALUES (1, 'agent', 'karvon-agent', '2.0.0', 1, 'key:1', now());
    INSERT INTO ota.target (path, tenant_id, release_id, role, length, sha256, custom, body,
        is_current)
    VALUES ('agent/a', 1, 1, 'agent', 1, '00', '{"encoding": "zstd", "hw_ids": ["any"]}', '{}',
        true);
    ANALYZE;
"""


class Agents:
    """Ten thousand, and what they tell."""

    def __init__(self, committer: GroupCommitter) -> None:
        self._committer = committer
        self._seq = 0
        self.now = datetime.now(UTC)

    def clock(self) -> datetime:
        return self.now

    async def tell(self, offered: Sequence[tuple[int, int, UUID, UUID]]) -> tuple[int, int, int]:
        """What these came to, by each one's place: succeeded, failed, silent."""
        told: list[Delivery] = []
        failed = silent = 0
        self._seq += 1
        for place, station, outbox, request in offered:
            if place % 100 < SILENT:
                silent += 1
                continue
            fails = place % 100 < SILENT + FAILING
            failed += fails
            told.append(self._batch(station, outbox, request, fails=fails))
        await self._committer.append(told)
        return len(told) - failed, failed, silent

    def _batch(self, station: int, outbox: UUID, request: UUID, *, fails: bool) -> Delivery:
        stamp = Stamp(Milliseconds(to_ms(self.now)), Milliseconds(0), BOOT, ClockQuality.SYNCED)
        state = UpdateState.INSTALLATION_FAILED if fails else UpdateState.INSTALLED
        facts = (
            StationStatus(
                at=stamp, agent_version=OLD if fails else NEW, boards={}, local_list_version=0,
                pending_billing=0, pending_telemetry=0, journal_bytes=0,
            ),
            UpdateStatus(request, "agent/a", NEW, state, stamp),
        )  # fmt: skip
        batch = StateBatch(outbox, self._seq, self._seq, stamp, facts)
        return Delivery(station, ONE, outbox, self.now, Stream.STATE, batch)


async def measure(runs: int) -> list[Figure]:
    """Median over the runs of the longest turn, in a process that is set as the cloud's."""
    spare_the_collector()
    async with embedded_house() as house:
        results = []
        for _ in range(runs):
            with house.database() as dsn:
                results.append(await _run(dsn))
    middle = sorted(results, key=lambda one: one["plan_s"])[len(results) // 2]
    exact = all(one["exact"] for one in results)
    detail = {name: value for name, value in middle.items() if name != "plan_s"}
    return [
        Figure(
            name="ota.plan_s_10000",
            value=middle["plan_s"],
            unit="s",
            at_most=PLAN_S,
            detail=detail,
        ),
        Figure(name="ota.counts_exact", value=float(exact), unit="bool", at_least=1.0),
    ]


async def _run(dsn: str) -> dict[str, Any]:
    migrate(dsn)
    with psycopg.connect(dsn) as owner:
        owner.execute(FILL.replace("%(agents)s", str(AGENTS)))
    async with (
        Database.open(dsn) as database,
        GroupCommitter(database, [StateWriter(), UpdateWriter()]) as committer,
    ):
        agents = Agents(committer)
        around = Surroundings(UpdateLink(), "http://localhost/ota/files")
        campaigns = Campaigns(database, _Nobody(), around, agents.clock)
        return await _campaign(database, campaigns, agents)


class _Nobody:
    """The finder of stations, which nothing here asks."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def _campaign(database: Database, campaigns: Campaigns, agents: Agents) -> dict[str, Any]:
    author, other = (Caller(ONE, subject, Role.OPERATOR) for subject in ("key:1", "key:2"))
    cohort = await campaigns.add_cohort(author, "all", Cohort())
    draft = await campaigns.create(author, Draft("all", 1, cohort.id, TERMS))
    turns: list[float] = []
    expected = {"succeeded": 0, "failed": 0, "silent": 0}

    began = time.perf_counter()
    await campaigns.approve(other, draft.row.id, ANYTHING)
    approved = time.perf_counter() - began
    known: set[int] = set()
    while offered := [one for one in await _offered(database) if one[1] not in known]:
        known |= {one[1] for one in offered}
        done = await agents.tell(offered)
        for name, number in zip(expected, done, strict=True):
            expected[name] += number
        began = time.perf_counter()
        await campaigns.plan()
        turns.append(time.perf_counter() - began)
    before = await campaigns.campaign(author, draft.row.id)
    agents.now += timedelta(hours=1)
    began = time.perf_counter()
    await campaigns.plan()
    turns.append(time.perf_counter() - began)
    after = await campaigns.campaign(author, draft.row.id)
    counts = [{name: sum(one[name] for one in row.counts) for name in ("succeeded", "failed")}
              for row in (before.row, after.row)]  # fmt: skip
    exact = (
        (before.row.stage, counts[0]["succeeded"], counts[0]["failed"])
        == ("running", expected["succeeded"], expected["failed"])
        and (after.row.stage, counts[1]["succeeded"], counts[1]["failed"])
        == ("halted", expected["succeeded"], expected["failed"] + expected["silent"])
        and expected["failed"] + expected["silent"] == AGENTS * (SILENT + FAILING) // 100
    )
    return {
        "plan_s": max(turns),
        "exact": exact,
        "approve_s": round(approved, 2),
        "turns_s": " ".join(f"{turn:.2f}" for turn in turns),
        "succeeded": counts[1]["succeeded"],
        "failed": counts[1]["failed"],
        "halted": after.row.reason,
    }


async def _offered(database: Database) -> list[tuple[int, int, UUID, UUID]]:
    """Place, station, outbox and request of those under way."""
    async with database.glance() as cursor:
        await cursor.execute(
            "SELECT place, station_id, md5(station_id::text)::uuid, request FROM ota.device"
            " WHERE standing = 'offered' ORDER BY place"
        )
        return [(int(place), int(station), *ids) for place, station, *ids in
                await cursor.fetchall()]  # fmt: skip
