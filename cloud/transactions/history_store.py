"""SQL of the commit path: events, the rows that they make, and contradictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import literal
from cloud.kernel.turns import Ask
from cloud.stations.api import Dated, Dating
from cloud.transactions.native import NativeEvent
from cloud.transactions.projection import Contradiction, Projection, State, Step
from protocols.agent_link import TransactionEvent

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(TransactionEvent | NativeEvent)


EVENT_COLUMNS: Final = (
    "transaction_id, id, seq_no, fact, token, at, dating, started_at, started_dating, received_at"
)


class Native(NamedTuple):
    """By what a transaction is known to its station."""

    origin: str
    key: str | None
    incarnation: int
    number: int | None


AGENT: Final = Native("agent", None, 1, None)


class Held(NamedTuple):
    """A transaction's row while it is being extended."""

    id: UUID
    tenant_id: TenantId
    station_id: int
    projection: Projection
    native: Native = AGENT
    tariff_version: int | None = None
    """By which it is priced, by its id; None where nothing had a price when it started."""


class Recorded(NamedTuple):
    """An event as it stands in the history."""

    step: Step
    received_at: datetime


def fact_text(event: TransactionEvent | NativeEvent) -> str:
    """An event as it is kept: without the id token, whose reference stands beside it."""
    return _fact(event).decode()


def _fact(event: TransactionEvent | NativeEvent) -> bytes:
    if isinstance(event, TransactionEvent) and event.id_token is not None:
        event = msgspec.structs.replace(event, id_token=None)
    return _ENCODER.encode(event)


def recorded(values: tuple[Any, ...]) -> Recorded:
    transaction, told, seq_no, fact, token, at, dating, *start, received_at = values
    event: TransactionEvent | NativeEvent = _DECODER.decode(fact)
    if isinstance(event, NativeEvent):
        event = msgspec.structs.replace(event, transaction=transaction, id=told, seq_no=seq_no)
    started_at, started_dating = start
    step = Step(
        event,
        Dated(at, Dating(dating)),
        Dated(started_at, Dating(started_dating)),
        token,
    )
    return Recorded(step, received_at)


_HELD: Final = (
    "SELECT t.id, t.tenant_id, t.station_id, t.origin, t.native_key, t.incarnation, t.number,"
    f" t.tariff_version, {', '.join(f't.{name}' for name in Projection.__struct_fields__)}"
    " FROM transactions.transaction t"
)


async def held(cursor: Cursor, ids: Collection[UUID]) -> dict[UUID, Held]:
    """The rows of these transactions, locked in one order."""
    await cursor.execute(
        f"{_HELD} WHERE t.id = ANY(%s::uuid[]) ORDER BY t.id FOR UPDATE", (literal(ids),)
    )
    return _held_by_id(await cursor.fetchall())


def _held_by_id(rows: Iterable[tuple[Any, ...]]) -> dict[UUID, Held]:
    return {values[0]: _held(values) for values in rows}


def _held(values: tuple[Any, ...]) -> Held:
    evse, connector, state, *others = values[8:]
    projection = Projection(evse, connector, State(state), *others)
    return Held(values[0], values[1], values[2], projection, Native(*values[3:7]), values[7])


At = tuple[int, datetime]


@dataclass
class Sought:
    """Which transactions of OCPP stations a commit may be about, each with its station."""

    keys: list[tuple[int, str]] = field(default_factory=list)
    numbers: list[tuple[int, int]] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    """Those that are open."""
    covering: list[tuple[int, int, datetime]] = field(default_factory=list)
    """Those that an EVSE had at a time."""
    recent: list[At] = field(default_factory=list)
    """The last that had begun by then."""
    stopped: list[At] = field(default_factory=list)
    """Those of which only the stop is known, which was after that."""


