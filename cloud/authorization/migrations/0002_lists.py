"""Indexes for the orders that lists of id tokens offer."""

from __future__ import annotations

from alembic import op

revision = "authorization_0002"
down_revision = "authorization_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add indexes only."""
    op.execute("""
        CREATE INDEX id_token_created
            ON "authorization".id_token (tenant_id, created_at, id);
        CREATE INDEX id_token_expires
            ON "authorization".id_token (tenant_id, expires_at NULLS FIRST, id);
    """)
