"""What the agent depends on, link by link, as a technician asks for it.

A link says how it is by a code; `edge_agent/texts` has what happened, why and what to do for each
code, in every language. `why` is what a driver or the system said, as it was said.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import msgspec

from edge_agent.hardware.line import FAILURES_BEFORE_LOST, LineHealth
from protocols.agent_link import ClockQuality

CONNECTED: Final = "connected"
NOT_YET: Final = "not connected yet"
LOW_BYTES: Final = 64 * 1024 * 1024
"""Less free disk than this is told before it is none."""


class LinkState(StrEnum):
    """How a link is."""

    OK = "ok"
    WAITING = "waiting"
    """Not there yet, or goes on without it."""
    TROUBLE = "trouble"
    OFF = "off"
    """Not configured."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    kind: str
    """bus, board, evse_meter, meter, mqtt, ocpp, clock, disk, journal or queue."""
    name: str
    state: LinkState
    code: str
    why: str = ""
    age_ms: int | None = None
    """Since it was last heard, or since it has been as it is."""
    facts: dict[str, int | str] = {}


@runtime_checkable
class OnLine(Protocol):
    """A device whose line can be asked how it is."""

    def line_health(self) -> LineHealth: ...


class BoardSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop knows of a board."""

    name: str
    identity: str
    opened: bool
    trouble: str
    lost: bool
    """Silent for so long that its EVSEs are faulted."""
    age_ms: int | None
    stuck: bool = False
    away: str = ""
    """Why its line is somebody else's; empty: it is not."""


class DiskSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The file system under the journal; `trouble` when it could not be asked."""

    free_bytes: int = 0
    total_bytes: int = 0
    free_files: int | None = None
    """None where the file system does not count them."""
    read_only: bool = False
    trouble: str = ""
    age_ms: int = 0


def buses(devices: Iterable[object]) -> list[Link]:
    """Every line once, whoever shares it."""
    seen: dict[str, LineHealth] = {}
    for device in devices:
        if isinstance(device, OnLine):
            health = device.line_health()
            seen[health.line] = health
    return [_bus(health) for health in seen.values()]


def _bus(health: LineHealth) -> Link:
    lost = [unit for unit, count in health.failures.items() if count >= FAILURES_BEFORE_LOST]
    all_lost = bool(lost) and len(lost) == len(health.failures)
    state, code = LinkState.OK, "bus.ok"
    if lost and health.refused:
        state, code = LinkState.TROUBLE, f"bus.{health.kind}_down"
    elif all_lost:
        state, code = LinkState.TROUBLE, f"bus.{health.kind}_silent"
    elif lost:
        state, code = LinkState.TROUBLE, "bus.partly"
    elif not health.open:
        state, code = LinkState.WAITING, "bus.closed"
    facts: dict[str, int | str] = {
        "requests": health.requests,
        "missed": health.missed,
        "waiting": health.waiting,
        "lost": ", ".join(map(str, lost)),
    }
    age = None if health.age_s is None else round(health.age_s * 1000)
    return Link(kind="bus", name=health.line, state=state, code=code, age_ms=age, facts=facts)


def board(seen: BoardSeen) -> Link:
    state, code = LinkState.OK, "board.ok"
    if seen.stuck:
        state, code = LinkState.TROUBLE, "board.stuck"
    elif seen.away:
        state, code = LinkState.WAITING, "board.away"
    elif seen.trouble and not seen.opened:
        state, code = LinkState.TROUBLE, "board.not_opened"
    elif seen.lost:
        state, code = LinkState.TROUBLE, "board.silent"
    elif seen.trouble:
        state, code = LinkState.WAITING, "board.late"
    elif not seen.opened:
        state, code = LinkState.WAITING, "board.starting"
    return Link(
        kind="board",
        name=seen.name,
        state=state,
        code=code,
        why=seen.away or seen.trouble,
        age_ms=seen.age_ms,
        facts={"identity": seen.identity},
    )


def meter(*, there: bool, identity: str, trouble: str, age_ms: int | None) -> Link:
    state, code = LinkState.OK, "meter.ok"
    if not there:
        state, code = LinkState.OFF, "meter.none"
    elif trouble:
        state, code = LinkState.TROUBLE, "meter.silent"
    elif age_ms is None:
        state, code = LinkState.WAITING, "meter.starting"
    facts: dict[str, int | str] = {"identity": identity}
    return Link(
        kind="meter", name="site", state=state, code=code, why=trouble, age_ms=age_ms, facts=facts
    )


def evse_meter(*, name: str, identity: str, trouble: str, age_ms: int | None) -> Link:
    """The meter beside a board that has none of its own."""
    state, code = LinkState.OK, "evse_meter.ok"
    if trouble:
        state, code = LinkState.TROUBLE, "evse_meter.silent"
    elif age_ms is None:
        state, code = LinkState.WAITING, "evse_meter.starting"
    facts: dict[str, int | str] = {"identity": identity}
    return Link(
        kind="evse_meter",
        name=name,
        state=state,
        code=code,
        why=trouble,
        age_ms=age_ms,
        facts=facts,
    )


def mqtt(*, there: bool, up: bool | None, reason: str, age_ms: int | None) -> Link:
    """The cloud's absence keeps nobody from charging, but somebody has to know."""
    state, code = LinkState.OK, "mqtt.ok"
    if not there:
        state, code = LinkState.OFF, "mqtt.none"
    elif up is None:
        state, code = LinkState.WAITING, "mqtt.connecting"
    elif not up:
        state, code = LinkState.TROUBLE, "mqtt.down"
    why = "" if state is LinkState.OK else reason
    return Link(kind="mqtt", name="cloud", state=state, code=code, why=why, age_ms=age_ms)


