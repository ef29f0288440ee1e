"""Transactions, their events, contradictions."""

from __future__ import annotations

from alembic import op

revision = "transactions_0001"
down_revision = None
branch_labels = ("transactions",)
depends_on = "kernel"


def upgrade() -> None:
    """Create the module's schema."""
    op.execute("""
        CREATE SCHEMA transactions;
        SELECT kernel.open_schema('transactions');

        CREATE TABLE transactions.transaction (
            id uuid PRIMARY KEY,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            evse integer NOT NULL,
            connector integer NOT NULL,
            state text NOT NULL CHECK (state IN ('open', 'ended')),
            charging_state text NOT NULL,
            started_at timestamptz NOT NULL,
            started_dating text NOT NULL,
            ended_at timestamptz,
            ended_dating text,
            reason text,
            token integer,
            command uuid,
            seq_no bigint NOT NULL,
            energy_wh bigint NOT NULL,
            meter_wh bigint NOT NULL,
            raw_wh bigint,
            duration_ms bigint NOT NULL,
            billing_grade boolean NOT NULL,
            start_seen boolean NOT NULL,
            conflicts integer NOT NULL DEFAULT 0,
            last_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        );
        CREATE INDEX transaction_time
            ON transactions.transaction (tenant_id, started_at DESC, id DESC);
        CREATE INDEX transaction_station
            ON transactions.transaction (station_id, started_at DESC, id DESC);
        CREATE INDEX transaction_open
            ON transactions.transaction (station_id) WHERE state = 'open';
        CREATE INDEX transaction_token
            ON transactions.transaction (token) WHERE token IS NOT NULL;

        CREATE TABLE transactions.event (
            transaction_id uuid NOT NULL,
            id uuid NOT NULL,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            seq_no bigint NOT NULL,
            fact text NOT NULL,
            token integer,
            boot uuid NOT NULL,
            started_boot uuid NOT NULL,
            at timestamptz NOT NULL,
            dating text NOT NULL,
            started_at timestamptz NOT NULL,
            started_dating text NOT NULL,
            received_at timestamptz NOT NULL,
            PRIMARY KEY (transaction_id, id)
        );
        CREATE INDEX event_undated ON transactions.event (station_id)
            WHERE dating IN ('unset', 'estimated') OR started_dating IN ('unset', 'estimated');

        CREATE TABLE transactions.conflict (
            transaction_id uuid NOT NULL,
            event_id uuid NOT NULL,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            kind text NOT NULL,
            fact text NOT NULL,
            noted_at timestamptz NOT NULL,
            PRIMARY KEY (transaction_id, event_id, kind)
        );

        SELECT kernel.protect(t) FROM unnest(ARRAY[
            'transactions.transaction', 'transactions.event',
            'transactions.conflict']::regclass[]) t;
    """)
