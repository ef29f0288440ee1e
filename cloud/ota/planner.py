"""A campaign's next step, in one transaction: what was seen goes in, what follows is stored.

The campaign's row is locked for as long as that takes, so that one process at a time plans it; a
process that dies has taken nothing off the queue and offered nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from cloud.kernel import events
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event as LogEvent
from cloud.ota import campaign_store as store
from cloud.ota.api import Link, Order
from cloud.ota.campaign_store import CampaignRow, Way
from cloud.ota.rollout import (
    Action,
    Device,
    Entered,
    Event,
    Gone,
    Offer,
    Plan,
    Reported,
    Rollout,
    Running,
    Stage,
    Staged,
    Standing,
    Tick,
    Withdraw,
)
from cloud.ota.windows import Daily
from protocols.agent_link import Update
from protocols.ocpp.asks import UpdateFirmware

AGENT: Final = "agent"
CLOUD: Final = "cloud"
"""Who does what nobody ordered."""
_LOOK_AGAIN: Final = timedelta(hours=1)
_RETRIES: Final = 3
_RETRY_S: Final = 60
_OVER: Final = frozenset({Stage.FINISHED, Stage.ABORTED})
_TOLD_OF: Final = frozenset({Standing.SUCCEEDED, Standing.FAILED})


@dataclass(frozen=True)
class Surroundings:
    """What planning needs beside the campaign."""

    link: Link
    files_url: str
    """Where stations that speak OCPP fetch images: a token and the file's name follow."""


def window_of(terms: dict[str, Any]) -> Daily | None:
    """When a campaign's installations may begin; None: at any time."""
    told = terms.get("window")
    if told is None:
        return None
    start, end = time.fromisoformat(told["start"]), time.fromisoformat(told["end"])
    return Daily(start, end, told["time_zone"])


def plan_of(terms: dict[str, Any], version: str) -> Plan:
    return Plan(
        version=version,
        success_percent=terms["success_percent"],
        error_percent=terms["error_percent"],
        min_sample=terms["min_sample"],
        deadline=timedelta(seconds=terms["deadline_s"]),
    )


async def turn(
    cursor: Cursor,
    campaign: CampaignRow,
    version: str,
    orders: Sequence[tuple[str, Event]],
    around: Surroundings,
    now: datetime,
) -> Rollout:
    """Plan a locked campaign; `orders` are people's, with who gave each."""
    held = {one.station: one for one in await store.devices(cursor, campaign.id)}
    plan = plan_of(campaign.terms, version)
    rollout = Rollout(plan, held.values(), Stage(campaign.stage), campaign.wave)
    daily = window_of(campaign.terms)
    window = None if daily is None else daily.next(now)
    starts = None if window is None else window[1]
    seen = [_event(one.station_id, one.told) for one in
            await store.take_observations(cursor, campaign.id)]  # fmt: skip
    actions: list[Action] = []
    for event in (*seen, *(order for _, order in orders), Tick()):
        actions += rollout.handle(event, now, starts)
    await _apply(cursor, campaign, rollout, actions, held, window, around, now)
    await _tell(cursor, campaign, rollout, actions, orders, now)
    return rollout


def _event(station: int, told: dict[str, Any]) -> Event:
    if told["what"] == "report":
        return Reported(station, UUID(told["request"]), told["state"], told["reason"])
    if told["what"] == "running":
        return Running(station, told["version"])
    return Gone(station, told["reason"])


