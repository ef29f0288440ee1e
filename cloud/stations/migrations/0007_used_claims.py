"""Claim codes that a controller has used, and may repeat until it has surely got the answer."""

from __future__ import annotations

from alembic import op

revision = "stations_0007"
down_revision = "stations_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of its own: the release before must not take a used code for a good one."""
    op.execute("""
        CREATE TABLE stations.used_claim (
            station_id integer PRIMARY KEY REFERENCES stations.station ON DELETE CASCADE,
            tenant_id integer NOT NULL,
            digest bytea NOT NULL,
            used_by bytea NOT NULL,
            expires_at timestamptz NOT NULL
        );
        SELECT kernel.protect('stations.used_claim');
    """)
