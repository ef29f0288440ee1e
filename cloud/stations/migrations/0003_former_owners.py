"""Who owned a station before it moved to another tenant."""

from __future__ import annotations

from alembic import op

revision = "stations_0003"
down_revision = "stations_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; nothing that is there changes."""
    op.execute("""
        CREATE TABLE stations.former (
            station_id integer NOT NULL,
            until timestamptz NOT NULL,
            tenant_id integer NOT NULL,
            identity text NOT NULL,
            PRIMARY KEY (station_id, until)
        );
        CREATE INDEX former_identity ON stations.former (tenant_id, identity);
        SELECT kernel.protect('stations.former');
    """)
