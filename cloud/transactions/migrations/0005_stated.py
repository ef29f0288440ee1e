"""What a station's clock showed at a start, while nobody had set it."""

from __future__ import annotations

from alembic import op

revision = "transactions_0005"
down_revision = "transactions_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it, in Unix ms; null for every start whose time was believed."""
    op.execute("ALTER TABLE transactions.transaction ADD COLUMN stated_ms bigint")
