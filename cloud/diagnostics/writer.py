"""The commit path's part: what stations told of their condition."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid5

from cloud.diagnostics import store
from cloud.diagnostics.store import (
    MessageRow,
    MonitorRow,
    NewTransfer,
    NoticeRow,
    SecurityRow,
    Step,
)
from cloud.diagnostics.transfers import (
    ASKED,
    INSTALLED,
    Kind,
    Standing,
    addressee,
    concluded,
    is_over,
)
from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from cloud.stations.api import from_ms
from protocols.ocpp.effects import (
    Effect,
    MessageCleared,
    MessageSet,
    MonitorsCleared,
    MonitorsSet,
    TransferAsked,
    effect_of,
)
from protocols.ocpp.messages import (
    Answered,
    Boot,
    DataTransfer,
    Firmware,
    Log,
    Notice,
    Security,
)

Expected = Callable[[Cursor, Collection[UUID]], Awaitable[dict[UUID, str]]]
"""Which firmware a station is to run after these commands."""
Said = list[tuple[Spoken, Any]]
_KINDS: Final = (Answered, Boot, DataTransfer, Firmware, Log, Notice, Security)
_NAMESPACE: Final = UUID("b7a3a4a2-58a5-4b44-8d63-2d6b6e2b1d10")
_IDLE: Final = "Idle"
"""What a station says when it is asked and does nothing."""
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


class DiagnosticsWriter:
    def __init__(self, expected: Expected) -> None:
        self._expected = expected

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        mine = [one for one in spoken if isinstance(one.told, _KINDS)]
        if not mine:
            return []
        effects = [
            (one, effect)
            for one in mine
            if isinstance(one.told, Answered) and (effect := effect_of(one.told)) is not None
        ]
        happened = await _security(cursor, mine)
        happened += await self._transfers(cursor, mine, effects)
        await _things(cursor, mine, effects)
        return happened + await _notices(cursor, mine)

    async def _transfers(
        self, cursor: Cursor, mine: Sequence[Spoken], effects: Sequence[tuple[Spoken, Effect]]
    ) -> list[Event]:
        asked = [(one, e) for one, e in effects if isinstance(e, TransferAsked)]
        if asked:
            commands = [one.told.command for one, _ in asked if isinstance(one.told, Answered)]
            versions = await self._expected(cursor, commands)
            await store.add_transfers(cursor, [_asked(one, e, versions) for one, e in asked])
        telling = [one for one in mine if isinstance(one.told, Firmware | Log | Boot)]
        if not telling:
            return []
        held = await store.standings(cursor, {one.station_id for one in telling})
        steps, loose = _steps(telling, held)
        if loose:
            await store.add_transfers(cursor, loose)
        if steps:
            await store.take_steps(cursor, [step for step, _ in steps])
        return [_step_event(step, kind) for step, kind in steps] + [
            _event(one.station_id, one.tenant_id, f"station.{one.kind}", status=one.status)
            for one in loose
        ]


def _event(station: int, tenant: Any, kind: str, /, **data: Any) -> Event:
    return Event(tenant, kind, station, f"station:{station}", data)


# --------------------------------------------------------------------------- security events


async def _security(cursor: Cursor, mine: Sequence[Spoken]) -> list[Event]:
    told = {row.id: row for row in map(_security_row, mine) if row is not None}
    if not told:
        return []
    new = await store.put_security_events(cursor, list(told.values()))
    return [
        Event(
            tenant_id=row.tenant_id,  # type: ignore[arg-type]  # as it was spoken
            kind="station.security",
            station_id=row.station_id,
            subject=f"security:{row.id}",
            data={"type": row.type, "text": row.text, "at": row.at.isoformat()},
        )
        for row in told.values()
        if row.id in new
    ]


def _security_row(one: Spoken) -> SecurityRow | None:
    told = one.told
    if not isinstance(told, Security):
        return None
    return SecurityRow(
        id=uuid5(_NAMESPACE, f"{one.station_id} {told.at_ms} {told.type} {told.text}"),
        station_id=one.station_id,
        tenant_id=one.tenant_id,
        at=_believable(told.at_ms, one.received_at),
        received_at=one.received_at,
        type=told.type,
        text=told.text,
    )


def _believable(at_ms: int, received_at: datetime) -> datetime:
    """A clock that was never set, or runs ahead, is not believed (S11)."""
    try:
        at = from_ms(at_ms)
    except (OverflowError, ValueError, OSError):
        return received_at
    return at if _EARLIEST < at <= received_at else received_at


# --------------------------------------------------------------------------- transfers


def _asked(one: Spoken, effect: TransferAsked, versions: dict[UUID, str]) -> NewTransfer:
    command = one.told.command if isinstance(one.told, Answered) else None
    return NewTransfer(
        station_id=one.station_id,
        tenant_id=one.tenant_id,
        kind=effect.kind,
        request_id=effect.request_id,
        command=command,
        location=effect.location,
        filename=effect.filename,
        expected_version=versions.get(command, "") if command else "",
        status=ASKED,
        is_open=True,
        at=one.received_at,
    )


def _steps(
    telling: Sequence[Spoken], held: dict[int, list[Standing]]
) -> tuple[list[tuple[Step, str]], list[NewTransfer]]:
    """What the messages, in their order, do to what is held; and what nobody asked for."""
    steps: list[tuple[Step, str]] = []
    loose: list[NewTransfer] = []
    for one in telling:
        known = held.get(one.station_id, [])
        if isinstance(one.told, Boot):
            for done in concluded(known, one.told.firmware):
                steps.append((_step(one, done, INSTALLED, by_us=True), done.kind))
                known[known.index(done)] = replace(done, status=INSTALLED, is_open=False)
        elif isinstance(one.told, Firmware | Log) and one.told.status != _IDLE:
            kind: Kind = "firmware" if isinstance(one.told, Firmware) else "log"
            status, number = one.told.status, one.told.request_id
            found = addressee(known, kind, number, one.received_at)
            if found is None:
                loose.append(_loose(one, kind, status, number))
            elif found.status != status:  # else a repeat
                step = _step(one, found, status, by_us=False)
                steps.append((step, kind))
                known[known.index(found)] = replace(found, status=status, is_open=step.is_open)
    return steps, loose


def _step(one: Spoken, standing: Standing, status: str, *, by_us: bool) -> Step:
    return Step(
        standing.id,
        one.station_id,
        one.tenant_id,
        status,
        not is_over(standing.kind, status),
        by_us,
        one.received_at,
    )


def _loose(one: Spoken, kind: Kind, status: str, number: int | None) -> NewTransfer:
    return NewTransfer(
        station_id=one.station_id,
        tenant_id=one.tenant_id,
        kind=kind,
        request_id=number,
        command=None,
        location="",
        filename="",
        expected_version="",
        status=status,
        is_open=not is_over(kind, status),
        at=one.received_at,
    )


def _step_event(step: Step, kind: str) -> Event:
    return _event(
        step.station_id,
        step.tenant_id,
        f"station.{kind}",
        status=step.status,
        concluded=step.is_concluded,
    )


# --------------------------------------------------------------------------- what is set up there


async def _things(
    cursor: Cursor, mine: Sequence[Spoken], effects: Sequence[tuple[Spoken, Effect]]
) -> None:
    """Monitors and display messages; what is told last of one counts."""
    monitors: dict[tuple[int, int], MonitorRow | None] = {}
    messages: dict[tuple[int, int], MessageRow | None] = {}
    answers = {id(one): effect for one, effect in effects}
    for one in mine:
        effect = answers.get(id(one))
        station = one.station_id
        if isinstance(effect, MonitorsCleared):
            monitors |= {(station, gone): None for gone in effect.ids}
        elif isinstance(effect, MessageCleared):
            messages[station, effect.id] = None
        for monitor in _monitors(one, effect):
            monitors[station, int(monitor["id"])] = _monitor(one, monitor)
        for message in _messages(one, effect):
            row = MessageRow(one.tenant_id, message, one.received_at)
            messages[station, int(message["id"])] = row
    if gone := [key for key, row in monitors.items() if row is None]:
        await store.remove_monitors(cursor, gone)
    if put := {key: row for key, row in monitors.items() if row is not None}:
        await store.put_monitors(cursor, put)
    if cleared := [key for key, kept in messages.items() if kept is None]:
        await store.remove_messages(cursor, cleared)
    if shown := {key: kept for key, kept in messages.items() if kept is not None}:
        await store.put_messages(cursor, shown)


def _monitors(one: Spoken, effect: Effect | None) -> Iterator[dict[str, Any]]:
    if isinstance(effect, MonitorsSet):
        yield from effect.monitors
    elif isinstance(one.told, Notice) and one.told.action == "NotifyMonitoringReport":
        for found in one.told.payload.get("monitor") or ():
            place = {"component": found["component"], "variable": found["variable"]}
            for monitor in found["variableMonitoring"]:
                yield {**place, **monitor}


def _monitor(one: Spoken, monitor: dict[str, Any]) -> MonitorRow:
    return MonitorRow(
        tenant_id=one.tenant_id,
        component=dict(monitor["component"]),
        variable=dict(monitor["variable"]),
        type=str(monitor["type"]),
        value=float(monitor.get("value", 0)),
        severity=int(monitor["severity"]),
        only_in_transaction=bool(monitor.get("transaction", False)),
        at=one.received_at,
    )


def _messages(one: Spoken, effect: Effect | None) -> Iterator[dict[str, Any]]:
    if isinstance(effect, MessageSet):
        yield effect.message
    elif isinstance(one.told, Notice) and one.told.action == "NotifyDisplayMessages":
        yield from one.told.payload.get("messageInfo") or ()


# --------------------------------------------------------------------------- notices

_NO_VENDOR: Final = "UnknownVendorId"
"""What is kept for people to read is not done: 1.6 (4.3) and 2.x (P02) have that told so."""


async def _notices(cursor: Cursor, mine: Sequence[Spoken]) -> list[Event]:
    told = [row for row in map(_notice_row, mine) if row is not None]
    if not told:
        return []
    await store.add_notices(cursor, told)
    for one in mine:
        if isinstance(one.told, DataTransfer):
            one.answer.status = _NO_VENDOR
    return [alert for row in told if (alert := _alert(row)) is not None]


def _notice_row(one: Spoken) -> NoticeRow | None:
    told = one.told
    if isinstance(told, Notice):
        action, payload = told.action, told.payload
    elif isinstance(told, DataTransfer):
        fields = {"vendorId": told.vendor, "messageId": told.message, "data": told.data}
        action, payload = "DataTransfer", fields
    elif isinstance(told, Firmware) and told.location:
        fields = {"status": told.status, "requestId": told.request_id, "location": told.location}
        payload = {name: value for name, value in fields.items() if value is not None}
        action = "PublishFirmwareStatusNotification"
    else:
        return None
    return NoticeRow(one.station_id, one.tenant_id, one.received_at, action, payload)


def _alert(row: NoticeRow) -> Event | None:
    """That a monitor has struck; periodic values are in the notices only."""
    if row.action != "NotifyEvent":
        return None
    struck = [one for one in row.payload.get("eventData") or () if one["trigger"] == "Alerting"]
    if not struck:
        return None
    first = struck[0]
    return _event(
        row.station_id,
        row.tenant_id,
        "station.alert",
        count=len(struck),
        component=first["component"]["name"],
        variable=first["variable"]["name"],
        value=first.get("actualValue"),
        cleared=bool(first.get("cleared", False)),
    )
