"""What an id token is sought by, made small once and not at each question."""

from __future__ import annotations

from alembic import op

revision = "authorization_0004"
down_revision = "authorization_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rewrites the table, which is no history."""
    op.execute("""
        ALTER TABLE "authorization".id_token ADD COLUMN sought text
            GENERATED ALWAYS AS (lower(value || ' ' || label)) STORED;
    """)
