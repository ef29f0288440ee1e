"""Which hardware ids of releases fit a controller and its boards."""

from __future__ import annotations

from alembic import op

revision = "stations_0009"
down_revision = "stations_0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only; empty: the agent does not tell."""
    op.execute("""
        ALTER TABLE stations.station_state ADD COLUMN hardware text[] NOT NULL DEFAULT '{}';
    """)
