"""The commit path's part: what stations answered about their local lists, and that they booted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloud.authorization import list_store
from cloud.authorization.keeping import Status, try_again
from cloud.authorization.list_store import Answering, Standing
from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from protocols.ocpp.effects import ListHeld, effect_of
from protocols.ocpp.messages import Answered, Boot

_ACTIONS: Final = frozenset({"SendLocalList", "GetLocalListVersion"})
_NEVER: Final = ("NotSupported", "NotImplemented", "UnknownAction")
"""What a station says that has no local list: as a status or as CALLERROR's code."""


class ListWriter:
    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        booted = {one.station_id: one.told.firmware for one in spoken if isinstance(one.told, Boot)}
        answers = [
            (one, one.told)
            for one in spoken
            if isinstance(one.told, Answered) and one.told.action in _ACTIONS
        ]
        concerned = 0
        if booted:
            concerned += await list_store.booted(cursor, booted)
        if answers:
            concerned += await _take(cursor, answers)
        if concerned:
            await list_store.wake(cursor)
        return []


async def _take(cursor: Cursor, answers: Sequence[tuple[Spoken, Answered]]) -> int:
    """Returns how many stations' lists these concern."""
    ours = await list_store.answering(cursor, [told.command for _, told in answers])
    others = {
        one.station_id
        for one, told in answers
        if told.command not in ours and told.action == "SendLocalList" and told.accepted
    }
    concerned = await list_store.ask_again(cursor, others) if others else 0
    now = max(one.received_at for one, _ in answers)
    taken, standing = [], []
    for one, told in answers:
        asked = ours.get(told.command)
        if asked is None or asked.station_id != one.station_id:
            continue
        if asked.sent != "version" and told.accepted:
            taken.append(told.command)
        else:
            standing.append(_standing(one, told, asked))
    if taken:
        await list_store.note_taken(cursor, taken, now)
    if standing:
        await list_store.note_standing(cursor, standing, now)
    return concerned + len(taken) + len(standing)


def _standing(one: Spoken, told: Answered, asked: Answering) -> Standing:
    held = effect_of(told) if asked.sent == "version" else None
    if isinstance(held, ListHeld) and held.version >= 0:
        return Standing(one.station_id, Status.BEHIND, held=held.version, settled=True)
    if isinstance(held, ListHeld) or told.text.startswith(_NEVER):
        reason = f"{told.action}: {told.text or 'the station has no local list'}"
        return Standing(one.station_id, Status.UNSUPPORTED, reason, settled=True)
    if told.text.startswith("VersionMismatch") and asked.sent == "differential":
        return Standing(one.station_id, Status.BEHIND, told.text, number=-1, settled=True)
    failures = asked.failures + 1
    return Standing(
        one.station_id,
        Status.FAILED,
        f"{told.action}: {told.text}",
        failures=failures,
        not_before=try_again(failures, one.received_at),
        number=None if asked.sent == "version" else -1,
        settled=True,
    )
