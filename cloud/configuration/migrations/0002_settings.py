"""Settings of agents: what is desired, and what each agent reported."""

from __future__ import annotations

from alembic import op

revision = "configuration_0002"
down_revision = "configuration_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only."""
    op.execute("""
        CREATE TABLE configuration.desired_settings (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            version bigint NOT NULL,
            document jsonb NOT NULL,
            set_by text NOT NULL,
            set_at timestamptz NOT NULL,
            pushed_at timestamptz NOT NULL
        );

        CREATE TABLE configuration.reported_settings (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            version bigint NOT NULL,
            told bigint NOT NULL,
            state text NOT NULL,
            reason text NOT NULL,
            since timestamptz NOT NULL,
            outbox uuid NOT NULL,
            seq bigint NOT NULL
        );

        SELECT kernel.protect(t) FROM unnest(ARRAY[
            'configuration.desired_settings', 'configuration.reported_settings']::regclass[]) t;
    """)
