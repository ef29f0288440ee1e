"""Connections, credentials, commands."""

from alembic import op

revision = "communication_0001"
down_revision = None
branch_labels = ("communication",)
depends_on = "kernel_0001"


def upgrade() -> None:
    op.execute("""
        CREATE SCHEMA communication;
        SELECT kernel.open_schema('communication');

        CREATE TABLE communication.connection (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            epoch bigint NOT NULL,
            online boolean NOT NULL,
            boot uuid NOT NULL,
            agent_version text NOT NULL,
            connected_at timestamptz NOT NULL,
            last_seen timestamptz NOT NULL
        );
        CREATE INDEX connection_tenant ON communication.connection (tenant_id, station_id)
            WHERE online;

        CREATE TABLE communication.credential (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            username text NOT NULL UNIQUE,
            bcrypt text NOT NULL,
            mosquitto text NOT NULL,
            issued_at timestamptz NOT NULL
        );

        CREATE TABLE communication.command (
            id uuid PRIMARY KEY,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            action jsonb NOT NULL,
            actor text NOT NULL,
            status text NOT NULL CHECK (status IN
                ('requested', 'sent', 'accepted', 'rejected', 'executed', 'failed', 'expired')),
            requested_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            sent_at timestamptz,
            accepted_at timestamptz,
            finished_at timestamptz,
            result text NOT NULL DEFAULT '',
            transaction_id uuid
        );
        CREATE INDEX command_station ON communication.command
            (station_id, requested_at DESC, id DESC);
        CREATE INDEX command_waiting ON communication.command (expires_at)
            WHERE status IN ('requested', 'sent', 'accepted');

        SELECT kernel.protect('communication.connection'),
               kernel.protect('communication.credential'),
               kernel.protect('communication.command');
    """)
