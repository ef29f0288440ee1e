"""Stations that speak OCPP themselves: what hardware they say they are."""

from __future__ import annotations

from alembic import op

revision = "stations_0004"
down_revision = "stations_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add hardware; an EVSE need not tell phases and current any more."""
    op.execute("""
        CREATE TABLE stations.hardware (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            vendor text NOT NULL,
            model text NOT NULL,
            serial text NOT NULL,
            firmware text NOT NULL,
            iccid text NOT NULL,
            imsi text NOT NULL,
            meter_type text NOT NULL,
            meter_serial text NOT NULL,
            reason text NOT NULL,
            booted_at timestamptz NOT NULL
        );
        SELECT kernel.protect('stations.hardware');
        CREATE INDEX hardware_model ON stations.hardware (tenant_id, model, station_id);

        ALTER TABLE stations.evse
            ALTER COLUMN phases DROP NOT NULL,
            ALTER COLUMN max_ma DROP NOT NULL,
            ALTER COLUMN energy_step_wh DROP NOT NULL,
            ALTER COLUMN billing_grade DROP NOT NULL;
    """)
