"""What an agent's network links have carried, as it tells."""

from __future__ import annotations

from alembic import op

revision = "stations_0008"
down_revision = "stations_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; null where an agent has not told it."""
    op.execute("ALTER TABLE stations.station_state ADD COLUMN network jsonb")