async def _apply(
    cursor: Cursor,
    campaign: CampaignRow,
    rollout: Rollout,
    actions: Sequence[Action],
    held: dict[int, Device],
    window: tuple[datetime, datetime] | None,
    around: Surroundings,
    now: datetime,
) -> None:
    changed = [one for one in rollout.devices.values() if one is not held[one.station]]
    await store.save_devices(cursor, campaign.id, changed, now)
    entered = [(one.station, str(one.what), one.reason) for one in actions
               if isinstance(one, Entered)]  # fmt: skip
    await store.add_steps(cursor, campaign.tenant_id, campaign.id, entered, now)
    offers = [one.station for one in actions if isinstance(one, Offer)]
    offers = [one for one in offers if rollout.devices[one].standing is Standing.OFFERED]
    withdrawn = sorted({one.station for one in actions if isinstance(one, Withdraw)})
    if not offers and not withdrawn:
        return
    if offers:
        await store.take_over(cursor, campaign.id, offers, window, now)
    opens = now if window is None else max(now, window[0])
    ways = await store.ways(cursor, campaign.id, [*offers, *withdrawn])
    orders = [_offer(ways[one], rollout, campaign, opens, around) for one in offers]
    orders += [_again(ways[one], now) for one in withdrawn if ways[one].link == AGENT]
    tenant = TenantId(campaign.tenant_id)
    await around.link.order(cursor, tenant, orders, f"campaign:{campaign.id}")


def _offer(
    way: Way, rollout: Rollout, campaign: CampaignRow, opens: datetime, around: Surroundings
) -> Order:
    until = rollout.devices[way.station_id].deadline
    assert until is not None
    if way.link == AGENT:
        return Order(way.request, way.station_id, Update(way.request), until)
    signed = campaign.terms.get("signed") or {}
    name = way.path.rpartition("/")[2]
    ask = UpdateFirmware(
        location=f"{around.files_url}/{way.token}/{name}",
        retrieve_at=opens,
        retries=_RETRIES,
        retry_interval_s=_RETRY_S,
        signing_certificate=signed.get("certificate"),
        signature=signed.get("signature"),
        expected_version=rollout.plan.version,
    )
    return Order(way.request, way.station_id, ask, until)


def _again(way: Way, now: datetime) -> Order:
    """Have the agent read what the director says now: no longer this."""
    # a command of its own, whose id is a neighbour of the request's
    command = UUID(int=way.request.int ^ 1)
    return Order(command, way.station_id, Update(way.request), now + _LOOK_AGAIN)


async def _tell(
    cursor: Cursor,
    campaign: CampaignRow,
    rollout: Rollout,
    actions: Sequence[Action],
    orders: Sequence[tuple[str, Event]],
    now: datetime,
) -> None:
    """Store the campaign's stage; write the audit and the event log."""
    tenant = TenantId(campaign.tenant_id)
    staged = [one for one in actions if isinstance(one, Staged)]
    counts = store.counts_of(rollout.counts)
    if staged or counts != campaign.counts:
        reason = staged[-1].reason if staged else campaign.reason
        ended = now if rollout.stage in _OVER else None
        await store.put_stage(
            cursor, campaign.id, rollout.stage, reason, rollout.wave, counts, ended
        )
    happened = []
    by = orders[0][0] if orders else CLOUD
    for one in staged:
        wave = one.stage is Stage.RUNNING and one.wave != campaign.wave
        what = f"wave {one.wave + 1}" if wave else str(one.stage)
        ordered = not one.reason and not wave and one.stage is not Stage.FINISHED
        await store.add_audit(
            cursor, tenant, campaign.id, by if ordered else CLOUD, what, one.reason, now
        )
        kind = "campaign.wave" if wave else f"campaign.{one.stage}"
        told = {"wave": one.wave + 1, "reason": one.reason, "name": campaign.name}
        happened.append(LogEvent(tenant, kind, None, str(campaign.id), told))
    for entry in actions:
        if isinstance(entry, Entered) and entry.what in _TOLD_OF:
            data = {"campaign": campaign.id, "version": rollout.plan.version}
            happened.append(
                LogEvent(
                    tenant,
                    f"update.{entry.what}",
                    entry.station,
                    str(campaign.id),
                    {**data, "reason": entry.reason},
                )
            )
    await events.append(cursor, happened)