def ocpp(*, reason: str, refused: int) -> Link:
    """`reason` is "connected", NOT_YET, or why it is not."""
    state, code = LinkState.TROUBLE, "ocpp.down"
    if reason == NOT_YET:
        state, code = LinkState.WAITING, "ocpp.connecting"
    elif refused:
        code = "ocpp.refused"
    elif reason == CONNECTED:
        state, code = LinkState.OK, "ocpp.ok"
    why = "" if reason == CONNECTED else reason
    facts: dict[str, int | str] = {"refused": refused}
    return Link(kind="ocpp", name="backend", state=state, code=code, why=why, facts=facts)


def clock(quality: ClockQuality) -> Link:
    state = LinkState.WAITING if quality is ClockQuality.UNSET else LinkState.OK
    return Link(kind="clock", name="clock", state=state, code=f"clock.{quality.value}")


def disk(folder: Path, seen: DiskSeen | None) -> Link:
    if seen is None:
        return Link(kind="disk", name=folder.name, state=LinkState.WAITING, code="disk.starting")
    state, code = LinkState.TROUBLE, "disk.ok"
    if seen.trouble:
        code = "disk.silent"
    elif seen.read_only:
        code = "disk.read_only"
    elif seen.free_bytes < LOW_BYTES or seen.free_files == 0:
        code = "disk.low"
    else:
        state = LinkState.OK
    mib = 1024 * 1024
    facts: dict[str, int | str] = {
        "folder": str(folder),
        "free_mib": seen.free_bytes // mib,
        "total_mib": seen.total_bytes // mib,
    }
    return Link(
        kind="disk",
        name=folder.name,
        state=state,
        code=code,
        why=seen.trouble,
        age_ms=seen.age_ms,
        facts=facts,
    )


def journal(*, failure: str, reports: Iterable[str], size_bytes: int) -> Link:
    told = "; ".join(reports)
    state, code = LinkState.OK, "journal.ok"
    if failure:
        state, code = LinkState.TROUBLE, "journal.failing"
    elif told:
        state, code = LinkState.TROUBLE, "journal.reported"
    facts: dict[str, int | str] = {"kib": size_bytes // 1024}
    return Link(
        kind="journal", name="journal", state=state, code=code, why=failure or told, facts=facts
    )


def queue(*, billing: int, telemetry: int) -> Link:
    """Samples always wait a little; a billing fact that waits is worth a word."""
    state, code = (LinkState.WAITING, "queue.waiting") if billing else (LinkState.OK, "queue.ok")
    facts: dict[str, int | str] = {"billing": billing, "telemetry": telemetry}
    return Link(kind="queue", name="queue", state=state, code=code, facts=facts)
