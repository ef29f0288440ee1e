"""Indexes for the orders that lists of transactions offer."""

from __future__ import annotations

from alembic import op

revision = "transactions_0002"
down_revision = "transactions_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `final_wh`: indexed, it changes once, so that open ones are still updated in place."""
    op.execute("""
        ALTER TABLE transactions.transaction ADD COLUMN final_wh bigint
            GENERATED ALWAYS AS (CASE WHEN state = 'ended' THEN energy_wh END) STORED;
        CREATE INDEX transaction_ended
            ON transactions.transaction (tenant_id, ended_at NULLS FIRST, id);
        CREATE INDEX transaction_energy
            ON transactions.transaction (tenant_id, final_wh NULLS FIRST, id);
        DROP INDEX transactions.transaction_token;
        CREATE INDEX transaction_token
            ON transactions.transaction (token, started_at DESC, id DESC) WHERE token IS NOT NULL;
        CREATE INDEX event_number ON transactions.event (transaction_id, seq_no, id);
    """)