_KEYS: Final = (
    "SELECT x.id FROM transactions.transaction x JOIN unnest(%(key_stations)s::int[],"
    " %(keys)s::text[]) k (station, key) ON x.station_id = k.station AND x.native_key = k.key"
    " WHERE x.native_key IS NOT NULL"
)
_NUMBERS: Final = (
    "SELECT x.id FROM transactions.transaction x JOIN unnest(%(number_stations)s::int[],"
    " %(numbers)s::int[]) k (station, number) ON x.station_id = k.station AND x.number = k.number"
    " WHERE x.number IS NOT NULL"
)
_OPEN: Final = (
    "SELECT x.id FROM transactions.transaction x WHERE x.station_id = ANY(%(open)s::int[])"
    " AND x.state = 'open' AND x.origin <> 'agent'"
)
_COVERING: Final = (
    "SELECT n.id FROM unnest(%(covering_stations)s::int[], %(evses)s::int[],"
    " %(covering)s::timestamptz[]) k (station, evse, at) JOIN LATERAL (SELECT x.id"
    " FROM transactions.transaction x WHERE x.station_id = k.station AND x.evse = k.evse"
    " AND x.origin <> 'agent' AND x.started_at <= k.at + interval '1 minute'"
    " AND (x.state = 'open' OR x.ended_at >= k.at - interval '1 minute'"
    "  AND x.started_at > k.at - interval '8 days')"
    " ORDER BY x.started_at DESC LIMIT 2) n ON true"
)
_RECENT: Final = (
    "SELECT n.id FROM unnest(%(recent_stations)s::int[], %(recent)s::timestamptz[])"
    " k (station, at) JOIN LATERAL (SELECT x.id FROM transactions.transaction x"
    " WHERE x.station_id = k.station AND x.origin <> 'agent'"
    " AND x.started_at <= k.at + interval '1 minute' AND x.started_at > k.at - interval '8 days'"
    " ORDER BY x.started_at DESC LIMIT 20) n ON true"
)
_STOPPED: Final = (
    "SELECT x.id FROM unnest(%(stopped_stations)s::int[], %(stopped)s::timestamptz[])"
    " k (station, at) JOIN transactions.transaction x ON x.station_id = k.station"
    " AND NOT x.start_seen AND x.number IS NULL AND x.origin <> 'agent'"
    " AND x.started_at >= k.at - interval '8 days' AND x.started_at <= k.at + interval '8 days'"
    " AND x.ended_at >= k.at - interval '1 minute'"
)


async def find(cursor: Cursor, sought: Sought) -> dict[UUID, Held]:
    """The rows that are sought, locked in one order."""
    asked = find_ask(sought)
    return _held_by_id(await cursor.ask(*asked)) if asked else {}


def find_ask(sought: Sought) -> Ask | None:
    """What `find` asks; None when nothing is sought."""
    parts: list[LiteralString] = []
    params: dict[str, Any] = {}
    if sought.keys:
        parts.append(_KEYS)
        params |= {
            "key_stations": literal(station for station, _ in sought.keys),
            "keys": [key for _, key in sought.keys],
        }
    if sought.numbers:
        parts.append(_NUMBERS)
        params |= {
            "number_stations": literal(station for station, _ in sought.numbers),
            "numbers": literal(number for _, number in sought.numbers),
        }
    if sought.open:
        parts.append(_OPEN)
        params["open"] = literal(sought.open)
    if sought.covering:
        parts.append(_COVERING)
        stations, evses, times = zip(*sought.covering, strict=True)
        params |= {
            "covering_stations": literal(stations),
            "evses": literal(evses),
            "covering": list(times),
        }
    for name, part, wanted in (
        ("recent", _RECENT, sought.recent),
        ("stopped", _STOPPED, sought.stopped),
    ):
        if wanted:
            parts.append(part)
            params[f"{name}_stations"] = literal(station for station, _ in wanted)
            params[name] = [at for _, at in wanted]
    if not parts:
        return None
    union: LiteralString = " UNION ".join(parts)
    return Ask(f"{_HELD} WHERE t.id IN ({union}) ORDER BY t.id FOR UPDATE", params)


async def given(cursor: Cursor, numbers: Collection[int]) -> set[int]:
    """Which of these numbers some station was given."""
    await cursor.execute(
        "SELECT number FROM transactions.transaction WHERE number = ANY(%s::int[])",
        (literal(numbers),),
    )
    return {number for (number,) in await cursor.fetchall()}


async def followed(
    cursor: Cursor, commands: Collection[UUID], stations: Collection[int], since: datetime
) -> set[UUID]:
    """Which of these commands have begun a transaction of these stations since then."""
    await cursor.execute(
        "SELECT command FROM transactions.transaction WHERE station_id = ANY(%s::int[])"
        " AND started_at >= %s AND command = ANY(%s::uuid[])",
        (literal(stations), since, literal(commands)),
    )
    return {command for (command,) in await cursor.fetchall()}


def numbers_ask(count: int) -> Ask:
    """What `draw_numbers` asks; numbers that are not used are lost."""
    return Ask("SELECT nextval('transactions.number') FROM generate_series(1, %s::int)", (count,))


async def draw_numbers(cursor: Cursor, count: int) -> list[int]:
    """Free numbers for transactions of OCPP 1.6."""
    return [number for (number,) in await cursor.ask(*numbers_ask(count))]


