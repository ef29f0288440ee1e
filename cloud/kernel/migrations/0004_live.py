"""Which connection of an OCPP station is its newest, and which gateway holds it."""

from __future__ import annotations

from alembic import op

revision = "kernel_0004"
down_revision = "kernel_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; nothing that is there changes."""
    op.execute("""
        CREATE TABLE kernel.live (
            station_id int PRIMARY KEY,
            tenant_id int NOT NULL,
            epoch bigint NOT NULL,
            gateway uuid,
            since timestamptz NOT NULL
        ) WITH (fillfactor = 70);
        CREATE INDEX live_gateway ON kernel.live (gateway) WHERE gateway IS NOT NULL;
        SELECT kernel.protect('kernel.live');
    """)
