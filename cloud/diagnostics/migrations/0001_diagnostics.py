"""Security events, transfers, monitors, display messages, notices of OCPP stations."""

from __future__ import annotations

from alembic import op

revision = "diagnostics_0001"
down_revision = None
branch_labels = ("diagnostics",)
depends_on = ("kernel", "stations_0005")


def upgrade() -> None:
    """Create the module's schema; agents' security events are read where they are."""
    op.execute("""
        CREATE SCHEMA diagnostics;
        SELECT kernel.open_schema('diagnostics');

        CREATE TABLE diagnostics.security_event (
            id uuid PRIMARY KEY,
            station_id integer NOT NULL,
            tenant_id integer NOT NULL,
            at timestamptz NOT NULL,
            received_at timestamptz NOT NULL,
            type text NOT NULL,
            text text NOT NULL
        );
        CREATE INDEX security_event_station ON diagnostics.security_event
            (station_id, at DESC, id DESC);

        CREATE TABLE diagnostics.transfer (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            station_id integer NOT NULL,
            tenant_id integer NOT NULL,
            kind text NOT NULL,
            request_id bigint,
            command uuid UNIQUE,
            location text NOT NULL,
            filename text NOT NULL,
            expected_version text NOT NULL,
            status text NOT NULL,
            is_open boolean NOT NULL,
            is_concluded boolean NOT NULL,
            asked_at timestamptz NOT NULL,
            at timestamptz NOT NULL
        );
        CREATE INDEX transfer_station ON diagnostics.transfer
            (station_id, kind, asked_at DESC, id DESC);

        CREATE TABLE diagnostics.transfer_status (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            transfer_id bigint NOT NULL,
            station_id integer NOT NULL,
            tenant_id integer NOT NULL,
            status text NOT NULL,
            at timestamptz NOT NULL
        );
        CREATE INDEX transfer_status_transfer ON diagnostics.transfer_status (transfer_id, id);

        CREATE TABLE diagnostics.monitor (
            station_id integer NOT NULL,
            monitor_id bigint NOT NULL,
            tenant_id integer NOT NULL,
            component jsonb NOT NULL,
            variable jsonb NOT NULL,
            type text NOT NULL,
            value double precision NOT NULL,
            severity integer NOT NULL,
            only_in_transaction boolean NOT NULL,
            at timestamptz NOT NULL,
            PRIMARY KEY (station_id, monitor_id)
        );

        CREATE TABLE diagnostics.display_message (
            station_id integer NOT NULL,
            message_id bigint NOT NULL,
            tenant_id integer NOT NULL,
            message jsonb NOT NULL,
            at timestamptz NOT NULL,
            PRIMARY KEY (station_id, message_id)
        );

        CREATE TABLE diagnostics.notice (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            station_id integer NOT NULL,
            tenant_id integer NOT NULL,
            at timestamptz NOT NULL,
            action text NOT NULL,
            payload jsonb NOT NULL
        );
        CREATE INDEX notice_station ON diagnostics.notice (station_id, at DESC, id DESC);
        CREATE INDEX notice_time ON diagnostics.notice (at);

        SELECT kernel.protect(t) FROM unnest(ARRAY[
            'diagnostics.security_event', 'diagnostics.transfer', 'diagnostics.transfer_status',
            'diagnostics.monitor', 'diagnostics.display_message',
            'diagnostics.notice']::regclass[]) t;
    """)