_EVENT_TYPES: Final = {
    "transaction_id": "uuid",
    "id": "uuid",
    "tenant_id": "int",
    "station_id": "int",
    "received_at": "timestamptz",
    "seq_no": "bigint",
    "fact": "text",
    "at": "timestamptz",
    "dating": "text",
    "token": "int",
    "boot": "uuid",
    "started_boot": "uuid",
    "started_at": "timestamptz",
    "started_dating": "text",
}
_NO_BOOT: Final = UUID(int=0)
_UNSAID: Final = {
    "boot": f"'{_NO_BOOT}'",
    "started_boot": f"'{_NO_BOOT}'",
    "started_at": "at",
    "started_dating": "dating",
}
"""What a column is of which a line does not speak."""


def _line_of(name: str, types: Mapping[str, str], sayable: int) -> Any:
    """A kind of line; the columns behind the first `sayable` ones are left out where None."""
    columns = [
        (column, Any) if at < sayable else (column, Any, None) for at, column in enumerate(types)
    ]
    return msgspec.defstruct(name, columns, omit_defaults=True, gc=False)


def _recordset(types: Mapping[str, str]) -> str:
    """A JSON document's lines as rows.

    One document is written and read in a third of the time of an array for every column.
    """
    columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
    return f"json_to_recordset(%(lines)s::json) AS lines ({columns})"


_EventLine = _line_of("_EventLine", _EVENT_TYPES, 9)
_ADD_EVENTS: Final = (
    f"INSERT INTO transactions.event ({', '.join(_EVENT_TYPES)}) SELECT "
    + ", ".join(
        f"coalesce({name}, {_UNSAID[name]})" if name in _UNSAID else name for name in _EVENT_TYPES
    )
    + f" FROM {_recordset(_EVENT_TYPES)}"
)
_ADD_NEW_EVENTS: Final = _ADD_EVENTS + " ON CONFLICT DO NOTHING RETURNING transaction_id, id"


async def add_events(
    cursor: Cursor,
    events: Sequence[tuple[TenantId, int, datetime, Step]],
    *,
    surely_new: bool = False,
) -> set[tuple[UUID, UUID]] | None:
    """Record events (tenant, station, received, step).

    Returns (transaction, id) of the new; None for all of them. Those that are surely new need not
    be asked about: while the cursor holds back, the commit fails when one is there already.
    """
    lines = {"lines": _lines(_event_line(*one) for one in events)}
    if surely_new and cursor.holds_back:
        await cursor.at_last(_ADD_EVENTS, lines)
        return None
    await cursor.execute(_ADD_NEW_EVENTS, lines)
    return None if cursor.rowcount == len(events) else set(await cursor.fetchall())


def _lines(lines: Iterable[Any]) -> str:
    return _ENCODER.encode(list(lines)).decode()


def _event_line(tenant: TenantId, station: int, received_at: datetime, step: Step) -> Any:
    event, at, started, token, fact = step
    more: tuple[Any, ...] = (token,)
    if isinstance(event, TransactionEvent):
        more = (token, event.at.boot, event.started.boot, started.at, started.quality)
    elif started is not at:
        more = (token, None, None, started.at, started.quality)
    return _EventLine(
        event.transaction,
        event.id,
        tenant,
        station,
        received_at,
        event.seq_no,
        msgspec.Raw(fact or _fact(event)),
        at.at,
        at.quality,
        *more,
    )


async def histories(cursor: Cursor, ids: Collection[UUID]) -> dict[UUID, list[Step]]:
    """Every event of these transactions."""
    await cursor.catch_up()
    await cursor.execute(
        f"SELECT {EVENT_COLUMNS} FROM transactions.event WHERE transaction_id = ANY(%s::uuid[])",
        (literal(ids),),
    )
    found: dict[UUID, list[Step]] = {}
    for values in await cursor.fetchall():
        found.setdefault(values[0], []).append(recorded(values).step)
    return found


async def undated(cursor: Cursor, station_id: int, boot: UUID) -> list[Recorded]:
    """Events of the station with a time of that boot that is not known exactly."""
    await cursor.execute(
        f"SELECT {EVENT_COLUMNS} FROM transactions.event WHERE station_id = %(station)s"
        " AND (dating IN ('unset', 'estimated') OR started_dating IN ('unset', 'estimated'))"
        " AND (boot = %(boot)s OR started_boot = %(boot)s)",
        {"station": station_id, "boot": boot},
    )
    return [recorded(values) for values in await cursor.fetchall()]


async def redate(cursor: Cursor, steps: Sequence[Step]) -> None:
    await cursor.executemany(
        "UPDATE transactions.event SET at = %s, dating = %s, started_at = %s, started_dating = %s"
        " WHERE transaction_id = %s AND id = %s",
        [
            (
                step.at.at,
                str(step.at.quality),
                step.started.at,
                str(step.started.quality),
                step.event.transaction,
                step.event.id,
            )
            for step in steps
        ],
    )


