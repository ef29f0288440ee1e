"""Stations in large numbers: orders, alarms, EVSEs and stations that are gone."""

from __future__ import annotations

from alembic import op

revision = "stations_0002"
down_revision = "stations_0001"
branch_labels = None
depends_on = "kernel_0002"


def upgrade() -> None:
    """Columns and tables for the fleet's lists.

    States and clocks lose their foreign key: an agent may still report for moments after its
    station was deleted, and a batch of billing facts must not fail for that.
    """
    op.execute("""
        ALTER TABLE stations.station ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
        ALTER TABLE stations.evse ADD COLUMN gone_at timestamptz;
        ALTER TABLE stations.station_state ADD COLUMN alarms jsonb NOT NULL DEFAULT '[]';

        ALTER TABLE stations.evse_state DROP CONSTRAINT evse_state_station_id_fkey;
        ALTER TABLE stations.station_state DROP CONSTRAINT station_state_station_id_fkey;
        ALTER TABLE stations.boot_clock DROP CONSTRAINT boot_clock_station_id_fkey;
        ALTER TABLE stations.security_event DROP CONSTRAINT security_event_station_id_fkey;

        CREATE INDEX station_name ON stations.station (tenant_id, lower(name), id);
        CREATE INDEX station_created ON stations.station (tenant_id, created_at, id);
        CREATE INDEX evse_state_status ON stations.evse_state (tenant_id, status, station_id);

        CREATE TABLE stations.former_station (
            id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            identity text NOT NULL,
            name text NOT NULL,
            site_id integer,
            created_at timestamptz NOT NULL,
            deleted_at timestamptz NOT NULL,
            deleted_by text NOT NULL
        );
        CREATE INDEX former_station_identity ON stations.former_station (tenant_id, identity);
        SELECT kernel.protect('stations.former_station');
    """)
