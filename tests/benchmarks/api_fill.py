"""A database as a country's network leaves it: stations with states, id tokens, transactions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_URL, uuid5

import psycopg

from cloud.stations.api import to_ms
from cloud.transactions.history_store import fact_text
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    Stamp,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

DETAILED = 2_000
"""Transactions that have their events, too."""
_EVENTS = 12


@dataclass(frozen=True)
class Sizes:
    stations: int = 10_000
    sites: int = 500
    tokens: int = 10_000
    transactions: int = 1_000_000
    days: int = 365
    start: datetime = datetime(2025, 11, 1, tzinfo=UTC)


_STEPS = (
    """
    INSERT INTO stations.site (tenant_id, name, created_at)
    SELECT 1, 'Site ' || n, now() FROM generate_series(1, %(sites)s) n
    """,
    """
    INSERT INTO stations.station (tenant_id, identity, name, site_id, registration, created_at)
    SELECT 1, 'CP-' || lpad(n::text, 5, '0'), 'Station ' || (n * 7919) %% 100000,
        1 + n %% %(sites)s, 'registered', now() FROM generate_series(0, %(stations)s - 1) n
    """,
    """
    INSERT INTO stations.evse (tenant_id, station_id, evse, phases, max_ma, energy_step_wh,
        billing_grade)
    SELECT 1, s.id, e, 3, 32000, 1, true FROM stations.station s, generate_series(1, 2) e
    """,
    """
    INSERT INTO stations.connector (tenant_id, station_id, evse, connector)
    SELECT 1, station_id, evse, 1 FROM stations.evse
    """,
    """
    INSERT INTO stations.evse_state (tenant_id, station_id, evse, outbox, seq, at, received_at,
        measured_at, status, charging_state, offered_ma, limited_by, error)
    SELECT 1, station_id, evse, gen_random_uuid(), 1, now(), now(), now(),
        CASE WHEN station_id %% 3 = 0 THEN 'Occupied' ELSE 'Available' END, 'Idle', 16000, '', ''
    FROM stations.evse
    """,
    """
    INSERT INTO stations.station_state (station_id, tenant_id, outbox, seq, at, received_at,
        agent_version, boards, local_list_version, pending_billing, pending_telemetry,
        journal_bytes)
    SELECT id, 1, gen_random_uuid(), 1, now(), now(), '1.0', '{"power": "ABB"}', 1, 0, 0, 9000
    FROM stations.station
    """,
    """
    INSERT INTO communication.connection (station_id, tenant_id, epoch, online, boot,
        agent_version, connected_at, last_seen)
    SELECT id, 1, 1, true, gen_random_uuid(), '1.0', now(), now() FROM stations.station
    """,
    """
    INSERT INTO "authorization".id_token (tenant_id, value, type, label, created_at)
    SELECT 1, '04' || lpad(upper(to_hex(n)), 12, '0'), 'ISO14443', 'Driver ' || n, now()
    FROM generate_series(0, %(tokens)s - 1) n
    """,
    """
    INSERT INTO "authorization".token_ref (tenant_id, value, type)
    SELECT tenant_id, value, type FROM "authorization".id_token ORDER BY id
    """,
    """
    INSERT INTO transactions.transaction (id, tenant_id, station_id, evse, connector, state,
        charging_state, started_at, started_dating, ended_at, ended_dating, reason, token, seq_no,
        energy_wh, meter_wh, duration_ms, billing_grade, start_seen, last_at, updated_at)
    SELECT gen_random_uuid(), 1, (SELECT min(id) FROM stations.station) + n %% %(stations)s,
        1 + n %% 2, 1, CASE WHEN open THEN 'open' ELSE 'ended' END, 'Idle', at, 'synced',
        CASE WHEN NOT open THEN at + interval '40 minutes' END,
        CASE WHEN NOT open THEN 'synced' END, CASE WHEN NOT open THEN 'Local' END,
        (SELECT min(id) FROM "authorization".token_ref) + (n::bigint * 7919 %% %(tokens)s)::int, 9,
        (n::bigint * 7919) %% 60000, n, 2400000, true, true, at, at
    FROM (SELECT n, n > %(transactions)s - %(stations)s / 10 AS open,
              %(start)s + %(days)s * interval '1 day' * (n / %(transactions)s::float8) AS at
          FROM generate_series(1, %(transactions)s) n) made
    """,
)


def fill(dsn: str, sizes: Sizes) -> None:
    """Fill a database whose schema a cloud has just made."""
    with psycopg.connect(dsn) as connection:
        for step in _STEPS:
            connection.execute(step, asdict(sizes))
        _add_events(connection)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")  # what autovacuum has done long before


def _add_events(connection: psycopg.Connection) -> None:
    found = connection.execute(
        "SELECT id, station_id, evse, started_at FROM transactions.transaction"
        " WHERE state = 'ended' ORDER BY id LIMIT %s",
        (DETAILED,),
    ).fetchall()
    with connection.cursor().copy(
        "COPY transactions.event (tenant_id, transaction_id, id, station_id, seq_no, fact, boot,"
        " started_boot, at, dating, started_at, started_dating, received_at) FROM STDIN"
    ) as copy:
        for transaction, station, evse, started in found:
            boot = uuid5(NAMESPACE_URL, f"boot of {station}")
            for number in range(_EVENTS):
                at = started + timedelta(minutes=number)
                stamp = Stamp(Milliseconds(to_ms(at)), Milliseconds(0), boot, ClockQuality.SYNCED)
                event = TransactionEvent(
                    id=uuid5(transaction, str(number)),
                    transaction=transaction,
                    type=TransactionEventType.UPDATED,
                    seq_no=number,
                    at=stamp,
                    trigger=Trigger.METER_VALUE_PERIODIC,
                    evse=evse,
                    started=stamp,
                    charging_state=ChargingState.CHARGING,
                    energy_wh=WattHours(number * 100),
                    meter_wh=WattHours(number * 100),
                )
                copy.write_row(
                    (1, transaction, event.id, station, number, fact_text(event), boot, boot,
                     at, "synced", started, "synced", at)
                )  # fmt: skip