_ROW_TYPES: Final = {
    "id": "uuid",
    "tenant_id": "int",
    "station_id": "int",
    "updated_at": "timestamptz",
    "origin": "text",
    "native_key": "text",
    "incarnation": "int",
    "number": "int",
    "tariff_version": "int",
    "evse": "int",
    "connector": "int",
    "state": "text",
    "charging_state": "text",
    "started_at": "timestamptz",
    "started_dating": "text",
    "ended_at": "timestamptz",
    "ended_dating": "text",
    "reason": "text",
    "token": "int",
    "command": "uuid",
    "seq_no": "bigint",
    "energy_wh": "bigint",
    "meter_wh": "bigint",
    "raw_wh": "bigint",
    "duration_ms": "bigint",
    "billing_grade": "boolean",
    "start_seen": "boolean",
    "last_at": "timestamptz",
    "concluded": "boolean",
    "review": "text",
    "start_wh": "bigint",
    "start_told": "boolean",
    "remote_start_id": "bigint",
    "power_w": "bigint",
    "power_wms": "bigint",
    "stated_ms": "bigint",
}
"""What a native identity, the tariff and a projection hold, in their order."""
_STAYING: Final = ("id", "tenant_id", "station_id", "origin", "incarnation")
_RowLine = _line_of("_RowLine", _ROW_TYPES, len(_ROW_TYPES))
_PUT: Final = (
    f"INSERT INTO transactions.transaction ({', '.join(_ROW_TYPES)})"
    f" SELECT * FROM {_recordset(_ROW_TYPES)} ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _ROW_TYPES if name not in _STAYING)
)


async def put(cursor: Cursor, held_rows: Sequence[Held], now: datetime) -> None:
    """Write projections; the tenant and station of the first writing stay."""
    if held_rows:
        lines = _lines(
            _RowLine(
                one.id,
                one.tenant_id,
                one.station_id,
                now,
                *one.native,
                one.tariff_version,
                *msgspec.structs.astuple(one.projection),
            )
            for one in held_rows
        )
        await cursor.at_last(_PUT, {"lines": lines})


_MEASURE_TYPES: Final = {"id": "uuid"} | {
    name: _ROW_TYPES[name]
    for name in (
        "seq_no", "energy_wh", "meter_wh", "duration_ms", "last_at", "charging_state", "evse",
        "connector", "billing_grade", "power_wms", "start_told", "start_seen", "started_at",
        "started_dating", "raw_wh", "power_w", "review", "start_wh", "token", "command",
        "remote_start_id", "stated_ms",
    )
}  # fmt: skip
"""What an event in the middle of a transaction can change."""
_measures = attrgetter(*list(_MEASURE_TYPES)[1:])
_MeasureLine = _line_of("_MeasureLine", _MEASURE_TYPES, 13)
_PUT_MEASURES: Final = (
    "UPDATE transactions.transaction t SET updated_at = %(now)s, "
    + ", ".join(f"{name} = lines.{name}" for name in list(_MEASURE_TYPES)[1:])
    + f" FROM {_recordset(_MEASURE_TYPES)} WHERE t.id = lines.id"
)


async def put_measures(cursor: Cursor, held_rows: Sequence[Held], now: datetime) -> None:
    """Write projections of transactions that stand and go on: for most events, half the work."""
    if held_rows:
        lines = _lines(_MeasureLine(one.id, *_measures(one.projection)) for one in held_rows)
        await cursor.at_last(_PUT_MEASURES, {"lines": lines, "now": now})


Noted = tuple[TenantId, int, TransactionEvent | NativeEvent, Contradiction]


async def note_conflicts(
    cursor: Cursor,
    conflicts: Iterable[Noted],
    now: datetime,
) -> None:
    """Record contradictions (tenant, station, event, kind), each once."""
    entries = [
        (event.transaction, event.id, tenant, station, str(kind), fact_text(event), now)
        for tenant, station, event, kind in conflicts
    ]
    if not entries:
        return
    await cursor.catch_up()
    await cursor.executemany(
        "INSERT INTO transactions.conflict (transaction_id, event_id, tenant_id, station_id, kind,"
        " fact, noted_at) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        entries,
    )
    await cursor.execute(
        "UPDATE transactions.transaction t SET conflicts = (SELECT count(*)"
        " FROM transactions.conflict c WHERE c.transaction_id = t.id) WHERE t.id = ANY(%s)",
        ([entry[0] for entry in entries],),
    )
