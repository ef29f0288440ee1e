"""Which version of a tariff a transaction is priced by."""

from __future__ import annotations

from alembic import op

revision = "transactions_0004"
down_revision = "transactions_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the version's id, settled at the start; null for what started without a price."""
    op.execute("ALTER TABLE transactions.transaction ADD COLUMN tariff_version integer")
