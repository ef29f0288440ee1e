"""EVSEs are sought in the index, also by a plan that was made when the day was still empty."""

from __future__ import annotations

from alembic import op

revision = "telemetry_0003"
down_revision = "telemetry_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A function keeps its plan until somebody analyzes the table: up to minutes of full scans."""
    op.execute(
        "ALTER FUNCTION telemetry.evses(integer, timestamptz, timestamptz) SET enable_seqscan = off"
    )
