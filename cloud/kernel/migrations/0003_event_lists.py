"""The event log as lists: one tenant's, one station's."""

from __future__ import annotations

from alembic import op

revision = "kernel_0003"
down_revision = "kernel_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Reading behind a cursor must not pass over the other tenants' events."""
    op.execute("""
        CREATE INDEX event_tenant ON kernel.event (tenant_id, partition, position);
        CREATE INDEX event_station ON kernel.event (station_id, position);
    """)
