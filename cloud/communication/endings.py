"""What every end of a command brings with it, whichever way it came."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cloud.communication import ocpp_store
from cloud.communication.ocpp_store import Ended
from cloud.communication.store import CommandRow, expire_commands
from cloud.kernel import events
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from protocols.ocpp.actions import without_secrets


async def settled(cursor: Cursor, ended: Sequence[Ended]) -> list[Event]:
    """Wake who waits for these commands, and forget the passwords that they carried."""
    await ocpp_store.wake_askers(cursor, [one.id for one in ended])
    kept = {one.id: (one.action, one.request) for one in ended}
    shown = {
        command: (without_secrets(action), without_secrets(request))
        for command, (action, request) in kept.items()
    }
    if changed := {command: hidden for command, hidden in shown.items() if hidden != kept[command]}:
        await ocpp_store.hide(cursor, changed)
    return [event(one) for one in ended]


async def tell(cursor: Cursor, ended: Sequence[Ended]) -> None:
    """The same, with the events put into the log."""
    await events.append(cursor, await settled(cursor, ended))


async def expire(cursor: Cursor, before: datetime, now: datetime) -> None:
    """Give up the commands that died before that time without an answer."""
    await tell(cursor, [of(row) for row in await expire_commands(cursor, before, now)])


def of(row: CommandRow) -> Ended:
    return Ended(
        row.id, row.tenant_id, row.station_id, row.action, row.request, row.status, row.result
    )


def event(one: Ended) -> Event:
    """That a command came to its end."""
    return Event(
        tenant_id=TenantId(one.tenant_id),
        kind=f"command.{one.status}",
        station_id=one.station_id,
        subject=str(one.id),
        data={"action": one.action.get("action"), "text": one.result},
    )
