"""Commands that are OCPP calls, and what of a station's OCPP link they depend on."""

from __future__ import annotations

from alembic import op

revision = "communication_0005"
down_revision = "communication_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the table of commands; the release before leaves the new columns as they are."""
    op.execute("""
        CREATE SEQUENCE communication.ocpp_number AS integer CYCLE;
        GRANT USAGE ON SEQUENCE communication.ocpp_number TO karvon_app, karvon_commit;

        ALTER TABLE communication.command
            ADD COLUMN link text CHECK (link IN ('agent', 'ocpp')),
            ADD COLUMN ocpp_action text,
            ADD COLUMN request jsonb,
            ADD COLUMN response jsonb,
            ADD COLUMN error text NOT NULL DEFAULT '',
            ADD COLUMN epoch bigint,
            ADD COLUMN number integer;
        ALTER TABLE communication.command
            ALTER COLUMN number SET DEFAULT nextval('communication.ocpp_number');
        CREATE INDEX command_requested ON communication.command (station_id, requested_at, id)
            WHERE status = 'requested';
        CREATE INDEX command_called ON communication.command (station_id)
            WHERE status = 'sent' AND link = 'ocpp';

        CREATE TABLE communication.ocpp_link (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            version text NOT NULL,
            firmware text NOT NULL DEFAULT '',
            learned jsonb NOT NULL DEFAULT '{}',
            since timestamptz NOT NULL
        );
        SELECT kernel.protect('communication.ocpp_link');
    """)
