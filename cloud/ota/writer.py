"""The commit path's part: what stations told of their updates, queued for the planner.

Only stations that a campaign listens to are looked at, and only what is new is queued: an agent
says every minute which version it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery, Spoken
from cloud.ota import campaign_store as store
from cloud.ota.campaign_store import Observation, Watched
from cloud.stations.api import agent_versions
from protocols.agent_link import StateBatch, StationStatus, UpdateStatus
from protocols.ocpp.messages import Answered, Boot, Firmware
from protocols.release import Kind

_IDLE: Final = "Idle"
_REJECTED: Final = "Rejected"
_UNANSWERED: Final = "Unanswered"
_UPDATES: Final = frozenset({"UpdateFirmware", "SignedUpdateFirmware"})
_AGENT: Final = "agent"


class UpdateWriter:
    """A FactWriter and a SpokenWriter; as the first it comes behind stations' writer."""

    name = "ota"

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        told = [
            (one, fact)
            for one in deliveries
            if isinstance(one.batch, StateBatch)
            for fact in one.batch.facts
            if isinstance(fact, StationStatus | UpdateStatus)
        ]
        if not told:
            return []
        stations = {one.station_id for one, _ in told}
        held = await store.watched(cursor, stations)
        if not held:
            return []
        seen = await _reports(cursor, told, held)
        # as stations' writer has it by now: an older batch may come behind a newer one
        versions = await agent_versions(cursor, stations)
        now = told[-1][0].received_at
        for one in held:
            version = versions.get(one.station_id, "")
            is_agents = one.link == _AGENT and one.component.startswith(f"{Kind.AGENT}/")
            if is_agents and version and version != one.running:
                seen.append(_running(one, version, now))
        await store.observe(cursor, seen)
        return []

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        mine = [one for one in spoken if _concerns(one.told)]
        if not mine:
            return []
        held: dict[int, list[Watched]] = {}
        for watched in await store.watched(cursor, {one.station_id for one in mine}):
            if watched.link != _AGENT:
                held.setdefault(watched.station_id, []).append(watched)
        seen: list[Observation] = []
        for one in mine:
            for watched in held.get(one.station_id, ()):
                seen += await _spoken(cursor, one, watched)
        await store.observe(cursor, seen)
        return []


def _concerns(told: Any) -> bool:
    if isinstance(told, Answered):
        return told.action in _UPDATES
    return isinstance(told, Boot | Firmware)


async def _reports(
    cursor: Cursor,
    told: Sequence[tuple[Delivery, StationStatus | UpdateStatus]],
    held: Sequence[Watched],
) -> list[Observation]:
    """Statuses of updates in the order of their batches; what is older than known is left out."""
    by_request = {one.request: one for one in held}
    heard = {one.request: (one.told_outbox, one.told_seq) for one in held}
    seen: list[Observation] = []
    notes: list[tuple[UUID, UUID, int]] = []
    for delivery, fact in sorted(told, key=lambda one: one[0].batch.seq):
        if not isinstance(fact, UpdateStatus) or fact.request not in by_request:
            continue
        watched = by_request[fact.request]
        outbox, seq = heard[fact.request]
        if outbox == delivery.outbox and seq is not None and seq >= delivery.batch.seq:
            continue
        heard[fact.request] = (delivery.outbox, delivery.batch.seq)
        notes.append((fact.request, delivery.outbox, delivery.batch.seq))
        seen.append(_report(watched, str(fact.state), fact.reason, delivery.received_at))
    await store.note_told(cursor, notes)
    return seen


async def _spoken(cursor: Cursor, one: Spoken, watched: Watched) -> list[Observation]:
    told, at = one.told, one.received_at
    if isinstance(told, Answered) and told.command == watched.request:
        number = told.request.get("requestId")
        if isinstance(number, int):
            await store.note_number(cursor, watched.request, number)
        if told.accepted:
            return []
        # without an answer nobody knows whether it was begun: the deadline will tell
        status = _UNANSWERED if told.response is None else str(told.response.get("status", ""))
        return [_report(watched, status or _REJECTED, told.text, at)]
    if isinstance(told, Firmware) and told.status != _IDLE:
        others = told.request_id is not None and watched.number not in {None, told.request_id}
        return [] if others else [_report(watched, told.status, "", at)]
    if isinstance(told, Boot) and told.firmware:
        return [_running(watched, told.firmware, at)]
    return []


def _report(one: Watched, state: str, reason: str, at: datetime) -> Observation:
    told = {"what": "report", "request": str(one.request), "state": state, "reason": reason}
    return Observation(one.campaign_id, one.station_id, one.tenant_id, told, at)


def _running(one: Watched, version: str, at: datetime) -> Observation:
    told = {"what": "running", "version": version}
    return Observation(one.campaign_id, one.station_id, one.tenant_id, told, at)
